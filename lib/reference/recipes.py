"""How each embedded model is trained: its architecture, its stages, what is trained in each, rates and steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass

ALL = ("encoder", "projector", "backbone")


@dataclass(frozen=True)
class Stage:
    """name: what is learned. task: "neighbours" (dense supervision of an encoder, lib/reference/dense.py), "captions"
    (a decoder over a set of image tokens), "text" (no pictures), "captions_by_backbone" (the texts of "captions", told
    by the backbone) or "questions".

    trained: which of encoder, projector, backbone change. rate: multiplies Muon's .02 and AdamW's .002. patch_rate: of
    the patch embedding, times `rate`; at 1, end to end, its norm grew to 16 times that of the position embeddings
    within 800 steps and place did not get into the image tokens. start: where in the curriculum (0..1) the stage
    begins; it ends at 1. batch: scenes per step.
    """

    name: str
    task: str
    steps: int
    trained: tuple[str, ...]
    rate: float = 1.0
    patch_rate: float = 0.1
    start: float = 0.0
    batch: int = 32
    contested: bool = False  # see curriculum.asked_scene


@dataclass(frozen=True)
class Recipe:
    """architecture, planted, places: see `architectures.build`."""

    stages: tuple[Stage, ...]
    architecture: str = "siglip_llama"
    planted: str | None = None
    places: str = "random"

    @property
    def white(self) -> bool:
        """Whether the curriculum keeps to white canvases and whole tokens (the planted strip code reads white)."""
        return self.planted == "strip_code"


def end_to_end(contested: int = 800, rest: int = 1400) -> tuple[Stage, ...]:
    """Everything from scratch on questions; contested ones first, without which nothing but places was learned."""
    return (
        Stage("contested", "questions", contested, ALL, contested=True),
        Stage("all", "questions", rest, ALL, rate=0.7, start=0.2),
    )


RECIPES = {
    "reference": Recipe(
        (
            Stage("encoder", "captions", 2000, ("encoder",), patch_rate=1.0),
            Stage("language", "text", 700, ("backbone",)),
            Stage("projector", "captions_by_backbone", 150, ("projector",), start=0.6),
            Stage("contested", "questions", 500, ("projector", "backbone"), rate=0.7, contested=True),
            Stage("all", "questions", 900, ("projector", "backbone"), rate=0.6, start=0.2),
        )
    ),
    "siglip_style": Recipe(end_to_end(), places="waves"),
    "vision_only": Recipe(end_to_end(600, 1000), planted="vision_only", places="waves"),
    "backbone_only": Recipe(end_to_end(500, 900), planted="backbone_only"),
}

GPU_FACTOR = 4  # the gpu preset has a larger model, batches of four times as many scenes and four times the steps


def scaled(stage: Stage, preset: str) -> Stage:
    """The stage as the preset runs it."""
    if preset == "cpu":
        return stage
    return Stage(**{**asdict(stage), "steps": stage.steps * GPU_FACTOR, "batch": stage.batch * GPU_FACTOR})
