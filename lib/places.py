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
HERE = ROOT if CHECKOUT else Path.cwd()  # where results may lie
OUTPUTS = HERE / "outputs"  # the published record: only `make publish` writes it
REDIRECT = "DUAL_OUTPUTS"  # in the environment: a folder to use in place of runs/ and local/
STAGING = "DUAL_STAGING"  # in the environment of a notebook that the runner executes: where it leaves its results


def runs() -> Path:
    """What this machine has run, in the layout of outputs/; git ignores it."""
    return redirected() or HERE / "runs"


def local() -> Path:
    """What is run by hand, in JupyterLab or by papermill itself; git ignores it."""
    return redirected() or HERE / "local"


def redirected() -> Path | None:
    return Path(os.environ[REDIRECT]) if os.environ.get(REDIRECT) else None


def staging() -> Path | None:
    """The folder in which the runner collects the results of the notebook it is executing; None elsewhere."""
    return Path(os.environ[STAGING]) if os.environ.get(STAGING) else None


def model_name(model: str) -> str:
    """Short name of a model given as a name, a hub id (`org/name`) or a path: its last part."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else path.name


def show(path) -> str:
    """A path as a reader wants it: relative to the project where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else str(path)
