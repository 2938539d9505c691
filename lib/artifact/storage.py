"""Results with provenance beside them.

A result `x.csv` has `x.csv.provenance.json` next to it: schema version, notebook with its parameters, seed,
versions, git commit, digest of this library, and the SHA-256 of `x.csv` itself. Reading checks that digest, so a
half-written, edited or mismatched file is refused instead of being read as whole.
"""

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pandas as pd

from lib import files
from lib.artifact import digests
from lib.errors import UserError
from lib.files import dump_json, file_digest
from lib.places import CHECKOUT, LIB, ROOT, model_name, show

SCHEMA = 1  # of result files; raise it when the meaning of a column changes
REMAKE = "`make run` makes it anew"
PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn")  # versions worth recording


def write_bytes(path, content: bytes, provenance: dict | None = None) -> Path:
    """Write one file atomically, then its provenance if given (a kill in between leaves a mismatch)."""
    path = files.write_bytes(path, content)
    if provenance is not None:
        note = provenance | {"sha256": hashlib.sha256(content).hexdigest()}
        files.write_json(note, provenance_path(path))
    return path


def write_csv(df: pd.DataFrame, path, provenance: dict | None = None) -> Path:
    """A DataFrame as CSV, floats in full precision, without its index."""
    return write_bytes(path, df.to_csv(index=False, lineterminator="\n").encode(), provenance)


def write_json(value, path, provenance: dict | None = None) -> Path:
    return write_bytes(path, dump_json(value), provenance)


def read_csv(path) -> pd.DataFrame:
    """Read back what write_csv wrote with provenance; refuse anything else with a UserError.

    Only an empty cell is missing: words such as "none" or "NA" are values here.
    """
    read_provenance(path)
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""], float_precision="round_trip")
    except (ValueError, OSError) as error:
        raise corrupt(path, error) from error


def read_json(path, checked: bool = True):
    """Read JSON; `checked` demands the provenance that write_json left beside it."""
    if checked:
        read_provenance(path)
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{show(path)} is missing: `make run` makes it") from error
    except (ValueError, OSError) as error:
        raise corrupt(path, error) from error


def read_provenance(path) -> dict:
    """The provenance of a result, once the result is found to be there, whole and of the present schema."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{show(path)} is missing: `make run` makes it")
    note = read_json(provenance_path(path), checked=False)
    if not isinstance(note, dict) or note.get("sha256") != file_digest(path):
        raise corrupt(path, "it is not the file its provenance describes")
    if note.get("schema") != SCHEMA:
        raise UserError(f"{show(path)} has schema {note.get('schema')}, not {SCHEMA}: delete it and {REMAKE}")
    return note


def corrupt(path, why) -> UserError:
    return UserError(f"{show(path)} is not readable as a result ({why}): delete it and {REMAKE}")


def provenance(model: str, seed: int, **parameters) -> dict:
    """What a result was made from and with; goes beside every file that is published.

    notebook and notebook_parameters: what lib.run is running, None outside; the cell is the one of that notebook
    that has the file's name in it. parameters: what the caller adds.
    """
    return {
        "schema": SCHEMA,
        "model": model_name(model),
        "seed": seed,
        "parameters": parameters,
        "lib": lib_digest(),
        **running_notebook(),
        "versions": versions(),
        "commit": commit(),
    }


def running_notebook() -> dict:
    """Notebook, its parameters and the digest of its code, as lib.run left them in the environment; JupyterLab only
    knows the name."""
    session = os.environ.get("JPY_SESSION_NAME")
    known = {"notebook": Path(session).stem if session else None, "notebook_parameters": None}
    return known | json.loads(os.environ.get("DUAL_NOTEBOOK") or "{}")


def provenance_path(path) -> Path:
    return Path(f"{path}.provenance.json")


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


@cache
def lib_digest() -> str:
    """Digest of the code that results outside notebooks rest on: everything below lib.artifact and lib.reference."""
    folders = ("analysis", "patching", "engine", "stimuli")
    names = [f"lib.{folder}.{path.stem}" for folder in folders for path in sorted((LIB / folder).glob("[!_]*.py"))]
    return one_digest([f"import {name}" for name in names])


def one_digest(sources) -> str:
    """One digest of the code that these sources reach, see `digests.code`."""
    return hashlib.sha256(json.dumps(digests.code(sources), sort_keys=True).encode()).hexdigest()
