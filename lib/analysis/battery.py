"""The competence battery: does a model do the task, or something that looks like it? (PROTOCOL.md 9.1)

A mechanism is reported for a layout only where the model answers it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lib.analysis.behaviour import accuracy, behaviour
from lib.engine.vlm import VLM
from lib.stimuli import battery as stimuli
from lib.stimuli.battery import KINDS, NOTHING, WHITE, Question

LEAST = 0.95  # accuracy in a row and direction below which the row is named


def answers(vlm: VLM, questions: Sequence[Question], progress: bool = False) -> pd.DataFrame:
    """One row per question: row, direction, top (the most probable word), correct, kind (`KINDS`, "" if correct)."""
    found = behaviour(vlm, [asked.item for asked in questions], progress)
    found = found.rename(columns={"setting": "row"})[["row", "direction", "top", "correct"]]
    silent = [asked.target is None for asked in questions]
    found.loc[silent, "correct"] = found.loc[silent, "top"].str.strip().str.lower() == "nothing"
    kinds = [
        "" if row.correct else stimuli.wrong_kind(asked, row.top.strip())
        for asked, row in zip(questions, found.itertuples(), strict=True)
    ]
    return found.assign(kind=kinds)


def battery(vlm: VLM, n: int = 60, seed: int = 0, progress: bool = False) -> pd.DataFrame:
    """Accuracy and wrong answers per row and direction, n questions each.

    Columns row, direction, n, accuracy, low, high (Wilson), and the share of all answers that are wrong in each way:
    far end, wrong side, reference, another thing, absent. In the row "nothing there" the right answer is "nothing".
    """
    table = answers(vlm, stimuli.questions(vlm.grid, n, seed), progress)
    out = accuracy(table, ["row", "direction"])
    kinds = pd.crosstab([table["row"], table["direction"]], table["kind"], normalize="index")
    return out.join(kinds.reindex(columns=list(KINDS), fill_value=0.0), on=["row", "direction"])


def shortcuts(grid, n: int = 60, seed: int = 0) -> pd.DataFrame:
    """How often answers that need no understanding would be right, by row: far end, nearest, not named."""
    asked = [each for each in stimuli.questions(grid, n, seed) if each.target is not None]
    scores = pd.DataFrame([stimuli.shortcut_scores(each) for each in asked])
    return scores.assign(row=[each.item.setting for each in asked]).groupby("row", sort=False).mean()


def short_of(table: pd.DataFrame, least: float = LEAST) -> pd.DataFrame:
    """The cells on white whose accuracy is below `least`: row, direction, accuracy."""
    cells = table[table["row"].isin(WHITE) & (table["accuracy"] < least)]
    return cells[["row", "direction", "accuracy"]].reset_index(drop=True)


def in_words(table: pd.DataFrame, least: float = LEAST) -> str:
    """Whether the model passes the battery on white, and which rows it does not."""
    white, short = table[table["row"].isin(WHITE)], short_of(table, least)
    lowest = white["accuracy"].min()
    if short.empty:
        return f"passes the battery: at least {lowest:.2f} in all {len(white)} cells on white"
    named = ", ".join(f"{row.row} ({row.direction} {row.accuracy:.2f})" for row in short.itertuples())
    return f"falls short of {least:g} in {len(short)} of {len(white)} cells on white: {named}"


def without_answer(table: pd.DataFrame) -> str:
    """What it says where nothing lies in the direction asked for."""
    own = table[table["row"] == NOTHING]
    named = own[["far end", "wrong side", "reference", "another thing"]].sum(axis=1).mean()
    said = own["accuracy"].mean()
    return f"where nothing is there it says so in {said:.2f} of the questions and names a thing in {named:.2f}"
