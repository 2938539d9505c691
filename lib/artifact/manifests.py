"""A run is a transaction: its results and one manifest take their place together, or not at all.

A record is a folder such as outputs/ (published) or runs/ (what this machine has run). In it, a folder for each model
holds notebooks/, figures/, tables/, ledger.json and runs/<notebook>.json, the manifests. A manifest says what a run
was made from and with, the SHA-256 of every result, its ledger rows, and how far another machine's values may lie from
them. What no manifest names is no result.

How a run takes its place: the notebook writes into a folder of its own in <record>/.staged/. When it has ended,
results and manifest lie there whole, and one rename of that folder to <record>/<model>/.committed-<notebook>/ is the
commit. Then the files are moved over the earlier ones, the manifest last. A kill before the rename leaves the earlier
results untouched; a kill after it leaves a committed folder, and whoever reads the record next finishes the moves
(`finish`), so that every reader sees the earlier run or the new one, whole. What a killed run had computed so far is
kept apart, in <record>/.staged/<model>/<notebook>.parts/ (lib/parts.py), for the next run of the same code, weights and
parameters.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lib import files, places
from lib.artifact import ledger, storage, tolerances
from lib.errors import UserError
from lib.places import show

SCHEMA = 2  # of manifests and result files; raise it when the meaning of a field or column changes
STAGED, COMMITTED, MANIFEST = ".staged", ".committed-", ".manifest.json"


@dataclass(frozen=True)
class Run:
    """One run in a record: `model` is the folder's name there, `notebook` the notebook's."""

    root: Path
    model: str
    notebook: str

    @property
    def folder(self) -> Path:
        return self.root / self.model

    @property
    def manifest(self) -> Path:
        return self.folder / "runs" / f"{self.notebook}.json"

    @property
    def executed(self) -> Path:
        return self.folder / "notebooks" / f"{self.notebook}.ipynb"

    @property
    def failed(self) -> Path:
        """The copy that shows how far a failed run got; no result."""
        return self.executed.with_suffix(".failed.ipynb")

    @property
    def committed(self) -> Path:
        return self.folder / f"{COMMITTED}{self.notebook}"

    @property
    def parts(self) -> Path:
        """Beside the staging folder: what a run that was killed had computed (lib/parts.py); no result."""
        return self.root / STAGED / self.model / f"{self.notebook}.parts"


# Reading


def all_runs(root: Path) -> list[Run]:
    """Every run of a record that has a manifest, readable or not; commits that were cut short are finished first."""
    finish(root)
    found = sorted(root.glob("*/runs/[!.]*.json"))
    return [Run(root, path.parents[1].name, path.stem) for path in found if path.parents[1].name[0] != "."]


def readable(root: Path, model: str | None = None) -> dict[Run, dict]:
    """The runs of a record, or of one model, with their manifests; without those that cannot be read (`--verify`
    names them)."""
    found = {}
    for run in all_runs(root):
        if model in (None, run.model):
            try:
                found[run] = read(run)
            except UserError:
                continue
    return found


def read(run: Run) -> dict:
    """A manifest; a UserError where it is missing, edited, cut short, or of another schema."""
    try:
        manifest = json.loads(run.manifest.read_bytes())
        seal = manifest.pop("seal")
    except FileNotFoundError as error:
        raise UserError(f"there is no run {run.notebook} of {run.model} in {show(run.root)}") from error
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{show(run.manifest)} is no manifest of a run") from error
    if seal != seal_of(manifest):
        raise UserError(f"{show(run.manifest)} was edited")
    if manifest["schema"] != SCHEMA:
        raise UserError(f"{show(run.manifest)} has schema {manifest['schema']}, not {SCHEMA}")
    return manifest


def seal_of(manifest: dict) -> str:
    """Digest of a manifest's content, kept in it, so that an edit shows."""
    return hashlib.sha256(files.dump_json(manifest)).hexdigest()


def damaged(run: Run, manifest: dict) -> dict[Path, str]:
    """The results of a run that are missing or not what the manifest says, and why."""
    found = {run.folder / file: damage(run.folder / file, facts) for file, facts in manifest["results"].items()}
    return {path: why for path, why in found.items() if why}


def damage(path: Path, facts: dict) -> str:
    """Why a result is not what the manifest says of it; empty where it is."""
    if not path.is_file():
        return "it is missing"
    return "" if files.file_digest(path) == facts["sha256"] else "it is not what the run wrote"


def checked(root: Path, model: str, file: str) -> Path:
    """The path of a result, given by its path in the model's folder, once it is found to be what its run wrote."""
    for run, manifest in readable(root, model).items():
        if file in manifest["results"]:
            path = run.folder / file
            if why := damage(path, manifest["results"][file]):
                raise UserError(f"{show(path)}: {why}; `python -m lib.run --verify` says what repairs it")
            return path
    raise UserError(f"{show(root / model / file)} is of no run: `make run` makes it")


def ledger_rows(root: Path, model: str) -> list[dict]:
    """The ledger of a model: the rows in its manifests, in the order of the claims."""
    rows = [row for manifest in readable(root, model).values() for row in manifest["ledger"]]
    return sorted(rows, key=ledger.place)


def strays(root: Path) -> list[Path]:
    """Files in a record that no manifest names and that do not follow from manifests; locks are none."""
    runs = readable(root)
    named = {run.folder / file for run, manifest in runs.items() for file in manifest["results"]}
    named |= {run.manifest for run in all_runs(root)} | {root / "summary.csv"}
    named |= {root / run.model / ledger.FILE for run in runs}
    found = [path for path in sorted(root.rglob("*")) if path.is_symlink() or not path.is_dir()]
    apart = (places.BY_HAND, ".snakemake")
    return [
        path
        for path in found
        if path not in named
        and path.relative_to(root).parts[0] not in apart
        and not (path.name.startswith(".") and path.suffix == ".lock")
    ]


# Writing


@contextmanager
def staged(run: Run) -> Iterator[Path]:
    """An empty folder for the results of a run, where `places.outputs` points meanwhile, in this process and in
    those it starts. The run is held against other processes; the folder goes when it was not committed."""
    home = run.root / STAGED / run.model / run.notebook
    with files.locked(home, f"{run.model} {run.notebook}"):
        shutil.rmtree(home, ignore_errors=True)  # of a run that was killed
        try:
            home.mkdir(parents=True)
            folder = Path(tempfile.mkdtemp(dir=home)).resolve()  # a new name: a killed run's kernel may still write
        except OSError as error:
            raise files.unwritable(home, error) from error
        os.environ[places.STAGED] = str(folder)
        try:
            yield folder
        finally:
            del os.environ[places.STAGED]
            shutil.rmtree(home, ignore_errors=True)


def commit(run: Run, folder: Path, facts: dict) -> dict:
    """Make what lies in the staging folder the run's results; `facts` go into the manifest, which is returned."""
    own = folder / ledger.FILE
    rows = storage.read_json(own) if own.is_file() else []
    said = {note.pop("result"): note for note in noted(folder / storage.NOTES)}
    dropped: dict[str, dict] = {}
    for note in noted(folder / places.DROPPED):
        dropped.setdefault(note["model"], {})[note["word"]] = note["spellings"]
    own.unlink(missing_ok=True)
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    results = {}
    for path in found:
        file = path.relative_to(folder).as_posix()
        results[file] = {"sha256": files.file_digest(path), **said.get(file, {})}
    whole = {"schema": SCHEMA, "model": run.model, "notebook": run.notebook, **facts, "dropped_spellings": dropped}
    whole["tolerance"] = tolerances.of_run(results, (row["metric"] for row in rows))
    manifest = json.loads(files.dump_json(whole | {"results": results, "ledger": rows}))  # as it reads back
    place(run, folder, manifest)
    return manifest


def noted(path: Path) -> list[dict]:
    """What the notebook left beside its results, a line of JSON each."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def place(run: Run, folder: Path, manifest: dict) -> None:
    """Commit a folder that holds the results that the manifest names."""
    for other, its_manifest in readable(run.root, run.model).items():
        shared = sorted(set(its_manifest["results"]) & set(manifest["results"]))
        if other != run and shared:
            raise UserError(f"{run.notebook} and {other.notebook} both write {shared[0]}: rename it in one of them")
    files.write_json(manifest | {"seal": seal_of(manifest)}, folder / MANIFEST)
    with files.locked(run.folder, f"filing {run.notebook}"):
        move_all(run)  # an earlier commit that was cut short
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            os.replace(folder, run.committed)
        except OSError as error:
            raise files.unwritable(run.folder, error) from error
        move_all(run)


def finish(root: Path) -> None:
    """Finish every commit that was cut short."""
    for path in sorted(root.glob(f"*/{COMMITTED}*")):
        run = Run(root, path.parent.name, path.name.removeprefix(COMMITTED))
        with files.locked(run.folder, f"filing {run.notebook}"):
            move_all(run)


def move_all(run: Run) -> None:
    """Move committed results to their places, the manifest last; may be repeated from wherever it was cut short."""
    if not run.committed.is_dir():
        return
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
    write_ledger(run.root, run.model)
    shutil.rmtree(run.committed)


def results_before(run: Run) -> set[str]:
    """The files that the earlier manifest of this run names."""
    try:
        return set(read(run)["results"])
    except UserError:
        return set()


def remove(run: Run) -> None:
    """Take a run out of a record: the manifest first, so that nothing half of it counts."""
    with files.locked(run.folder, f"removing {run.notebook}"):
        results = results_before(run)
        run.manifest.unlink(missing_ok=True)
        for file in results:
            (run.folder / file).unlink(missing_ok=True)
        write_ledger(run.root, run.model)


def ledger_bytes(root: Path, model: str) -> bytes | None:
    """What ledger.json of a model must hold: the rows of its manifests; None where there are none."""
    found = []
    for path in sorted((root / model / "runs").glob("[!.]*.json")):
        try:
            found += read(Run(root, model, path.stem))["ledger"]
        except UserError:
            continue
    return files.dump_json(sorted(found, key=ledger.place)) if found else None


def write_ledger(root: Path, model: str) -> None:
    """ledger.json follows from the manifests; it stands there for people to read."""
    content, path = ledger_bytes(root, model), root / model / ledger.FILE
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != content:
        files.write_bytes(path, content)
