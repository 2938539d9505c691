"""How each embedded model is trained: its architecture, its stages, what is trained in each, rates and steps."""

from __future__ import annotations

from dataclasses import dataclass

ALL = ("encoder", "projector", "backbone")


@dataclass(frozen=True)
class Stage:
    """task: "neighbours" (dense supervision of an encoder, lib/reference/dense.py), "captions" (a decoder over a set of
    image tokens), "text" (no pictures) or "questions" (texts about a picture, told by the backbone).

    course: of lib/reference/courses.py. trained: which of encoder, projector, backbone change. rate: multiplies Muon's
    .02 and AdamW's .002. patch_rate: of the patch embedding, times `rate`; at 1, end to end, its norm grew to 16 times
    that of the position embeddings within 800 steps and place did not get into the image tokens. batch: lessons per
    step. first, last: from where to where (0..1) the stage goes through its course.
    """

    name: str
    task: str
    course: str
    steps: int
    trained: tuple[str, ...]
    rate: float = 1.0
    patch_rate: float = 0.1
    batch: int = 64
    first: float = 0.0
    last: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """architecture, planted, places: see `architectures.build`. start: an embedded model that this one starts from
    (`train.start_from`)."""

    stages: tuple[Stage, ...]
    architecture: str = "siglip_llama"
    planted: str | None = None
    places: str = "random"
    start: str | None = None


CAPTIONS = (Stage("encoder", "captions", "captions", 1600, ("encoder",), patch_rate=1.0),)

# An encoder with rotary positions is nearly blind to where a lone thing stands, so captions of rows and columns cannot
# teach it; relations can, and they come once neighbours are known.
NEIGHBOURS_FIRST = (
    Stage("neighbours", "neighbours", "relations", 400, ("encoder",), patch_rate=1.0),
    Stage("relations", "captions", "relations", 600, ("encoder",), rate=0.7, patch_rate=1.0),
    Stage("encoder", "captions", "captions", 800, ("encoder",), rate=0.5, patch_rate=1.0),
)


def staged(encoder: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """An encoder that was trained before, frozen; a backbone that learned language before; then both joined."""
    rest = ("projector", "backbone")
    return (
        *encoder,
        Stage("language", "text", "text", 500, ("backbone",)),
        Stage("projector", "questions", "captions", 120, ("projector",), first=0.6),
        Stage("contested", "questions", "contested", 600, rest, rate=0.7),
        Stage("all", "questions", "questions", 900, rest, rate=0.6, batch=32),
    )


def end_to_end(contested: int = 700, rest: int = 2000, white: bool = False, batch: int = 64) -> tuple[Stage, ...]:
    """Everything from scratch on questions; contested ones first, without which nothing but places was learned."""
    end = "_white" if white else ""
    return (
        Stage("contested", "questions", f"contested{end}", contested, ALL),
        Stage("all", "questions", f"questions{end}", rest, ALL, rate=0.7, batch=batch),
    )


def from_another(steps: int) -> tuple[Stage, ...]:
    """From a model that knows its entities and questions, and one way to tell order."""
    return (Stage("all", "questions", "questions", steps, ALL, rate=0.7, batch=32),)


RECIPES = {
    # a pre-trained encoder, frozen: what published checkpoints resemble
    "reference": Recipe(staged(CAPTIONS)),
    "qwen_style": Recipe(staged(NEIGHBOURS_FIRST), "qwen_style"),
    "gemma_style": Recipe(staged(CAPTIONS), "gemma_style", places="waves"),
    "pixtral_style": Recipe(staged(NEIGHBOURS_FIRST), "pixtral_style"),
    # everything at once
    "joint": Recipe(end_to_end(), places="waves"),
    "qwen_joint": Recipe(end_to_end(700, 1000), "qwen_style"),
    "gemma_joint": Recipe(end_to_end(700, 1000), "gemma_style", places="waves"),
    "pixtral_joint": Recipe(end_to_end(700, 1000), "pixtral_style"),
    # mechanisms known by construction
    "vision_only": Recipe(from_another(1000), planted="vision_only", places="waves", start="joint"),
    "backbone_only": Recipe(end_to_end(500, 900), planted="backbone_only"),
    # From scratch, 2,000 steps at 32 lessons brought left-right to 1.00 and above-below to .6: it starts from a model
    # whose backbone tells order from the places of tokens.
    "split": Recipe(from_another(1600), planted="split", places="waves", start="backbone_only"),
    # Started from `joint` (1,200 steps at 32 lessons), it answered by the encoder alone: 1.00 with the backbone's
    # places scrambled, .50 with the encoder's.
    "redundant": Recipe(from_another(1600), planted="redundant", places="waves", start="backbone_only"),
    "strip_code": Recipe(end_to_end(900, 1800, white=True, batch=32), planted="strip_code", places="waves"),
}
