"""Where things are, and how they are written: whole or not at all, with provenance beside them.

A result `x.csv` has `x.csv.provenance.json` next to it: schema version, notebook with its parameters, seed,
versions, git commit, digest of this library, and the SHA-256 of `x.csv` itself. Reading checks that digest, so a
half-written, edited or mismatched file is refused instead of being read as whole.
"""

import errno
import hashlib
import json
import os
import platform
import subprocess
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pandas as pd
from filelock import FileLock

from lib.errors import UserError

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

SCHEMA = 1  # of result files; raise it when the meaning of a column changes
ANEW = "`make run` makes it anew"
PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn")  # versions worth recording


def outputs(model: str | None = None) -> Path:
    """The results folder, or one model's part of it; DUAL_OUTPUTS in the environment redirects all of it."""
    root = Path(os.environ.get("DUAL_OUTPUTS") or OUTPUTS)
    return root if model is None else root / model_name(model)


def model_name(model: str) -> str:
    """Short name of a model given as a name, a hub id (`org/name`) or a path: its last part."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else path.name


# Writing


@contextmanager
def atomic(path):
    """Yield a temporary path beside `path` and rename it to `path` at the end; on any error drop it.

    The suffix is kept, so writers that go by it (matplotlib, nbformat) work. Failing to write is a UserError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave a whole name on half a file
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the folder itself is unusable: the error above says so


@contextmanager
def locked(path):
    """Hold `path` against other processes that also ask for it; for files that are read, changed and written back."""
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(path, error: OSError) -> UserError:
    """The sentence for an operating-system error met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left to write {show(path)}: free some and run again, nothing is lost")
    why = error.strerror or error
    return UserError(
        f"cannot write {show(path)} ({why}): make its folder writable or set DUAL_OUTPUTS to another folder"
    )


def write_bytes(path, content: bytes, provenance: dict | None = None) -> Path:
    """Write one file atomically, then its provenance if given (a kill in between leaves a mismatch)."""
    path = Path(path)
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    if provenance is not None:
        note = provenance | {"sha256": hashlib.sha256(content).hexdigest()}
        write_bytes(provenance_path(path), dump_json(note))
    return path


def write_csv(df: pd.DataFrame, path, provenance: dict | None = None) -> Path:
    """A DataFrame as CSV, floats in full precision, without its index."""
    return write_bytes(path, df.to_csv(index=False, lineterminator="\n").encode(), provenance)


def write_json(value, path, provenance: dict | None = None) -> Path:
    return write_bytes(path, dump_json(value), provenance)


def dump_json(value) -> bytes:
    """Readable and stable; numpy and pandas scalars become plain ones. NaN is refused: it is not JSON."""
    plain = lambda x: x.tolist() if hasattr(x, "tolist") else str(x)  # noqa: E731
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=plain) + "\n").encode()


# Reading


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
        raise UserError(f"{show(path)} has schema {note.get('schema')}, not {SCHEMA}: delete it and {ANEW}")
    return note


def is_done(path, provenance: dict) -> bool:
    """Is `path` there, whole, and made by the same code with the same model, seed and parameters?

    Versions and commit are recorded but not compared: they differ between machines that should agree.
    """
    try:
        note = read_provenance(path)
    except UserError:
        return False
    wanted = json.loads(dump_json(provenance))  # as it looks after a round trip through a file
    return all(note.get(key) == wanted.get(key) for key in ("schema", "model", "seed", "parameters", "lib"))


def corrupt(path, why) -> UserError:
    return UserError(f"{show(path)} is not readable as a result ({why}): delete it and {ANEW}")


# Provenance


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
        **running_notebook(),
        "lib": lib_digest(),
        "versions": versions(),
        "commit": commit(),
    }


def running_notebook() -> dict:
    """Notebook and its parameters, as lib.run left them in the environment; JupyterLab tells the name only."""
    session = os.environ.get("JPY_SESSION_NAME")
    told = {"notebook": Path(session).stem if session else None, "notebook_parameters": None}
    return told | json.loads(os.environ.get("DUAL_NOTEBOOK") or "{}")


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


# modules that run, check or show notebooks: no number depends on them
AROUND = ("run", "notebooks", "kernel", "published", "readme", "colab", "seeds")


@cache
def lib_digest() -> str:
    """One digest of the source that results depend on, names included: lib/ without AROUND and without the training
    code, whose product, the weights, has a digest of its own; and the pictures of objects."""
    code = {p.name: p for p in LIB.glob("*.py") if p.stem not in AROUND}
    return files_digest(code | {p.name: p for p in OBJECTS.glob("*.png")})


def files_digest(files: dict[str, Path]) -> str:
    """One digest of several files under stated names."""
    lines = [f"{name} {file_digest(path)}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def show(path) -> str:
    """A path as a reader wants it: relative to the project where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else str(path)
