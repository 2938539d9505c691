"""What a model is asked: question text, candidate answers, splits and pairs (floor 1: no model code)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lib.errors import UserError
from lib.scenes import Entity, Grid, ordered_triples

# --- directions ------------------------------------------------------------------------------------------------------

DIRECTIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
ORIENTATION = {"left": "horizontal", "right": "horizontal", "above": "vertical", "below": "vertical"}
PHRASE = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}

SYSTEM_TEXT = "Answer with one word."

# --- question text ---------------------------------------------------------------------------------------------------


def neighbour_question(setting: str, direction: str, reference: Entity) -> str:
    """The question of squares, shapes or objects about the entity next to `reference`, in the paper's words."""
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
    """The COCO-spatial question with its two options in the given order: ("left", "right") or ("above", "below").

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


# --- splits ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def held_out_triples(setting: str, grid: Grid) -> frozenset[tuple[Entity, Entity, Entity]]:
    """A third of the ordered triples, closed under mirroring: no reference model sees them in a row or column in training.

    Every model is scored on all triples; `split` says which of them are `test` (never seen) and which `train` (seen, but
    never in the centred place of the evaluation).
    """
    triples = [t for t in ordered_triples(setting, grid) if str(t[0]) < str(t[2])]
    order = np.random.default_rng(20260322).permutation(len(triples))
    chosen = [triples[k] for k in order[: len(triples) // 3]]
    return frozenset(chosen) | frozenset(t[::-1] for t in chosen)


def split(setting: str, triple: tuple[Entity, Entity, Entity], grid: Grid) -> str:
    """`test` for a triple no reference model saw in this order in training, else `train`."""
    return "test" if tuple(triple) in held_out_triples(setting, grid) else "train"
