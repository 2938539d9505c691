"""The table of docs/ARTIFACT.md: for each claim its command, what it took, and the files and figures it makes.

`readme` puts it into the page. Times are those in the manifests of the published runs.
"""

from pathlib import Path

from lib import places
from lib.artifact import findings, manifests, markdown, record
from lib.artifact.site.matrix import CLAIMS
from lib.engine.embedded import DEFAULT
from lib.places import show

SHOWN = {  # claim -> figures and tables that show it; the ledger holds the values
    "C1": ("figures/03-last-token.png", "tables/last_token.csv"),
    "C2": ("figures/03-probes-embeddings.png", "tables/probes.csv"),
    "C3": ("figures/04-strip-score.png", "tables/strips.csv"),
    "C4": ("figures/02-fingerprint.png", "tables/rivals.csv"),
    "C5": ("figures/02-ladder.png", "tables/ladder.csv"),
    "C6": ("figures/03-interchange-ablated.png", "tables/interchange_ablated.csv"),
    "C7": ("figures/05-table2.png", "tables/enhancement.csv"),
    "C7 net": ("figures/05-dose.png", "tables/enhancement.csv"),
}


def table() -> str:
    """One line per claim, of the default model's published ledger."""
    rows, lines = record.rows(DEFAULT), []
    for claim, sentence in CLAIMS.items():
        own = [row for row in rows if row["claim"] == claim]
        if not own:
            continue
        notebook = own[0]["notebook"]
        cells = ", ".join(markdown.code(dict.fromkeys(row["cell"] for row in own)))
        said = {row["metric"]: findings.said(own, row["metric"]) for row in own}
        metrics = "<br>".join(f"`{metric}`: {verdicts}" for metric, verdicts in said.items())
        files = "<br>".join(markdown.code(SHOWN[claim]))
        command = f"`make run NOTEBOOKS={notebook[:2]}`"
        lines.append((f"**{claim}** {sentence}", command, minutes(notebook, DEFAULT), f"cells {cells}", metrics, files))
    head = ["claim", "command", "minutes", "where in the notebook", "metric: verdict", "figure, table"]
    return markdown.table(head, lines)


def minutes(notebook: str, model: str) -> str:
    """How long a published run took; a dash where there is none."""
    manifest = manifests.readable(places.record(), model).get(record.run_of(notebook, model), {})
    seconds = manifest.get("seconds")
    return f"{seconds / 60:.1f}" if seconds else "-"


def times() -> str:
    """Minutes of every published run: a line per model, a column per notebook."""
    found = {(run.notebook, run.model) for run in manifests.readable(places.record()) if run.model != record.SEEDS}
    numbers = sorted({notebook for notebook, _ in found})
    lines = [
        (f"`{model}`", *(minutes(number, model) if (number, model) in found else "" for number in numbers))
        for model in record.models()
    ]
    return markdown.table(["model", *(number[:2] for number in numbers)], lines)


def missing() -> list[Path]:
    """Files that the table names and the published record lacks."""
    named = {places.record(DEFAULT) / name for names in SHOWN.values() for name in names}
    return sorted(Path(show(path)) for path in named if not path.is_file())
