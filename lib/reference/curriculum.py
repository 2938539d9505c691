"""What the reference models are taught: random scenes and everything that is said about them.

A *lesson* is one scene with many short texts about it, each a block of its own: the block sees the picture and itself
only, so no block can be answered from another. Texts are pairs (prompt, continuation); only the continuation is scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lib.reference.language import COLUMNS, EXTREMES, FURNITURE, GRID, ORDINALS, ROWS
from lib.stimuli import scenes
from lib.stimuli.questions import DIRECTIONS, OPPOSITE, ORIENTATION, held_out_triples, neighbour_question, side_question
from lib.stimuli.scenes import Entity, Placement, Scene

COLOURS = scenes.palette(GRID)
KINDS = ("squares", "shapes", "objects")
MARGIN = 0.08 * GRID.canvas  # two centres nearer than this along an axis are "level"

Text = tuple[str, str]


@dataclass(frozen=True)
class Lesson:
    scene: Scene
    texts: tuple[Text, ...]


# --- scenes ----------------------------------------------------------------------------------------------------------


def random_entities(rng: np.random.Generator, kind: str, n: int) -> list[Entity]:
    """n entities of one kind, different in colour (shapes) or in noun (objects)."""
    if kind == "objects":
        return [Entity(str(name)) for name in rng.choice(scenes.OBJECT_NAMES, n, replace=False)]
    colours = rng.choice(COLOURS, n, replace=False)
    if kind == "squares":
        return [Entity("square", str(colour)) for colour in colours]
    if rng.uniform() < 0.4:  # the fixed pairing of shape and colour of the paper's Shapes setting
        fixed = scenes.entities("shapes", GRID)
        return [fixed[k] for k in rng.choice(len(fixed), n, replace=False)]
    return [Entity(str(rng.choice(scenes.SHAPES)), str(colour)) for colour in colours]


def is_held_out(kind: str, line: list[Entity]) -> bool:
    """Whether three entities next to each other in this line form a triple kept for evaluation."""
    return any(tuple(line[k : k + 3]) in held_out_triples(kind, GRID) for k in range(len(line) - 2))


def line(rng: np.random.Generator, kind: str, sizes: tuple[int, ...] = (2, 3)) -> Scene:
    """A row or column anywhere on the canvas, on whole tokens, never the centred line of the evaluation."""
    while True:
        n, gap = int(rng.choice(sizes)), int(rng.integers(1, 4))
        length = n * GRID.entity + (n - 1) * gap
        if length > GRID.side:
            continue
        members = random_entities(rng, kind, n)
        along, across = rng.integers(0, GRID.side - length + 1), rng.integers(0, GRID.side - GRID.entity + 1)
        evaluated = n == 3 and gap == GRID.gap and along == GRID.starts[0] and across == GRID.across
        if is_held_out(kind, members) or evaluated:
            continue
        horizontal = rng.uniform() < 0.5
        places = [(across, along + k * (GRID.entity + gap)) for k in range(n)]
        places = places if horizontal else [(column, row) for row, column in places]
        boxes = [scenes.token_box(int(r), int(c), GRID.entity, GRID) for r, c in places]
        return Scene(GRID.canvas, tuple(Placement(e, b) for e, b in zip(members, boxes, strict=True)))


def free(rng: np.random.Generator, kind: str, on_grid: bool = True) -> Scene:
    """Two to five entities anywhere without overlap; on whole tokens and of one size, or off the grid in many sizes."""
    placements: list[Placement] = []
    for entity in random_entities(rng, kind, int(rng.integers(2, 6))):
        for _ in range(50):
            if on_grid:
                row, column = rng.integers(0, GRID.side - GRID.entity + 1, 2)
                box = scenes.token_box(int(row), int(column), GRID.entity, GRID)
            else:
                side = rng.uniform(1.4, 3.2) * GRID.pixels
                x, y = rng.uniform(0, GRID.canvas - side, 2)
                box = (x, y, x + side, y + side)
            if all(scenes.overlap(box, other.box) == 0 for other in placements):
                placements.append(Placement(entity, box))
                break
    return Scene(GRID.canvas, tuple(placements))


def lattice(rng: np.random.Generator, kind: str) -> Scene:
    """A 2x2 lattice, or a 3x3 one with up to six of its places filled."""
    if rng.uniform() < 0.5:
        members = random_entities(rng, kind, 4)
        return scenes.lattice_scene((tuple(members[:2]), tuple(members[2:])), GRID)
    members = random_entities(rng, kind, 6)
    spots = rng.choice(9, 6, replace=False)
    first, step = GRID.starts[0], GRID.entity + GRID.gap
    boxes = [scenes.token_box(first + int(s // 3) * step, first + int(s % 3) * step, GRID.entity, GRID) for s in spots]
    grid = Scene(GRID.canvas, tuple(Placement(e, b) for e, b in zip(members, boxes, strict=True)))
    by_spot = dict(zip(spots.tolist(), members, strict=True))
    lines = [[by_spot.get(r * 3 + c) for c in range(3)] for r in range(3)]
    lines += [[by_spot.get(r * 3 + c) for r in range(3)] for c in range(3)]
    return lattice(rng, kind) if any(None not in each and is_held_out(kind, each) for each in lines) else grid


def on_photograph(rng: np.random.Generator, scene: Scene) -> Scene:
    """The same placements on a cut-out of a training photograph."""
    return Scene(scene.canvas, scene.placements, scenes.random_backdrop(rng, scenes.TRAINING_PHOTOGRAPHS))


def random_scene(rng: np.random.Generator, progress: float) -> tuple[str, Scene]:
    """A scene of the curriculum: first rows and columns, then free layouts, lattices, photographs, natural scenes."""
    kind = str(rng.choice(KINDS, p=(0.3, 0.3, 0.4)))
    stage = int(np.searchsorted((0.25, 0.45, 0.65), progress, side="right"))
    layouts = ("line", "line4", "free", "off_grid", "lattice", "photograph", "natural")
    weights = (
        (0.80, 0.00, 0.20, 0.00, 0.00, 0.00, 0.00),
        (0.55, 0.10, 0.20, 0.05, 0.10, 0.00, 0.00),
        (0.45, 0.05, 0.15, 0.10, 0.10, 0.15, 0.00),
        (0.45, 0.05, 0.10, 0.08, 0.07, 0.15, 0.10),
    )[stage]
    match str(rng.choice(layouts, p=weights)):
        case "line":
            return kind, line(rng, kind)
        case "line4":
            return kind, line(rng, kind, (3, 4))
        case "free":
            return kind, free(rng, kind)
        case "off_grid":
            return kind, free(rng, kind, on_grid=False)
        case "lattice":
            return kind, lattice(rng, kind)
        case "photograph":
            return kind, on_photograph(
                rng, line(rng, kind) if rng.uniform() < 0.7 else free(rng, kind, rng.uniform() < 0.5)
            )
    return "objects", scenes.natural_scene(rng, GRID.canvas, scenes.TRAINING_PHOTOGRAPHS)


# --- texts -----------------------------------------------------------------------------------------------------------


def offset(a: Placement, b: Placement) -> tuple[float, float]:
    """Where a's centre is, seen from b's: (right, down) in pixels."""
    return a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]


def signs(a: Placement, b: Placement) -> tuple[str, str]:
    """Where a is, seen from b, along the two axes: (left, level or right) and (above, level or below)."""
    dx, dy = offset(a, b)
    across = "level" if abs(dx) < MARGIN else "left" if dx < 0 else "right"
    along = "level" if abs(dy) < MARGIN else "above" if dy < 0 else "below"
    return across, along


def distance_towards(direction: str, a: Placement, b: Placement) -> float | None:
    """Distance of a from b if a lies in b's quarter of that direction, else None."""
    dx, dy = offset(a, b)
    ahead, aside = {"left": (-dx, dy), "right": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[direction]
    return ahead + 0.01 * abs(aside) if ahead > MARGIN and ahead > 1.2 * abs(aside) else None


def neighbour(direction: str, reference: Placement, placements: tuple[Placement, ...]) -> Placement | None:
    """The one nearest placement in that direction, None where there is none or the nearest is not clearly so."""
    found = [(distance_towards(direction, p, reference), p) for p in placements if p is not reference]
    found = sorted(((d, p) for d, p in found if d is not None), key=lambda pair: pair[0])
    if not found or (len(found) > 1 and found[1][0] < 1.3 * found[0][0]):
        return None
    return found[0][1]


def token_place(placement: Placement) -> tuple[int, int]:
    """Token row and column of the box's top-left corner, rounded to the nearest token."""
    x0, y0, _, _ = placement.box
    return min(round(y0 / GRID.pixels), GRID.side - 1), min(round(x0 / GRID.pixels), GRID.side - 1)


def place_text(placement: Placement) -> Text:
    """Colour -> shape, row, column; or object -> row, column."""
    row, column = token_place(placement)
    what = f"{placement.entity.noun} " if placement.entity.colour else ""
    return f"{placement.entity.name} :", f"{what}{ROWS[row]} {COLUMNS[column]}"


def pair_text(a: Placement, b: Placement) -> Text:
    across, along = signs(a, b)
    return f"{a.entity} from {b.entity} :", f"{across} {along}"


def extreme_texts(placements: tuple[Placement, ...]) -> list[Text]:
    """Which is the leftmost, rightmost, topmost, lowest - where one clearly is."""
    texts = []
    for direction in DIRECTIONS:
        axis = 0 if ORIENTATION[direction] == "horizontal" else 1
        sign = 1 if direction in ("left", "above") else -1
        ranked = sorted(placements, key=lambda p: sign * p.centre[axis])
        if len(ranked) == 1 or sign * (ranked[1].centre[axis] - ranked[0].centre[axis]) > MARGIN:
            texts.append((f"{EXTREMES[direction]} :", str(ranked[0].entity)))
    return texts


def neighbour_texts(kind: str, placements: tuple[Placement, ...], contested: bool = False) -> list[Text]:
    """The paper's questions for every reference and direction that has one clear answer.

    contested: only where something stands on the opposite side, too, so that "what is next to it" is not enough.
    """
    texts = []
    for reference in placements:
        for direction in DIRECTIONS:
            target = neighbour(direction, reference, placements)
            if target is not None and (not contested or neighbour(OPPOSITE[direction], reference, placements)):
                texts.append(
                    (neighbour_question(kind, direction, reference.entity) + " <assistant>", target.entity.name)
                )
    return texts


def short_neighbour_texts(placements: tuple[Placement, ...]) -> list[Text]:
    """The same relation in few words: what is next in a direction."""
    texts = []
    for reference in placements:
        for direction in DIRECTIONS:
            target = neighbour(direction, reference, placements)
            if target is not None:
                texts.append((f"{direction} of {reference.entity} :", str(target.entity)))
    return texts


def side_texts(rng: np.random.Generator, placements: tuple[Placement, ...]) -> list[Text]:
    """COCO-spatial questions for every ordered pair and axis with a clear relation, options in random order."""
    texts = []
    for a in placements:
        for b in placements:
            for sign in signs(a, b) if a is not b else ():
                if sign != "level":
                    options = (sign, OPPOSITE[sign]) if rng.uniform() < 0.5 else (OPPOSITE[sign], sign)
                    form = "reference_point" if rng.uniform() < 0.8 else "is_the"
                    texts.append((side_question(str(a.entity), str(b.entity), options, form) + " <assistant>", sign))
    return texts


def some(rng: np.random.Generator, texts: list[Text], n: int) -> list[Text]:
    return [texts[k] for k in rng.permutation(len(texts))[:n]]


def lesson(
    rng: np.random.Generator, progress: float, captions_only: bool = False, contested: bool = False
) -> Lesson:
    """One scene and about a dozen texts: places, pairs, extremes, neighbours and - unless captions only - questions.

    contested: four questions about neighbours instead of two, all contested, where the scene has such.
    """
    kind, scene = random_scene(rng, progress)
    placed = scene.placements
    pairs = [pair_text(a, b) for a in placed for b in placed if a is not b]
    texts = some(rng, [place_text(p) for p in placed], 4) + some(rng, pairs, 3) + some(rng, extreme_texts(placed), 2)
    texts += some(rng, short_neighbour_texts(placed), 4 if captions_only else 2)
    if not captions_only:
        texts += some(rng, neighbour_texts(kind, placed, contested), 4 if contested else 2)
        # COCO's forms are long: rare at first, and what naturalistic scenes are mostly asked
        texts += some(rng, side_texts(rng, placed), 2 if scene.finish else int(rng.uniform() < 0.3))
    return Lesson(scene, tuple(some(rng, texts, len(texts))))


# --- text alone ------------------------------------------------------------------------------------------------------


def described(rng: np.random.Generator, placements: tuple[Placement, ...]) -> str:
    """A scene in words: every entity and its place, in random order."""
    order = rng.permutation(len(placements))
    places = [(placements[k].entity, *token_place(placements[k])) for k in order]
    return " , ".join(f"{entity} in {ROWS[row]} {COLUMNS[column]}" for entity, row, column in places) + " ."


def list_texts(rng: np.random.Generator, names: list[str]) -> list[Text]:
    """Statements about a list of words, as any text corpus has them: which is second, what stands next to what."""
    k = int(rng.integers(len(names)))
    texts = [(f"{ORDINALS[k]} :", names[k])]
    if k + 1 < len(names):
        texts += [(f"right of {names[k]} :", names[k + 1]), (f"left of {names[k + 1]} :", names[k])]
    return texts


def text_lesson(rng: np.random.Generator) -> tuple[str, tuple[Text, ...]]:
    """For text-only pre-training: a described scene (or a list) as context, and texts about it."""
    if rng.uniform() < 0.25:
        names = [str(e) for e in random_entities(rng, str(rng.choice(KINDS)), int(rng.integers(2, 5)))]
        return "list : " + " , ".join(names) + " .", tuple(list_texts(rng, names))
    learned = lesson(rng, float(rng.uniform(0, 0.65)))
    words = [*FURNITURE, *scenes.OBJECT_NAMES]
    chatter = (f"the {rng.choice(words)} is in the", "picture .")
    return described(rng, learned.scene.placements), (*learned.texts, chatter)
