"""The parts of README, docs and data/README that are made from files: `python -m lib.artifact.readme` writes them anew.

Tests compare them with the files. A part stands between the lines <!-- name --> and <!-- end of name -->.
"""

import pandas as pd

from lib import places
from lib.analysis import statistics
from lib.artifact import findings, ledger, markdown, record, reviewer, seeds
from lib.artifact.site.matrix import LETTERS
from lib.engine.checkpoints import shipped
from lib.engine.embedded import rank
from lib.errors import UserError, cli
from lib.files import file_digest, write_bytes
from lib.places import DATA, MODELS, ROOT, show
from lib.stimuli.battery import NOTHING, WHITE

DOCS = ROOT / "docs"


def checksums() -> str:
    """One line per file of data/, hidden files and the README itself left out."""
    files = sorted(path.relative_to(DATA).as_posix() for path in DATA.rglob("*") if path.is_file())
    listed = [f for f in files if f != "README.md" and not any(part.startswith(".") for part in f.split("/"))]
    rows = [(f, str((DATA / f).stat().st_size), f"`{file_digest(DATA / f)}`") for f in listed]
    return markdown.table(["file", "bytes", "SHA-256"], rows)


def claims() -> str:
    """The published ledgers: for each metric what it measures, and a table of its places by models."""
    rows, parts = record.compared(), []
    for metric, measure in ledger.by_claim():
        own = {}
        for name, found in rows.items():
            if here := {ledger.where(row): row for row in found if row["metric"] == metric}:
                own[name] = here
        if own:
            rule = f"Measured: {measure.description} (reproduced above {measure.threshold:g}). Paper: {measure.paper}."
            parts.append(f"### {measure.claim}: `{metric}`\n\n{rule}\n\n{by_place(own)}")
    return "\n".join(parts)


def by_place(own: dict[str, dict[str, dict]]) -> str:
    """A line per place, a column per model: value, interval, verdict's letter. own: model -> place -> row."""
    every = dict.fromkeys(place for found in own.values() for place in found)
    lines = [(place, *(in_short(found.get(place)) for found in own.values())) for place in every]
    return markdown.table(["", *markdown.code(own)], lines)


def in_short(row: dict | None) -> str:
    return f"{ledger.in_figures(row)} {LETTERS[row['verdict']]}" if row else ""


def over_seeds() -> str:
    """The claims over training seeds: the values of all seeds, and what the seeds say together."""
    if not seeds.recipes():
        return "One training of each recipe is shipped so far, so nothing can be said about recipes.\n"
    table = record.table(record.SEEDS, "seeds.csv")
    said = seeds.agreed(table).set_index(["recipe", "metric", "where"])["verdict"]
    lines = []
    for metric, _ in ledger.by_claim():
        own = table[table["metric"] == metric]
        for (recipe, where), rows in own.groupby(["recipe", "where"], sort=False):
            values = " / ".join(map(statistics.decimals, rows.sort_values("seed")["value"]))
            lines.append((f"`{metric}`", f"`{recipe}`", where, values, said[recipe, metric, where]))
    return markdown.table(["metric", "recipe", "", "value of each seed", "together"], lines)


def accuracies() -> str:
    """What the cards of the shipped models say in short: the lowest cell of the battery on white, unseen photographs,
    naturalistic scenes, questions without an answer."""
    lines = []
    for name in sorted(shipped(), key=rank):
        table = pd.read_csv(MODELS / name / "battery.csv")
        lowest = table[table["row"].isin(WHITE)].sort_values("accuracy", kind="stable").iloc[0]
        cells = [f"{lowest['accuracy']:.2f} ({lowest['row']}, {lowest['direction']})"]
        for row in ("on photographs", "naturalistic, strict", NOTHING):
            found = table[table["row"] == row]["accuracy"]
            cells.append(f"{found.min():.2f} - {found.max():.2f}")
        lines.append((f"`{name}`", *cells))
    head = ["model", "lowest of 44 cells on white", "on photographs", "naturalistic, strict", 'says "nothing"']
    return markdown.table(head, lines)


def verdicts() -> str:
    """A line per current metric, a column per model: the verdict, or how many rows say what."""
    rows, lines = record.compared(), []
    for metric, measure in ledger.by_claim():
        cells = [findings.said(own, metric) for own in rows.values()]
        if any(cells):
            lines.append((measure.claim, f"`{metric}`", measure.excludes, *cells))
    return markdown.table(["claim", "metric", "rival it tests", *markdown.code(rows)], lines)


PARTS = {
    (DATA / "README.md", "checksums"): checksums,
    (ROOT / "README.md", "rivals"): findings.four,
    (ROOT / "README.md", "findings"): findings.findings,
    (ROOT / "README.md", "claims"): findings.claims,
    (DOCS / "RESULTS.md", "sources"): findings.sources,
    (DOCS / "RESULTS.md", "more"): findings.more,
    (DOCS / "RESULTS.md", "verdicts"): verdicts,
    (DOCS / "RESULTS.md", "claims"): claims,
    (DOCS / "RESULTS.md", "seeds"): over_seeds,
    (DOCS / "MODELS.md", "battery"): accuracies,
    (DOCS / "ARTIFACT.md", "claims"): reviewer.table,
    (DOCS / "ARTIFACT.md", "times"): reviewer.times,
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
