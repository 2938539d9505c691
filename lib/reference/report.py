"""Measure trained embedded models and write their cards: `python -m lib.reference.report reference joint ...`.

Everything is measured on the files that are shipped (half-precision weights, run in float32) through the adapter, with
one question per sequence. Writes data/models/<name>/battery.csv and README.md (the model card).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pandas as pd

from lib.analysis import battery
from lib.analysis.behaviour import accuracy, side_behaviour
from lib.artifact.storage import write_csv
from lib.engine import vlm
from lib.engine.checkpoints import MODELS, shipped
from lib.errors import UserError, cli
from lib.files import file_digest
from lib.reference import architectures, processors
from lib.reference.language import GRID
from lib.reference.recipes import RECIPES, Recipe
from lib.stimuli import questions, scenes
from lib.stimuli.battery import KINDS
from lib.stimuli.questions import DIRECTIONS

STAGED = (
    "in stages, as published models are: an encoder trained first and then frozen, a language model trained on text"
)
MADE = {
    "vision_only": "a planted model: its backbone cannot see where an image token stands (all share one position and do "
    "not see each other), so that all order must come from the embeddings",
    "backbone_only": "a planted model: its encoder cannot see where a patch stands (no position embeddings, no mixing "
    "between patches), so that all order must be made in the backbone",
    "split": "a planted model: the encoder knows columns only, the backbone rows only",
    "redundant": "a planted model: in training either the encoder's or the backbone's positions are scrambled in two of "
    "three pictures, so that each must suffice",
    "strip_code": "a planted model, the paper's picture, read strictly, built in: tokens of the background carry "
    "their place, tokens of objects do not, and the backbone meets rows and columns of tokens in random order in training",
}


def measure(model: vlm.VLM, n: int, progress: bool = True) -> pd.DataFrame:
    """The competence battery, and naturalistic scenes (strict: correct with the options in both orders)."""
    natural = questions.natural_questions(GRID, scenes.HELD_OUT_PHOTOGRAPHS, n=400)
    sides = accuracy(side_behaviour(model, natural, progress=progress), ["direction"]).assign(
        row="naturalistic, strict"
    )
    return pd.concat([battery.battery(model, n, progress=progress), sides], ignore_index=True)


def cell(row) -> str:
    return f"{row.accuracy:.2f} [{row.low:.2f}, {row.high:.2f}]"


def battery_table(table: pd.DataFrame) -> str:
    """Accuracy by row and direction, and what wrong answers name, as Markdown."""
    wide = table.assign(cell=[cell(row) for row in table.itertuples()])
    wide = wide.pivot_table(index="row", columns="direction", values="cell", aggfunc="first", sort=False)
    wide = wide[list(DIRECTIONS)]
    wrong = table.groupby("row", sort=False)[list(KINDS)].mean()
    named = [
        ", ".join(f"{kind} {share:.2f}" for kind, share in wrong.loc[row].items() if share > 0.005)
        for row in wide.index
    ]
    return wide.assign(**{"wrong answers name": named}).reset_index().to_markdown(index=False)


def stage_table(recipe: Recipe) -> str:
    rows = [
        {"stage": s.name, "task": s.task, "steps": s.steps, "lessons a step": s.batch, "trained": ", ".join(s.trained),
         "rate": s.rate}
        for s in recipe.stages
    ]  # fmt: skip
    return pd.DataFrame(rows).to_markdown(index=False)


def spent(folder: Path) -> str:
    """Steps and minutes of all stages, from the log: a stage ends where the count of steps starts anew."""
    log = [json.loads(line) for line in (folder / "training.jsonl").read_text("utf-8").splitlines()]
    ends = [one for one, after in zip(log, [*log[1:], {"step": 0}], strict=True) if after["step"] <= one["step"]]
    return f"{sum(one['step'] for one in ends)} steps in {sum(one['seconds'] for one in ends) / 60:.0f} minutes"


def card(name: str, model: vlm.VLM, table: pd.DataFrame) -> str:
    """The model card in Markdown."""
    recipe_name, _, seed = name.partition("-seed")
    recipe, folder = RECIPES[recipe_name], MODELS / name
    record = architectures.of(model.model)
    made = MADE.get(recipe_name) or (STAGED if recipe.stages[0].trained == ("encoder",) else "end to end, all at once")
    use = (
        processors.plain_script(record, name)
        if recipe_name not in ("vision_only", "split", "strip_code")
        else f'It needs this artifact\'s adapter: `lib.engine.vlm.load("{name}")`.\n'
    )
    count = sum(p.numel() for p in model.model.parameters())
    return f"""---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}

A small vision-language model for spatial questions, made {made}.{f" Training seed {seed}." if seed else ""}

{record.description}: {count:,} parameters. Pictures of {GRID.canvas} x {GRID.canvas} pixels, {GRID.side} x {GRID.side} image tokens. Weights are half precision; all numbers here are measured on these files, run in float32, by `python -m lib.reference.report {name}`. SHA-256 of the weights: `{file_digest(folder / "model.safetensors")}`.

## Use

{use}
## The competence battery

Share of correct answers (the most probable token of the whole vocabulary) with Wilson's 95 % interval, {int(table["n"].iloc[0])} questions a cell, all settings in turn. Lines of three and more hold a triple of entities that training never showed. The model {battery.in_words(table)}; {battery.without_answer(table)}.

{battery_table(table)}

*far end*: what lies farthest in the direction asked for; *wrong side*: the nearest thing on the other side; *absent*: something that is not in the picture. "nothing there": nothing lies in that direction, and the right answer is "nothing".

## How it was made

`python -m lib.reference.courses`, then `python -m lib.reference.train {recipe_name}{f" --seed {seed}" if seed else ""}`: {spent(folder)} ({"on one CPU core" if recipe.start else "several trainings shared one GPU, the last stage of staged models one CPU core"}). {f"It starts from the weights of `{recipe.start}`. " if recipe.start else ""}Muon (0.02 x rate) on weight matrices, AdamW (0.002 x rate) on embeddings, head, norms and biases, warm-up of 100 steps, linear decay to zero. Loss and accuracies along the way: `training.jsonl`.

{stage_table(recipe)}

Lessons: scenes drawn by `lib/stimuli`, texts by `lib/reference/curriculum.py`; nothing else. Never in training: the centred lines of the evaluation, a third of all triples in any row or column, the photographs {", ".join(scenes.HELD_OUT_PHOTOGRAPHS)}.

## Limits

It knows {len(scenes.COLOURS) - 1} colours, {len(scenes.SHAPES)} shapes and {len(scenes.OBJECT_NAMES)} drawn objects, reads and writes {len(model.tokenizer)} words. It is a stand-in for studying where a model keeps order; what holds in it need not hold in a large model.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="default: all shipped models")
    parser.add_argument("-n", type=int, default=60, help="questions per cell of the battery")
    arguments = parser.parse_args()
    with cli():
        for name in arguments.names or shipped():
            if re.sub(r"-seed\d+$", "", name) not in RECIPES:
                raise UserError(f"{name} follows no recipe: choose among {', '.join(RECIPES)}")
            model = vlm.load(name)
            table = measure(model, arguments.n)
            write_csv(table, MODELS / name / "battery.csv")
            (MODELS / name / "README.md").write_text(card(name, model, table), encoding="utf-8")
            print(f"{name} {battery.in_words(table)}; {battery.without_answer(table)}")


if __name__ == "__main__":
    main()
