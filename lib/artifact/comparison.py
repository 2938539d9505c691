"""A machine's own runs (runs/) held against the published record (outputs/): values, verdicts, tables.

Only runs are compared that were asked the same thing: same notebook, same parameters. Numbers may differ by
`TOLERANCE`: other processors round differently, and results of kernels depend on it in the last digits.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lib import places
from lib.artifact import ledger, manifests, storage
from lib.artifact.manifests import Run
from lib.errors import UserError

TOLERANCE = 0.01  # of a probability, an effect, an accuracy; of larger numbers, this share of them
COLUMNS = ["model", "file", "what", "ours", "published", "difference"]


def comparable(model: str, notebook: str) -> bool:
    """Whether both records hold a run of a notebook with the same cells, weights and parameters."""
    try:
        ours, published = _manifests(model, notebook)
    except UserError:
        return False
    made = [
        (each["parameters"], each["made_from"]["cells"], each["made_from"]["weights"]) for each in (ours, published)
    ]
    return made[0] == made[1]


def compare(model: str, notebook: str) -> pd.DataFrame:
    """Every number of a run that is published, too: model, file, what, ours, published, difference (NaN: words).

    Compared are the rows of the ledger and every table and figure's numbers that the notebook wrote.
    """
    ours, published = _manifests(model, notebook)
    parts = [_ledgers(model, ours["ledger"], published["ledger"])]
    for file in sorted(set(ours["results"]) & set(published["results"])):
        if file.endswith(".csv"):
            parts.append(_tables(model, file))
    return pd.concat([part for part in parts if len(part)] or [pd.DataFrame(columns=COLUMNS)], ignore_index=True)


def _manifests(model: str, notebook: str) -> list[dict]:
    """The manifests of this machine's run and of the published one."""
    return [manifests.read(Run(root, model, notebook)) for root in (places.record(), places.PUBLISHED)]


def _ledgers(model: str, our_rows: list[dict], published_rows: list[dict]) -> pd.DataFrame:
    ours, published = ({(row["metric"], ledger.where(row)): row for row in rows} for rows in (our_rows, published_rows))
    found = []
    for key in dict.fromkeys([*ours, *published]):
        our_row, published_row = ours.get(key), published.get(key)
        what = ", ".join(part for part in key if part)
        if our_row is None or published_row is None:
            found.append((model, "ledger.json", what, bool(our_row), bool(published_row), np.inf))
            continue
        for field in ("value", "low", "high"):
            apart = _apart(our_row[field], published_row[field])
            found.append((model, "ledger.json", f"{what}: {field}", our_row[field], published_row[field], apart))
        same = 0.0 if our_row["verdict"] == published_row["verdict"] else np.inf
        found.append((model, "ledger.json", f"{what}: verdict", our_row["verdict"], published_row["verdict"], same))
    return pd.DataFrame(found, columns=COLUMNS)


def _tables(model: str, name: str) -> pd.DataFrame:
    """Cell by cell, only the largest difference of each column is kept."""
    roots = (places.record(), places.PUBLISHED)
    try:
        ours, published = (storage.read_csv(manifests.checked(root, model, name)) for root in roots)
    except UserError as error:
        return pd.DataFrame([(model, name, str(error), "", "", np.inf)], columns=COLUMNS)
    if ours.shape != published.shape or list(ours) != list(published):
        return pd.DataFrame([(model, name, "shape", str(ours.shape), str(published.shape), np.inf)], columns=COLUMNS)
    found = []
    for column in ours:
        our_column, published_column = ours[column], published[column]
        if pd.api.types.is_numeric_dtype(our_column) and pd.api.types.is_numeric_dtype(published_column):
            apart = np.array([_apart(a, b) for a, b in zip(our_column, published_column, strict=True)])
        else:
            apart = np.where(
                (our_column == published_column) | (our_column.isna() & published_column.isna()), 0.0, np.inf
            )
        worst = int(apart.argmax()) if len(apart) else None
        if worst is not None:
            found.append(
                (model, name, f"{column}, row {worst}", our_column[worst], published_column[worst], float(apart[worst]))
            )
    return pd.DataFrame(found, columns=COLUMNS)


def _apart(ours: float, published: float) -> float:
    """Difference of two numbers, relative where the published one is larger than 1; 0 where both are missing."""
    if pd.isna(ours) or pd.isna(published):
        return 0.0 if pd.isna(ours) and pd.isna(published) else np.inf
    return abs(ours - published) / max(1.0, abs(published))


def report(table: pd.DataFrame) -> tuple[str, bool]:
    """What to tell of a comparison, and whether everything agrees."""
    if table.empty:
        return "nothing of this is published with these parameters: no comparison", True
    wrong = table[table["difference"] > TOLERANCE]
    if wrong.empty:
        largest = table["difference"].max()
        return (
            f"compared with the published record: all {len(table)} values agree (largest difference {largest:.1g}, "
            f"allowed {TOLERANCE:g}), all verdicts are the same",
            True,
        )
    lines = [
        f"  {row.model}/{row.file}, {row.what}: {row.ours}, published {row.published}" for row in wrong.itertuples()
    ]
    more = [f"  and {len(lines) - 10} more"] if len(lines) > 10 else []
    head = f"compared with the published record: {len(wrong)} of {len(table)} values differ by more than {TOLERANCE:g}:"
    return "\n".join([head, *lines[:10], *more]), False
