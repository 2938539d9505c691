"""A machine's own runs (runs/) held against the published record (outputs/): values, verdicts, tables.

Only runs are compared that were asked the same thing: same cells, weights and parameters. How far a number may lie from
the published one stands in the published manifest (lib/artifact/tolerances.py); words and verdicts must be the same.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lib import places
from lib.artifact import ledger, manifests, storage, tolerances
from lib.artifact.manifests import Run
from lib.errors import UserError

COLUMNS = ["model", "file", "what", "ours", "published", "difference", "allowed"]
ALL_ELSE = {"default": tolerances.DEFAULT, "wider": []}  # for a manifest that states no tolerance


def why_not(model: str, notebook: str) -> str:
    """Why a run of this machine cannot be held against the published one; empty where it can."""
    try:
        published = manifests.read(Run(places.PUBLISHED, model, notebook))
    except UserError:
        return "it is not published"
    try:
        ours = manifests.read(Run(places.record(), model, notebook))
    except UserError:
        return "it did not finish"
    if ours["parameters"] != published["parameters"]:
        return "it is published with other parameters"
    if ours["made_from"]["cells"] != published["made_from"]["cells"]:
        return "its cells changed since it was published"
    if ours["made_from"]["weights"] != published["made_from"]["weights"]:
        return "the model's weights changed since it was published"
    return ""


def compare(model: str, notebook: str) -> pd.DataFrame:
    """Every number of a run that is published, too: model, file, what, ours, published, difference (infinite for words
    that differ), allowed.

    Compared are the rows of the ledger and every table and figure's numbers that the notebook wrote.
    """
    ours, published = (manifests.read(Run(root, model, notebook)) for root in (places.record(), places.PUBLISHED))
    stated = published.get("tolerance", ALL_ELSE)
    parts = [_ledgers(ours["ledger"], published["ledger"], stated)]
    for file in sorted(set(ours["results"]) & set(published["results"])):
        if file.endswith(".csv"):
            parts.append(_tables(model, file, stated))
    found = [(model, *row) for rows in parts for row in rows]
    return pd.DataFrame(found, columns=COLUMNS)


def _ledgers(our_rows: list[dict], published_rows: list[dict], stated: dict) -> list[tuple]:
    """Value, bounds and verdict of every row: (file, what, ours, published, difference, allowed)."""
    ours, published = ({(row["metric"], ledger.where(row)): row for row in rows} for rows in (our_rows, published_rows))
    found = []
    for key in dict.fromkeys([*ours, *published]):
        our_row, published_row = ours.get(key), published.get(key)
        what, limit = ", ".join(part for part in key if part), tolerances.allowed(stated, ledger.FILE, key[0])
        if our_row is None or published_row is None:
            found.append((ledger.FILE, what, bool(our_row), bool(published_row), np.inf, limit))
            continue
        for field in ("value", "low", "high"):
            apart = _apart(our_row[field], published_row[field])
            found.append((ledger.FILE, f"{what}: {field}", our_row[field], published_row[field], apart, limit))
        same = 0.0 if our_row["verdict"] == published_row["verdict"] else np.inf
        found.append((ledger.FILE, f"{what}: verdict", our_row["verdict"], published_row["verdict"], same, 0.0))
    return found


def _tables(model: str, file: str, stated: dict) -> list[tuple]:
    """Cell by cell, only the largest difference of each column is kept: (file, what, ours, published, difference,
    allowed)."""
    roots = (places.record(), places.PUBLISHED)
    try:
        ours, published = (storage.read_csv(manifests.checked(root, model, file)) for root in roots)
    except UserError as error:
        return [(file, str(error), "", "", np.inf, 0.0)]
    if ours.shape != published.shape or list(ours) != list(published):
        return [(file, "shape", str(ours.shape), str(published.shape), np.inf, 0.0)]
    found = []
    for column in ours:
        apart = _differences(ours[column], published[column])
        if len(apart):
            worst, limit = int(apart.argmax()), tolerances.allowed(stated, file, column)
            cells = ours[column][worst], published[column][worst]
            found.append((file, f"{column}, row {worst}", *cells, float(apart[worst]), limit))
    return found


def _differences(ours: pd.Series, published: pd.Series) -> np.ndarray:
    """How far apart two columns are in each row; words are equal or infinitely far apart."""
    if pd.api.types.is_numeric_dtype(ours) and pd.api.types.is_numeric_dtype(published):
        return np.array([_apart(a, b) for a, b in zip(ours, published, strict=True)])
    return np.where((ours == published) | (ours.isna() & published.isna()), 0.0, np.inf)


def _apart(ours: float, published: float) -> float:
    """Difference of two numbers, relative where the published one is larger than 1; 0 where both are missing."""
    if pd.isna(ours) or pd.isna(published):
        return 0.0 if pd.isna(ours) and pd.isna(published) else np.inf
    return abs(ours - published) / max(1.0, abs(published))


def report(table: pd.DataFrame, left_out: dict[str, str]) -> tuple[str, bool]:
    """What to tell of a comparison, and whether everything agrees. left_out: runs that are not compared, and why."""
    lines, agree = [], True
    if len(table):
        agree = not (table["difference"] > table["allowed"]).any()
        lines = [agreement(table)] if agree else differences(table)
    for reason in dict.fromkeys(left_out.values()):
        runs = ", ".join(run for run, why in left_out.items() if why == reason)
        lines.append(f"not compared with the published record: {runs} ({reason})")
    return "\n".join(lines), agree


def agreement(table: pd.DataFrame) -> str:
    """The sentence for runs that agree; apart from the rest what is allowed more than the default."""
    wide = table["allowed"] > tolerances.DEFAULT
    within = [
        f"{len(part)} within {limit:g}, largest difference {part['difference'].max():.1g}"
        for limit, part in ((tolerances.DEFAULT, table[~wide]), (table["allowed"].max(), table[wide]))
        if len(part)
    ]
    return (
        f"compared with the published record: all {len(table)} values agree within the tolerances that it states "
        f"({'; '.join(within)}), all verdicts are the same"
    )


def differences(table: pd.DataFrame) -> list[str]:
    """The lines for a run that differs: how many values, and the first ten of them."""
    wrong = table[table["difference"] > table["allowed"]]
    lines = [
        f"  {row.model}/{row.file}, {row.what}: {row.ours}, published {row.published}, {row.allowed:g} allowed"
        for row in wrong.itertuples()
    ]
    more = [f"  and {len(lines) - 10} more"] if len(lines) > 10 else []
    head = f"compared with the published record: {len(wrong)} of {len(table)} values differ by more than it allows:"
    return [head, *lines[:10], *more]
