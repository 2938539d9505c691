"""A look at a model on its way: accuracy on a few new questions, and how well place is read from its embeddings."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from lib.reference import courses, curriculum, forward
from lib.reference.curriculum import KINDS
from lib.reference.language import GRID
from lib.reference.recipes import Stage
from lib.stimuli import layouts, questions
from lib.stimuli.scenes import Placement, Scene

ROWS = ("three centred", "reference at the end", "line of four")


def held_out_line(rng: np.random.Generator, kind: str, direction: str, row: str) -> tuple[Scene, Placement, Placement]:
    """A line no training has seen, the reference and the answer to a question about it."""
    orientation = questions.ORIENTATION[direction]
    if row == "line of four":
        members = layouts.random_entities(rng, kind, 4, GRID)
        while not layouts.is_held_out(kind, members, GRID):
            members = layouts.random_entities(rng, kind, 4, GRID)
        starts, across = [int(rng.integers(2)) + 3 * k for k in range(4)], int(rng.integers(GRID.side - 1))
        starts = [starts[0] + 3 * k for k in range(4)]
    else:
        triples = sorted(questions.held_out_triples(kind, GRID), key=str)
        members, starts, across = triples[int(rng.integers(len(triples)))], list(GRID.starts), GRID.across
    boxes = layouts.line_boxes(starts, across, orientation, GRID)
    scene = Scene(GRID.canvas, tuple(Placement(e, b) for e, b in zip(members, boxes, strict=True)))
    along = scene.placements if direction in ("left", "above") else scene.placements[::-1]  # target first
    asked = {"three centred": 1, "reference at the end": 2, "line of four": int(rng.integers(1, 4))}[row]
    return scene, along[asked], along[asked - 1]


@lru_cache(maxsize=4)
def sample(per_cell: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], list[str]]:
    """Pictures, packed questions and the cell (row and direction) of each."""
    rng, scene_list, texts, cells = np.random.default_rng(1), [], [], []
    for row in ROWS:
        for direction in questions.DIRECTIONS:
            for k in range(per_cell):
                kind = KINDS[k % len(KINDS)]
                scene, reference, target = held_out_line(rng, kind, direction, row)
                scene_list.append(scene)
                texts.append((curriculum.question_text(kind, direction, reference, target.entity.name),))
                cells.append(f"{row}, {direction}")
    rows = [courses.pack(text, 32) for text in texts]
    return courses.pixels(scene_list), tuple(torch.tensor([row[k] for row in rows]) for k in range(3)), cells


@torch.no_grad()
def quick_accuracy(model, per_cell: int = 15) -> dict[str, float]:
    """Accuracy per row and direction, one question per sequence."""
    pictures, (ids, blocks, labels), cells = sample(per_cell)
    correct, device = [], model.lm_head.weight.device
    for k in range(0, len(cells), 60):
        part = slice(k, k + 60)
        images = forward.image_embeddings(model, pictures[part].to(device))
        hidden = forward.text_hidden(model, images, ids[part].to(device), blocks[part].to(device))
        answers = model.lm_head(hidden).argmax(-1).cpu()
        rows, first = torch.arange(len(answers)), (labels[part] != -100).float().argmax(1)
        correct += (answers[rows, first] == labels[part][rows, first]).tolist()
    found = {}
    for cell in dict.fromkeys(cells):
        own = [c for c, name in zip(correct, cells, strict=True) if name == cell]
        found[cell] = round(sum(own) / len(own), 3)
    return found


@lru_cache(maxsize=1)
def free_scenes(n: int) -> tuple[list[Scene], torch.Tensor]:
    rng = np.random.default_rng(2)
    scene_list = [layouts.free(rng, "squares", GRID) for _ in range(n)]
    return scene_list, courses.pixels(scene_list)


@torch.no_grad()
def place_readout(model, n: int = 400) -> dict[str, float]:
    """How well an object's row and column can be read from the embeddings: R2 of ridge regression, other scenes."""
    scene_list, pictures = free_scenes(n)
    device = model.lm_head.weight.device
    embedded = torch.cat([forward.image_embeddings(model, each.to(device)).cpu() for each in pictures.split(50)])
    x, y = [], []
    for scene, tokens in zip(scene_list, embedded, strict=True):
        for placement in scene.placements:
            row, column = curriculum.token_place(placement)
            x.append(tokens[row * GRID.side + column])
            y.append((row, column))
    x, y = torch.stack(x).double(), torch.tensor(y).double()
    train = len(x) // 2
    x = (x - x[:train].mean(0)) / (x[:train].std(0) + 1e-9)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    gram = x[:train].mT @ x[:train] + torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x[:train].mT @ y[:train])
    rest = y[train:]
    r2 = 1 - ((x[train:] @ weights - rest) ** 2).sum(0) / ((rest - rest.mean(0)) ** 2).sum(0)
    return {"row": round(r2[0].item(), 3), "column": round(r2[1].item(), 3)}


def at(stage: Stage, model) -> dict[str, float]:
    """What the log says of a model on its way."""
    model.eval()
    found = place_readout(model) if "encoder" in stage.trained else {}
    found |= quick_accuracy(model) if stage.task == "questions" else {}
    model.train()
    return found
