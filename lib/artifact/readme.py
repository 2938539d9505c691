"""The parts of README.md and data/README.md that are made from files: `python -m lib.artifact.readme` writes them anew.

Tests compare them with the files. A part stands between the lines <!-- name --> and <!-- end of name -->.
"""

import pandas as pd

from lib import places
from lib.artifact import ledger, record, seeds, storage
from lib.engine.checkpoints import shipped
from lib.engine.embedded import COMPARED
from lib.errors import UserError, cli
from lib.files import file_digest, write_bytes
from lib.places import DATA, MODELS, ROOT, show
from lib.stimuli.questions import SETTINGS


def checksums() -> str:
    """One line per file of data/, hidden files and the README itself left out."""
    files = sorted(path.relative_to(DATA).as_posix() for path in DATA.rglob("*") if path.is_file())
    listed = [f for f in files if f != "README.md" and not any(part.startswith(".") for part in f.split("/"))]
    lines = [f"| {f} | {(DATA / f).stat().st_size} | `{file_digest(DATA / f)}` |" for f in listed]
    return "\n".join(["| file | bytes | SHA-256 |", "|---|---|---|", *lines]) + "\n"


def claims() -> str:
    """The published ledgers in short: one line per metric, the settings of each model side by side."""
    rows = {name: ledger.load(name) for name in COMPARED if name in record.models()}
    lines = [
        f"| claim | measured | paper | {' | '.join(f'`{name}`' for name in rows)} |",
        "|---|---|---|" + "---|" * len(rows),
    ]
    for metric, measure in ledger.by_claim():
        cells = [in_short([row for row in own if row["metric"] == metric]) for own in rows.values()]
        if any(cells):
            description = f"{measure.description} (above {measure.threshold:g})"
            lines.append(f"| {measure.claim} | {description} | {measure.paper} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_short(rows: list[dict]) -> str:
    """Values and intervals by place, the verdict once where all places agree."""
    verdicts = {row["verdict"] for row in rows}
    parts = []
    for row in rows:
        own = "" if len(verdicts) == 1 else f" {row['verdict']}"
        parts.append(f"{ledger.where(row)} {ledger.in_figures(row)}{own}")
    return "<br>".join(parts + [f"**{verdict}**" for verdict in verdicts if len(verdicts) == 1])


def over_seeds() -> str:
    """The claims over training seeds: values of all seeds by place, and what the seeds say together."""
    if not seeds.recipes():
        return "One training of each recipe is shipped so far, so nothing can be said about recipes.\n"
    table = storage.read_csv(seeds.folder() / "seeds.csv")
    said = seeds.agreed(table).set_index(["recipe", "metric", "where"])["verdict"]
    lines = [f"| claim | metric | {' | '.join(f'`{name}`' for name in seeds.recipes())} |"]
    lines.append("|---|---|" + "---|" * len(seeds.recipes()))
    for metric, measure in ledger.by_claim():
        cells = []
        for recipe in seeds.recipes():
            own = table[(table["recipe"] == recipe) & (table["metric"] == metric)]
            parts = []
            for where, rows in own.groupby("where", sort=False):
                values = " / ".join(map(record.two_digits, rows.sort_values("seed")["value"]))
                parts.append(f"{where} {values} {said[recipe, metric, where]}")
            cells.append("<br>".join(parts))
        if any(cells):
            lines.append(f"| {measure.claim} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def accuracies() -> str:
    """What the cards of the shipped models say in short: the lowest of the four directions, unseen lines of three. And
    the same of training seeds that did not learn the task and are not shipped."""
    lines = [f"| model | {' | '.join(SETTINGS)} | naturalistic |", "|---|" + "---|" * (len(SETTINGS) + 1)]
    order = sorted(shipped(), key=lambda name: (name.split("-")[0] != "reference", "_" in name, name))
    files = {f"`{name}`": MODELS / name / "accuracy.csv" for name in order}
    files |= {
        f"{path.parent.name}, training seed {path.stem.removeprefix('accuracy-seed')}, not shipped": path
        for path in sorted(MODELS.glob("*/accuracy-seed*.csv"), reverse=True)
    }
    for name, file in files.items():
        table = pd.read_csv(file)
        tested = table[table["split"] == "test"].groupby("setting")["accuracy"]
        lowest, natural = tested.min(), table[table["setting"].str.contains("both option orders")]["accuracy"]
        cells = [f"{lowest[setting]:.2f}" for setting in SETTINGS] + [f"{natural.min():.2f} - {natural.max():.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


PARTS = {
    (DATA / "README.md", "checksums"): checksums,
    (ROOT / "README.md", "claims"): claims,
    (ROOT / "README.md", "seeds"): over_seeds,
    (ROOT / "README.md", "accuracy"): accuracies,
}


def renewed(text: str, name: str, part: str) -> str:
    """The text with a part replaced; a UserError where its marks are not there exactly once."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if text.count(start) != 1 or text.count(end) != 1:
        raise UserError(f"the lines {start.strip()} and {end.strip()} must stand once each: put them back")
    before, rest = text.split(start)
    return before + start + part + end + rest.split(end)[1]


def main() -> None:
    places.use_published()
    for (path, name), make in PARTS.items():
        write_bytes(path, renewed(path.read_text("utf-8"), name, make()).encode())
        print(f"{show(path)}: {name}")


if __name__ == "__main__":
    with cli():
        main()
