"""Where the project's folders are."""

import os
from pathlib import Path

LIB = Path(__file__).resolve().parent
ROOT = LIB.parent
CHECKOUT = (ROOT / "pyproject.toml").is_file()  # no: installed as a package, as on Colab
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data" if CHECKOUT else LIB / "data"  # a package carries it inside (pyproject.toml, package-dir)
MODELS = DATA / "models"
OBJECTS = DATA / "objects"
OUTPUTS = (
    ROOT if CHECKOUT else Path.cwd()
) / "outputs"  # the published results; code asks outputs(), which may be redirected


def outputs(model: str | None = None) -> Path:
    """The results folder, or one model's part of it; DUAL_OUTPUTS in the environment redirects all of it."""
    root = Path(os.environ.get("DUAL_OUTPUTS") or OUTPUTS)
    return root if model is None else root / model_name(model)


def model_name(model: str) -> str:
    """Short name of a model given as a name, a hub id (`org/name`) or a path: its last part."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else path.name


def show(path) -> str:
    """A path as a reader wants it: relative to the project where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else str(path)
