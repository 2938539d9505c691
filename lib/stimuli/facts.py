"""Questions about a scene that are not about space: colour, shape, presence, number (stimuli).

They are part of the training texts of the embedded models, so that an intervention on spatial order can be checked for
harm to what it should leave alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from lib.stimuli import scenes
from lib.stimuli.grids import ORIENTATIONS, Grid
from lib.stimuli.questions import SETTINGS
from lib.stimuli.scenes import Entity, Scene, line_scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
NOTHING = "nothing"  # the answer where a question about a neighbour has none


@dataclass(frozen=True)
class Fact:
    """One question with its answer; candidates: the answer first, then what else it could have been."""

    form: str  # colour, shape, presence, number
    question: str
    candidates: tuple[str, ...]
    scene: Scene

    @property
    def answer(self) -> str:
        return self.candidates[0]


def colour_question(noun: str) -> str:
    return f"What is the color of the {noun}?"


def shape_question(colour: str) -> str:
    return f"What is the shape of the {colour} thing?"


def presence_question(entity: Entity) -> str:
    return f"Is there a(n) {entity} in the picture?"


NUMBER_QUESTION = "How many things are in the picture?"


def colour_and_shape(scene: Scene) -> list[Fact]:
    """Colour of every shape and shape of every colour that is there once; none for objects."""
    things = [p.entity for p in scene.placements if p.entity.colour]
    nouns, facts = Counter(e.noun for e in things), []
    for entity in things:
        if nouns[entity.noun] == 1:
            others = [e.colour for e in things if e is not entity]
            facts.append(Fact("colour", colour_question(entity.noun), (entity.colour, *others), scene))
        others = [noun for noun in scenes.SHAPES if noun != entity.noun]
        facts.append(Fact("shape", shape_question(entity.colour), (entity.noun, *others), scene))
    return facts


def presence(rng: np.random.Generator, scene: Scene, grid: Grid) -> Fact:
    """Is something there? In half of the cases it is; else a colour (object) that nothing in the scene has."""
    here = [p.entity for p in scene.placements]
    entity, answers = here[int(rng.integers(len(here)))], ("yes", "no")
    if rng.uniform() < 0.5:
        names = scenes.palette(grid) if entity.colour else scenes.OBJECT_NAMES
        absent = [name for name in names if name not in {e.name for e in here}]
        if absent:
            name = str(rng.choice(absent))
            entity, answers = (Entity(entity.noun, name) if entity.colour else Entity(name)), ("no", "yes")
    return Fact("presence", presence_question(entity), answers, scene)


def number(scene: Scene) -> Fact:
    """How many things there are."""
    correct = NUMBERS[len(scene.placements)]
    return Fact("number", NUMBER_QUESTION, (correct, *(n for n in NUMBERS[1:] if n != correct)), scene)


def facts(rng: np.random.Generator, scene: Scene, grid: Grid) -> list[Fact]:
    """All colours and shapes, one question about presence and one about number."""
    return [*colour_and_shape(scene), presence(rng, scene, grid), number(scene)]


def fact_items(setting: str, grid: Grid, n: int = 120, seed: int = 0) -> list[Fact]:
    """n questions about the setting's centred lines of three, forms in turn as far as the setting has them."""
    rng, triples = np.random.default_rng([seed, SETTINGS.index(setting)]), scenes.ordered_triples(setting, grid)
    items: list[Fact] = []
    while len(items) < n:
        triple = triples[int(rng.integers(len(triples)))]
        scene = line_scene(triple, grid, str(rng.choice(ORIENTATIONS)))
        found = facts(rng, scene, grid)
        forms = list(dict.fromkeys(fact.form for fact in found))
        own = [fact for fact in found if fact.form == forms[len(items) % len(forms)]]
        items.append(own[int(rng.integers(len(own)))])
    return items
