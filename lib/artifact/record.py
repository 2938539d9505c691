"""Reading a record: which models and figures it holds, its claims side by side. Computes no result.

A record is a folder laid out as lib/artifact/manifests.py says; only what manifests name is read.
"""

from pathlib import Path

import pandas as pd

from lib import files
from lib.artifact import ledger, manifests
from lib.artifact.manifests import Run
from lib.engine import embedded

OTHERS = ("seeds", "benchmarks")  # groups of a record that are not models


def runs(root: Path) -> dict[Run, dict]:
    """The runs of notebooks with their manifests, models in the order of the embedded ones."""
    manifests.finish(root)
    groups = sorted({path.parent.name for path in root.glob("*/runs")} - set(OTHERS), key=embedded.rank)
    return {run: manifest for group in groups for run, manifest in manifests.readable(root, group).items()}


def models(root: Path) -> list[str]:
    """Models that have results."""
    return list(dict.fromkeys(run.group for run in runs(root)))


def copies(root: Path) -> list[Path]:
    """The executed notebooks of all models."""
    return [run.executed for run, manifest in runs(root).items() if f"notebooks/{run.name}.ipynb" in manifest["results"]]


def figures(root: Path, model: str) -> list[Path]:
    found = [run.folder / file for run, manifest in runs(root).items() if run.group == model
             for file in manifest["results"] if file.endswith(".png")]  # fmt: skip
    return sorted(found)


def claims(root: Path, model: str) -> list[dict]:
    """The ledger of a model, [] where it has none."""
    manifests.finish(root)
    return manifests.ledger_rows(root, model)


# Models side by side


def summary_path(root: Path) -> Path:
    return root / "summary.csv"


def summary(root: Path) -> pd.DataFrame:
    """The claims, a row per metric and setting, a column per model: value, 95 % interval and verdict in words."""
    rows = []
    for model in models(root):
        for row in claims(root, model):
            keys = {key: row.get(key, "") for key in ("claim", "metric", "setting")}
            where = f"{row['direction']} " if row.get("direction") else ""
            rows.append(keys | {"model": model, "text": f"{where}{ledger.in_words(row)} {row['verdict']}"})
    if not rows:
        return pd.DataFrame(columns=["claim", "metric", "setting"])
    table = pd.DataFrame(rows).pivot_table(
        index=["claim", "metric", "setting"], columns="model", values="text", aggfunc="; ".join, sort=False
    )
    return table.fillna("").reset_index().rename_axis(columns=None)


def write_summary(root: Path) -> pd.DataFrame:
    """summary.csv from the manifests, where they have claims; returns the table."""
    table, path = summary(root), summary_path(root)
    if table.empty:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != files.csv_bytes(table):
        files.write_csv(table, path)
    return table
