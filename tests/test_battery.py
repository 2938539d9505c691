"""The competence battery: layouts that are what they say, one right answer each, and no shortcut that passes."""

import numpy as np
import pandas as pd
import pytest
from tiny import tiny

from lib.analysis import battery
from lib.stimuli import battery as stimuli
from lib.stimuli import layouts
from lib.stimuli.grids import GRIDS
from lib.stimuli.questions import DIRECTIONS

GRID = GRIDS["reference"]


@pytest.fixture(scope="module")
def asked():
    return stimuli.questions(GRID, n=9)


def test_every_row_and_direction_has_its_questions_and_they_are_reproducible(asked):
    counts = pd.Series([(each.item.setting, each.item.direction) for each in asked]).value_counts()
    assert len(counts) == (len(stimuli.ROWS) + 1) * len(DIRECTIONS) and (counts == 9).all()
    assert [each.item for each in stimuli.questions(GRID, n=9)] == [each.item for each in asked]


def test_every_question_has_one_right_answer(asked):
    for each in asked:
        found = layouts.neighbour(each.item.direction, each.reference, each.item.scene)
        if each.target is None:
            assert layouts.is_nothing(each.item.direction, each.reference, each.item.scene)
        else:
            assert found is each.target and each.item.answer == each.target.entity.name
        assert len(set(each.item.candidates)) == len(each.item.candidates)


def test_lines_of_three_and_more_hold_a_triple_that_training_never_showed(asked):
    for each in asked:
        if each.item.setting.startswith(("three", "four")):
            kind = "objects" if each.item.entities[0].colour is None else "shapes"
            kind = "squares" if {e.noun for e in each.item.entities} == {"square"} else kind
            assert layouts.is_held_out(kind, list(each.item.entities), GRID)


def test_no_shortcut_passes_the_battery():
    scores = battery.shortcuts(GRID, n=12)
    assert (scores.min() < 0.6).all()  # each of them fails in some row
    assert (
        scores.loc["three, reference at the end", "far end"] == scores.loc["four, reference at the end", "far end"] == 0
    )


def test_wrong_answers_are_told_apart():
    rng = np.random.default_rng(0)
    each = stimuli.drawn("four, reference inside", "squares", "left", GRID, rng)
    names = [p.entity.name for p in sorted(each.item.scene.placements, key=lambda p: p.centre[0])]
    place = names.index(each.reference.entity.name)
    assert stimuli.wrong_kind(each, each.reference.entity.name) == "reference"
    assert stimuli.wrong_kind(each, names[place + 1]) == "wrong side"
    assert stimuli.wrong_kind(each, "square") == stimuli.wrong_kind(each, "nothing") == "absent"
    if place == 2:
        assert stimuli.wrong_kind(each, names[0]) == "far end"


def test_a_random_model_fails_and_its_wrong_answers_add_up():
    table = battery.battery(tiny("reference"), n=1)
    assert len(table) == 4 * (len(stimuli.ROWS) + 1)
    assert np.allclose(table["accuracy"] + table[list(stimuli.KINDS)].sum(axis=1), 1)
    assert "falls short" in battery.in_words(table) and len(battery.short_of(table)) > 30
