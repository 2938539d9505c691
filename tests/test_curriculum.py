"""What the embedded models are taught: true texts, no held-out triple, and no shortcut that is better than a guess."""

import numpy as np
import pytest

from lib.reference import curriculum, shortcuts
from lib.reference.language import GRID
from lib.stimuli import layouts, questions


@pytest.mark.parametrize("contested", [True, False])
def test_no_shortcut_is_right_more_often_than_a_guess(contested):
    """Far end, nearest and "anything not named" stay within .05 of chance. What stands nearest to the centre of all
    things is the answer in about half of the questions: no drawing of lines can avoid that, so the battery asks where
    it is wrong."""
    rng, scores = np.random.default_rng(1), []
    for k in range(600):
        for asked in curriculum.lesson(rng, 0.2 + 0.8 * k / 600, contested=contested).asked:
            chance = shortcuts.chance(asked)
            scores.append([shortcuts.hit(shortcuts.SHORTCUTS[name], asked) - chance for name in
                           ("far end", "nearest", "not named", "reference")])  # fmt: skip
    assert len(scores) > 800
    assert (np.mean(scores, axis=0) < 0.06).all()  # .05 and the error of so many questions


def lines(scene):
    """Every three entities next to each other in a row or column of the scene."""
    for axis in (0, 1):
        bands: dict = {}
        for placement in scene.placements:
            bands.setdefault((placement.box[1 - axis], placement.box[3 - axis]), []).append(placement)
        for members in bands.values():
            ordered = [p.entity for p in sorted(members, key=lambda p: p.centre[axis])]
            yield from (tuple(ordered[k : k + 3]) for k in range(len(ordered) - 2))


def test_lines_hold_no_held_out_triple_and_never_the_evaluated_place():
    rng, found = np.random.default_rng(2), 0
    for _ in range(600):
        kind = str(rng.choice(curriculum.KINDS))
        scene = layouts.trained_line(rng, kind, GRID, (3, 4, 5))
        held_out = questions.held_out_triples(kind, GRID)
        for triple in lines(scene):
            found += 1
            assert triple not in held_out
        starts = sorted(round(p.box[0] / GRID.pixels) for p in scene.placements)
        assert not (tuple(starts) == GRID.starts and scene.placements[0].box[1] == GRID.across * GRID.pixels)
    assert found > 500


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.9])
def test_texts_are_true(progress):
    """Neighbours and places agree with the boxes, checked by another way of saying it."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        lesson = curriculum.lesson(rng, progress)
        for asked in lesson.asked:
            assert asked.direction in layouts.signs(asked.target, asked.reference, GRID.canvas)
        for placement in lesson.scene.placements:
            row, column = curriculum.token_place(placement)
            x0, y0, _, _ = placement.box
            assert abs(column * GRID.pixels - x0) <= GRID.pixels / 2 + 1e-6 or column == GRID.side - 1
            assert abs(row * GRID.pixels - y0) <= GRID.pixels / 2 + 1e-6 or row == GRID.side - 1


def test_lessons_are_reproducible():
    first, second = (curriculum.lesson(np.random.default_rng(7), 0.5) for _ in range(2))
    assert first == second
