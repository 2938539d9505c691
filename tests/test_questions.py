"""Questions and pairs: counts, texts, the tuple algebra of PROTOCOL.md 2-6, determinism, and clear errors."""

import hashlib
import shutil
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import places
from lib.errors import UserError
from lib.stimuli import object_pictures, pairs, questions, scenes
from lib.stimuli.grids import GRIDS
from lib.stimuli.questions import DIRECTIONS, OPPOSITE, SETTINGS

GRID = GRIDS["reference"]
quick = settings(max_examples=25, deadline=None)
PHOTOGRAPHS = scenes.HELD_OUT_PHOTOGRAPHS


def line(scene, direction):
    """Entities of a scene from left to right (or top to bottom), read off their boxes."""
    axis = 0 if questions.ORIENTATION[direction] == "horizontal" else 1
    return [p.entity for p in sorted(scene.placements, key=lambda p: p.centre[axis])]


def seen_answer(item):
    """The answer by looking: the entity nearest to the reference on the asked side."""
    order = line(item.scene, item.direction)
    return order[1 + (-1 if item.direction in ("left", "above") else 1)].name


# --- text ---------------------------------------------------------------------------------------------------


def test_question_texts_are_the_papers():
    square, shape, thing = (scenes.entities(s, GRID)[3] for s in SETTINGS)
    texts = [
        questions.neighbour_question(*args)
        for args in zip(SETTINGS, DIRECTIONS[:3], (square, shape, thing), strict=True)
    ]
    assert texts == [
        "The color of the square to the left of the black square is",
        "The color of the shape to the right of the black star is",
        "The object above the bell is a(n)",
    ]
    assert questions.whatsup_question("left", "chair") == "The object on the floor to the left of the chair is a(n)"
    side = questions.side_question
    assert side("cat", "dog", ("right", "left")) == (
        "Using the dog as the reference point, which side is the cat on? Answer with one word: right or left."
    )
    assert side("cat", "dog", ("left", "right"), "is_the") == (
        "Is the cat to the left or to the right of the dog? Answer with one word."
    )
    assert (
        side("cat", "dog", ("below", "above"), "is_the") == "Is the cat below or above the dog? Answer with one word."
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: questions.questions("circles", GRID), "Unknown setting 'circles'"),
        (lambda: questions.neighbour_question("circles", "left", None), "Unknown setting 'circles'"),
        (
            lambda: questions.side_question("a", "b", ("left", "right"), "was_the"),
            "Unknown question form 'was_the'",
        ),
        (lambda: questions.line_item("squares", GRID, (), "lef"), "did you mean 'left'"),
        (lambda: questions.questions("objects", GRID, objects="/nowhere"), "No folder /nowhere"),
        (lambda: questions.questions("squares", GRID, shift=(9, 0)), "use a smaller shift"),
        (lambda: questions.lattice_questions("squares", GRID, 4), "choose size 2 or 3"),
        (lambda: questions.natural_questions(GRID, ()), "need photographs"),
        (lambda: pairs.mirrored_pairs("squares", GRID, 61), "only 60 different pairs for squares, left"),
        (
            lambda: pairs.mirrored_pairs("squares", GRID, split="test"),
            "only 20 different pairs .* split test",
        ),
        (lambda: pairs.mirrored_pairs("squares", GRID, split="tset"), "did you mean 'test'"),
        (lambda: pairs.mirrored_pairs("squares", GRID, directions=["up"]), "unknown direction 'up'"),
    ],
)
def test_bad_input_gets_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- splits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_held_out_triples_are_a_third_and_closed_under_mirroring(setting):
    held = questions.held_out_triples(setting, GRID)
    assert len(held) == len(scenes.ordered_triples(setting, GRID)) // 3
    assert {t[::-1] for t in held} == held


def test_held_out_triples_are_those_kept_out_of_training():
    held = [sorted(" ".join(map(str, t)) for t in questions.held_out_triples(s, GRID)) for s in SETTINGS]
    assert hashlib.sha256(str(held).encode()).hexdigest()[:16] == "21b4fc7bb0048106"


# --- items --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda g: g.name)
@pytest.mark.parametrize(("setting", "count"), zip(SETTINGS, (480, 480, 1344), strict=True))
def test_all_behavioural_items(grid, setting, count):
    items = questions.questions(setting, grid)
    assert len(items) == count and set(Counter(i.direction for i in items).values()) == {count // 4}
    assert len({(i.question, i.scene) for i in items}) == count
    assert len({i.scene for i in items}) == count // 2  # each picture is asked about twice
    for item in items:
        assert item.answer == seen_answer(item) == item.entities[item.target].name
        assert item.candidates[2] == item.entities[item.reference].name == item.entities[1].name
        assert sorted(item.candidates) == sorted(e.name for e in item.entities)
        assert item.question == questions.neighbour_question(setting, item.direction, item.entities[1])
    assert Counter(i.split for i in items) == {"test": count // 3, "train": count - count // 3}


def test_items_on_photographs_and_shifted():
    items = questions.questions("shapes", GRID, shift=(1, -1), photographs=PHOTOGRAPHS, seed=3)
    assert items == questions.questions("shapes", GRID, shift=(1, -1), photographs=PHOTOGRAPHS, seed=3)
    assert {i.scene.backdrop.photograph for i in items} == set(PHOTOGRAPHS)
    assert len({i.scene.backdrop for i in items}) == len({i.scene for i in items}) == 240
    plain = questions.questions("shapes", GRID)
    for moved, item in zip(items, plain, strict=True):
        assert (moved.question, moved.candidates, moved.split) == (item.question, item.candidates, item.split)
        step = np.subtract([p.box for p in moved.scene.placements], [p.box for p in item.scene.placements])
        assert (step == np.array([-14, 14, -14, 14])).all()


def test_objects_of_a_folder_are_test_items(tmp_path):
    for old, new in zip(object_pictures.NAMES, ("cup", "ball", "shoe", "tree", "bird"), strict=False):
        shutil.copy(places.OBJECTS / f"{old}.png", tmp_path / f"{new}.png")
    items = questions.questions("objects", GRID, objects=tmp_path)
    assert len(items) == 240 and {i.split for i in items} == {"test"}
    assert "The object to the left of the ball is a(n)" in {i.question for i in items}
    assert len(pairs.last_token_pairs("objects", GRID, 20, objects=tmp_path)) == 80
    natural = questions.natural_questions(GRID, PHOTOGRAPHS, 10, objects=tmp_path)
    assert {n for i in natural for n in (i.subject, i.reference)} <= {"cup", "ball", "shoe", "tree", "bird"}
    assert natural[0].scene.image(168).size == (168, 168)


@pytest.mark.parametrize(("setting", "size"), product(SETTINGS, (2, 3)))
def test_lattice_items(setting, size):
    items = questions.lattice_questions(setting, GRID, size, 30, seed=1)
    assert items == questions.lattice_questions(setting, GRID, size, 30, seed=1) and len(items) == 120
    assert len({i.scene for i in items}) > 25
    filled = min(size**2, 8 if setting == "objects" else 6)
    step = (GRID.entity + GRID.gap) * GRID.pixels
    for item in items:
        by_name = {p.entity.name: p for p in item.scene.placements}
        assert len(by_name) == filled == len(item.candidates) and set(by_name) == set(item.candidates)
        a, b = (np.array(by_name[name].centre) for name in (item.answer, item.candidates[-1]))
        there = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[item.direction]
        assert np.allclose(a - b, np.array(there) * step)
        assert item.question == questions.neighbour_question(setting, item.direction, item.entities[item.reference])
    assert {i.split for i in items} == ({"train"} if size == 2 else {"train", "test"})


@quick
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_naturalistic_items(seed, per_scene):
    items = questions.natural_questions(GRID, PHOTOGRAPHS, 30, seed, per_scene)
    assert items == questions.natural_questions(GRID, PHOTOGRAPHS, 30, seed, per_scene)
    assert len(items) == 30 and max(Counter(i.key for i in items).values()) <= per_scene
    for item in items:
        boxes = {str(p.entity): p.box for p in item.scene.placements}
        assert (boxes[item.subject], boxes[item.reference]) == (item.subject_box, item.reference_box)
        axis = 0 if item.orientation == "horizontal" else 1
        a, b = (box[axis] + box[axis + 2] for box in (item.subject_box, item.reference_box))
        assert abs(a - b) / 2 >= 0.1 * GRID.canvas
        assert (a < b) == (item.relation in ("left", "above")) and item.candidates[1] == OPPOSITE[item.answer]


def test_naturalistic_items_are_balanced_and_asked_in_both_orders():
    items = questions.natural_questions(GRID, PHOTOGRAPHS)
    counts = Counter(i.relation for i in items)
    assert len(items) == 440 and min(counts[d] for d in DIRECTIONS) > 80
    first, second = next(i for i in items if i.relation == "below").questions()
    assert first.endswith("above or below.") and second.endswith("below or above.")


# --- pairs --------------------------------------------------------------------------------------------------

DESIGNS = (pairs.last_token_pairs, pairs.mirrored_pairs, pairs.ablated_pairs)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_pairs_are_different_deterministic_and_nested(design, setting):
    made = design(setting, GRID)
    assert len(made) == 200 and made == design(setting, GRID) and made != design(setting, GRID, seed=1)
    assert len({(p.direction, p.clean.scene, p.counterfactual.scene) for p in made}) == 200
    if design is not pairs.last_token_pairs:  # a mirrored pair and its mirror are the same two pictures
        assert len({(p.direction, frozenset((p.clean.scene, p.counterfactual.scene))) for p in made}) == 200
    shown = {frozenset((p.clean.scene, p.counterfactual.scene)) for p in made}
    assert (
        len({p.couple for p in made})
        == len(shown)
        == len({(p.couple, frozenset((p.clean.scene, p.counterfactual.scene))) for p in made})
    )
    few = design(setting, GRID, 7)
    assert few == [p for d in DIRECTIONS for p in [p for p in made if p.direction == d][:7]]
    assert few[7:14] == design(setting, GRID, 7, directions=["right"])


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda g: g.name)
@pytest.mark.parametrize("setting", SETTINGS)
def test_last_token_pairs(grid, setting):
    for pair in pairs.last_token_pairs(setting, grid, 20):
        first, second = (
            line(pair.clean.scene, pair.direction),
            line(pair.counterfactual.scene, pair.direction),
        )
        if pair.direction in ("right", "below"):
            first, second = first[::-1], second[::-1]
        (t0, t1, t2), (t4, same, t3) = first, second
        assert t1 == same and len({t0, t1, t2, t3, t4}) == 5
        assert pair.counterfactual.direction == OPPOSITE[pair.direction]
        assert pair.candidates == (t0.name, t2.name, t3.name)
        assert pair.roles == ("clean", "order", "attribute")
        assert pair.clean.answer == t0.name == seen_answer(pair.clean)
        assert pair.counterfactual.answer == t3.name == seen_answer(pair.counterfactual)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda g: g.name)
@pytest.mark.parametrize("setting", SETTINGS)
def test_mirrored_and_ablated_pairs(grid, setting):
    plain, ablated = pairs.mirrored_pairs(setting, grid, 20), pairs.ablated_pairs(setting, grid, 20)
    for pair, more in zip(plain, ablated, strict=True):
        assert (more.clean, more.counterfactual, more.candidates) == (
            pair.clean,
            pair.counterfactual,
            pair.candidates,
        )
        order = line(pair.clean.scene, pair.direction)
        assert line(pair.counterfactual.scene, pair.direction) == order[::-1]
        assert pair.clean.question == pair.counterfactual.question
        t0, t1, t2 = order if pair.direction in ("left", "above") else order[::-1]
        assert pair.candidates == (t0.name, t2.name, t1.name)
        assert (pair.clean.answer, pair.counterfactual.answer) == (t0.name, t2.name)
        assert pair.split == pair.clean.split == pair.counterfactual.split
        middle = pair.clean.scene.placements[1].box
        assert [(s.placements[0].entity, s.placements[0].box) for s in more.alone] == [(e, middle) for e in order]
        assert more.empty.placements == () and all(len(s.placements) == 1 for s in more.alone)


@pytest.mark.parametrize("design", DESIGNS)
def test_pairs_on_photographs_shifted_and_by_split(design):
    plain, made = design("objects", GRID), design("objects", GRID, shift=(-1, 0), photographs=PHOTOGRAPHS)
    assert [p.candidates for p in plain] == [p.candidates for p in made]
    for pair in made:
        backdrop = pair.clean.scene.backdrop
        assert backdrop.photograph in PHOTOGRAPHS and backdrop == pair.counterfactual.scene.backdrop
        if isinstance(pair, pairs.AblatedPair):
            assert pair.empty.backdrop == backdrop and pair.alone[0].placements[0].box[1] == 4 * 14
    for split in ("test", "train"):
        assert {p.split for p in design("objects", GRID, split=split)} == {split}
