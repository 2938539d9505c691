"""Writing and reading the results of notebooks; versions and commit that they are made with.

A notebook that the runner executes leaves its results in a staging folder, and the runner files them with one manifest
for all (lib/artifact/manifests.py). What is run by hand goes to runs/by-hand/, and the page says so.
"""

import json
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import numpy as np
import pandas as pd

from lib import files, places
from lib.errors import UserError
from lib.files import dump_json
from lib.places import CHECKOUT, ROOT, model_name, show

PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn")  # versions worth recording
DIGITS = 6  # significant digits of every number that is filed: more of them differ from one processor to the next
NOTES = ".notes.jsonl"  # in the staging folder: seed and parameters of each result, a line each


def write_bytes(path, content: bytes, provenance: dict | None = None) -> Path:
    """Write one file whole or not at all; `provenance` says what it was made with and goes into the run's manifest."""
    path = files.write_bytes(path, content)
    if provenance is not None:
        note(path, provenance)
    return path


def write_csv(df: pd.DataFrame, path, provenance: dict | None = None) -> Path:
    """A DataFrame as CSV, without its index, numbers in six significant digits."""
    rounded = df.map(lambda value: significant(value) if isinstance(value, (float, np.floating)) else value)
    return write_bytes(path, rounded.to_csv(index=False, lineterminator="\n").encode(), provenance)


def significant(value: float) -> float:
    """A number in the digits that are filed, never -0; NaN and infinity stay."""
    return float(f"{value:.{DIGITS}g}") + 0.0


def save_table(df: pd.DataFrame, name: str, model: str, seed: int = 0, **parameters) -> Path:
    """Write tables/<name>.csv among the results about a model, beside what `figures.save` writes there.

    parameters: what the table was made with, for the manifest. An empty table raises a ValueError.
    """
    if df.empty:
        raise ValueError(f"table {name!r} has no rows to save")
    return write_csv(df, places.outputs(model) / "tables" / f"{name}.csv", provenance(model, seed, **parameters))


def write_json(value, path, provenance: dict | None = None) -> Path:
    return write_bytes(path, dump_json(value), provenance)


def note(path: Path, provenance: dict) -> None:
    """Leave seed and parameters of a result for the runner; without a runner, say where results go."""
    folder = places.staging()
    if folder is None:
        tell_by_hand(path.parent)
    elif path.is_relative_to(folder):
        said = {"result": path.relative_to(folder).as_posix(), **provenance}
        with open(folder / NOTES, "a", encoding="utf-8") as file:
            file.write(json.dumps(said, default=str) + "\n")


@cache
def tell_by_hand(folder: Path) -> None:
    """Said once for each folder."""
    print(f"run by hand: results go to {show(folder)}, the record of the runner stays as it is")


def read_csv(path) -> pd.DataFrame:
    """A table that `write_csv` wrote; only an empty cell is missing, words such as "none" or "NA" are values here."""
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""], float_precision="round_trip")
    except FileNotFoundError as error:
        raise UserError(f"{show(path)} is missing: `make run` makes it") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{show(path)} is not readable as a table ({error}): `make run` makes it anew") from error


def read_json(path):
    """What `write_json` wrote; a UserError where it is missing or not readable."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{show(path)} is missing: `make run` makes it") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{show(path)} is not readable ({error}): `make run` makes it anew") from error


def provenance(model: str, seed: int, **parameters) -> dict:
    """What one result was made with, beside what the manifest says about its whole run."""
    return {"model": model_name(model), "seed": seed, "parameters": parameters}


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
