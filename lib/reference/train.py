"""Train a reference model: `python -m lib.reference.train reference --preset cpu`.

Every step has its own random numbers, so a run that was stopped goes on from its last checkpoint as if nothing had
happened. Recipes are data (RECIPES): stages, what is trained, rates. Checkpoints lie in checkpoints/ (not committed);
the finished model goes to data/models/<name>.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from lib.engine.checkpoints import seeded
from lib.errors import UserError, cli
from lib.places import MODELS, ROOT
from lib.reference import curriculum, models
from lib.reference.language import GRID, build_tokenizer, save_processor
from lib.reference.muon import Muon
from lib.stimuli import questions, scenes

CHECKPOINTS = ROOT / "checkpoints"
LONGEST = 112  # text tokens per lesson; texts that no longer fit are left out, so that batches carry little padding
PREFIX = f"<s> {questions.SYSTEM_TEXT}"


# --- recipes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """name: what is learned. task: "captions" (a decoder over a set of image tokens), "text" (no pictures),
    "questions", or "captions_by_backbone" (the texts of "captions", told by the backbone).

    trained: which of encoder, projector, backbone change. rate: multiplies Muon's .02 and AdamW's .002. patch_rate: of
    the patch embedding, times `rate`; at 1, end to end, its norm grew to 16 times that of the position embeddings
    within 800 steps and place did not get into the image tokens. start: where in the curriculum (0..1) the stage
    begins; it ends at 1.
    """

    name: str
    task: str
    steps: int
    trained: tuple[str, ...]
    rate: float = 1.0
    patch_rate: float = 0.1
    start: float = 0.0
    batch: int = 32
    contested: bool = False  # see curriculum.lesson


ALL = ("encoder", "projector", "backbone")


@dataclass(frozen=True)
class Recipe:
    """blind: None, "backbone" or "encoder". places: how position embeddings start, see `models.build`."""

    stages: tuple[Stage, ...]
    blind: str | None = None
    places: str = "random"


RECIPES = {
    "reference": Recipe(
        (
            Stage("encoder", "captions", 2400, ("encoder",), patch_rate=1.0),
            Stage("language", "text", 800, ("backbone",)),
            Stage("projector", "captions_by_backbone", 200, ("projector",), start=0.7),
            Stage("instruction", "questions", 1100, ("projector", "backbone"), rate=0.7),
            Stage("contested", "questions", 500, ("projector", "backbone"), rate=0.5, start=0.3, contested=True),
        )
    ),
    # contested from the start: without it these stayed at chance, their places known only up to a mirror image
    "joint": Recipe((Stage("joint", "questions", 2400, ALL, contested=True),), places="waves"),
    # the same from random position embeddings: of three seeds one learned both axes, one left-right alone, one neither
    "joint_random": Recipe((Stage("joint", "questions", 2400, ALL, contested=True),)),
    "vision_only": Recipe((Stage("joint", "questions", 1600, ALL, contested=True),), blind="backbone"),
    "backbone_only": Recipe((Stage("joint", "questions", 1200, ALL, contested=True),), blind="encoder"),
}
GPU_FACTOR = 4  # the gpu preset has a larger model, batches of four times as many scenes and four times the steps


# --- batches ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def tokenizer():
    return build_tokenizer()


@lru_cache(maxsize=200_000)
def encode(text: str) -> tuple[int, ...]:
    return tuple(tokenizer()(text).input_ids)


@dataclass
class Batch:
    """context: ids [batch, context] or pictures [batch, 3, canvas, canvas]; the rest: [batch, text], see `pack`."""

    context: torch.Tensor
    ids: torch.Tensor
    blocks: torch.Tensor
    labels: torch.Tensor


def pixels(scene_list: list[scenes.Scene]) -> torch.Tensor:
    """[batch, 3, canvas, canvas] in -1..1, as the processor makes them."""
    array = np.stack([np.asarray(scenes.render(scene)) for scene in scene_list])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def pack(lessons: list[tuple[tuple[str, str], ...]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Texts of each lesson as one row of ids, block numbers (-1 = padding) and labels (-100 = not scored)."""
    rows = []
    for texts in lessons:
        ids, blocks, labels = [], [], []
        for number, (prompt, continuation) in enumerate(texts):
            head, tail = encode(prompt), (*encode(continuation), models.EOS)
            if len(ids) + len(head) + len(tail) > LONGEST + 1:
                continue
            ids += [*head, *tail[:-1]]
            labels += [-100] * (len(head) - 1) + list(tail)
            blocks += [number] * (len(head) + len(tail) - 1)
        rows.append((ids, blocks, labels))
    longest = max(len(ids) for ids, _, _ in rows)
    fill = (models.PAD, -1, -100)
    return tuple(torch.tensor([row[k] + [fill[k]] * (longest - len(row[k])) for row in rows]) for k in range(3))


def picture_batch(rng: np.random.Generator, stage: Stage, progress: float) -> Batch:
    captions_only = stage.task != "questions"
    lessons = [curriculum.lesson(rng, progress, captions_only, stage.contested) for _ in range(stage.batch)]
    return Batch(pixels([each.scene for each in lessons]), *pack([each.texts for each in lessons]))


def text_batch(rng: np.random.Generator, size: int) -> Batch:
    """Described scenes as context, right-aligned after <s> with padding in front that is a comma-free space: <pad>."""
    learned = [curriculum.text_lesson(rng) for _ in range(size)]
    contexts = [[models.BOS, *encode(questions.SYSTEM_TEXT), *encode(context)] for context, _ in learned]
    longest = max(len(ids) for ids in contexts)
    context = torch.tensor([[models.PAD] * (longest - len(ids)) + ids for ids in contexts])
    return Batch(context, *pack([texts for _, texts in learned]))


# --- losses ----------------------------------------------------------------------------------------------------------


def backbone_hidden(model, context: torch.Tensor, batch: Batch, blind: bool, text_context: bool) -> torch.Tensor:
    """Hidden states of the text tokens [batch, text, width] after context embeddings [batch, context, width]."""
    language = model.model.language_model
    prefix = 0
    if not text_context:
        head = language.embed_tokens(torch.tensor(encode(PREFIX)))
        prefix = len(head)
        context = torch.cat([head.expand(len(context), -1, -1), context], 1)
    positions, mask = models.layout(context.shape[1], prefix, batch.blocks, blind)
    if text_context:
        padding = (batch.context == models.PAD)[:, None, None, :].expand(-1, -1, mask.shape[2], -1)
        mask[..., : context.shape[1]].masked_fill_(padding, torch.finfo(torch.float32).min)
    hidden = torch.cat([context, language.embed_tokens(batch.ids)], 1)
    out = language(inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False)
    return out.last_hidden_state[:, context.shape[1] :]


def loss_of(stage: Stage, model, captioner, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the scored tokens."""
    blind = models.is_backbone_blind(model.config)
    if stage.task == "captions":
        tokens = model.model.vision_tower(batch.context, output_hidden_states=True).hidden_states[-1]
        hidden, head = captioner(tokens, batch.ids, batch.blocks), captioner.head
    else:
        text_context = stage.task == "text"
        language = model.model.language_model
        context = (
            language.embed_tokens(batch.context) if text_context else models.image_embeddings(model, batch.context)
        )
        hidden, head = backbone_hidden(model, context, batch, blind, text_context), model.lm_head
    scored = batch.labels != -100
    return cross_entropy(head(hidden[scored]).float(), batch.labels[scored])


# --- evaluation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def quick_accuracy(model, per_direction: int = 24) -> dict[str, float]:
    """Accuracy per setting and direction on held-out triples, one question per sequence: a glance, no table."""
    blind = models.is_backbone_blind(model.config)
    scores = {}
    for setting in curriculum.KINDS:
        triples = sorted(questions.held_out_triples(setting, GRID), key=str)
        rng = np.random.default_rng(1)
        for direction in questions.DIRECTIONS:
            chosen = [triples[k] for k in rng.permutation(len(triples))[:per_direction]]
            pictures = pixels([scenes.line_scene(t, GRID, questions.ORIENTATION[direction]) for t in chosen])
            target = 0 if direction in ("left", "above") else 2
            texts = [
                ((questions.neighbour_question(setting, direction, t[1]) + " <assistant>", t[target].name),)
                for t in chosen
            ]
            batch = Batch(pictures, *pack(texts))
            hidden = backbone_hidden(model, models.image_embeddings(model, pictures), batch, blind, False)
            answers = model.lm_head(hidden).argmax(-1)
            first = (batch.labels != -100).float().argmax(1)
            rows = torch.arange(len(chosen))
            scores[f"{setting} {direction}"] = (answers[rows, first] == batch.labels[rows, first]).float().mean().item()
    return scores


@torch.no_grad()
def place_readout(model, n: int = 400) -> dict[str, float]:
    """How well an object's row and column can be read from the embeddings: R2 of ridge regression, other scenes."""
    rng = np.random.default_rng(2)
    scene_list = [curriculum.free(rng, "squares") for _ in range(n)]
    embedded = torch.cat([models.image_embeddings(model, pixels(scene_list[k : k + 50])) for k in range(0, n, 50)])
    x, y = [], []
    for scene, tokens in zip(scene_list, embedded, strict=True):
        for placement in scene.placements:
            row, column = curriculum.token_place(placement)
            x.append(tokens[row * GRID.side + column])
            y.append((row, column))
    x, y = torch.stack(x).double(), torch.tensor(y).double()
    half = len(x) // 2
    x = (x - x[:half].mean(0)) / (x[:half].std(0) + 1e-9)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    fitted, told = x[:half], y[:half]
    weights = torch.linalg.solve(fitted.mT @ fitted + torch.eye(x.shape[1], dtype=x.dtype), fitted.mT @ told)
    rest = y[half:]
    r2 = 1 - ((x[half:] @ weights - rest) ** 2).sum(0) / ((rest - rest.mean(0)) ** 2).sum(0)
    return {"row": r2[0].item(), "column": r2[1].item()}


# --- the loop --------------------------------------------------------------------------------------------------------


def parts(model) -> dict[str, nn.Module]:
    return {
        "encoder": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "backbone": nn.ModuleList([model.model.language_model, model.lm_head]),
    }


def optimizers(stage: Stage, model, captioner) -> list[torch.optim.Optimizer]:
    """Muon on matrices, AdamW on embeddings, head, norms and biases."""
    modules = [parts(model)[name] for name in stage.trained]
    if stage.task == "captions":
        modules.append(captioner)
    matrices, patches, others = [], [], []
    for module in modules:
        for name, p in module.named_parameters():
            if not p.requires_grad:
                continue
            is_matrix = p.ndim >= 2 and not any(
                key in name for key in ("embed_tokens", "position_embedding", "words", "places")
            )
            is_head = p.shape[0] == len(tokenizer())
            (patches if p.ndim == 4 else matrices if is_matrix and not is_head else others).append(p)
    groups = [{"params": matrices}, {"params": patches, "lr": 0.02 * stage.rate * stage.patch_rate}]
    return [
        Muon(groups, lr=0.02 * stage.rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=0.002 * stage.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, warm_up: int = 100) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min(1.0, (step + 1) / min(warm_up, steps)) * (1 - step / steps)


def save_checkpoint(path: Path, **state) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def scaled(stage: Stage, preset: str) -> Stage:
    """The stage as the preset runs it."""
    if preset == "cpu":
        return stage
    return Stage(**{**asdict(stage), "steps": stage.steps * GPU_FACTOR, "batch": stage.batch * GPU_FACTOR})


def run_stage(
    stage: Stage, number: int, model, captioner, seed: int, folder: Path, blind: str | None = None, half: bool = True,
    stop_after: int | None = None,
) -> None:  # fmt: skip
    """Train one stage, from its checkpoint if there is one; when done, the model's weights lie in stage<number>.pt.

    half: matrix products in bfloat16. stop_after: leave a checkpoint after so many steps and return.
    """
    done, going = folder / f"stage{number}.pt", folder / f"stage{number}.going.pt"
    if done.exists():
        model.load_state_dict(torch.load(done, weights_only=True))
        return
    for name, module in parts(model).items():
        module.requires_grad_(name in stage.trained)
    if blind == "encoder":
        models.blindfold_encoder(model)
    optimisers = optimizers(stage, model, captioner)
    rates = [[group["lr"] for group in o.param_groups] for o in optimisers]
    first = resume(going, model, captioner, optimisers)
    last = min(stage.steps, stop_after or stage.steps)
    started, losses = time.time(), []
    model.train()
    for step in tqdm(range(first, last), initial=first, total=stage.steps, desc=stage.name, mininterval=30):
        for o, base in zip(optimisers, rates, strict=True):
            for group, rate in zip(o.param_groups, base, strict=True):
                group["lr"] = rate * schedule(step, stage.steps)
        losses.append(
            train_step(stage, model, captioner, optimisers, np.random.default_rng([seed, number, step]), step, half)
        )
        if (step + 1) % 100 == 0 or step + 1 == last:
            entry = {
                "stage": stage.name,
                "step": step + 1,
                "loss": float(np.mean(losses)),
                "seconds": time.time() - started,
            }
            if (step + 1) % 200 == 0 or step + 1 == last:
                entry |= glance(stage, model)
                save_checkpoint(
                    going, model=model.state_dict(), captioner=captioner.state_dict(), step=step + 1,
                    optimisers=[o.state_dict() for o in optimisers],
                )  # fmt: skip
            with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                print(json.dumps(entry), file=log)
            losses = []
    if last == stage.steps:
        save_checkpoint(done, **model.state_dict())
        going.unlink(missing_ok=True)


def resume(path: Path, model, captioner, optimisers) -> int:
    """Load a checkpoint if there is one; the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    captioner.load_state_dict(state["captioner"])
    for o, saved in zip(optimisers, state["optimisers"], strict=True):
        o.load_state_dict(saved)
    return state["step"]


def train_step(stage: Stage, model, captioner, optimisers, rng: np.random.Generator, step: int, half: bool) -> float:
    """One batch, one update; returns the loss."""
    if stage.task == "text":
        batch = text_batch(rng, stage.batch)
    else:
        progress = stage.start + (1 - stage.start) * step / stage.steps
        batch = picture_batch(rng, stage, progress)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = loss_of(stage, model, captioner, batch)
    if not math.isfinite(loss.item()):
        raise UserError(f"Training of stage {stage.name} diverged at step {step}: lower its rate in RECIPES.")
    loss.backward()
    nn.utils.clip_grad_norm_([p for o in optimisers for group in o.param_groups for p in group["params"]], 1.0)
    for o in optimisers:
        o.step()
        o.zero_grad(set_to_none=True)
    return loss.item()


def glance(stage: Stage, model) -> dict[str, float]:
    """What the log says of a model on its way."""
    model.eval()
    found = {k: round(v, 3) for k, v in place_readout(model).items()} if "encoder" in stage.trained else {}
    found |= quick_accuracy(model) if stage.task == "questions" else {}
    model.train()
    return found


def checkpoints(name: str, preset: str, seed: int) -> Path:
    return CHECKPOINTS / f"{preset}-seed{seed}" / name


@lru_cache(maxsize=1)
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies matrices of a training step faster in bfloat16 (with AMX) or in float32: the best of
    20 tries each, in turn, because other work on the machine slows some of them threefold."""
    best = {torch.bfloat16: math.inf, torch.float32: math.inf}
    for dtype in [*best] * 20:
        tokens, weight = torch.ones(8192, 128, dtype=dtype), torch.ones(128, 384, dtype=dtype)
        started = time.perf_counter()
        tokens @ weight
        best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.bfloat16] < best[torch.float32]


def fuse(model, captioner) -> None:
    """Compile the layers (torch.compile; needs a C++ compiler): the same steps in less time."""
    language, tower = model.model.language_model, model.model.vision_tower
    for layer in (*language.layers, *tower.encoder.layers, *captioner.decoder.layers):
        layer.compile(dynamic=True)


def train(
    name: str, preset: str = "cpu", seed: int = 0, half: bool | None = None, fused: bool = False
) -> nn.Module:
    """Train (or continue) a model; returns it with its checkpoints and log in `checkpoints(...)`.

    half: matrix products in bfloat16 (None: where that is faster here). fused: see `fuse`.
    """
    half = bfloat16_is_faster() if half is None else half
    if name not in RECIPES:
        raise UserError(f"Unknown recipe {name!r}: choose one of {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    folder = checkpoints(name, preset, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model = models.build(models.SIZES[preset], seed, recipe.blind, recipe.places)
    captioner = models.Captioner(models.SIZES[preset])
    if fused:
        fuse(model, captioner)
    for number, stage in enumerate(recipe.stages):
        run_stage(scaled(stage, preset), number, model, captioner, seed, folder, recipe.blind, half)
    return model


def export(model, folder: Path, log: Path) -> None:
    """Half-precision safetensors, configuration, processor files and the log of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().half().save_pretrained(folder)
    save_processor(folder)
    shutil.copyfile(log, folder / "training.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--preset", choices=models.SIZES, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="of torch; one per process is the most efficient")
    parser.add_argument("--fused", action="store_true", help="compile the layers: faster, needs a C++ compiler")
    parser.add_argument("--out", type=Path, default=None, help="default: data/models/<name>[-seed<seed>]")
    arguments = parser.parse_args()
    with cli():
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        model = train(arguments.name, arguments.preset, arguments.seed, fused=arguments.fused)
        log = checkpoints(arguments.name, arguments.preset, arguments.seed) / "log.jsonl"
        export(model, arguments.out or MODELS / seeded(arguments.name, arguments.seed), log)


if __name__ == "__main__":
    main()
