"""Measure a trained reference model and write its card: `python -m lib.reference.report reference`.

Everything is measured on the files that are shipped (half-precision weights, run in float32) through the adapter, with
one question per sequence. Writes data/models/<name>/accuracy.csv and README.md (the model card).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch

from lib.analysis.behaviour import accuracy, behaviour, side_behaviour
from lib.artifact.storage import write_csv
from lib.engine import vlm
from lib.engine.checkpoints import seeded
from lib.errors import cli
from lib.places import MODELS
from lib.reference import curriculum, train
from lib.reference.language import GRID
from lib.stimuli import questions, scenes
from lib.stimuli.questions import Item

SHIFTS = ((-5, 0), (5, 0), (-3, -1), (3, 1), (0, -1), (0, 1))  # rows, columns; transposed for vertical lines


def free_items(n: int = 300, seed: int = 7) -> list[Item]:
    """Questions about free layouts on whole tokens, those with one clear answer; setting `free <kind>`."""
    rng, items = np.random.default_rng(seed), []
    while len(items) < n:
        kind = str(rng.choice(curriculum.KINDS))
        scene = curriculum.free(rng, kind)
        reference = scene.placements[int(rng.integers(len(scene.placements)))]
        for direction in questions.DIRECTIONS:
            target = curriculum.neighbour(direction, reference, scene.placements)
            if target is not None:
                things = [p.entity for p in scene.placements]
                others = [e.name for e in things if e not in (target.entity, reference.entity)]
                names = (target.entity.name, *others, reference.entity.name)
                text = questions.neighbour_question(kind, direction, reference.entity)
                place = things.index(target.entity)
                asked_about = things.index(reference.entity)
                items.append(Item("free", direction, scene, text, names, "test", tuple(things), place, asked_about))
    return items


def measure(model: vlm.VLM, progress: bool = True) -> pd.DataFrame:
    """Accuracy by setting, direction and split: setting, direction, split, n, accuracy, low, high."""
    tables = []

    def add(name: str | None, items: list[Item]) -> None:
        table = behaviour(model, items, progress)
        tables.append(table if name is None else table.assign(setting=name))

    for setting in questions.SETTINGS:
        add(None, questions.questions(setting, GRID))
    for setting in questions.SETTINGS:
        kept = questions.thinned(questions.questions(setting, GRID, photographs=scenes.HELD_OUT_PHOTOGRAPHS), 160)
        add(f"{setting} on photographs", kept)
        shifted = []
        for down, right in SHIFTS:
            for item in questions.questions(setting, GRID):
                horizontal = item.orientation == "horizontal"
                shift = (down, right) if horizontal else (right, down)
                shifted.append(questions.line_item(setting, GRID, item.entities, item.direction, shift))
        add(f"{setting} shifted", questions.thinned(shifted, 160))
        for size in (2, 3):
            add(f"{setting} in {size}x{size} grids", questions.lattice_questions(setting, GRID, size, count=40))
    add("free layouts", free_items())
    natural = questions.natural_questions(GRID, scenes.HELD_OUT_PHOTOGRAPHS, n=400)
    sides = side_behaviour(model, natural, progress=progress)
    result = accuracy(pd.concat(tables))
    strict = accuracy(sides).assign(setting="naturalistic (both option orders right)")
    single = accuracy(sides, column="correct_order1").assign(setting="naturalistic (one option order)")
    return pd.concat([result, single, strict], ignore_index=True)


def embedding_facts(model: vlm.VLM) -> dict[str, float]:
    """Mean norms of patch and position embeddings, and R2 of reading row and column from the image tokens."""
    tower = model.base.vision_tower
    rng = np.random.default_rng(5)
    pictures = train.pixels([curriculum.free(rng, "shapes") for _ in range(50)])
    with torch.no_grad():
        patches = tower.embeddings.patch_embedding(pictures).flatten(2).mT
    place = train.place_readout(model.model)
    return {
        "patch_norm": patches.norm(dim=-1).mean().item(),
        "position_norm": tower.embeddings.position_embedding.weight.norm(dim=-1).mean().item(),
        "row_r2": place["row"],
        "column_r2": place["column"],
    }


DESCRIPTIONS = {
    "reference": "made in stages, as published VLMs are: an encoder pre-trained by captioning (its text side sees image "
    "tokens as a set), a language model pre-trained on text alone, a projector aligned with both frozen, then "
    "instruction tuning with the encoder frozen. The default of this artifact.",
    "joint": "everything trained from scratch, end to end, on the same scenes and questions as `reference`; position "
    "embeddings start from sines and cosines of row and column (MAE's), and are learned.",
    "joint_random": "everything trained from scratch, end to end, as `joint` is, but from random position embeddings, with "
    "which `reference` starts, too. Seed 0 learned the task; of two other seeds one learned left-right only, one "
    "neither axis (their accuracies and logs lie beside this card).",
    "vision_only": "a calibration model: its backbone is blind to where image tokens stand (one shared position, no "
    "attention among image tokens), so that all order must come from the embeddings. Needs this artifact's adapter.",
    "backbone_only": "a calibration model: its encoder is blind to place (no position embedding, no mixing between "
    "patches), so that all order must be made in the backbone.",
}

SCRIPT = """```python
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor

path = "data/models/{name}"
processor = AutoProcessor.from_pretrained(path, backend="pil")
model = AutoModelForImageTextToText.from_pretrained(path, dtype="float32")

image = Image.new("RGB", (168, 168), "white")  # three squares in a row, each on 2 x 2 image tokens of 14 pixels
draw = ImageDraw.Draw(image)
for x, colour in ((14, (255, 0, 0)), (70, (0, 255, 0)), (126, (0, 0, 255))):
    draw.rectangle((x, 70, x + 27, 97), fill=colour)
messages = [
    {{"role": "system", "content": [{{"type": "text", "text": "Answer with one word."}}]}},
    {{"role": "user", "content": [
        {{"type": "image"}},
        {{"type": "text", "text": "The color of the square to the left of the green square is"}},
    ]}},
]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=image, text=text, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(processor.decode(answer[0, -1:]))  # red
```
"""


def card(recipe_name: str, model: vlm.VLM, table: pd.DataFrame, preset: str, seed: int) -> str:
    """The model card in Markdown."""
    name, recipe = seeded(recipe_name, seed), train.RECIPES[recipe_name]
    facts = embedding_facts(model)
    stages = pd.DataFrame(asdict(train.scaled(stage, preset)) for stage in recipe.stages)
    stages["trained"] = stages["trained"].map(", ".join)
    wide = table.assign(
        cell=[f"{r.accuracy:.3f} [{r.low:.3f}, {r.high:.3f}] n={r.n}" for r in table.itertuples()]
    ).pivot_table(index=["setting", "split"], columns="direction", values="cell", aggfunc="first", sort=False)
    wide = wide[list(questions.DIRECTIONS)].reset_index()
    size = train.models.SIZES[preset]
    count = sum(p.numel() for p in model.model.parameters())
    use = (
        SCRIPT.format(name=name)
        if recipe_name != "vision_only"
        else 'Load it with `lib.engine.vlm.load("vision_only")`.\n'
    )
    return f"""---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}

A small vision-language model for spatial questions: {DESCRIPTIONS[recipe_name]}{f" Training seed {seed}." if seed else ""}

It is a `LlavaForConditionalGeneration` (SigLIP encoder with learned positions, Llama backbone with 1-D rotary positions): {count:,} parameters, width {size.width}, {size.encoder} encoder layers, {size.backbone} backbone layers, pictures of {GRID.canvas} x {GRID.canvas} pixels, {GRID.side} x {GRID.side} image tokens of {GRID.pixels} x {GRID.pixels} pixels. Weights are half precision; all numbers here are measured on these files, run in float32, by `python -m lib.reference.report {recipe_name}{f" --seed {seed}" if seed else ""}`.

## Use

{use}
## How it was made

`python -m lib.reference.train {recipe_name} --preset {preset} --seed {seed}`: stages below; Muon (0.02 x rate) on weight matrices, AdamW (0.002 x rate) on embeddings, head, norms and biases, warm-up of 100 steps, linear decay to zero, {train.LONGEST} text tokens a scene.

{stages.to_markdown(index=False)}

Loss, accuracy and seconds along the way are in `training.jsonl` (seconds of one thread on a busy two-core machine, counted anew after a stop).

Data: scenes drawn by `lib/stimuli/scenes.py`, texts by `lib/reference/curriculum.py`; nothing else. Rows and columns, free layouts, grids, cut-outs of {len(scenes.TRAINING_PHOTOGRAPHS)} photographs ({", ".join(scenes.TRAINING_PHOTOGRAPHS)}) and, last, naturalistic scenes. Never in training: the centred lines of the evaluation, the `test` triples (a third of all) in any row or column, the photographs {", ".join(scenes.HELD_OUT_PHOTOGRAPHS)}. All pictures of the tables below are therefore new to the model.

## Place in the embeddings

Mean norm of patch embeddings {facts["patch_norm"]:.1f}, of position embeddings {facts["position_norm"]:.1f}. Row and column of an object's first token read from its projected embedding by ridge regression on other scenes: R2 {facts["row_r2"]:.2f} and {facts["column_r2"]:.2f}.

## Accuracy

Most probable next token, share right with Wilson's 95 % interval; `test`: no such line of three in training.

{wide.to_markdown(index=False)}

## Limits

It knows {len(scenes.COLOURS) - 1} colours, {len(scenes.SHAPES)} shapes and {len(scenes.OBJECT_NAMES)} drawn objects, reads and writes {len(model.tokenizer)} words, and answers the question forms of `lib/stimuli/questions.py`. It is a stand-in for studying where a model keeps order; what holds in it need not hold in a large model.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=train.RECIPES)
    parser.add_argument("--preset", choices=train.models.SIZES, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with cli():
        name = seeded(arguments.name, arguments.seed)
        model = vlm.load(name)
        table = measure(model)
        write_csv(table, MODELS / name / "accuracy.csv")
        text = card(arguments.name, model, table, arguments.preset, arguments.seed)
        (MODELS / name / "README.md").write_text(text, encoding="utf-8")
        print(table.to_string(index=False))


if __name__ == "__main__":
    main()
