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
RUNS = (ROOT if CHECKOUT else Path.cwd()) / "runs"  # what this machine has run; code asks record()
BY_HAND = "by-hand"  # folder beside the models' folders for what the runner did not run
STAGED = "DUAL_STAGED"  # in the environment of a notebook that the runner executes: where its results are collected
DROPPED = ".dropped.jsonl"  # there: spellings of candidates that were left out, a line each (lib/engine/prompts.py)


def record(model: str | None = None) -> Path:
    """The record that is read and that the runner files runs in, or one model's part of it.

    It is runs/, unless DUAL_OUTPUTS in the environment names another folder.
    """
    root = Path(os.environ.get("DUAL_OUTPUTS") or RUNS)
    return root if model is None else root / model_name(model)


def outputs(model: str) -> Path:
    """Where the code that runs now writes results about a model.

    The runner collects them and files them when the notebook has ended (lib/artifact/manifests.py). Without the
    runner (JupyterLab, papermill called directly) they go to a folder of their own, so that the record holds nothing
    of which nobody knows how it was made.
    """
    return staging() or record() / BY_HAND / model_name(model)


def staging() -> Path | None:
    """The folder where the runner collects the results of this notebook; None without the runner."""
    return Path(os.environ[STAGED]) if os.environ.get(STAGED) else None


def use_published() -> None:
    """Let everything in this process read the published record."""
    os.environ.setdefault("DUAL_OUTPUTS", str(PUBLISHED))


def model_name(model: str) -> str:
    """Short name of a model given as a name, a hub id (`org/name`) or a path: its last part."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else path.name


def show(path) -> str:
    """A path as a reader wants it: relative to the project where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else str(path)
