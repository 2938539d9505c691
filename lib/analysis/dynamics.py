"""How a mechanism comes about: what was measured on snapshots of one training (PROTOCOL.md 9.7; floor 3).

`python -m lib.reference.dynamics NAME` measures and writes data/dynamics/<name>.csv; here the rows are read. These
rules were committed before any snapshot was measured:

- **The sign of an axis is learned** at the first snapshot from which on the lower bound of "sign" lies above 1/2, there
  and at all later snapshots; at least one later snapshot must confirm it. "sign" is the share of answers in which the
  target is more probable than its opposite. A model without any order has exactly 1/2: the two runs of a pair ask the
  same question about mirror images.
- **The answer follows a source** (O, S, B, P) at a snapshot where `fingerprint.winner` says so of the four effects.
- **A source is replaced** where the first snapshot at which a single source wins, from the learned sign on, and the
  last snapshot name two different ones.
- An effect is a share of the difference that the mirror picture makes to the answer. It is left out of the table where
  the interval of that difference is not above 0.
"""

from __future__ import annotations

import pandas as pd

from lib import places
from lib.analysis import fingerprint, statistics
from lib.analysis.fingerprint import RIVALS
from lib.analysis.ladder import STEPS
from lib.errors import UserError
from lib.stimuli.battery import WHITE
from lib.stimuli.grids import ORIENTATIONS
from lib.stimuli.questions import ORIENTATION

FOLDER = places.DATA / "dynamics"
COLUMNS = ("model", "seed", "stage", "step", "lessons", "metric", "part", "axis", "value", "low", "high", "n")
METRICS = {  # what a row's `part` and `axis` are, beside it
    "sign": "share of answers with the target before its opposite; axis: orientation",
    "accuracy": "correct answers of the competence battery; part: layout; axis: direction",
    "effect": "effect at slot 0 of a source's own edit; part: source; axis: orientation",
    "named": "order left after a step of the ladder; part: step; axis: orientation",
    "correct": "correct answers after a step of the ladder; part: step; axis: orientation",
    "names_neither": "answers that name neither candidate after a step of the ladder; part: step; axis: orientation",
    "place": "R2 of an object's row (vertical) or column (horizontal), read from its own token on unseen scenes",
}
CHANCE = 0.5  # of "sign"

# --- the tables -----------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The trainings that were measured."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def read(name: str) -> pd.DataFrame:
    """The rows of a training in the order of its snapshots, columns `COLUMNS`; n: units behind the interval.

    step: of its stage; lessons: seen since the training began, over all stages (0: random numbers, or the model that it
    started from). A UserError where the table is missing or has other columns.
    """
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        raise UserError(f"{places.show(path)} is missing: measured are {', '.join(names()) or 'no trainings yet'}")
    table = pd.read_csv(path, keep_default_na=False)
    if tuple(table.columns) != COLUMNS:
        raise UserError(f"{places.show(path)} must have the columns {', '.join(COLUMNS)}")
    return table.sort_values("lessons", kind="stable", ignore_index=True)


def of(table: pd.DataFrame, metric: str, axis: str | None = None, part: str | None = None) -> pd.DataFrame:
    """The rows of a metric, of one axis and one part where they are given."""
    rows = table[table["metric"] == metric]
    for column, wanted in (("axis", axis), ("part", part)):
        rows = rows if wanted is None else rows[rows[column] == wanted]
    return rows.reset_index(drop=True)


def snapshots(table: pd.DataFrame) -> pd.DataFrame:
    """Columns stage, step, lessons: one row per snapshot, in order; step 0 is the state in which a stage began."""
    return table[["stage", "step", "lessons"]].drop_duplicates(ignore_index=True)


def on_white(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the battery over all layouts on white: columns lessons, axis (orientation), n, value, low, high."""
    rows = of(table, "accuracy")
    rows = rows[rows["part"].isin(WHITE)].assign(correct=lambda t: (t["value"] * t["n"]).round())
    found = []
    for (lessons, axis), cell in rows.groupby(["lessons", rows["axis"].map(ORIENTATION)], sort=False):
        share = statistics.proportion(int(cell["correct"].sum()), int(cell["n"].sum()))
        found.append((lessons, axis, share.n, share.value, share.low, share.high))
    return pd.DataFrame(found, columns=["lessons", "axis", "n", "value", "low", "high"])


# --- the rules ------------------------------------------------------------------------------------------------


def sign_learned(table: pd.DataFrame, axis: str) -> int | None:
    """The place (0, 1, ...) of the snapshot at which the sign of an axis is learned; None if it is not."""
    holds = (of(table, "sign", axis)["low"] > CHANCE).tolist()
    first = len(holds)
    while first and holds[first - 1]:
        first -= 1
    return first if first <= len(holds) - 2 else None


def winners(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Which source the answer follows at each snapshot that has effects: stage, step, lessons, winner.

    winner: a source, "several" or "none" (`fingerprint.winner`).
    """
    found = []
    for keys, cell in of(table, "effect", axis).groupby(["stage", "step", "lessons"], sort=False):
        own = cell.set_index("part").loc[list(RIVALS)]
        said = fingerprint.winner({rival: (row.low, row.high) for rival, row in own.iterrows()})
        found.append((*keys, said))
    return pd.DataFrame(found, columns=["stage", "step", "lessons", "winner"])


def replaced(found: pd.DataFrame, since: int) -> tuple[str, str] | None:
    """The first single source from `since` lessons on and that of the last snapshot, where they differ; else None.

    found: `winners`.
    """
    later = found[found["lessons"] >= since]
    single = later[later["winner"].isin(list(RIVALS))]["winner"].tolist()
    if not single or later["winner"].iloc[-1] not in RIVALS or single[0] == single[-1]:
        return None
    return single[0], single[-1]


# --- in words -------------------------------------------------------------------------------------------------


def figures_of(row: pd.Series) -> str:
    return statistics.in_figures(row["value"], row["low"], row["high"])


def when(table: pd.DataFrame, axis: str) -> str:
    """When the sign of an axis was learned, as a sentence with the share before and then."""
    sign, place = of(table, "sign", axis), sign_learned(table, axis)
    if place is None:
        last = sign.iloc[-1]
        at = f"step {last['step']} of stage {last['stage']} ({figures_of(last)})"
        if last["low"] > CHANCE:
            return f"the sign is above chance at the last snapshot, {at}, and no later one confirms that it stays"
        return f"the sign is not learned by {at}"
    then = sign.iloc[place]
    at = f"step {then['step']} of stage {then['stage']}, after {then['lessons']:,} lessons ({figures_of(then)})"
    if place == 0:
        return f"the sign is there from the first snapshot on, {at}"
    before = sign.iloc[place - 1]
    earlier = f"step {before['step']} of stage {before['stage']}, it was {figures_of(before)}"
    return f"the sign is learned by {at}; at the snapshot before, {earlier}"


def follows(table: pd.DataFrame, axis: str) -> str:
    """Which source the answer follows once the sign is learned, at first and at the end, as a sentence; empty without
    a learned sign."""
    place, found = sign_learned(table, axis), winners(table, axis)
    if place is None:
        return ""
    since = int(of(table, "sign", axis).iloc[place]["lessons"])
    later = found[found["lessons"] >= since]
    if later.empty:
        return "no effect can be stated: the mirror picture moves the answer too little"
    first, last = later["winner"].iloc[0], later["winner"].iloc[-1]
    names = {"several": "several sources", "none": "none of the four sources"}
    ends = f"{names.get(last, last)} at the end" if first != last else "at the end"
    said = f"the answer follows {names.get(first, first)} at first and {ends}"
    change = replaced(found, since)
    return f"{said}; {change[0]} is replaced by {change[1]}" if change else said


def before_and_after(table: pd.DataFrame, axis: str, rows: pd.DataFrame) -> str:
    """Values at the snapshot before the sign is learned, at that one, and at the end; at the first and at the end where
    it was there from the first on or was not learned.

    rows: a value per snapshot, in order.
    """
    place, first, last = sign_learned(table, axis), figures_of(rows.iloc[0]), figures_of(rows.iloc[-1])
    if not place:
        return f"{first} at first, {last} at the end"
    return f"{figures_of(rows.iloc[place - 1])} before, {figures_of(rows.iloc[place])} then, {last} at the end"


def correct_answers(table: pd.DataFrame, axis: str) -> str:
    """Correct answers of the battery before and after the sign is learned."""
    rows = on_white(table)
    return f"correct answers of the battery: {before_and_after(table, axis, rows[rows['axis'] == axis])}"


def left_by_ablation(table: pd.DataFrame, axis: str) -> str:
    """Correct answers after the last step of the ladder, the paper's ablation."""
    values = before_and_after(table, axis, of(table, "correct", axis, STEPS[-1]))
    return f"correct with each object from a picture where it stands alone in the middle: {values}"


def place_readout(table: pd.DataFrame, axis: str) -> str:
    """How well the place along an axis is read from an object's own token before and after the sign is learned."""
    what = "column" if axis == "horizontal" else "row"
    return f"R2 of an object's {what}: {before_and_after(table, axis, of(table, 'place', axis))}"


def in_words(table: pd.DataFrame) -> list[str]:
    """Lines of text, an axis after the other: when the sign was learned, what the answer follows, correct answers, what
    the ablation leaves, readout of place."""
    parts, lines = (when, follows, correct_answers, left_by_ablation, place_readout), []
    for axis in ORIENTATIONS:
        said = [part(table, axis) for part in parts]
        lines += [
            {"horizontal": "left-right:", "vertical": "above-below:"}[axis],
            *(f"  {part}" for part in said if part),
        ]
    return lines
