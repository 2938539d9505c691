"""Training seeds side by side.

`python -m lib.artifact.seeds` runs notebook 02, which asks where order comes from, on every shipped training seed of a
recipe and collects its claims in outputs/seeds/: seeds.csv, seeds.png, seeds.pdf.

A claim holds for a recipe only where its seeds agree. Seed 0 of each recipe is the model that `make run` is about: its
ledger is the published one. The other seeds' runs go to seeds/, a folder of their own, which is not published.
Floor 5, beside the runner: computes nothing itself.
"""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import pandas as pd

from lib import files, places
from lib.artifact import figures, ledger, manifests, record, storage
from lib.artifact.manifests import Run
from lib.engine.checkpoints import seeds
from lib.engine.embedded import COMPARED
from lib.errors import UserError, cli
from lib.places import show

WORK = places.ROOT / "seeds"
NOTEBOOK = "02"  # of which the claims are collected
COLUMNS = ["recipe", "seed", "claim", "metric", "where", "value", "low", "high", "n", "verdict"]


def recipes() -> list[str]:
    """Those of which several trainings are shipped."""
    return [recipe for recipe in COMPARED if len(seeds(recipe)) > 1]


def run() -> Run:
    """Where the collected claims are filed: a run of their own, without a notebook."""
    return Run(places.record(), record.SEEDS, record.SEEDS)


def run_others(work: Path, fresh: bool) -> int:
    """The notebook on every seed but the published one, each recipe by a call of the runner; its exit code."""
    codes = [0]
    for recipe in recipes():
        names = [name for number, name in seeds(recipe).items() if number]
        work.mkdir(parents=True, exist_ok=True)
        words = ["--model", ",".join(names), "--notebooks", NOTEBOOK, "--outputs", str(work)]
        words += ["--fresh"] if fresh else []
        codes.append(subprocess.run([sys.executable, "-m", "lib.run", *words], cwd=places.ROOT).returncode)
    return exit_code(codes)


def exit_code(codes: list[int]) -> int:
    """One exit code of several calls: 1 where one failed or was killed by a signal (a negative code), else the
    largest."""
    return 1 if any(code < 0 for code in codes) else max(codes)


def collected(work: Path) -> pd.DataFrame:
    """What the notebook says of all seeds, a row per recipe, seed, metric and place; a UserError where one lacks it."""
    rows = []
    for recipe in recipes():
        for number, name in seeds(recipe).items():
            root = work if number else places.record()
            own = [row for row in record.rows(name, root) if row["notebook"].startswith(NOTEBOOK)]
            if not own:
                again = "make seeds" if number else "make run"
                raise UserError(f"{show(root / name)} has no ledger: `{again}` makes it")
            rows += [{"recipe": recipe, "seed": number, "where": ledger.where(row), **row} for row in own]
    return pd.DataFrame(rows)[COLUMNS]


def agreed(table: pd.DataFrame) -> pd.DataFrame:
    """What the seeds of a recipe say together: recipe, metric, where, seeds, verdict ("seeds differ" unless all say
    the same)."""
    rows = []
    for (recipe, metric, where), cell in table.groupby(["recipe", "metric", "where"], sort=False):
        said = cell["verdict"].unique()
        rows.append((recipe, metric, where, len(cell), said[0] if len(said) == 1 else "seeds differ"))
    return pd.DataFrame(rows, columns=["recipe", "metric", "where", "seeds", "verdict"])


def draw(table: pd.DataFrame):
    """Every metric in a panel: each seed's value with its interval; the rule's threshold as a line."""
    figures.use_style()
    metrics = [(metric, measure) for metric, measure in ledger.by_claim() if metric in set(table["metric"])]
    figure, axes = figures.panels(-(-len(metrics) // 3), 3, height=2.6, squeeze=False)
    for ax, (metric, measure) in zip(axes.flat, metrics, strict=False):
        part = table[table["metric"] == metric]
        names = list(dict.fromkeys(part["where"]))
        for place, recipe in enumerate(dict.fromkeys(table["recipe"])):
            rows, look = part[part["recipe"] == recipe], figures.look(recipe)
            order = rows["seed"].map(sorted(set(rows["seed"])).index)
            x = (
                rows["where"].map(names.index)
                + (place + 0.5) / table["recipe"].nunique() * 0.8
                - 0.4
                + (order - 1) * 0.06
            )
            bars = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            style = {"fmt": look.marker, "color": look.colour, "elinewidth": 1, "label": f"{recipe}, seeds in order"}
            ax.errorbar(x, rows["value"], [bar.clip(lower=0) for bar in bars], **style)
        figures.level(ax, measure.threshold, "")
        ax.set(title=f"{measure.claim}: {metric.replace('_', ' ')}", xlim=(-0.5, len(names) - 0.5))
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    for ax in axes.flat[len(metrics) :]:
        ax.remove()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=table["recipe"].nunique())
    return figure


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.artifact.seeds", description="The claims over training seeds.")
    parser.add_argument("--fresh", action="store_true", help="run what is up to date, too")
    parser.add_argument("--work", type=Path, default=WORK, help="where the seeds' own runs go (default: seeds/)")
    arguments = parser.parse_args(argv)
    places.use_published()
    if not recipes():
        print("One training of each recipe is shipped: there are no seeds to compare.")
        return 0
    code = run_others(arguments.work, arguments.fresh)
    if code:
        return code
    table = collected(arguments.work)
    members = {recipe: list(seeds(recipe)) for recipe in recipes()}
    with manifests.staged(run()) as folder:
        figures.save(draw(table), "seeds", table, "seeds", folder=folder, training_seeds=members)
        made = {recipe: record.rows(recipe) for recipe in members}
        facts = {"ledgers": hashlib.sha256(files.dump_json(made)).hexdigest(), "training_seeds": members}
        stated = {"parameters": {}, "made_from": facts, "versions": storage.versions(), "commit": storage.commit()}
        manifests.commit(run(), folder, stated)
    print(agreed(table).to_string(index=False))
    print(f"the claims over training seeds are in {show(run().folder)}")
    return 0


if __name__ == "__main__":
    with cli():
        raise SystemExit(main())
