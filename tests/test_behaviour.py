"""Accuracy tables: right and wrong answers are told apart on a model whose answers are known."""

import pandas as pd
import pytest

from lib.analysis import behaviour
from lib.engine.families import family
from lib.stimuli import questions
from lib.stimuli.grids import GRIDS
from lib.stimuli.scenes import HELD_OUT_PHOTOGRAPHS

GRID = GRIDS["reference"]


class Oracle:
    """Stands in for a VLM: gives the word that `choose(row, words)` picks a probability of .7, the others share .3."""

    grid = GRID
    family = family("reference")

    def __init__(self, choose):
        self.choose = choose

    def answer(self, pictures, texts, words, progress=True):
        assert len(pictures) == len(texts) == len(words)
        rows = []
        for item, (text, names) in enumerate(zip(texts, words, strict=True)):
            chosen = self.choose(text, names)
            for name in names:
                share = 0.7 if name == chosen else 0.3 / (len(names) - 1)
                rows.append((item, name, share, 0.0, chosen, name == chosen))
        return pd.DataFrame(rows, columns=["item", "word", "probability", "logit", "top", "is_top"])


def test_a_model_that_is_always_right_scores_one_and_the_opposite_one_zero():
    items = questions.questions("squares", GRID)
    right = behaviour.behaviour(Oracle(lambda text, names: names[0]), items)
    wrong = behaviour.behaviour(Oracle(lambda text, names: names[1]), items)
    assert right["correct"].all() and not wrong["correct"].any()
    assert right["target"].tolist() == [0.7] * 480 and wrong["opposite"].tolist() == [0.7] * 480
    table = behaviour.accuracy(right)
    assert table["n"].sum() == 480 and (table["accuracy"] == 1).all() and (table["low"] < 1).all()


def test_strict_accuracy_needs_both_orders():
    items = questions.natural_questions(GRID, HELD_OUT_PHOTOGRAPHS, n=20)
    always_first = Oracle(lambda text, names: next(w for w in text[:-1].split() if w in names))
    table = behaviour.side_behaviour(always_first, items)
    assert not table["correct"].any()  # it takes the option named first, so it is right in exactly one order
    assert (table["first"] ^ table["second"]).all()


def test_accuracy_of_a_known_share():
    table = pd.DataFrame({"setting": "s", "direction": "left", "split": "test", "correct": [True] * 8 + [False] * 2})
    row = behaviour.accuracy(table).iloc[0]
    assert row["accuracy"] == pytest.approx(0.8) and row["low"] < 0.8 < row["high"]
