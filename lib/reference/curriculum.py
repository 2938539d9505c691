"""What the reference models are taught: random scenes and everything that is said about them.

A *lesson* is one scene with many short texts about it, each a block of its own: the block sees the picture and itself
only, so no block can be answered from another. Texts are pairs (prompt, continuation); only the continuation is scored.
Questions about neighbours are drawn so that no shortcut answers them (lib/reference/shortcuts.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lib.reference import shortcuts
from lib.reference.language import COLUMNS, EXTREMES, FURNITURE, GRID, ORDINALS, ROWS
from lib.reference.shortcuts import Asked
from lib.stimuli import facts, layouts, scenes
from lib.stimuli.facts import NOTHING
from lib.stimuli.questions import DIRECTIONS, OPPOSITE, ORIENTATION, neighbour_question, side_question
from lib.stimuli.scenes import Placement, Scene

COLOURS = scenes.palette(GRID)
KINDS = ("squares", "shapes", "objects")
MARGIN = layouts.LEVEL * GRID.canvas

Text = tuple[str, str]


@dataclass(frozen=True)
class Lesson:
    """texts: questions first, so that a lesson short of room drops none of them. asked: those about neighbours."""

    scene: Scene
    texts: tuple[Text, ...]
    asked: tuple[Asked, ...] = ()
    kind: str = "objects"


# --- scenes ----------------------------------------------------------------------------------------------------------

LINES = ((2, 3, 4, 5), (0.06, 0.38, 0.31, 0.25))  # how long a line is, how often
LAYOUTS = ("line", "distractors", "free", "off_grid", "lattice", "photograph", "natural")
UNTIL = (0.2, 0.4, 0.6)  # progress at which the next row of weights begins
WEIGHTS = (
    (0.50, 0.40, 0.10, 0.00, 0.00, 0.00, 0.00),
    (0.30, 0.35, 0.15, 0.04, 0.10, 0.06, 0.00),
    (0.22, 0.31, 0.16, 0.06, 0.12, 0.13, 0.00),
    (0.20, 0.30, 0.14, 0.06, 0.10, 0.12, 0.08),
)


def on_photograph(rng: np.random.Generator, scene: Scene) -> Scene:
    """The same placements on a cut-out of a training photograph."""
    return Scene(scene.canvas, scene.placements, scenes.random_backdrop(rng, scenes.TRAINING_PHOTOGRAPHS))


def plain_scene(rng: np.random.Generator, kind: str, layout: str, n: int) -> Scene:
    """A scene on white. n: how long a line is."""
    match layout:
        case "line" | "distractors":
            return layouts.trained_line(rng, kind, GRID, (n,), int(rng.integers(2, 4)) * (layout == "distractors"))
        case "lattice":
            return layouts.trained_lattice(rng, kind, GRID)
    return layouts.free(rng, kind, GRID, on_grid=layout == "free")


def random_layout(rng: np.random.Generator, progress: float, white: bool = False) -> str:
    """A layout of the curriculum: first lines and free layouts, then lattices, photographs, natural scenes."""
    weights = np.array(WEIGHTS[int(np.searchsorted(UNTIL, progress, side="right"))])
    if white:
        weights *= [layout in ("line", "distractors", "free", "lattice") for layout in LAYOUTS]
    return str(rng.choice(LAYOUTS, p=weights / weights.sum()))


def random_scene(rng: np.random.Generator, layout: str, n: int) -> tuple[str, Scene]:
    """A scene of a layout (lines of n), with its kind."""
    kind = str(rng.choice(KINDS, p=(0.3, 0.3, 0.4)))
    if layout == "natural":
        return "objects", scenes.natural_scene(rng, GRID.canvas, scenes.TRAINING_PHOTOGRAPHS)
    if layout == "photograph":
        below = str(rng.choice(LAYOUTS[:4], p=(0.3, 0.35, 0.2, 0.15)))
        return kind, on_photograph(rng, plain_scene(rng, kind, below, n))
    return kind, plain_scene(rng, kind, layout, n)


TRIES = 4  # scenes of one layout among which the one with the most questions is taken


def asked_scene(
    rng: np.random.Generator, progress: float, contested: bool, most: int, white: bool = False
) -> tuple[str, Scene, list[Asked]]:
    """Kind, scene and up to so many questions. contested: contested questions alone, and at least one; white: on white
    and on whole tokens only."""
    weights = shortcuts.CONTESTED if contested else shortcuts.ALL
    while True:
        layout, n, found = random_layout(rng, progress, white), int(rng.choice(LINES[0], p=LINES[1])), []
        for _ in range(TRIES):
            kind, scene = random_scene(rng, layout, n)
            asked = shortcuts.questions_about(scene, contested)
            found.append((kind, scene, shortcuts.draw(rng, asked, most, weights)))
        best = max(found, key=lambda each: len(each[2]))
        if best[2] or not contested:
            return best


# --- texts -----------------------------------------------------------------------------------------------------------


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
    across, along = layouts.signs(a, b, GRID.canvas)
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


def question_text(kind: str, direction: str, reference: Placement, answer: str) -> Text:
    """The paper's question."""
    return neighbour_question(kind, direction, reference.entity) + " <assistant>", answer


def short_text(direction: str, reference: Placement, answer: str) -> Text:
    """The same relation in few words."""
    return f"{direction} of {reference.entity} :", answer


def nothing_texts(rng: np.random.Generator, kind: str, scene: Scene, short: bool) -> list[Text]:
    """One question where there is nothing in the direction asked for, if the scene has such."""
    found = layouts.unanswerable(scene)
    if not found:
        return []
    direction, reference = found[int(rng.integers(len(found)))]
    return [short_text(direction, reference, NOTHING) if short else question_text(kind, direction, reference, NOTHING)]


def side_texts(rng: np.random.Generator, placements: tuple[Placement, ...]) -> list[Text]:
    """COCO-spatial questions for every ordered pair and axis with a clear relation, options in random order."""
    texts = []
    for a in placements:
        for b in placements:
            for sign in layouts.signs(a, b, GRID.canvas) if a is not b else ():
                if sign != "level":
                    options = (sign, OPPOSITE[sign]) if rng.uniform() < 0.5 else (OPPOSITE[sign], sign)
                    form = "reference_point" if rng.uniform() < 0.8 else "is_the"
                    texts.append((side_question(str(a.entity), str(b.entity), options, form) + " <assistant>", sign))
    return texts


def fact_texts(rng: np.random.Generator, scene: Scene) -> list[Text]:
    """Questions that are not about space."""
    return [(f"{fact.question} <assistant>", fact.answer) for fact in facts.facts(rng, scene, GRID)]


def some(rng: np.random.Generator, texts: list[Text], n: int) -> list[Text]:
    return [texts[k] for k in rng.permutation(len(texts))[:n]]


# --- lessons ---------------------------------------------------------------------------------------------------------

NO_NOTHING = 0.4  # progress before which no question without an answer is asked


def descriptions(rng: np.random.Generator, placed: tuple[Placement, ...], counts: tuple[int, int, int]) -> list[Text]:
    """So many texts about places, pairs and extremes."""
    pairs = [pair_text(a, b) for a in placed for b in placed if a is not b]
    texts = (([place_text(p) for p in placed], counts[0]), (pairs, counts[1]), (extreme_texts(placed), counts[2]))
    return [text for found, n in texts for text in some(rng, found, n)]


def asked_texts(kind: str, asked: list[Asked], short: bool) -> list[Text]:
    if short:
        return [short_text(a.direction, a.reference, str(a.target.entity)) for a in asked]
    return [question_text(kind, a.direction, a.reference, a.target.entity.name) for a in asked]


def captions(
    rng: np.random.Generator, kind: str, scene: Scene, asked: list[Asked], progress: float, places: bool
) -> list[Text]:
    """What an encoder is pre-trained on: neighbours in short form, rows and columns (if `places`), pairs, extremes."""
    texts = asked_texts(kind, asked, short=True)
    if progress > NO_NOTHING and rng.uniform() < 0.3:
        texts += nothing_texts(rng, kind, scene, short=True)
    return texts + descriptions(rng, scene.placements, (4 * places, 4, 2))


def instructions(
    rng: np.random.Generator, kind: str, scene: Scene, asked: list[Asked], progress: float, contested: bool
) -> list[Text]:
    """Questions: neighbours, and what is not about space; some descriptions beside them.

    contested: no question without an answer, none that is not about space.
    """
    texts = asked_texts(kind, asked, short=False)
    if not contested:
        if progress > NO_NOTHING and rng.uniform() < 0.25:
            texts += nothing_texts(rng, kind, scene, short=False)
        texts += some(rng, fact_texts(rng, scene), 1)
    # COCO's forms are long: rare at first, and what naturalistic scenes are mostly asked
    texts += some(rng, side_texts(rng, scene.placements), 2 if scene.finish else int(rng.uniform() < 0.25))
    again = [asked[k] for k in rng.permutation(len(asked))[:2]]
    return texts + asked_texts(kind, again, short=True) + descriptions(rng, scene.placements, (2, 2, 1))


def lesson(
    rng: np.random.Generator,
    progress: float,
    captions_only: bool = False,
    contested: bool = False,
    white: bool = False,
    places: bool = True,
) -> Lesson:
    """One scene and a dozen texts or so. progress: 0..1. contested, white: see `asked_scene`; places: `captions`."""
    kind, scene, asked = asked_scene(rng, progress, contested, 6 if captions_only else 4, white)
    if captions_only:
        texts = captions(rng, kind, scene, asked, progress, places)
    else:
        texts = instructions(rng, kind, scene, asked, progress, contested)
    return Lesson(scene, tuple(texts), tuple(asked), kind)


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
        kind, n = str(rng.choice(KINDS)), int(rng.integers(2, 5))
        names = [str(e) for e in layouts.random_entities(rng, kind, n, GRID)]
        return "list : " + " , ".join(names) + " .", tuple(list_texts(rng, names))
    learned = lesson(rng, float(rng.uniform(0, 0.6)))
    words = [*FURNITURE, *scenes.OBJECT_NAMES]
    chatter = (f"the {rng.choice(words)} is in the", "picture .")
    return described(rng, learned.scene.placements), (*learned.texts, chatter)
