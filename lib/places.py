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
PUBLISHED = ROOT / "outputs"  # the published record, committed; only `lib.run --publish` writes there
RUNS = (ROOT if CHECKOUT else Path.cwd()) / "runs"  # what this machine has run; code asks outputs()


def outputs(model: str | None = None) -> Path:
    """The results folder, or one model's part of it: runs/, unless DUAL_OUTPUTS in the environment names another."""
    root = Path(os.environ.get("DUAL_OUTPUTS") or RUNS)
    return root if model is None else root / model_name(model)


def use_published() -> None:
    """Let everything in this process read (and write) the published record."""
    os.environ.setdefault("DUAL_OUTPUTS", str(PUBLISHED))


def model_name(model: str) -> str:
    """Short name of a model given as a name, a hub id (`org/name`) or a path: its last part."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else path.name


def show(path) -> str:
    """A path as a reader wants it: relative to the project where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else str(path)
