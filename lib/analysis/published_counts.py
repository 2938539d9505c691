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
from lib.analysis.position_schemes import NAMED
from lib.errors import UserError
from lib.stimuli.questions import ORIENTATION

FLOOR = 0.5
COMPETENT = 0.9  # intact accuracy below which an accuracy after the ablation says nothing
LEFT = "order is left"
ALIKE = {  # checkpoint -> embedded models of its class of transformers, and so with its position scheme
    "qwen2-vl-7b": ("qwen_style", "qwen_joint"),
    "gemma-3-4b": ("gemma_style", "gemma_joint"),
    "pixtral-12b": ("pixtral_style", "pixtral_joint"),
}
OF_MODEL = ("total", "accuracy", "low", "high", "names_neither")
COUNTS = ("model", "setting", "direction", "condition", "correct", "total", "source", "accessed")


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
        return LEFT
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


# --- does the position scheme predict the axis? ----------------------------------------------------------------


def embedded_reading(row: dict) -> str:
    """`reading` of an embedded model; not readable, too, where most ablated answers name neither candidate."""
    return "not readable" if row["names_neither"] > 1 - NAMED else reading(row["intact"], row["low"], row["high"])


def beside_checkpoints(embedded: pd.DataFrame, setting: str = "squares") -> pd.DataFrame:
    """Embedded models beside the checkpoint with their position scheme, axis by axis.

    embedded: model, setting, orientation, intact, accuracy, low, high, names_neither after the ablation
    (`mechanisms.mechanism`), further training seeds as NAME-seed<k>. Columns checkpoint, model, orientation,
    checkpoint_reading, own (the embedded model's reading), total, accuracy, low, high, names_neither (of the embedded
    model), compared: alike (order is left in both or in neither), differs (in one only, and the intervals lie apart),
    undecided (in one only, but the intervals overlap), or not readable (one of the two).
    """
    counted = after_ablation().set_index(["model", "setting", "orientation"])
    recipe = embedded["model"].str.split("-seed").str[0]
    rows = []
    for checkpoint, names in ALIKE.items():
        for row in embedded[recipe.isin(names) & (embedded["setting"] == setting)].to_dict("records"):
            of_checkpoint = counted.loc[(checkpoint, setting, row["orientation"])]
            own, values = embedded_reading(row), [row[key] for key in OF_MODEL]
            key = (checkpoint, row["model"], row["orientation"], of_checkpoint["reading"], own)
            rows.append((*key, *values, _compared(of_checkpoint, row, own)))
    readings = ["checkpoint_reading", "own"]
    head = ["checkpoint", "model", "orientation", *readings, *OF_MODEL, "compared"]
    return pd.DataFrame(rows, columns=head)


def _compared(of_checkpoint, row, own: str) -> str:
    if "not readable" in (of_checkpoint["reading"], own):
        return "not readable"
    if (of_checkpoint["reading"] == LEFT) == (own == LEFT):
        return "alike"
    return "differs" if row["low"] > of_checkpoint["high"] or of_checkpoint["low"] > row["high"] else "undecided"


def schemes_in_words(table: pd.DataFrame) -> list[str]:
    """One line per embedded model, and what they say together; table: `beside_checkpoints`."""
    axes, lines = {"horizontal": "left-right", "vertical": "above-below"}, []
    for (checkpoint, model), cell in table.groupby(["checkpoint", "model"], sort=False):
        parts = [
            f"{axes[x.orientation]} {statistics.in_figures(x.accuracy, x.low, x.high)} "
            f"({x.names_neither:.2f} name neither), {x.own}"
            + (f", {checkpoint}: {x.checkpoint_reading} ({x.compared})" if x.compared != "not readable" else "")
            for x in cell.itertuples()
        ]
        lines.append(f"{model}, scheme of {checkpoint}, n = {cell['total'].iloc[0]} questions: {'; '.join(parts)}")
    return [*lines, scheme_verdict(table)]


def scheme_verdict(table: pd.DataFrame) -> str:
    """Whether the axes that keep order are those of the checkpoint with the same scheme, in a sentence or two."""
    said = table.groupby("model", sort=False)["compared"].agg(set)
    differ = [name for name, own in said.items() if "differs" in own]
    alike = [name for name, own in said.items() if own == {"alike"}]
    unclear = [name for name, own in said.items() if own & {"not readable", "undecided"}]
    if differ:
        text = (
            f"{', '.join(differ)}: where both can be read, order survives on other axes than in the checkpoint with "
            "the same scheme, so the scheme alone does not decide the axis (training, data and size differ, too)."
        )
    elif alike:
        text = (
            f"{', '.join(alike)}: order is left on the same axes as in the checkpoint with the same scheme, as it "
            "would be if the scheme decided; so few trainings cannot tell that from chance."
        )
    else:
        text = "No embedded model can be compared with the checkpoint of its scheme: no answer about the schemes."
    if differ and alike:
        text += f" On the same axes: {', '.join(alike)}."
    if unclear:
        text += f" Cannot be compared on one axis or both (not readable, or undecided): {', '.join(unclear)}."
    return text
