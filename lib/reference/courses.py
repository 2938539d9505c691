"""Lessons drawn in advance, as arrays on disk that all trainings share: `python -m lib.reference.courses`.

A course is a number of lessons in the order of the curriculum. Lesson k of a course has random numbers of its own, so
that it is the same however many processes draw. Every model learns from the same lessons; seeds differ in what the
weights start from and in the order of lessons.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm.auto import tqdm

from lib.errors import UserError, cli
from lib.places import ROOT
from lib.reference import curriculum, dense
from lib.reference.architectures import BOS, EOS, PAD
from lib.reference.curriculum import Text
from lib.reference.forward import sent
from lib.reference.language import GRID, build_tokenizer
from lib.stimuli import questions, scenes
from lib.stimuli.scenes import Scene

FOLDER = ROOT / "checkpoints" / "courses"
LONGEST = 112  # text tokens per lesson; texts that no longer fit are left out
CONTEXT = 64  # tokens of a described scene, system text included
IGNORED = -100  # label of a token that is not scored


@dataclass(frozen=True)
class Course:
    """lessons: how many. about: "relations" (captions without rows and columns), "captions", "text" or "questions".
    start: progress (0..1) of the curriculum at the first lesson; the last one is at 1. contested, white: see
    `curriculum.asked_scene`."""

    lessons: int
    about: str
    start: float = 0.0
    contested: bool = False
    white: bool = False


COURSES = {
    "relations": Course(16_000, "relations"),
    "captions": Course(40_000, "captions"),
    "text": Course(16_000, "text"),
    "contested": Course(24_000, "questions", contested=True),
    "questions": Course(40_000, "questions", start=0.2),
    "contested_white": Course(12_000, "questions", contested=True, white=True),
    "questions_white": Course(16_000, "questions", start=0.2, white=True),
}


# --- one lesson as arrays --------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def tokenizer():
    return build_tokenizer()


@lru_cache(maxsize=200_000)
def encode(text: str) -> tuple[int, ...]:
    """Ids of the words that all architectures share."""
    return tuple(tokenizer()(text).input_ids)


def pixels(scene_list: Sequence[Scene]) -> Float[Tensor, "batch 3 canvas canvas"]:
    """Pictures in -1..1, as the processor makes them."""
    return scaled(torch.from_numpy(np.stack([np.asarray(scenes.render(scene)) for scene in scene_list])))


def scaled(pictures: UInt8[Tensor, "batch canvas canvas 3"]) -> Float[Tensor, "batch 3 canvas canvas"]:
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def pack(texts: Sequence[Text], length: int = LONGEST) -> tuple[list[int], list[int], list[int]]:
    """The texts of a lesson as one row: ids, block numbers (-1 = padding) and labels (`IGNORED` = not scored).

    Only the continuation of a text is scored. Texts that do not fit are left out.
    """
    ids, blocks, labels = [], [], []
    for number, (prompt, continuation) in enumerate(texts):
        head, tail = encode(prompt), (*encode(continuation), EOS)
        if len(ids) + len(head) + len(tail) > length + 1:
            continue
        ids += [*head, *tail[:-1]]
        labels += [IGNORED] * (len(head) - 1) + list(tail)
        blocks += [number] * (len(head) + len(tail) - 1)
    spare = length - len(ids)
    return ids + [PAD] * spare, blocks + [-1] * spare, labels + [IGNORED] * spare


def drawn(name: str, k: int) -> dict[str, np.ndarray]:
    """Lesson k of a course as arrays: picture (context for text), ids, blocks, labels, targets of dense supervision."""
    course = COURSES[name]
    rng = np.random.default_rng([list(COURSES).index(name), k])
    if course.about == "text":
        context, texts = curriculum.text_lesson(rng)
        known = [BOS, *encode(questions.SYSTEM_TEXT), *encode(context)]
        found = {"context": [PAD] * (CONTEXT - len(known)) + known}
    else:
        lesson = curriculum.lesson(
            rng,
            course.start + (1 - course.start) * k / course.lessons,
            captions_only=course.about != "questions",
            contested=course.contested,
            white=course.white,
            places=course.about != "relations",
        )
        texts, found = lesson.texts, {"picture": np.asarray(scenes.render(lesson.scene))}
        if course.about == "relations":
            found["targets"] = dense.dense_targets(lesson.scene)
    return {key: np.asarray(value) for key, value in found.items()} | dict(
        zip(("ids", "blocks", "labels"), map(np.asarray, pack(texts)), strict=True)
    )


# --- a course on disk ------------------------------------------------------------------------------------------------

SHAPES = {
    "picture": ((GRID.canvas, GRID.canvas, 3), np.uint8),
    "targets": ((len(dense.QUESTIONS), GRID.side**2), np.uint8),
    "context": ((CONTEXT,), np.int16),
    "ids": ((LONGEST,), np.int16),
    "blocks": ((LONGEST,), np.int16),
    "labels": ((LONGEST,), np.int16),
}
PART = 250  # lessons that a process draws at a time


def keys(course: Course) -> list[str]:
    first = {"text": ["context"], "relations": ["picture", "targets"]}.get(course.about, ["picture"])
    return [*first, "ids", "blocks", "labels"]


def _part(job: tuple[str, Path, int]) -> int:
    name, folder, first = job
    course = COURSES[name]
    arrays = {key: np.load(folder / f"{key}.npy", mmap_mode="r+") for key in keys(course)}
    last = min(first + PART, course.lessons)
    for k in range(first, last):
        lesson = drawn(name, k)
        for key, array in arrays.items():
            array[k] = lesson[key]
    return last - first


def draw(names: Sequence[str], folder: Path = FOLDER, workers: int = 2) -> None:
    """Draw courses; those that are there are left alone. A course is there when its folder has its final name."""
    for name in names:
        course, final = COURSES[name], folder / name
        if final.exists():
            continue
        going = final.with_name(f"{name}.drawing")
        going.mkdir(parents=True, exist_ok=True)
        for key in keys(course):
            shape, dtype = SHAPES[key]
            open_memmap(going / f"{key}.npy", "w+", dtype, (course.lessons, *shape))
        jobs = [(name, going, first) for first in range(0, course.lessons, PART)]
        with Pool(workers) as pool, tqdm(total=course.lessons, desc=name, unit=" lessons", mininterval=5) as bar:
            for done in pool.imap_unordered(_part, jobs):
                bar.update(done)
        going.rename(final)


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """context: pictures [batch, 3, canvas, canvas] in -1..1, or ids of a text [batch, context]. ids, blocks, labels:
    [batch, text], see `pack`; targets: of dense supervision [batch, question, image_token], or None."""

    context: Tensor
    ids: Tensor
    blocks: Tensor
    labels: Tensor
    targets: Tensor | None = None


class Lessons:
    """A drawn course to take batches from."""

    WINDOW = 0.1  # share of a course, around the place reached, from which a batch is drawn

    def __init__(self, name: str, folder: Path = FOLDER):
        where = folder / name
        if not where.exists():
            raise UserError(f"The course {name!r} is not drawn yet: run `python -m lib.reference.courses {name}`.")
        self.arrays = {key: np.load(where / f"{key}.npy", mmap_mode="r") for key in keys(COURSES[name])}

    def batch(self, progress: float, size: int, rng: np.random.Generator, device: torch.device) -> Batch:
        """Lessons from around `progress` (0..1) of the course."""
        n = len(self.arrays["ids"])
        width = int(n * self.WINDOW)
        first = int(np.clip(progress * n - width / 2, 0, n - width))
        chosen = np.sort(first + rng.choice(width, size, replace=False))
        rows = {key: sent(torch.from_numpy(array[chosen]), device) for key, array in self.arrays.items()}
        context = scaled(rows["picture"]) if "picture" in rows else rows["context"].long()
        targets = rows["targets"].long() if "targets" in rows else None
        return Batch(context, rows["ids"].long(), rows["blocks"].long(), rows["labels"].long(), targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*COURSES, []], help="default: all")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with cli():
        draw(arguments.names or list(COURSES), workers=arguments.workers)


if __name__ == "__main__":
    main()
