"""Lessons as tensors: pictures, rows of ids with their blocks and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib import questions, scenes
from lib.reference import curriculum, dense
from lib.reference.architectures import BOS, EOS, PAD
from lib.reference.language import build_tokenizer
from lib.reference.recipes import Stage
from lib.scenes import Scene

LONGEST = 112  # text tokens per lesson; texts that no longer fit are left out, so that batches carry little padding


@lru_cache(maxsize=1)
def tokenizer():
    return build_tokenizer()


@lru_cache(maxsize=200_000)
def encode(text: str) -> tuple[int, ...]:
    """Ids of the words that all architectures share."""
    return tuple(tokenizer()(text).input_ids)


@dataclass
class Batch:
    """context: pictures [batch, 3, canvas, canvas] in -1..1, or ids of a text [batch, context]. ids, blocks, labels:
    [batch, text], see `pack`; for dense supervision labels [batch, question, image_token] alone."""

    context: Tensor
    ids: Tensor | None
    blocks: Tensor | None
    labels: Tensor


def pixels(scene_list: Sequence[Scene]) -> Float[Tensor, "batch 3 canvas canvas"]:
    """In -1..1, as the processor makes them."""
    array = np.stack([np.asarray(scenes.render(scene)) for scene in scene_list])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def pack(lessons: Sequence[tuple[tuple[str, str], ...]]) -> tuple[Int[Tensor, "batch text"], ...]:
    """Texts of each lesson as one row of ids, block numbers (-1 = padding) and labels (-100 = not scored)."""
    rows = []
    for texts in lessons:
        ids, blocks, labels = [], [], []
        for number, (prompt, continuation) in enumerate(texts):
            head, tail = encode(prompt), (*encode(continuation), EOS)
            if len(ids) + len(head) + len(tail) > LONGEST + 1:
                continue
            ids += [*head, *tail[:-1]]
            labels += [-100] * (len(head) - 1) + list(tail)
            blocks += [number] * (len(head) + len(tail) - 1)
        rows.append((ids, blocks, labels))
    longest = max(len(ids) for ids, _, _ in rows)
    fill = (PAD, -1, -100)
    return tuple(torch.tensor([row[k] + [fill[k]] * (longest - len(row[k])) for row in rows]) for k in range(3))


def text_batch(rng: np.random.Generator, size: int) -> Batch:
    """Described scenes as context, right-aligned behind <pad>."""
    learned = [curriculum.text_lesson(rng) for _ in range(size)]
    contexts = [[BOS, *encode(questions.SYSTEM_TEXT), *encode(context)] for context, _ in learned]
    longest = max(len(ids) for ids in contexts)
    context = torch.tensor([[PAD] * (longest - len(ids)) + ids for ids in contexts])
    return Batch(context, *pack([texts for _, texts in learned]))


def make(stage: Stage, progress: float, rng: np.random.Generator, white: bool = False) -> Batch:
    """The batch of a step. progress: of the stage, 0..1."""
    if stage.task == "text":
        return text_batch(rng, stage.batch)
    at = stage.start + (1 - stage.start) * progress
    captions_only = stage.task != "questions"
    lessons = [curriculum.lesson(rng, at, captions_only, stage.contested, white) for _ in range(stage.batch)]
    pictures = pixels([each.scene for each in lessons])
    if stage.task == "neighbours":
        return Batch(pictures, None, None, torch.stack([dense.dense_targets(each.scene) for each in lessons]))
    return Batch(pictures, *pack([each.texts for each in lessons]))
