"""Where the results of a notebook go, and what they were made with.

A notebook that the runner executes leaves its results in a staging folder (lib/artifact/manifests.py says what becomes
of them). One that is run by hand, in JupyterLab or by papermill itself, writes to local/<model>/, which git ignores:
the published record changes through the runner only.
"""

import json
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pandas as pd

from lib import files, places
from lib.errors import UserError
from lib.places import CHECKOUT, ROOT, model_name, show

PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn")  # versions worth recording
TOLERANCE = 1e-4  # by which a number may differ from the published one, unless the table says more


def folder(model: str) -> Path:
    """Where the running notebook leaves results about a model."""
    return places.staging() or places.local() / model_name(model)


def where(model: str) -> str:
    """For the line at the top of a page: where its results go."""
    if places.staging():
        return "results are filed by the runner"
    return f"run by hand: results go to {show(folder(model))}, the published ones stay as they are"


def save_table(table: pd.DataFrame, name: str, model: str, seed: int, tolerance: float = TOLERANCE) -> None:
    """Write tables/<name>.csv.

    seed: what the numbers were drawn with. tolerance: by how much they may differ from the published ones on another
    machine; more than TOLERANCE only with a comment that says why.
    """
    if table.empty:
        raise ValueError(f"table {name!r} has no rows to save")
    save(files.csv_bytes(table), f"tables/{name}.csv", model, seed, tolerance)


def save(content: bytes, file: str, model: str, seed: int, tolerance: float = TOLERANCE) -> None:
    """Write one result of the running notebook, given by its path in the model's folder."""
    files.write_bytes(folder(model) / file, content)
    files.note(result=file, seed=seed, tolerance=tolerance)


def read_csv(path) -> pd.DataFrame:
    """Read a table that `files.write_csv` wrote. Only an empty cell is missing: "none" and "NA" are values here."""
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""], float_precision="round_trip")
    except FileNotFoundError as error:
        raise UserError(f"{show(path)} is missing: `make run` makes it") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{show(path)} is not a readable table: `make run` makes it again") from error


def read_json(path):
    """Read JSON; a UserError where it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{show(path)} is missing: `make run` makes it") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{show(path)} is not readable: `make run` makes it again") from error


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages numbers depend on, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
def commit() -> str | None:
    """The git commit, marked when lib/ or notebooks/ differ from it; of an installed package the one pip fetched
    it from. None where there is neither."""
    if not CHECKOUT:
        return installed_commit()

    def git(*words):
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "lib", "notebooks")
        return git("rev-parse", "HEAD") + (" with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def installed_commit() -> str | None:
    """The commit that pip wrote down when it installed this package from a repository."""
    try:
        fetched = json.loads(distribution("dual-mechanisms").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None
    return fetched.get("vcs_info", {}).get("commit_id")
