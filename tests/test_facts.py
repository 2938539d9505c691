"""Questions that are not about space: one right answer that the picture supports, and reproducible."""

import pytest

from lib.stimuli import facts
from lib.stimuli.grids import GRIDS
from lib.stimuli.questions import SETTINGS

GRID = GRIDS["reference"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_question_has_one_right_answer(setting):
    items = facts.fact_items(setting, GRID, 40)
    assert items == facts.fact_items(setting, GRID, 40)
    for fact in items:
        things = [placement.entity for placement in fact.scene.placements]
        assert len(set(fact.candidates)) == len(fact.candidates)
        match fact.form:
            case "colour":
                assert sum(e.colour == fact.answer and e.noun in fact.question for e in things) == 1
            case "shape":
                assert sum(e.noun == fact.answer and e.colour in fact.question for e in things) == 1
            case "number":
                assert facts.NUMBERS[len(things)] == fact.answer
            case "presence":
                there = any(f"{e} in the picture" in fact.question for e in things)
                assert fact.answer == ("yes" if there else "no")


def test_objects_have_neither_colour_nor_shape():
    assert {fact.form for fact in facts.fact_items("objects", GRID, 20)} == {"presence", "number"}
