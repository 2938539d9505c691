"""Answers to a question about a neighbour that need no understanding of it, and how often they are right.

A curriculum in which such a shortcut is right more often than a guess among the things in the picture can teach the
shortcut in place of the task. Questions are therefore drawn with weights that keep every shortcut at chance;
tests/test_curriculum.py checks it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import hypot

import numpy as np

from lib.stimuli import layouts
from lib.stimuli.scenes import Placement, Scene


@dataclass(frozen=True)
class Asked:
    """A question about a neighbour: in which direction of whom; target: the answer."""

    direction: str
    reference: Placement
    target: Placement
    scene: Scene

    @property
    def others(self) -> list[Placement]:
        return [p for p in self.scene.placements if p is not self.reference]


# --- shortcuts: a question -> the things that the shortcut would name (several: a tie) --------------------------------


def far_end(asked: Asked) -> list[Placement]:
    """What lies farthest in the direction asked for."""
    ahead = [layouts.ahead_aside(asked.direction, p, asked.reference)[0] for p in asked.others]
    return [p for p, a in zip(asked.others, ahead, strict=True) if a > max(ahead) - 1e-6]


def nearest(asked: Asked) -> list[Placement]:
    """What stands nearest to the reference, on whatever side."""
    away = [hypot(*layouts.offset(p, asked.reference)) for p in asked.others]
    return [p for p, a in zip(asked.others, away, strict=True) if a < min(away) + 1e-6]


def not_named(asked: Asked) -> list[Placement]:
    """Anything that the question does not name."""
    return asked.others


def the_reference(asked: Asked) -> list[Placement]:
    return [asked.reference]


def the_middle(asked: Asked) -> list[Placement]:
    """What stands nearest to the centre of all things, the reference excepted."""
    centre = np.mean([p.centre for p in asked.scene.placements], 0)
    away = [hypot(*(np.array(p.centre) - centre)) for p in asked.others]
    return [p for p, a in zip(asked.others, away, strict=True) if a < min(away) + 1e-6]


SHORTCUTS: dict[str, Callable[[Asked], list[Placement]]] = {
    "far end": far_end,
    "nearest": nearest,
    "not named": not_named,
    "reference": the_reference,
    "middle": the_middle,
}


def hit(shortcut: Callable[[Asked], list[Placement]], asked: Asked) -> float:
    """How often the shortcut names the target: 1 or 0, a share where it names several."""
    named = shortcut(asked)
    return sum(p is asked.target for p in named) / len(named)


def chance(asked: Asked) -> float:
    """How often a guess among all things but the reference is right."""
    return 1 / len(asked.others)


# --- drawing questions so that no shortcut is right more often than chance --------------------------------------------


@dataclass(frozen=True)
class Weights:
    """How likely a question is to be kept. far: factor where the far end would answer it; nearest: factor where the
    nearest thing would never, sometimes (a tie) or always answer it."""

    far: float
    nearest: tuple[float, float, float]

    def of(self, asked: Asked) -> float:
        if len(asked.others) == 1:
            return 0.5  # no guess can be wrong here
        close = hit(nearest, asked)
        tie = self.nearest[0 if close == 0 else 2 if close == 1 else 1]
        return tie * (self.far if hit(far_end, asked) > 0 else 1.0)


ALL = Weights(0.4, (1.0, 0.4, 0.08))
CONTESTED = Weights(0.26, (1.0, 0.35, 0.15))  # in a line of three every contested question is one about the far end


def draw(rng: np.random.Generator, asked: list[Asked], n: int, weights: Weights = ALL) -> list[Asked]:
    """Up to n questions, each kept with its weight, in random order."""
    kept = [a for a in asked if rng.uniform() < weights.of(a)]
    return [kept[k] for k in rng.permutation(len(kept))[:n]]


def questions_about(scene: Scene, contested: bool = False) -> list[Asked]:
    """Every question with one clear answer; contested: only those with something on the opposite side, too."""
    found = (Asked(direction, reference, target, scene) for direction, reference, target in layouts.answerable(scene))
    return [a for a in found if not contested or layouts.contested(a.direction, a.reference, scene)]
