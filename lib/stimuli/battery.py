"""Questions of the competence battery: layouts that no shortcut passes together (PROTOCOL.md 9.1).

Every question about a neighbour has one clear answer by the rule of `lib.stimuli.layouts`. Lines of three and more hold
a triple that training never showed; what else there is off them, and free layouts, are drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lib.errors import UserError
from lib.stimuli import layouts
from lib.stimuli.grids import Grid
from lib.stimuli.questions import (
    DIRECTIONS,
    OPPOSITE,
    ORIENTATION,
    SETTINGS,
    Item,
    held_out_triples,
    neighbour_question,
)
from lib.stimuli.scenes import HELD_OUT_PHOTOGRAPHS, Entity, Placement, Scene, lattice_scene, random_backdrop

TRIES = 2000  # draws after which a row is given up on a grid
NOTHING = "nothing there"  # the row of questions without an answer


@dataclass(frozen=True)
class Question:
    """A question of the battery with the scene's placements, for telling wrong answers apart.

    target: None where nothing lies in the direction asked for; the item's candidates are then only what there is.
    """

    item: Item
    reference: Placement
    target: Placement | None


# --- entities and lines ---------------------------------------------------------------------------------------


def members(rng: np.random.Generator, kind: str, n: int, grid: Grid) -> list[Entity]:
    """n entities; from three on some three neighbours of them are a triple kept from training."""
    if n == 3:
        triples = sorted(held_out_triples(kind, grid), key=str)
        return list(triples[int(rng.integers(len(triples)))])
    for _ in range(TRIES):
        found = layouts.random_entities(rng, kind, n, grid)
        if n < 3 or layouts.is_held_out(kind, found, grid):
            return found
    raise UserError(f"no line of {n} with a held-out triple was found among {kind}")


def line(
    rng: np.random.Generator, kind: str, n: int, grid: Grid, orientation: str, equal: bool | None, centred: bool = False
) -> list[Placement]:
    """Placements of a row or column of n, in order. equal: spacing (None: either); centred: the line of the paper."""
    for _ in range(TRIES):
        gaps = layouts.random_gaps(rng, n, grid)
        if equal is None or (len(set(gaps.tolist())) == 1) == equal:
            break
    starts = np.concatenate([[0], np.cumsum(gaps + grid.entity)])
    along = rng.integers(0, grid.side - starts[-1] - grid.entity + 1)
    across = int(rng.integers(0, grid.side - grid.entity + 1))
    starts = list(grid.starts) if centred else [int(along + start) for start in starts]
    boxes = layouts.line_boxes(starts, grid.across if centred else across, orientation, grid)
    entities = members(rng, kind, n, grid)
    return [Placement(entity, box) for entity, box in zip(entities, boxes, strict=True)]


# --- rows: (rng, kind, direction, grid) -> placements, backdrop, place of the reference seen from the far end -----

Drawn = tuple[Scene, Placement | None]  # a scene and the reference asked about, None: any that can be asked


def on_line(n: int, asked: tuple[int, ...], **options) -> Callable[..., Drawn]:
    """Lines of n; asked: places of the reference, counted from the end in the direction asked for (0: the far end)."""

    def draw(rng, kind, direction, grid) -> Drawn:
        placed = line(rng, kind, n, grid, ORIENTATION[direction], **{"equal": None} | options)
        ordered = placed if direction in ("left", "above") else placed[::-1]
        return Scene(grid.canvas, tuple(placed)), ordered[int(rng.choice(asked))]

    return draw


def with_distractors(rng, kind, direction, grid) -> Drawn:
    """A line of three and two things off it, often nearer to the reference than its neighbours are."""
    placed = line(rng, kind, 3, grid, ORIENTATION[direction], None)
    taken = {p.entity.name for p in placed}
    others = [e for e in layouts.random_entities(rng, kind, layouts.ENTITIES[kind], grid) if e.name not in taken][:2]
    scene = layouts.with_distractors(rng, [*(p.entity for p in placed), *others], [p.box for p in placed], grid)
    return scene, scene.placements[int(rng.integers(3))]


def free(rng, kind, direction, grid) -> Drawn:
    """Three to five things anywhere on whole tokens."""
    return layouts.free(rng, kind, grid, sizes=(3, 4, 5)), None


def lattice(size: int) -> Callable[..., Drawn]:
    """A full 2 x 2 lattice, or a 3 x 3 one with five places filled."""

    def draw(rng, kind, direction, grid) -> Drawn:
        n = 4 if size == 2 else 5
        return lattice_scene(layouts.random_lattice(rng, kind, size, n, grid), grid), None

    return draw


def on_photograph(rng, kind, direction, grid) -> Drawn:
    """The centred line of three on a photograph that training never showed."""
    scene, reference = on_line(3, (1,), centred=True)(rng, kind, direction, grid)
    return replace(scene, backdrop=random_backdrop(rng, HELD_OUT_PHOTOGRAPHS)), reference


ROWS: dict[str, Callable[..., Drawn]] = {
    "two": on_line(2, (1,)),
    "three, centred": on_line(3, (1,), centred=True),
    "three, shifted": on_line(3, (1,), equal=True),
    "three, uneven": on_line(3, (1, 2), equal=False),
    "three, reference at the end": on_line(3, (2,), centred=True),
    "four, reference inside": on_line(4, (1, 2)),
    "four, reference at the end": on_line(4, (3,)),
    "distractors": with_distractors,
    "free": free,
    "2 x 2": lattice(2),
    "3 x 3": lattice(3),
    "on photographs": on_photograph,
}
WHITE = tuple(row for row in ROWS if row != "on photographs")  # rows that a competent model passes


# --- questions ------------------------------------------------------------------------------------------------


def question(
    row: str, kind: str, direction: str, scene: Scene, reference: Placement, target: Placement | None
) -> Question:
    """The paper's question about a neighbour, as an item whose setting is the row's name."""
    things = [p.entity for p in scene.placements]
    others = [e.name for e in things if e not in (reference.entity, target.entity if target else None)]
    named = (target.entity.name,) if target else ()
    item = Item(
        row,
        direction,
        scene,
        neighbour_question(kind, direction, reference.entity),
        (*named, *others, reference.entity.name),
        "test",
        tuple(things),
        things.index(target.entity) if target else -1,
        things.index(reference.entity),
    )
    return Question(item, reference, target)


def drawn(row: str, kind: str, direction: str, grid: Grid, rng: np.random.Generator) -> Question:
    """One question of a row with exactly one correct answer."""
    for _ in range(TRIES):
        scene, reference = ROWS[row](rng, kind, direction, grid)
        possible = [(r, t) for d, r, t in layouts.answerable(scene) if d == direction and reference in (None, r)]
        if possible:
            return question(row, kind, direction, scene, *possible[int(rng.integers(len(possible)))])
    raise UserError(f"the row {row!r} of the battery does not fit on the {grid.name} grid")


def unanswerable(kind: str, direction: str, grid: Grid, rng: np.random.Generator) -> Question:
    """A question about a line of three to whose reference nothing stands in that direction."""
    placed = line(rng, kind, 3, grid, ORIENTATION[direction], None)
    ordered = placed if direction in ("left", "above") else placed[::-1]
    return question(NOTHING, kind, direction, Scene(grid.canvas, tuple(placed)), ordered[0], None)


def questions(grid: Grid, n: int = 60, seed: int = 0) -> list[Question]:
    """n questions per row and direction, settings in turn; then as many without an answer."""
    found = []
    for number, row in enumerate((*ROWS, NOTHING)):
        for place, direction in enumerate(DIRECTIONS):
            rng = np.random.default_rng([seed, number, place])
            for k in range(n):
                kind = SETTINGS[k % len(SETTINGS)]
                draw = unanswerable if row == NOTHING else lambda *rest, row=row: drawn(row, *rest)
                found.append(draw(kind, direction, grid, rng))
    return found


# --- wrong answers and shortcuts ------------------------------------------------------------------------------

KINDS = ("far end", "wrong side", "reference", "another thing", "absent")


def ahead(asked: Question) -> list[tuple[float, Placement]]:
    """How far every other thing lies in the direction asked for, farthest first; negative: on the other side."""
    others = [p for p in asked.item.scene.placements if p is not asked.reference]
    found = [(layouts.ahead_aside(asked.item.direction, p, asked.reference)[0], p) for p in others]
    return sorted(found, key=lambda pair: -pair[0])


def wrong_kind(asked: Question, answer: str) -> str:
    """What a wrong answer names (`KINDS`). wrong side: the nearest thing on the opposite side."""
    if answer == asked.reference.entity.name:
        return "reference"
    names = {p.entity.name: (distance, p) for distance, p in ahead(asked)}
    if answer not in names:
        return "absent"
    if answer == ahead(asked)[0][1].entity.name:
        return "far end"
    opposite = layouts.neighbour(OPPOSITE[asked.item.direction], asked.reference, asked.item.scene)
    return "wrong side" if opposite is not None and answer == opposite.entity.name else "another thing"


def shortcut_scores(asked: Question) -> dict[str, float]:
    """How often answers without understanding would be correct: the far end, the nearest thing, any thing not named."""
    others = [p for p in asked.item.scene.placements if p is not asked.reference]
    distance = [np.hypot(*layouts.offset(p, asked.reference)) for p in others]
    nearest = [p for p, d in zip(others, distance, strict=True) if d < min(distance) + 1e-6]
    return {
        "far end": float(ahead(asked)[0][1] is asked.target),
        "nearest": sum(p is asked.target for p in nearest) / len(nearest),
        "not named": 1 / len(others),
    }
