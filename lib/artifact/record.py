"""What lies in a record: executed notebooks, figures, tables, ledgers; models side by side.

Floor 5, below the runner and the HTML edition: reads what manifests name (lib/artifact/manifests.py), computes nothing.
"""

from pathlib import Path

import pandas as pd

from lib import files, places
from lib.artifact import ledger, manifests, storage
from lib.artifact.manifests import Run
from lib.engine.embedded import COMPARED, rank
from lib.places import show

SEEDS = "seeds"  # the folder in a record that holds the claims over training seeds; no model


def run_of(notebook: str, model: str) -> Run:
    """The run of a notebook on a model in the record that is read and written."""
    return Run(places.record(), model, notebook)


def whole(run: Run, manifest: dict, part: str, suffix: str) -> list[Path]:
    """The files of a run in one of its folders; what is missing or damaged is said and left out."""
    damage = manifests.damaged(run, manifest)
    found = [run.folder / file for file in sorted(manifest["results"])]
    found = [path for path in found if path.suffix == suffix and path.parent == run.folder / part]
    for path in found:
        if path in damage:
            print(f"left out: {show(path)}: {damage[path]}; `python -m lib.run --verify` says what repairs it")
    return [path for path in found if path not in damage]


def copies() -> list[Path]:
    """The executed notebooks of all models."""
    runs = manifests.readable(places.record()).items()
    return [path for run, manifest in runs for path in whole(run, manifest, "notebooks", ".ipynb")]


def models() -> list[str]:
    """Models that have results, the default first."""
    return sorted({run.model for run in manifests.all_runs(places.record())} - {SEEDS}, key=rank)


def figures(model: str) -> list[Path]:
    runs = manifests.readable(places.record(), model).items()
    return sorted(path for run, manifest in runs for path in whole(run, manifest, "figures", ".png"))


def rows(model: str, root: Path | None = None) -> list[dict]:
    """The rows of a model's ledger, [] when it has none yet. root: another record than the one at hand."""
    return manifests.ledger_rows(root or places.record(), model)


def compared() -> dict[str, list[dict]]:
    """The ledgers of the models that are put side by side, in their order."""
    known = models()
    return {name: rows(name) for name in COMPARED if name in known}


def table(model: str, file: str) -> pd.DataFrame:
    """A table or a figure's numbers by its path in the model's folder, once it is found to be what its run wrote."""
    return storage.read_csv(manifests.checked(places.record(), model, file))


# Models side by side


def summary_path() -> Path:
    return places.record() / "summary.csv"


def summary(names: list[str] | None = None, root: Path | None = None) -> pd.DataFrame:
    """The claims, a row per metric and place (`ledger.where`), a column per model: value, interval and verdict.

    names: of the models, default all. root: another record than the one at hand.
    """
    found = []
    for model in names or models():
        for row in rows(model, root):
            keys = {"claim": row["claim"], "metric": row["metric"], "where": ledger.where(row)}
            found.append(keys | {"model": model, "text": in_words(row)})
    if not found:
        return pd.DataFrame(columns=["claim", "metric", "where"])
    wide = pd.DataFrame(found).pivot_table(
        index=["claim", "metric", "where"], columns="model", values="text", aggfunc="; ".join, sort=False
    )
    return wide.fillna("").reset_index().rename_axis(columns=None)


def in_words(row: dict) -> str:
    return f"{ledger.in_figures(row)} {row['verdict']}"


def summary_bytes(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def write_summary() -> pd.DataFrame:
    """summary.csv and every ledger.json from the manifests, where there are rows; returns the summary."""
    for model in models():
        manifests.write_ledger(places.record(), model)
    wide = summary()
    if not wide.empty:
        files.write_bytes(summary_path(), summary_bytes(wide))
    return wide
