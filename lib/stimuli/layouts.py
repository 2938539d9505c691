"""Random layouts of scenes and the rule that says who is whose neighbour (stimuli; numpy only).

Training and the competence battery draw from the same functions; what keeps them apart are held-out triples of
entities, the centred line of the evaluation and held-out photographs. All lengths are in tokens of the grid, boxes in
pixels.
"""

from __future__ import annotations

from math import hypot

import numpy as np

from lib.stimuli import scenes
from lib.stimuli.grids import ORIENTATIONS, Grid
from lib.stimuli.questions import DIRECTIONS, OPPOSITE, held_out_triples
from lib.stimuli.scenes import Entity, Placement, Scene

LEVEL = 0.08  # of the canvas: two centres nearer than this along an axis are level
CONE = 1.5  # a thing lies clearly in a direction where it is that many times as far ahead as aside
CLEARLY = 1.3  # the next nearest thing must be that many times as far away
ENTITIES = {"squares": 6, "shapes": 6, "objects": 8}  # different names of a kind


# --- entities --------------------------------------------------------------------------------------------------------


def random_entities(rng: np.random.Generator, kind: str, n: int, grid: Grid) -> list[Entity]:
    """n entities of one kind, different in colour (squares, shapes) or in noun (objects)."""
    if kind == "objects":
        return [Entity(str(name)) for name in rng.choice(scenes.OBJECT_NAMES, n, replace=False)]
    colours = rng.choice(scenes.palette(grid), n, replace=False)
    if kind == "squares":
        return [Entity("square", str(colour)) for colour in colours]
    if rng.uniform() < 0.4:  # the fixed pairing of shape and colour of the paper's Shapes setting
        fixed = scenes.entities("shapes", grid)
        return [fixed[k] for k in rng.choice(len(fixed), n, replace=False)]
    return [Entity(str(rng.choice(scenes.SHAPES)), str(colour)) for colour in colours]


def is_held_out(kind: str, line: list[Entity], grid: Grid) -> bool:
    """Whether three entities next to each other in this line form a triple kept for evaluation."""
    return any(tuple(line[k : k + 3]) in held_out_triples(kind, grid) for k in range(len(line) - 2))


# --- lines -----------------------------------------------------------------------------------------------------------


def random_gaps(rng: np.random.Generator, n: int, grid: Grid) -> np.ndarray:
    """Tokens between neighbours of a line of n: in half of the lines all equal; 1 at the least where there is room."""
    room = grid.side - n * grid.entity
    least, widest = int(room >= n - 1), room // (n - 1)
    if widest and rng.uniform() < 0.5:
        return np.full(n - 1, rng.integers(1, min(widest, 2 * grid.gap) + 1))
    spare = rng.integers(0, room - least * (n - 1) + 1)
    return least + rng.multinomial(spare, np.ones(n - 1) / (n - 1))


def line_boxes(starts: list[int], across: int, orientation: str, grid: Grid) -> list[scenes.Box]:
    """Boxes of a row or column from the first tokens along it and its first token across."""
    places = [(across, s) if orientation == "horizontal" else (s, across) for s in starts]
    return [scenes.token_box(int(row), int(column), grid.entity, grid) for row, column in places]


def random_line(rng: np.random.Generator, n: int, grid: Grid) -> list[scenes.Box]:
    """Boxes of a row or column of n anywhere on whole tokens, never the centred line of three of the evaluation."""
    while True:
        gaps = random_gaps(rng, n, grid)
        starts = np.concatenate([[0], np.cumsum(gaps + grid.entity)])
        along = int(rng.integers(0, grid.side - starts[-1] - grid.entity + 1))
        across = int(rng.integers(0, grid.side - grid.entity + 1))
        starts = [int(along + s) for s in starts]
        if not (tuple(starts) == grid.starts and across == grid.across):
            return line_boxes(starts, across, str(rng.choice(ORIENTATIONS)), grid)


def trained_line(
    rng: np.random.Generator, kind: str, grid: Grid, sizes: tuple[int, ...], distractors: int = 0
) -> Scene:
    """A line for training: no held-out triple in it. distractors: so many further entities off the line."""
    n = int(rng.choice(sizes))
    distractors = min(distractors, ENTITIES[kind] - n)
    while True:
        members = random_entities(rng, kind, n + distractors, grid)
        if not is_held_out(kind, members[:n], grid):
            boxes = random_line(rng, n, grid)
            return with_distractors(rng, members, boxes, grid)


def with_distractors(rng: np.random.Generator, members: list[Entity], boxes: list[scenes.Box], grid: Grid) -> Scene:
    """The line of `boxes` and the other members off it: in none of its rows (columns). Left out: who finds no place.

    In three of four scenes each stands close to a member of the line, nearer to it than that one's neighbours are.
    """
    axis = 1 if len({box[1] for box in boxes}) == 1 else 0  # the axis across the line
    placed = [Placement(e, b) for e, b in zip(members, boxes, strict=False)]
    order, close = rng.permutation(len(boxes)), rng.uniform() < 0.75
    for number, entity in enumerate(members[len(boxes) :]):
        for _ in range(50):
            start = rng.integers(0, grid.side - grid.entity + 1, 2)  # first token (column, row)
            if close:
                member = boxes[order[number % len(boxes)]]
                start = np.array([round(member[k] / grid.pixels) for k in (0, 1)])
                start[axis] += rng.choice((-1, 1)) * (grid.entity + int(rng.uniform() < 0.25))
                start[1 - axis] += rng.choice((-1, 0, 0, 0, 1))
                start = start.clip(0, grid.side - grid.entity)
            box = scenes.token_box(int(start[1]), int(start[0]), grid.entity, grid)
            off = box[axis + 2] <= boxes[0][axis] or box[axis] >= boxes[0][axis + 2]
            if off and all(scenes.overlap(box, other.box) == 0 for other in placed):
                placed.append(Placement(entity, box))
                break
    return Scene(grid.canvas, tuple(placed))


# --- free layouts and lattices ---------------------------------------------------------------------------------------


def free(
    rng: np.random.Generator, kind: str, grid: Grid, on_grid: bool = True, sizes: tuple[int, ...] = (2, 3, 4, 5)
) -> Scene:
    """Entities anywhere without overlap; on whole tokens and of one size, or off the grid in many sizes."""
    placements: list[Placement] = []
    for entity in random_entities(rng, kind, int(rng.choice(sizes)), grid):
        for _ in range(50):
            if on_grid:
                row, column = rng.integers(0, grid.side - grid.entity + 1, 2)
                box = scenes.token_box(int(row), int(column), grid.entity, grid)
            else:
                side = rng.uniform(0.7, 1.6) * grid.entity * grid.pixels
                x, y = rng.uniform(0, grid.canvas - side, 2)
                box = (x, y, x + side, y + side)
            if all(scenes.overlap(box, other.box) == 0 for other in placements):
                placements.append(Placement(entity, box))
                break
    return Scene(grid.canvas, tuple(placements))


def random_lattice(
    rng: np.random.Generator, kind: str, size: int, n: int, grid: Grid
) -> tuple[tuple[Entity | None, ...], ...]:
    """Rows of a lattice of size x size places, n of them filled."""
    flat: list[Entity | None] = [None] * size**2
    for entity, spot in zip(random_entities(rng, kind, n, grid), rng.permutation(size**2)[:n], strict=True):
        flat[spot] = entity
    return tuple(tuple(flat[r * size : (r + 1) * size]) for r in range(size))


def trained_lattice(rng: np.random.Generator, kind: str, grid: Grid) -> Scene:
    """A centred 2 x 2 lattice, or a 3 x 3 one with four places or more filled; no full row or column is held out."""
    size = int(rng.integers(2, 4))
    n = 4 if size == 2 else int(rng.integers(4, ENTITIES[kind] + 1))
    while True:
        rows = random_lattice(rng, kind, size, n, grid)
        lines = [line for line in (*rows, *zip(*rows, strict=True)) if None not in line]
        if not any(is_held_out(kind, list(line), grid) for line in lines):
            return scenes.lattice_scene(rows, grid)


# --- who is whose neighbour ------------------------------------------------------------------------------------------


def offset(a: Placement, b: Placement) -> tuple[float, float]:
    """Where a's centre is, seen from b's: (right, down) in pixels."""
    return a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]


def signs(a: Placement, b: Placement, canvas: int) -> tuple[str, str]:
    """Where a is, seen from b, along the two axes: (left, level or right) and (above, level or below)."""
    dx, dy = offset(a, b)
    across = "level" if abs(dx) < LEVEL * canvas else "left" if dx < 0 else "right"
    along = "level" if abs(dy) < LEVEL * canvas else "above" if dy < 0 else "below"
    return across, along


def ahead_aside(direction: str, a: Placement, b: Placement) -> tuple[float, float]:
    """How far a lies in that direction from b (negative: on the other side), and how far off that axis; in pixels."""
    dx, dy = offset(a, b)
    ahead, aside = {"left": (-dx, dy), "right": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[direction]
    return ahead, abs(aside)


def neighbour(direction: str, reference: Placement, scene: Scene) -> Placement | None:
    """The nearest thing in that direction; None where there is none or it is not clear which one it is.

    Things that are ahead but not clearly so (about as far aside) may not stand as near as the answer.
    """
    clear, unclear = [], []
    for other in scene.placements:
        ahead, aside = ahead_aside(direction, other, reference)
        if other is reference or ahead <= LEVEL * scene.canvas or aside > CONE * ahead:
            continue
        (clear if ahead > CONE * aside else unclear).append((hypot(ahead, aside), other))
    clear.sort(key=lambda pair: pair[0])
    if not clear:
        return None
    rivals = [distance for distance, _ in (*clear[1:], *unclear)]
    return clear[0][1] if all(distance >= CLEARLY * clear[0][0] for distance in rivals) else None


def is_nothing(direction: str, reference: Placement, scene: Scene) -> bool:
    """Whether no thing's centre lies on that side of the reference at all (by more than a quarter of `LEVEL`)."""
    slack = LEVEL * scene.canvas / 4
    return all(ahead_aside(direction, p, reference)[0] <= slack for p in scene.placements if p is not reference)


def contested(direction: str, reference: Placement, scene: Scene) -> bool:
    """Whether something stands on the opposite side, too, so that "what is next to it" is no answer."""
    return any(
        ahead > CONE * aside
        for ahead, aside in (
            ahead_aside(OPPOSITE[direction], p, reference) for p in scene.placements if p is not reference
        )
    )


def answerable(scene: Scene) -> list[tuple[str, Placement, Placement]]:
    """Every (direction, reference, target) of a scene that has one clear answer."""
    found = ((d, r, neighbour(d, r, scene)) for r in scene.placements for d in DIRECTIONS)
    return [(d, r, t) for d, r, t in found if t is not None]


def unanswerable(scene: Scene) -> list[tuple[str, Placement]]:
    """Every (direction, reference) with nothing there."""
    return [(d, r) for r in scene.placements for d in DIRECTIONS if is_nothing(d, r, scene)]
