"""What lies in a results folder: runs, figures, ledgers; whether it belongs to the present code; models side by side.

Floor 5, below the runner and the HTML edition: reads results, computes none.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lib import files, places
from lib.artifact import ledger, storage
from lib.artifact.notebooks import Notebook, load_notebook
from lib.engine.checkpoints import find_model, folder_digest, known_models, seeds, shipped
from lib.engine.embedded import DEFAULT, PLAN, rank
from lib.errors import UserError
from lib.places import show

# Where things are


def run_files(notebook: str, model: str) -> tuple[Path, Path]:
    """Where the executed copy and the stamp of a run are."""
    folder = places.outputs(model)
    return folder / "notebooks" / f"{notebook}.ipynb", folder / "runs" / f"{notebook}.json"


def copies() -> list[Path]:
    """The executed notebooks of all models, failed ones left out."""
    found = sorted(places.outputs().glob("*/notebooks/*.ipynb"))
    return [path for path in found if not path.stem.endswith(".failed")]


def runs() -> list[tuple[str, str]]:
    """(notebook, model) of every run that left a copy or a stamp."""
    found = [*places.outputs().glob("*/runs/*.json"), *copies()]
    return sorted({(path.stem, path.parents[1].name) for path in found})


def results() -> list[Path]:
    """The results that have provenance."""
    notes = sorted(places.outputs().glob("**/*.provenance.json"))
    return [Path(str(note).removesuffix(".provenance.json")) for note in notes]


def models() -> list[str]:
    """Models that have results, the default first."""
    names = {path.parent.name for part in ("notebooks", "figures") for path in places.outputs().glob(f"*/{part}")}
    names |= {path.parent.name for path in places.outputs().glob("*/ledger.json")}
    return sorted(names, key=rank)


def figures(model: str) -> list[Path]:
    return sorted((places.outputs(model) / "figures").glob("[!.]*.png"))


# Publishing


def publish(notebooks: list[Notebook], models_folder: Path) -> None:
    """Make this machine's runs of the plan the published record: outputs/ takes the place of what was there, and each
    notebook becomes its executed copy, the same cells with the outputs of the default model."""
    if places.outputs().resolve() == places.PUBLISHED.resolve():
        raise UserError(f"{show(places.PUBLISHED)} is what is published: publish from runs/ or another folder")
    planned = {
        model: [notebook for notebook in notebooks if numbers is None or notebook.name.startswith(numbers)]
        for model, numbers in PLAN.items()
        if model in shipped(models_folder)
    }
    for model, chosen in planned.items():
        for notebook in chosen:
            executed, _ = run_files(notebook.name, model)
            why = stale_run(notebook.name, model, {notebook.name: notebook}, models_folder)
            if not why and model == DEFAULT and load_notebook(executed).digest != notebook.digest:
                why = "it was run with other parameters"
            if why:
                raise UserError(f"{show(executed)} cannot be published: {why}; `make run` makes it anew")
    for old in places.PUBLISHED.glob("*/ledger.json"):
        shutil.rmtree(old.parent)  # of a model: other folders (benchmarks, seeds) have no ledger
    for model in planned:
        unfinished = shutil.ignore_patterns(".*", "*.failed.ipynb")
        shutil.copytree(places.outputs(model), places.PUBLISHED / model, ignore=unfinished)
    for notebook in notebooks:
        files.write_bytes(notebook.path, run_files(notebook.name, DEFAULT)[0].read_bytes())
    files.write_bytes(places.PUBLISHED / "summary.csv", summary_bytes(summary(list(planned))))


# Does it belong to this code?


def made_from(notebook: Notebook, model: str, digest: str, models_folder: Path) -> dict:
    """Everything the result of a run depends on, its parameters aside; digest: that of the model.

    All shipped models count where a notebook, run on its own model, puts them beside it.

    Versions are recorded beside it, not compared: they differ between machines that should agree.
    """
    made = {"schema": storage.SCHEMA, "lib": code_digest(notebook), "notebook": notebook.digest, "model": digest}
    if model == notebook.parameters["model"] and notebook.reads_all_models:
        made["shipped"] = {name: folder_digest(folder) for name, folder in shipped(models_folder).items()}
    return made


def code_digest(notebook: Notebook) -> str:
    """Digest of the modules of lib that the notebook reaches by import."""
    return storage.one_digest(notebook.code)


def why_stale(executed: Path, stamp: Path, wanted: dict) -> str:
    """Why a run does not stand (any more); empty when it does."""
    if not stamp.is_file() or not executed.is_file():
        return "never finished"
    try:
        found = storage.read_json(stamp, checked=False)
        changed = [key for key in wanted if found.get(key) != wanted[key]]
        edited = found.get("executed") != files.file_digest(executed)
    except (UserError, AttributeError):
        return "its stamp is corrupt"
    return f"{' and '.join(changed)} changed since" if changed else "edited since" if edited else ""


def complaints(notebooks: list[Notebook], models_folder: Path) -> list[str]:
    """Everything in outputs/ that does not belong to the present code and to the rest of outputs/, one line each."""
    by_name = {notebook.name: notebook for notebook in notebooks}
    found = [f"{show(run_files(*run)[0])}: {why}" for run in runs() if (why := stale_run(*run, by_name, models_folder))]
    code = {name: code_digest(notebook) for name, notebook in by_name.items()}
    for result in results():
        found += stale_result(result, by_name, code)
    for model in models():
        found += [f"{show(picture)}: it has no numbers beside it" for picture in figures(model)
                  if not picture.with_suffix(".csv").is_file()]  # fmt: skip
        found += [f"{show(ledger.path(model))}: {why}" for why in stale_ledger(model)]
    if summary_path().is_file() and summary_path().read_bytes() != summary_bytes(summary()):
        found.append(f"{show(summary_path())}: the ledgers changed since")
    return found + stale_seeds(models_folder)


def stale_run(name: str, model: str, by_name: dict[str, Notebook], models_folder: Path) -> str:
    if name not in by_name:
        return "there is no such notebook any more"
    known = model in known_models(models_folder)
    digest = find_model(model, models_folder).digest if known else ""
    wanted = made_from(by_name[name], model, digest, models_folder)
    if not known:  # a model from elsewhere is not at hand to be compared
        del wanted["model"]
    return why_stale(*run_files(name, model), wanted)


def stale_result(result: Path, by_name: dict[str, Notebook], code: dict[str, str]) -> list[str]:
    """A result is as its provenance says, the provenance is of this code, and the notebook named there writes it.

    code: the digest of each notebook's code.
    """
    try:
        note = storage.read_provenance(result)
    except UserError as error:
        return [str(error)]
    name = note.get("notebook")
    wanted = code[name] if name in code else storage.lib_digest()
    found = [] if note.get("lib") == wanted else [f"{show(result)}: lib changed since"]
    for kind, digest in note.get("pictures", {}).items():
        picture = result.with_suffix(f".{kind}")
        if not picture.is_file() or files.file_digest(picture) != digest:
            found.append(f"{show(picture)}: it is not the picture saved with its numbers")
    if name in by_name and result.name != "ledger.json" and result.stem not in by_name[name].source:
        found.append(f"{show(result)}: notebook {name}, which made it, does not name it any more")
    return found


def stale_ledger(model: str) -> list[str]:
    """Every row follows from the rules in lib/artifact/ledger.py and belongs to a notebook that was run."""
    try:
        rows = ledger.load(model)
    except UserError:
        return []  # told with the results
    finished = {name for name, of in runs() if of == model}
    found = {f"{row['metric']} is of {row['notebook']}, of which no run is here" for row in rows
             if row["notebook"] not in finished}  # fmt: skip
    for row in rows:
        measure = ledger.MEASURES.get(row["metric"])
        if measure is None:
            found.add(f"there is no measure {row['metric']} any more")
        elif (row["rule"], row["verdict"]) != (measure.rule, measure.verdict(row["low"], row["high"], row["n"])):
            found.add(f"the verdict on {row['metric']} does not follow from the rule in lib/artifact/ledger.py")
    return sorted(found)


def stale_seeds(models_folder: Path) -> list[str]:
    """The claims over training seeds are of the seeds that are shipped, and those of seed 0 stand in its ledger."""
    file = places.outputs() / "seeds" / "seeds.csv"
    if not file.is_file():
        return []
    found = []
    try:
        table = storage.read_csv(file)
        ledgers = {recipe: ledger.load(recipe) for recipe in table["recipe"].unique()}
    except UserError:
        return []  # told with the results
    for recipe, rows in table.groupby("recipe", sort=False):
        if set(rows["seed"]) != set(seeds(recipe, models_folder)):
            found.append(f"{show(file)}: {recipe} is shipped with other seeds, run `make seeds`")
        own = {(row["metric"], ledger.where(row)): row["value"] for row in ledgers[recipe]}
        first = rows[rows["seed"] == 0]
        apart = [abs(own.get((row.metric, row.where), np.inf) - row.value) for row in first.itertuples()]
        if max(apart, default=0) > 0.02:  # another machine's last digits are no other result
            found.append(f"{show(file)}: the ledger of {recipe} says something else, run `make seeds`")
    return found


# Models side by side


def summary_path() -> Path:
    return places.outputs() / "summary.csv"


def summary(names: list[str] | None = None) -> pd.DataFrame:
    """The claims, a row per metric and place (`ledger.where`), a column per model: value, interval and verdict."""
    rows = []
    for model in names or models():
        try:
            for row in ledger.load(model):
                keys = {"claim": row["claim"], "metric": row["metric"], "where": ledger.where(row)}
                rows.append(keys | {"model": model, "text": in_words(row)})
        except UserError as error:
            print(f"left out of the summary: {error}", file=sys.stderr)
    if not rows:
        return pd.DataFrame(columns=["claim", "metric", "where"])
    table = pd.DataFrame(rows).pivot_table(
        index=["claim", "metric", "where"], columns="model", values="text", aggfunc="; ".join, sort=False
    )
    return table.fillna("").reset_index().rename_axis(columns=None)


def two_digits(value: float) -> str:
    """For readers: .004 below zero is 0.00, not -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def in_words(row: dict) -> str:
    return f"{ledger.in_figures(row)} {row['verdict']}"


def summary_bytes(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def write_summary() -> pd.DataFrame:
    """summary.csv from the ledgers, where there are any; returns the table."""
    table = summary()
    if not table.empty:
        files.write_bytes(summary_path(), summary_bytes(table))
    return table
