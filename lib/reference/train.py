"""Train an embedded model: `python -m lib.reference.courses`, then `python -m lib.reference.train reference`.

Every step has its own random numbers, so a run that was stopped goes on from its last checkpoint as if nothing had
happened. Two places are written to: checkpoints/<name> (large, not committed: weights and optimisers of a stage that is
under way) and data/training/<name> (of each finished stage the parts it trained, in half precision, and its log), from
which the same command continues with the next stage. The finished model goes to data/models/<name>.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lib.engine.checkpoints import seeded
from lib.errors import UserError, cli
from lib.places import DATA, MODELS, ROOT
from lib.reference import architectures, dense, forward, glance, processors
from lib.reference.architectures import SIZES
from lib.reference.captioner import Captioner
from lib.reference.courses import IGNORED, Batch, Lessons
from lib.reference.language import vocabulary
from lib.reference.muon import Muon
from lib.reference.recipes import RECIPES, Recipe, Stage

CHECKPOINTS = ROOT / "checkpoints"
TRAINING = DATA / "training"
LOG_EVERY, LOOK_EVERY, SAVE_EVERY = 50, 400, 500  # steps


# --- what is trained -------------------------------------------------------------------------------------------------


@dataclass
class Learner:
    """A model in training with what only training needs: text side of "captions", readout of "neighbours".

    precision: of products, "bfloat16" or "float32".
    """

    recipe: Recipe
    model: nn.Module
    captioner: Captioner
    head: dense.DenseHead
    precision: str = "bfloat16"

    def helper(self, stage: Stage) -> nn.Module | None:
        return {"captions": self.captioner, "neighbours": self.head}.get(stage.task)

    def modules(self, stage: Stage) -> list[nn.Module]:
        """What the stage trains."""
        parts = architectures.parts(self.model)
        helper = self.helper(stage)
        return [parts[name] for name in stage.trained] + ([helper] if helper else [])

    def freeze(self, stage: Stage) -> None:
        """Let only what the stage trains have gradients."""
        for name, module in architectures.parts(self.model).items():
            module.requires_grad_(name in stage.trained)
        if self.recipe.planted:
            architectures.plant(self.model, self.recipe.planted)


def precision_here(device: torch.device) -> str:
    """bfloat16, but float32 on a CPU without instructions for it, where a step would take seven times as long."""
    emulated = device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "float32" if emulated else "bfloat16"


def learner(recipe: Recipe, seed: int, device: torch.device, precision: str = "bfloat16") -> Learner:
    """At initialisation."""
    size = SIZES["cpu"]
    model = architectures.build(size, seed, recipe.architecture, recipe.planted, recipe.places)
    if recipe.start:
        start_from(model, recipe.start)
    if device.type == "cpu":
        AttentionInterface.register("sdpa_float32", attention_in_float32)
        model.set_attn_implementation("sdpa_float32")
    return Learner(recipe, model.to(device), Captioner(size).to(device), dense.DenseHead(size).to(device), precision)


def start_from(model: nn.Module, name: str) -> None:
    """Give a model the weights of an embedded one of its class; what is zero there throughout (the encoder's positions
    and attention of `backbone_only`) it has not learned, and the model keeps its own."""
    weights = type(model).from_pretrained(MODELS / name, dtype=torch.float32).state_dict()
    model.load_state_dict({key: tensor for key, tensor in weights.items() if tensor.any()}, strict=False)


def optimizers(stage: Stage, learning: Learner) -> list[torch.optim.Optimizer]:
    """Muon on matrices and patch embeddings, AdamW on embeddings, head, norms and biases."""
    tokens = {len(vocabulary()), learning.model.config.get_text_config().vocab_size}
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "patch": [], "other": []}
    for module in learning.modules(stage):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                rows = parameter.shape[0] if parameter.shape[0] in tokens else 0
                groups[architectures.kind(name, parameter, rows)].append(parameter)
    muon = [{"params": groups["matrix"]}, {"params": groups["patch"], "lr": 0.02 * stage.rate * stage.patch_rate}]
    return [
        Muon(muon, lr=0.02 * stage.rate, weight_decay=0.01),
        torch.optim.AdamW(groups["other"], lr=0.002 * stage.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, warm_up: int = 100) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min(1.0, (step + 1) / min(warm_up, steps)) * (1 - step / steps)


def attention_in_float32(module, query, key, value, attention_mask, **options):
    """transformers' "sdpa" with products in float32: on CPUs the backward pass of torch's kernel in bfloat16 takes more
    than twice as long (89 ms against 39 for 32 sequences of 262 tokens, one core), and it was a third of a step."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        out, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return out.to(query.dtype), weights


# --- one step --------------------------------------------------------------------------------------------------------


def loss_of(stage: Stage, learning: Learner, batch: Batch, rng: np.random.Generator) -> torch.Tensor:
    """Mean cross-entropy of the scored tokens. rng: for what a planted model scrambles in training."""
    model = learning.model
    if stage.task == "neighbours":
        return dense.dense_loss(model, learning.head, batch.context, batch.targets)
    if stage.task == "captions":
        features = forward.encoder_features(model, batch.context)
        hidden, head = learning.captioner(features, batch.ids, batch.blocks), learning.captioner.head
    elif stage.task == "text":
        hidden, head = forward.text_hidden_after_text(model, batch.context, batch.ids, batch.blocks), model.lm_head
    else:
        images = forward.training_embeddings(model, batch.context, rng)
        hidden, head = forward.text_hidden(model, images, batch.ids, batch.blocks), model.lm_head
    return cross_entropy(head(hidden).float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)


def train_step(
    stage: Stage, learning: Learner, optimisers: list, lessons: Lessons, seed: tuple[int, int, int]
) -> torch.Tensor:
    """One batch, one update; returns the loss. seed: of training, stage and step."""
    rng, device = np.random.default_rng(seed), learning.model.lm_head.weight.device
    progress = stage.first + (stage.last - stage.first) * seed[2] / stage.steps
    batch = lessons.batch(progress, stage.batch, rng, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=learning.precision == "bfloat16"):
        loss = loss_of(stage, learning, batch, rng)
    loss.backward()
    nn.utils.clip_grad_norm_([p for o in optimisers for group in o.param_groups for p in group["params"]], 1.0)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return loss.detach()


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Where a training keeps what. going: what only it needs; kept: what another machine goes on from."""

    going: Path
    kept: Path

    def checkpoint(self, number: int) -> Path:
        return self.going / f"stage{number}.pt"

    def helper(self, number: int) -> Path:
        return self.going / f"stage{number}-helper.safetensors"

    def snapshot(self, number: int, step: int) -> Path:
        return self.going / "snapshots" / f"stage{number}-step{step:05d}.safetensors"

    def stage(self, number: int) -> Path:
        return self.kept / f"stage{number}.safetensors"

    def log(self, number: int) -> Path:
        return self.kept / f"stage{number}.jsonl"

    def settings(self) -> Path:
        return self.kept / "settings.json"


def files(name: str, seed: int) -> Files:
    found = Files(CHECKPOINTS / seeded(name, seed), TRAINING / seeded(name, seed))
    for folder in (found.going, found.kept):
        folder.mkdir(parents=True, exist_ok=True)
    return found


def replaced(path: Path, write) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    temporary.replace(path)


def half_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().half().contiguous().cpu() for name, tensor in module.state_dict().items()}


def save_weights(module: nn.Module, path: Path) -> None:
    weights = half_weights(module)
    replaced(path, lambda temporary: save_file(weights, temporary))


def trained_parts(stage: Stage, learning: Learner) -> nn.ModuleDict:
    parts = architectures.parts(learning.model)
    return nn.ModuleDict({name: parts[name] for name in stage.trained})


def keep_stage(number: int, stage: Stage, learning: Learner, where: Files) -> None:
    """Write what the stage trained, in half precision, and go on from just that."""
    helper = learning.helper(stage)
    if helper is not None:
        save_weights(helper, where.helper(number))
    save_weights(trained_parts(stage, learning), where.stage(number))
    load_stage(number, stage, learning, where)


def load_stage(number: int, stage: Stage, learning: Learner, where: Files) -> None:
    trained_parts(stage, learning).load_state_dict(load_file(where.stage(number)))
    helper = learning.helper(stage)
    if helper is not None and where.helper(number).exists():
        helper.load_state_dict(load_file(where.helper(number)))


def save_checkpoint(path: Path, learning: Learner, optimisers: list, step: int) -> None:
    state = {
        "model": learning.model.state_dict(),
        "captioner": learning.captioner.state_dict(),
        "head": learning.head.state_dict(),
        "optimisers": [o.state_dict() for o in optimisers],
        "step": step,
    }
    replaced(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path, learning: Learner, optimisers: list) -> int:
    """Load a checkpoint if there is one; the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    learning.model.load_state_dict(state["model"])
    learning.captioner.load_state_dict(state["captioner"])
    learning.head.load_state_dict(state["head"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return state["step"]


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def write_log(path: Path, entries: list[dict]) -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    replaced(path, lambda temporary: temporary.write_text(text, "utf-8"))


# --- the loop --------------------------------------------------------------------------------------------------------


def snapshot_steps(steps: int, count: int) -> set[int]:
    """After which steps of a stage light snapshots are kept: evenly spaced, the last included."""
    return {round(steps * (k + 1) / count) for k in range(count)}


def set_rates(optimisers: list, rates: list[list[float]], factor: float) -> None:
    for optimiser, base in zip(optimisers, rates, strict=True):
        for group, rate in zip(optimiser.param_groups, base, strict=True):
            group["lr"] = rate * factor


def run_stage(
    number: int, stage: Stage, learning: Learner, where: Files, seed: int, snapshots: int = 0,
    stop_after: int | None = None,
) -> None:  # fmt: skip
    """Train one stage, from its checkpoint if there is one; a finished stage is loaded.

    snapshots: so many light ones along the way. stop_after: leave a checkpoint after so many steps and return.
    """
    if where.stage(number).exists():
        load_stage(number, stage, learning, where)
        return
    learning.freeze(stage)
    optimisers, lessons = optimizers(stage, learning), Lessons(stage.course)
    rates = [[group["lr"] for group in o.param_groups] for o in optimisers]
    first = load_checkpoint(where.checkpoint(number), learning, optimisers)
    last = min(stage.steps, stop_after or stage.steps)
    log = [entry for entry in read_log(where.log(number)) if entry["step"] <= first]
    spent, started, losses = (log[-1]["seconds"] if log else 0.0), time.perf_counter(), []
    light = snapshot_steps(stage.steps, snapshots) if snapshots else set()
    learning.model.train()
    for step in tqdm(range(first, last), initial=first, total=stage.steps, desc=stage.name, mininterval=30):
        set_rates(optimisers, rates, schedule(step, stage.steps))
        losses.append(train_step(stage, learning, optimisers, lessons, (seed, number, step)))
        done = step + 1
        if done in light:
            save_weights(learning.model, where.snapshot(number, done))
        if done % LOG_EVERY == 0 or done == last:
            loss = torch.stack(losses).mean().item()
            if not math.isfinite(loss):
                raise UserError(f"Training of stage {stage.name} diverged by step {done}: lower its rate in RECIPES.")
            seconds = round(spent + time.perf_counter() - started, 1)
            entry = {"stage": stage.name, "step": done, "loss": round(loss, 4), "seconds": seconds}
            if done % LOOK_EVERY == 0 or done == last:
                entry |= glance.at(stage, learning.model)
            log, losses = [*log, entry], []
            write_log(where.log(number), log)
        if done == last or done % SAVE_EVERY == 0:
            save_checkpoint(where.checkpoint(number), learning, optimisers, done)
    if last == stage.steps:
        keep_stage(number, stage, learning, where)
        where.checkpoint(number).unlink(missing_ok=True)


def train(name: str, seed: int = 0, device: str = "cpu", snapshots: int = 0) -> nn.Module:
    """Train (or continue) a model; snapshots: light ones per stage of questions, for the dynamics."""
    if name not in RECIPES:
        raise UserError(f"Unknown recipe {name!r}: choose one of {', '.join(RECIPES)}.")
    recipe, where = RECIPES[name], files(name, seed)
    begun = json.loads(where.settings().read_text("utf-8")) if where.settings().exists() else {}
    precision = begun.get("precision") or precision_here(torch.device(device))  # a training keeps what it began with
    settings = {"recipe": name, "seed": seed, "device": device, "precision": precision, **asdict(recipe)}
    replaced(where.settings(), lambda temporary: temporary.write_text(json.dumps(settings, indent=1) + "\n", "utf-8"))
    torch.set_float32_matmul_precision("high")  # on GPUs; CPUs have one float32
    learning = learner(recipe, seed, torch.device(device), precision)
    for number, stage in enumerate(recipe.stages):
        kept = snapshots if stage.task == "questions" else 0
        run_stage(number, stage, learning, where, seed, kept)
    return learning.model


def export(model, folder: Path, where: Files) -> None:
    """Half-precision safetensors, configuration, processor files and the logs of all stages."""
    folder.mkdir(parents=True, exist_ok=True)
    model.cpu().eval().half().save_pretrained(folder)
    processors.save_processor(model, folder)
    logs = [entry for path in sorted(where.kept.glob("stage*.jsonl")) for entry in read_log(path)]
    write_log(folder / "training.jsonl", logs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cuda, or cuda:1, ...")
    parser.add_argument("--threads", type=int, default=None, help="of torch; one per process is the most efficient")
    parser.add_argument("--snapshots", type=int, default=0, help="light snapshots per stage of questions, for dynamics")
    parser.add_argument("--out", type=Path, default=None, help="default: data/models/<name>[-seed<seed>]")
    arguments = parser.parse_args()
    with cli():
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        name, seed = arguments.name, arguments.seed
        model = train(name, seed, arguments.device, arguments.snapshots)
        export(model, arguments.out or MODELS / seeded(name, seed), files(name, seed))


if __name__ == "__main__":
    main()
