"""What a model is asked: question texts, splits, and every behavioural item (PROTOCOL.md 1; floor 1: no model code).

An item is one question about one picture, with its answer and candidates. Pictures are not drawn here: an item holds
the scene, and `item.scene.image(canvas)` draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from lib.errors import UserError, unknown
from lib.stimuli.grids import ORIENTATIONS, Box, Grid
from lib.stimuli.scenes import (
    Backdrop,
    Entity,
    entities,
    lattice_scene,
    line_scene,
    natural_scene,
    ordered_triples,
    random_backdrop,
)

SETTINGS = ("squares", "shapes", "objects")

# --- directions ---------------------------------------------------------------------------------------------

DIRECTIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
ORIENTATION = {"left": "horizontal", "right": "horizontal", "above": "vertical", "below": "vertical"}
PHRASE = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}

SYSTEM_TEXT = "Answer with one word."

# --- question text ------------------------------------------------------------------------------------------


def neighbour_question(setting: str, direction: str, reference: Entity) -> str:
    """The question about the entity next to `reference`, in the paper's words."""
    phrase = PHRASE[direction]
    match setting:
        case "squares":
            return f"The color of the square {phrase} the {reference.colour} square is"
        case "shapes":
            return f"The color of the shape {phrase} the {reference} is"
        case "objects":
            return f"The object {phrase} the {reference} is a(n)"
    raise UserError(f"Unknown setting {setting!r}: choose squares, shapes or objects.")


def whatsup_question(direction: str, reference: str) -> str:
    """The question of the What'sUp composites (left or right only)."""
    return f"The object on the floor {PHRASE[direction]} the {reference} is a(n)"


def side_question(subject: str, reference: str, options: tuple[str, str], form: str = "reference_point") -> str:
    """The COCO-spatial question; options in the given order, ("left", "right"), ("below", "above") and so on.

    form: "reference_point" (Qwen, Pixtral and the reference models) or "is_the" (Gemma-3).
    """
    first, second = options
    if form == "reference_point":
        return (
            f"Using the {reference} as the reference point, which side is the {subject} on? "
            f"Answer with one word: {first} or {second}."
        )
    if form == "is_the":
        words = {"left": "to the left", "right": "to the right", "above": "above", "below": "below"}
        tail = f"of the {reference}" if "left" in options else f"the {reference}"
        return f"Is the {subject} {words[first]} or {words[second]} {tail}? Answer with one word."
    raise UserError(f"Unknown question form {form!r}: choose reference_point or is_the.")


# --- splits -------------------------------------------------------------------------------------------------


@cache
def held_out_triples(setting: str, grid: Grid) -> frozenset[tuple[Entity, Entity, Entity]]:
    """A third of the ordered triples, closed under mirroring, that no line of the training data shows.

    Every model is scored on all triples; `split` tells `test` triples (not in training) from `train` triples (in
    training, but never centred as in the evaluation).
    """
    triples = [t for t in ordered_triples(setting, grid) if str(t[0]) < str(t[2])]
    order = np.random.default_rng(20260322).permutation(len(triples))
    chosen = [triples[k] for k in order[: len(triples) // 3]]
    return frozenset(chosen) | frozenset(t[::-1] for t in chosen)


def split(setting: str, triple: tuple[Entity, Entity, Entity], grid: Grid) -> str:
    """`test` for a triple that no reference model saw in this order in training, else `train`.

    Triples of a user's own object pictures are `test`: no reference model saw them at all.
    """
    from_folder = any(entity.folder for entity in triple)
    return "test" if from_folder or tuple(triple) in held_out_triples(setting, grid) else "train"


# --- items about neighbours ---------------------------------------------------------------------------------


@runtime_checkable
class Picture(Protocol):
    """Whatever can be shown to a model: a Scene, or a photograph of lib/stimuli/photographs.py."""

    def image(self, canvas: int) -> Image.Image:
        """RGB, canvas x canvas pixels."""


@dataclass(frozen=True)
class Item:
    """One question about the entity next to another one.

    entities: in the order of their places (lattices: row by row, None for an empty place). target, reference: their
    places in `entities`. candidates: the answer, then the names of the other entities in the order of their places,
    last the name of the reference; of three entities these are the roles target, opposite, reference.
    """

    setting: str
    direction: str
    scene: Picture
    question: str
    candidates: tuple[str, ...]
    split: str
    entities: tuple[Entity | None, ...]
    target: int
    reference: int = 1
    shift: tuple[int, int] = (0, 0)

    @property
    def answer(self) -> str:
        return self.candidates[0]

    @property
    def orientation(self) -> str:
        return ORIENTATION[self.direction]

    def questions(self, form: str = "") -> tuple[str, ...]:
        """The one text that the model is asked (`SideItem.questions` has a form and two of them)."""
        return (self.question,)


def line_item(
    setting: str,
    grid: Grid,
    triple: tuple[Entity, Entity, Entity],
    direction: str,
    shift: tuple[int, int] = (0, 0),
    backdrop: Backdrop | None = None,
) -> Item:
    """The question about the neighbour of the middle entity of a row (left, right) or column (above, below)."""
    if direction not in DIRECTIONS:
        raise unknown("direction", direction, DIRECTIONS)
    target = 0 if direction in ("left", "above") else 2
    return Item(
        setting,
        direction,
        line_scene(triple, grid, ORIENTATION[direction], shift, backdrop),
        neighbour_question(setting, direction, triple[1]),
        (triple[target].name, triple[2 - target].name, triple[1].name),
        split(setting, triple, grid),
        tuple(triple),
        target,
        shift=shift,
    )


def questions(
    setting: str,
    grid: Grid,
    shift: tuple[int, int] = (0, 0),
    photographs: tuple[str, ...] = (),
    seed: int = 0,
    objects: str | Path | None = None,
) -> list[Item]:
    """All behavioural items of a setting: every ordered triple in every direction (480, 480, 1344).

    shift: (rows, columns) of the whole line, in tokens. photographs: the background of every picture is a random
    cut-out of one of these (`seed`), the same one for both questions about it. objects: a folder of other pictures.
    """
    triples = ordered_triples(setting, grid, objects)
    rng = np.random.default_rng(seed)
    backdrops = {
        orientation: [random_backdrop(rng, photographs) if photographs else None for _ in triples]
        for orientation in ORIENTATIONS
    }
    return [
        line_item(setting, grid, triple, direction, shift, backdrop)
        for direction in DIRECTIONS
        for triple, backdrop in zip(triples, backdrops[ORIENTATION[direction]], strict=True)
    ]


def thinned(items: list[Item], n: int, seed: int = 0) -> list[Item]:
    """n of the items at random, the same number in every direction, in their original order."""
    rng = np.random.default_rng(seed)
    out = []
    for direction in DIRECTIONS:
        asked = [item for item in items if item.direction == direction]
        out += [asked[k] for k in sorted(rng.permutation(len(asked))[: n // len(DIRECTIONS)])]
    return out


def lattice_questions(
    setting: str, grid: Grid, size: int, count: int = 60, seed: int = 0, objects: str | Path | None = None
) -> list[Item]:
    """Questions about `count` random 2x2 or 3x3 lattices, one per direction and lattice.

    The target is the entity at the next place of the reference's row (left, right) or column (above, below); the
    reference is drawn from the entities that have such a neighbour. No two entities are equal, so that every name is
    unambiguous; a 3x3 lattice therefore shows all entities of a setting that has fewer than nine (squares and shapes
    6, objects 8), and its other places are empty. Split: `test` if a full row or column is a held-out triple, which no
    training scene shows, else `train`.
    """
    if size not in (2, 3):
        raise UserError(f"There is no {size} x {size} lattice: choose size 2 or 3.")
    pool = entities(setting, grid, objects)
    rng = np.random.default_rng([seed, size])
    steps = {"left": -1, "right": 1, "above": -size, "below": size}  # to the target's place, row by row
    items: list[Item] = []
    while len(items) < count * len(DIRECTIONS):
        chosen = rng.permutation(len(pool))[: size**2]
        places = rng.permutation(size**2)[: len(chosen)]
        flat: list[Entity | None] = [None] * size**2
        for k, place in zip(chosen, places, strict=True):
            flat[place] = pool[k]
        asked = {d: [p for p in places if _neighbour(flat, p, d, size)] for d in DIRECTIONS}
        if not all(asked.values()):
            continue  # no two neighbours in some direction
        rows = [tuple(flat[r * size : (r + 1) * size]) for r in range(size)]
        lines = [line for line in (*rows, *zip(*rows, strict=True)) if len(line) == 3 and None not in line]
        tested = "test" if any(split(setting, line, grid) == "test" for line in lines) else "train"
        for direction in DIRECTIONS:
            reference = int(rng.choice(asked[direction]))
            target = reference + steps[direction]
            others = [e.name for p, e in enumerate(flat) if e and p not in (target, reference)]
            items.append(
                Item(
                    setting,
                    direction,
                    lattice_scene(tuple(rows), grid),
                    neighbour_question(setting, direction, flat[reference]),
                    (flat[target].name, *others, flat[reference].name),
                    tested,
                    tuple(flat),
                    target,
                    reference,
                )
            )
    return items


def _neighbour(flat: list[Entity | None], place: int, direction: str, size: int) -> Entity | None:
    """The entity at the next place of a lattice in a direction, None where there is none."""
    row, column = divmod(int(place), size)
    row += {"above": -1, "below": 1}.get(direction, 0)
    column += {"left": -1, "right": 1}.get(direction, 0)
    return flat[row * size + column] if 0 <= row < size and 0 <= column < size else None


# --- items about sides --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SideItem:
    """On which side of the reference is the subject? Asked twice, with the options in both orders (PROTOCOL.md 1).

    key: the name of the picture, the same for all items about it. Boxes are in pixels of a picture of `size` (width,
    height), as `token_sets.box_tokens(box, grid, size)` takes them.
    """

    setting: str
    key: str
    scene: Picture
    subject: str
    reference: str
    relation: str
    subject_box: Box
    reference_box: Box
    size: tuple[int, int]

    @property
    def orientation(self) -> str:
        return ORIENTATION[self.relation]

    @property
    def answer(self) -> str:
        return self.relation

    @property
    def candidates(self) -> tuple[str, str]:
        """The answer and its opposite."""
        return self.relation, OPPOSITE[self.relation]

    def questions(self, form: str = "reference_point") -> tuple[str, str]:
        """Both texts: options as left-right (above-below), then reversed; form as in `side_question`."""
        options = ("left", "right") if self.orientation == "horizontal" else ("above", "below")
        return tuple(side_question(self.subject, self.reference, o, form) for o in (options, options[::-1]))


MARGIN = 0.1  # of the canvas: centres nearer than this along an axis have no clear relation along it


def side_of(subject: tuple[float, float], reference: tuple[float, float], axis: int, margin: float = 0.0) -> str | None:
    """The side of one centre (x, y) relative to another along axis 0 (x) or 1 (y); None when nearer than margin."""
    difference = subject[axis] - reference[axis]
    if difference == 0 or abs(difference) < margin:
        return None
    return (("left", "right"), ("above", "below"))[axis][int(difference > 0)]


def natural_questions(
    grid: Grid,
    photographs: tuple[str, ...],
    n: int = 440,
    seed: int = 0,
    per_scene: int = 2,
    objects: str | Path | None = None,
) -> list[SideItem]:
    """n items about naturalistic scenes on the given photographs (for evaluation: scenes.HELD_OUT_PHOTOGRAPHS).

    A relation along an axis is asked only where the two centres differ by at least a tenth of the canvas along it. Each
    scene gives at most `per_scene` of its relations, chosen at random, each of two objects in random order.
    """
    if not photographs:
        raise UserError("Naturalistic scenes need photographs: pass scenes.HELD_OUT_PHOTOGRAPHS, say.")
    pool = entities("objects", grid, objects)
    rng = np.random.default_rng(seed)
    items: list[SideItem] = []
    number = 0
    while len(items) < n:
        scene = natural_scene(rng, grid.canvas, photographs, pool)
        clear = [
            (a, b, axis)
            for a, b in combinations(scene.placements, 2)
            for axis in (0, 1)
            if side_of(a.centre, b.centre, axis, MARGIN * grid.canvas)
        ]
        for k in rng.permutation(len(clear))[:per_scene]:
            a, b, axis = clear[k]
            a, b = (a, b) if rng.uniform() < 0.5 else (b, a)
            items.append(
                SideItem(
                    "naturalistic",
                    f"scene {number}",
                    scene,
                    str(a.entity),
                    str(b.entity),
                    side_of(a.centre, b.centre, axis),
                    a.box,
                    b.box,
                    (grid.canvas, grid.canvas),
                )
            )
        number += 1
    return items[:n]
