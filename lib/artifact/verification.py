"""Does the published record belong to the present code, and is it whole? Each fault with a command that repairs it."""

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np

from lib import places
from lib.artifact import ledger, manifests, readme, record
from lib.artifact.manifests import Run
from lib.artifact.notebooks import Notebook, parse_parameters
from lib.artifact.publishing import planned
from lib.artifact.staleness import changes, recorded, text_only
from lib.engine.checkpoints import seeds
from lib.engine.embedded import DEFAULT
from lib.errors import UserError
from lib.places import show

PUBLISH = "python -m lib.run --publish"
TABLES = "python -m lib.artifact.readme"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file, and the command that repairs it."""

    path: Path
    what: str
    repair: str

    def __str__(self) -> str:
        return f"{show(self.path)}: {self.what}; repaired by: {self.repair}"


def faults(notebooks: list[Notebook], models_folder: Path) -> list[Fault]:
    """Everything in the record at hand, in notebooks/ and in the generated tables that is not as it should be."""
    root, by_name = places.record(), {notebook.name: notebook for notebook in notebooks}
    published = root.resolve() == places.PUBLISHED.resolve()
    found, torn = [], set()  # torn: models of which a manifest is missing or not readable
    for run in missing(root, notebooks, models_folder) if published else []:
        found.append(Fault(run.manifest, "this run is missing", restore(run.manifest, rerun(run))))
        torn.add(run.model)
    for run in manifests.all_runs(root):
        found += of_run(run, by_name.get(run.notebook), models_folder)
        torn |= {run.model} - {each.model for each in manifests.readable(root, run.model) if each == run}
    # what follows from manifests, and what they name, can be judged once they are there
    strays = [path for path in manifests.strays(root) if path.relative_to(root).parts[0] not in torn]
    found += [Fault(path, "no run wrote it", f"rm {quoted(path)}") for path in strays]
    found += [] if torn else of_derived(root)
    for notebook in notebooks:
        found += of_source(Run(root, DEFAULT, notebook.name), notebook)
    found += of_seeds(Run(root, record.SEEDS, record.SEEDS), models_folder)
    if published:  # the tables tell of the published record only
        found += of_pages(tables=not found)
    return found


def missing(root: Path, notebooks: list[Notebook], models_folder: Path) -> list[Run]:
    """Runs of the plan that have no manifest."""
    runs = [Run(root, model, notebook.name) for model, notebook in planned(notebooks, models_folder)]
    return [run for run in runs if not run.manifest.is_file()]


# Repairs


def quoted(path: Path) -> str:
    return shlex.quote(show(path))


def rerun(run: Run) -> str:
    """Executing a notebook again and, where the record is the published one, publishing it."""
    again = f"python -m lib.run --model {shlex.quote(run.model)} --notebooks {run.notebook.split('_')[0]} --fresh"
    if run.root.resolve() == places.PUBLISHED.resolve():
        return f"{again}; {PUBLISH}"  # not &&: a run that differs from a damaged record ends with exit code 1
    return f"{again} --outputs {quoted(run.root)}"


def restore(path: Path, otherwise: str) -> str:
    """Git has the file as it was, where it differs from what is committed; `otherwise` where git cannot help."""
    return f"git checkout HEAD -- {quoted(path)}" if altered(path) else otherwise


def altered(path: Path) -> bool:
    """Whether a file differs from what is committed; False where git cannot say."""
    command = ["git", "-C", str(places.ROOT), "diff", "--quiet", "HEAD", "--", str(path)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 1
    except OSError:  # no git
        return False


# What may be wrong


def of_run(run: Run, notebook: Notebook | None, models_folder: Path) -> list[Fault]:
    """The manifest, what the run was made from and with, its results, and its ledger rows against the rules."""
    try:
        manifest = manifests.read(run)
    except UserError as error:
        why = str(error).removeprefix(show(run.manifest)).strip()
        return [Fault(run.manifest, why, restore(run.manifest, rerun(run)))]
    damage = manifests.damaged(run, manifest)
    found = [Fault(path, why, restore(path, rerun(run))) for path, why in damage.items()]
    if run.model == record.SEEDS:
        return found
    if notebook is None:
        return [*found, Fault(run.manifest, "there is no such notebook any more", PUBLISH)]
    try:
        changed = changes(manifest, notebook, models_folder)
    except UserError as error:
        return [*found, Fault(run.manifest, str(error), "git checkout HEAD -- data")]
    if not damage and text_only(run, notebook, changed):
        found.append(Fault(run.manifest, "the text of the notebook changed since", PUBLISH))
    elif changed:
        found.append(Fault(run.manifest, f"{' and '.join(changed)} changed since", rerun(run)))
    published = run.root.resolve() == places.PUBLISHED.resolve()
    if published and manifest["parameters"] != recorded(notebook.parameters, run.model):
        found.append(Fault(run.manifest, "it was run with other parameters than the notebook's", rerun(run)))
    if run.executed not in damage and executed_with(run) != without_model(manifest["parameters"]):
        what = "its manifest says other parameters than the executed notebook"
        found.append(Fault(run.manifest, what, restore(run.manifest, rerun(run))))
    return found + [
        Fault(run.manifest, why, restore(run.manifest, rerun(run))) for why in against_rules(manifest["ledger"])
    ]


def executed_with(run: Run) -> dict:
    """The parameters that stand in an executed notebook, without the model, whose path is not shown."""
    values = {}
    for cell in nbformat.read(run.executed, as_version=4).cells:
        if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
            values |= parse_parameters(cell.source, run.executed)[0]
    return without_model(recorded(values, run.model))


def without_model(parameters: dict) -> dict:
    return {name: value for name, value in parameters.items() if name != "model"}


def against_rules(rows: list[dict]) -> list[str]:
    """Rows that do not follow from the rules in lib/artifact/ledger.py."""
    found = set()
    for row in rows:
        measure = ledger.MEASURES.get(row["metric"])
        if measure is None:
            found.add(f"there is no measure {row['metric']} any more")
            continue
        verdict = measure.verdict(row["low"], row["high"], row["n"], row.get("named"))
        if (row["rule"], row["verdict"]) != (measure.rule, verdict):
            found.add(f"the verdict on {row['metric']} does not follow from the rule in lib/artifact/ledger.py")
    return sorted(found)


def of_derived(root: Path) -> list[Fault]:
    """ledger.json of each model and summary.csv, which follow from the manifests."""
    again = f"python -m lib.run --summary --outputs {quoted(root)}"
    wanted = {root / model / ledger.FILE: manifests.ledger_bytes(root, model) for model in record.models()}
    found = [
        Fault(path, "it is not what the manifests say", of_manifests(path) or again)
        for path, content in wanted.items()
        if differs(path, content)
    ]
    path, summary = root / "summary.csv", record.summary()
    if differs(path, None if summary.empty else record.summary_bytes(summary)):
        repair = again if not summary.empty else f"rm {quoted(path)}"
        found.append(Fault(path, "it is not what the manifests say", repair))
    return found


def differs(path: Path, content: bytes | None) -> bool:
    """Whether a file, if it is there, holds something else than it must (None: it must not be there)."""
    return content != (path.read_bytes() if path.is_file() else None)


def of_manifests(ledger_file: Path) -> str:
    """The repair where a ledger is as it was committed and manifests are not: their rows were taken away or changed,
    and a ledger made from them would lose what was published."""
    if altered(ledger_file):
        return ""
    paths = [path for path in sorted((ledger_file.parent / "runs").glob("*.json")) if altered(path)]
    return f"git checkout HEAD -- {' '.join(map(quoted, paths))}" if paths else ""


def of_source(run: Run, notebook: Notebook) -> list[Fault]:
    """The outputs in notebooks/, where there are any, are those of the default model's run."""
    shown = outputs_of(notebook.path)
    if not any(shown):
        return []
    try:
        if run.executed in manifests.damaged(run, manifests.read(run)):
            return []  # told with the run
        if shown == outputs_of(run.executed):
            return []
        what = f"its outputs are not those of the run in {show(run.root)}"
    except UserError:
        what = f"it shows outputs, and no run of it is in {show(run.root)}"
    return [Fault(notebook.path, what, restore(notebook.path, PUBLISH))]


def outputs_of(path: Path) -> list:
    cells = nbformat.read(path, as_version=4).cells
    return [cell.outputs for cell in cells if cell.cell_type == "code"]


def of_seeds(run: Run, models_folder: Path) -> list[Fault]:
    """The claims over training seeds are of the seeds that are shipped, and those of seed 0 stand in its ledger."""
    file = run.folder / "seeds.csv"
    if not run.manifest.is_file():
        return []
    try:
        table = record.table(run.model, file.name)
    except UserError:
        return []  # told with the run
    found = []
    for recipe, rows in table.groupby("recipe", sort=False):
        if set(rows["seed"]) != set(seeds(recipe, models_folder)):
            found.append(Fault(file, f"{recipe} is shipped with other seeds", "make seeds"))
        own = {(row["metric"], ledger.where(row)): row["value"] for row in record.rows(recipe)}
        first = rows[rows["seed"] == 0]
        apart = [abs(own.get((row.metric, row.where), np.inf) - row.value) for row in first.itertuples()]
        if max(apart, default=0) > 0.02:  # another machine's last digits are no other result
            found.append(Fault(file, f"the ledger of {recipe} says something else", "make seeds"))
    return found


def of_pages(tables: bool) -> list[Fault]:
    """The tables of README, docs and data/README that are made from files, and the files that the last one lists.

    tables: whether the record is whole, so that the tables made from it can be compared with it.
    """
    found = []
    for (path, name), make in readme.PARTS.items():
        text = path.read_text("utf-8")
        try:
            if make is readme.checksums:
                found += of_listed(path, text)
            elif tables and readme.renewed(text, name, make()) != text:
                what = f"its table {name!r} is not what the record says"
                found.append(Fault(path, what, TABLES))
        except UserError as error:
            found.append(Fault(path, str(error), restore(path, TABLES)))
    return found


def of_listed(page: Path, text: str) -> list[Fault]:
    """Files of data/, the models' cards among them, that are not those which data/README.md lists."""
    now, listed = lines_by_file(readme.checksums()), lines_by_file(text)
    found = []
    for file in sorted(now.keys() | listed.keys()):
        path = page.parent / file
        if now.get(file) != listed.get(file):
            what = f"it is not the file that {show(page)} lists" if file in listed else f"{show(page)} does not list it"
            otherwise = TABLES if file in now else restore(page, TABLES)
            found.append(Fault(path, what, restore(path, otherwise)))
    return found


def lines_by_file(text: str) -> dict[str, str]:
    """The lines of the table of checksums by the file they are about."""
    rows = [line.split(" | ") for line in text.splitlines() if line.endswith("` |") and line.startswith("| ")]
    return {row[0].removeprefix("| "): " | ".join(row[1:]) for row in rows if len(row) == 3}
