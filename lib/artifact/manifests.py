"""A run is a transaction: its results and one manifest take their place together, or not at all.

A record is a folder such as outputs/ (published) or runs/ (what this machine has run); in it, a folder for each model
holds notebooks/, figures/, tables/, ledger.json and runs/<notebook>.json, the manifests: what a run was made from
and with, the SHA-256 of every result, its ledger rows. What no manifest names is no result.

How a run takes its place: the notebook writes to <record>/.staged/<model>--<notebook>/. When it has ended, results
and manifest lie there whole, and one rename of that folder to <record>/<model>/.committed-<notebook>/ is the
commit. Only then are the files moved over the earlier ones, the manifest last. A kill before the rename leaves the
earlier results untouched; a kill after it leaves a committed folder, and whoever reads the record next finishes the
moves (`finish`), so that every reader sees either the earlier run or the new one, whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lib import files
from lib.artifact import ledger
from lib.errors import UserError
from lib.places import show

SCHEMA = 2  # of manifests and result files; raise it when the meaning of a field or column changes
STAGED, COMMITTED, MANIFEST = ".staged", ".committed-", "manifest.json"


@dataclass(frozen=True)
class Run:
    """One run in a record: group is the model's folder, name the notebook's."""

    root: Path
    group: str
    name: str

    @property
    def folder(self) -> Path:
        return self.root / self.group

    @property
    def manifest(self) -> Path:
        return self.folder / "runs" / f"{self.name}.json"

    @property
    def executed(self) -> Path:
        return self.folder / "notebooks" / f"{self.name}.ipynb"

    @property
    def failed(self) -> Path:
        """The copy that shows how far a failed run got; no result."""
        return self.executed.with_suffix(".failed.ipynb")

    @property
    def staging(self) -> Path:
        return self.root / STAGED / f"{self.group}--{self.name}"

    @property
    def committed(self) -> Path:
        return self.folder / f"{COMMITTED}{self.name}"


# Reading


def all_runs(root: Path) -> list[Run]:
    """Every run of a record that has a manifest, readable or not; a commit that was cut short is finished first."""
    finish(root)
    return [run for path in sorted(root.glob("*/runs")) for run in runs_of(root, path.parent.name)]


def runs_of(root: Path, group: str) -> list[Run]:
    """The runs of one model that have a manifest."""
    return [Run(root, group, path.stem) for path in sorted((root / group / "runs").glob("[!.]*.json"))]


def read(run: Run) -> dict:
    """A manifest; a UserError where it is missing, edited, cut short, or of another schema."""
    try:
        manifest = json.loads(run.manifest.read_bytes())
        seal = manifest.pop("seal")
    except FileNotFoundError as error:
        raise UserError(f"there is no run {run.name} of {run.group} in {show(run.root)}") from error
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{show(run.manifest)} is no manifest") from error
    if seal != seal_of(manifest):
        raise UserError(f"{show(run.manifest)} was edited")
    if manifest.get("schema") != SCHEMA:
        raise UserError(f"{show(run.manifest)} has schema {manifest.get('schema')}, not {SCHEMA}")
    return manifest


def seal_of(manifest: dict) -> str:
    """Digest of a manifest's content, kept in it, so that an edit shows."""
    return hashlib.sha256(files.dump_json(manifest)).hexdigest()


def damaged(run: Run, manifest: dict) -> list[str]:
    """The results of a run that are missing or not what the manifest says, as `file: why`."""
    found = []
    for file, facts in manifest["results"].items():
        path = run.folder / file
        if not path.is_file():
            found.append(f"{show(path)}: it is missing")
        elif files.file_digest(path) != facts["sha256"]:
            found.append(f"{show(path)}: it is not what the run wrote")
    return found


def is_whole(run: Run) -> bool:
    try:
        return not damaged(run, read(run))
    except UserError:
        return False


def readable(root: Path, group: str) -> dict[Run, dict]:
    """The runs of a model with their manifests, those left out that cannot be read (--verify names them)."""
    found = {}
    for run in runs_of(root, group):
        try:
            found[run] = read(run)
        except UserError:
            continue
    return found


def ledger_rows(root: Path, group: str) -> list[dict]:
    """The ledger of a model: the rows in its manifests, in the order of the claims."""
    rows = [row for manifest in readable(root, group).values() for row in manifest["ledger"]]
    return sorted(rows, key=lambda row: (ledger.rank(row["metric"]), row.get("setting", "")))


# Writing


@contextmanager
def staged(run: Run) -> Iterator[Path]:
    """An empty folder for the results of a run, held against other processes; it goes when it was not committed."""
    with files.locked(run.staging, f"{run.group} {run.name}"):
        shutil.rmtree(run.staging, ignore_errors=True)  # of a run that was killed
        try:
            run.staging.mkdir(parents=True)
        except OSError as error:
            raise files.unwritable(run.staging, error) from error
        try:
            yield run.staging
        finally:
            shutil.rmtree(run.staging, ignore_errors=True)


def commit(run: Run, facts: dict) -> dict:
    """Make what lies in the staging folder the run's results; `facts` go into the manifest, which is returned."""
    notes = notes_of(run.staging)
    rows = [row for path in sorted(run.staging.glob("ledger/*.json")) for row in json.loads(path.read_bytes())]
    shutil.rmtree(run.staging / "ledger", ignore_errors=True)
    (run.staging / files.NOTES).unlink(missing_ok=True)
    said = {note["result"]: {k: v for k, v in note.items() if k != "result"} for note in notes if "result" in note}
    results = {}
    for path in sorted(path for path in run.staging.rglob("*") if path.is_file()):
        file = path.relative_to(run.staging).as_posix()
        results[file] = {"sha256": files.file_digest(path), **said.get(file, {})}
    manifest = {"schema": SCHEMA, "model": run.group, "notebook": run.name, **facts, "results": results, "ledger": rows}
    manifest = json.loads(files.dump_json(manifest))  # as it reads back
    place(run, manifest)
    return manifest


def place(run: Run, manifest: dict) -> None:
    """Commit the staging folder, which holds exactly the results that the manifest names."""
    files.write_json(manifest | {"seal": seal_of(manifest)}, run.staging / MANIFEST)
    with files.locked(run.folder):
        move_all(run)  # an earlier commit that was cut short
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            os.replace(run.staging, run.committed)
        except OSError as error:
            raise files.unwritable(run.folder, error) from error
        move_all(run)


def notes_of(folder: Path) -> list[dict]:
    """What the notebook noted while it ran."""
    path = folder / files.NOTES
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def finish(root: Path) -> None:
    """Finish every commit that was cut short."""
    for path in sorted(root.glob(f"*/{COMMITTED}*")):
        run = Run(root, path.parent.name, path.name.removeprefix(COMMITTED))
        with files.locked(run.folder):
            move_all(run)


def move_all(run: Run) -> None:
    """Move committed results to their places, the manifest last; may be repeated from wherever it was cut short."""
    new = run.committed / MANIFEST
    if new.is_file():
        results = json.loads(new.read_bytes())["results"]
        for file in results:
            if (run.committed / file).is_file():
                (run.folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(run.committed / file, run.folder / file)
        for file in results_before(run).difference(results):
            (run.folder / file).unlink(missing_ok=True)
        run.manifest.parent.mkdir(exist_ok=True)
        os.replace(new, run.manifest)
    if run.committed.is_dir():
        write_ledger(run.root, run.group)
        shutil.rmtree(run.committed)


def results_before(run: Run) -> set[str]:
    """The files of the earlier manifest of this run that no other run of the model names, too."""
    named = {other: set(manifest["results"]) for other, manifest in readable(run.root, run.group).items()}
    return named.pop(run, set()).difference(*named.values())


def write_ledger(root: Path, group: str) -> None:
    """ledger.json follows from the manifests; it stands there for readers."""
    rows, path = ledger_rows(root, group), root / group / "ledger.json"
    if not rows:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != files.dump_json(rows):
        files.write_json(rows, path)
