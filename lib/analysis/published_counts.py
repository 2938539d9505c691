"""What the paper's authors counted on true checkpoints, read against the floor of 1/2 (PROTOCOL.md 9.4; floor 3).

The ordering ablation takes the order from the embeddings. A model that still knows which entity was asked about, but
has lost all order, chooses between the two others and is right in half of the cases. The two directions of an axis are
pooled: a preference for one of the two entities, or for one end of the line, then gives 1/2 as well.
"""

from __future__ import annotations

from functools import cache

import pandas as pd

from lib import places
from lib.analysis import statistics
from lib.errors import UserError
from lib.stimuli.questions import ORIENTATION

FLOOR = 0.5
COMPETENT = 0.9  # intact accuracy below which an accuracy after the ablation says nothing
COUNTS = ("model", "setting", "direction", "condition", "correct", "total", "source", "accessed")
PROBES = ("model", "setting", "orientation", "test_accuracy", "source", "accessed")


def read(name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table of data/published; a UserError where it has other columns or empty cells."""
    path = places.DATA / "published" / f"{name}.csv"
    table = pd.read_csv(path)
    if tuple(table.columns) != columns or table.isna().any(axis=None):
        raise UserError(f"{places.show(path)} must have the columns {', '.join(columns)} and no empty cell.")
    return table


@cache
def counts() -> pd.DataFrame:
    """Correct answers of each model, setting and direction; condition: intact, or ablated over all image tokens."""
    return read("counts", COUNTS)


@cache
def probes() -> pd.DataFrame:
    """Accuracy of the paper's ordinal probe on pictures that it was not trained on."""
    return read("probes", PROBES)


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Counts with the two directions of each axis added up.

    Columns model, setting, orientation, condition, correct, total, accuracy, low, high (Wilson's interval, which takes
    questions as independent; the two questions about one picture are not, and under the floor they exclude each other,
    so that the interval is then rather too wide than too narrow).
    """
    by = ["model", "setting", "orientation", "condition"]
    table = table.assign(orientation=table["direction"].map(ORIENTATION))
    out = table.groupby(by, sort=False)[["correct", "total"]].sum().reset_index()
    found = [statistics.proportion(int(row.correct), int(row.total)) for row in out.itertuples()]
    return out.assign(accuracy=[x.value for x in found], low=[x.low for x in found], high=[x.high for x in found])


def reading(intact: float, low: float, high: float) -> str:
    """What an accuracy after the ablation says about the backbone, in one phrase."""
    if not intact >= COMPETENT:
        return "not readable"  # it did not do the task before
    if low > FLOOR:
        return "order is left"
    return "below the floor" if high < FLOOR else "no order is shown to be left"


def after_ablation(table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Accuracy after the ordering ablation per model, setting and axis, with the intact accuracy beside it.

    Columns model, setting, orientation, correct, total, intact, accuracy, low, high, reading (see `reading`). table: as
    `pooled` gives it, default the authors' counts. Rows without an ablated run (What'sUp) are left out.
    """
    table = pooled(counts()) if table is None else table
    keys = ["model", "setting", "orientation"]
    intact = table[table["condition"] == "intact"].set_index(keys)["accuracy"].rename("intact")
    out = table[table["condition"] == "ablated"].drop(columns="condition").join(intact, on=keys)
    return out.assign(reading=[reading(*row) for row in zip(out["intact"], out["low"], out["high"], strict=True)])
