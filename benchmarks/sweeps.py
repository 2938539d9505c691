"""The engine against the authors' procedure, in one process, on the same model and the same pairs.

    python -m benchmarks.sweeps                                                     the embedded model
    python -m benchmarks.sweeps --model qwen2-vl-2b --layers 4 --encoder 4 --pairs 4   real widths, fewer layers
    python -m benchmarks.sweeps --model qwen2-vl-7b --device cuda --naive-pairs 2   full size on a GPU

Prints and writes runs/by-hand/benchmarks/sweeps.csv: seconds of both, their ratio, memory relative to one plain
forward pass of the engine's batch, the largest difference of any probability, and where the time goes:
operations_ratio says how many times fewer operations the engine needs, share_of_limit how fast either runs
against one large matrix product, and time.csv in which of the engine's functions the time is spent. With --slots
also the time against the number of slots (slots.csv and a figure), with --memory N nothing but memory, N times
(memory.csv). The naive procedure may be timed on fewer pairs (--naive-pairs) and scaled up.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models
from benchmarks.memory import live_peak, peak
from lib import files, places
from lib.artifact import storage
from lib.engine import oracle
from lib.engine.vlm import VLM
from lib.errors import cli
from lib.patching.edits import Interchange
from lib.patching.runs import Run
from lib.patching.sweep import amplification_sweep, last_token_sweep, token_sweep
from lib.stimuli.grids import Grid
from lib.stimuli.pairs import last_token_pairs, mirrored_pairs
from lib.stimuli.questions import OPPOSITE, line_item
from lib.stimuli.token_sets import interchange_regions

ALPHAS = tuple(range(1, 16))
REPEATS = 3  # of every timing


# --- measuring -------------------------------------------------------------------------------------------


def timed(work: Callable, device: str) -> tuple[float, object]:
    """Seconds and result."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def flops(work: Callable) -> float:
    """Floating point operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def machine_flops(device: str, dtype: torch.dtype) -> float:
    """Operations a second in one large matrix product: what this machine can do at best."""
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(timed(lambda: left @ right, device)[0] for _ in range(6))
    return 2 * size**3 / best


# --- the three sweeps ------------------------------------------------------------------------------------


class Sweep:
    """One sweep over pairs: the engine on all of them, the naive procedure pair by pair."""

    def __init__(self, vlm: VLM, pairs: list, slots: list[int] | None = None):
        self.vlm, self.pairs, self.slots = vlm, pairs, slots
        self.ids = vlm.candidates([pair.candidates for pair in pairs])
        self.roles = pairs[0].roles
        self.clean = [pair.clean.scene.image(vlm.grid.canvas) for pair in pairs]
        self.other = [pair.counterfactual.scene.image(vlm.grid.canvas) for pair in pairs]

    def ready(self):
        """Image tokens of all distinct pictures, and which belong to the clean and counterfactual runs."""
        tokens, index = self.vlm.distinct(self.clean + self.other)
        return tokens, index[: len(self.pairs)], index[len(self.pairs) :]

    def values(self, table: pd.DataFrame) -> np.ndarray:
        """[pair, slot or alpha, role]"""
        key = "alpha" if "alpha" in table else "slot"
        table = table[table["run"] == "patched"]
        table = table.assign(role=table["role"].map({role: k for k, role in enumerate(self.roles)}))
        shape = [table[column].nunique() for column in ("pair", key, "role")]
        return table.sort_values(["pair", key, "role"])["probability"].to_numpy().reshape(shape)

    def questions(self, side: str) -> list[str]:
        return [getattr(pair, side).question for pair in self.pairs]

    def inputs(self, k: int, side: str) -> dict:
        picture = (self.clean if side == "clean" else self.other)[k]
        return oracle.inputs(self.vlm, [picture], [getattr(self.pairs[k], side).question])


class LastToken(Sweep):
    name = "last_token"

    def fast(self) -> np.ndarray:
        tokens, clean, other = self.ready()
        runs = [
            Run.of(self.vlm, self.questions(side), tokens, index)
            for side, index in (("clean", clean), ("counterfactual", other))
        ]
        table = last_token_sweep(self.vlm, *runs, self.ids, self.roles, slots=self.slots, progress=False)
        return self.values(table)

    def slow(self, k: int) -> torch.Tensor:
        inputs = [self.inputs(k, side) for side in ("clean", "counterfactual")]
        return oracle.last_token(self.vlm, *inputs, self.ids[[k]].to(self.vlm.device), self.slots)[:, 0]


class Tokens(Sweep):
    name = "tokens"

    def sets(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets and sources of each pair's strips."""
        sets = [interchange_regions(self.vlm.grid, pair.orientation, "strip") for pair in self.pairs]
        return tuple(np.stack(part) for part in zip(*sets, strict=True))

    def fast(self) -> np.ndarray:
        tokens, clean, other = self.ready()
        run = Run.of(self.vlm, self.questions("clean"), tokens, clean)
        edits = {"strip": Interchange(*self.sets())}
        options = dict(slots=self.slots, progress=False)
        return self.values(token_sweep(self.vlm, run, edits, self.ids, self.roles, other, **options))

    def slow(self, k: int) -> torch.Tensor:
        targets, sources = (torch.as_tensor(part[[k]]) for part in self.sets())
        image = self.vlm.tokens([self.pairs[k].clean.question]).image
        places = [image.gather(1, part).to(self.vlm.device) for part in (targets, sources)]
        inputs = [self.inputs(k, side) for side in ("clean", "counterfactual")]
        ids = self.ids[[k]].to(self.vlm.device)
        return oracle.interchange(self.vlm, *inputs, *places, ids, self.slots)[:, 0]


class Enhancement(Sweep):
    """Two questions about each picture, as with options in both orders; 15 alphas; two directions."""

    name = "enhancement"

    def __init__(self, vlm: VLM, pairs: list, slots=None):
        super().__init__(vlm, pairs, slots)
        generator = torch.Generator().manual_seed(0)
        width = vlm.language.config.hidden_size
        self.directions = torch.randn(2, width, generator=generator).to(vlm.device, vlm.dtype) / width**0.5

    def fast(self) -> np.ndarray:
        tokens, clean, _ = self.ready()
        run = Run.of(self.vlm, self.questions("clean"), tokens, clean)
        found = amplification_sweep(self.vlm, run, {"d": self.directions}, ALPHAS, self.ids, self.roles, progress=False)
        return self.values(found)

    def slow(self, k: int) -> torch.Tensor:
        places = self.vlm.tokens([self.pairs[k].clean.question]).image.to(self.vlm.device)
        ids, inputs = self.ids[[k]].to(self.vlm.device), self.inputs(k, "clean")
        return oracle.amplification(self.vlm, inputs, places, self.directions, ALPHAS, ids)[:, 0]


def twice(pairs: list, grid: Grid) -> list:
    """Each picture with its question and the opposite one: pairs of both directions of an orientation share
    scenes."""
    out = []
    for pair in pairs:
        item = pair.clean
        back = line_item(item.setting, grid, item.entities, OPPOSITE[item.direction], item.shift)
        out += [pair, replace(pair, clean=back)]
    return out


def race(sweep: Sweep, naive_pairs: int, device: str) -> dict:
    """Seconds of both procedures on all pairs, medians of REPEATS in turn, and the largest difference of any
    probability."""
    chosen = np.linspace(0, len(sweep.pairs) - 1, min(naive_pairs, len(sweep.pairs))).astype(int)
    sweep.slow(int(chosen[0])), sweep.fast()  # warm up: kernels, plans
    seconds = []
    for _ in range(REPEATS):
        fast_seconds, fast = timed(sweep.fast, device)
        naive_seconds, slow = timed(lambda: [sweep.slow(int(k)) for k in chosen], device)
        seconds.append((fast_seconds, naive_seconds * len(sweep.pairs) / len(chosen)))
    fast_seconds, naive_seconds = np.median(seconds, axis=0)
    difference = max(np.abs(fast[k] - s.cpu().numpy()).max() for k, s in zip(chosen, slow, strict=True))
    return {
        "sweep": sweep.name,
        "naive_seconds": naive_seconds,
        "fast_seconds": fast_seconds,
        "ratio": naive_seconds / fast_seconds,
        "max_abs_difference": float(difference),
        "pairs": len(sweep.pairs),
        "naive_pairs": len(chosen),
    }


def plain_batch(sweep: Sweep) -> tuple[int, Callable]:
    """Rows of the engine's batch, and one plain forward pass of them."""
    length = sweep.vlm.tokens(sweep.questions("clean")[:1]).length
    rows = min(len(sweep.pairs), sweep.vlm.language.batch_size(length))
    pictures, questions = sweep.clean[:rows], sweep.questions("clean")[:rows]
    return rows, lambda: oracle.forward(sweep.vlm, oracle.inputs(sweep.vlm, pictures, questions))


def live_ratio(sweep: Sweep) -> float:
    """The most bytes of tensors that the engine holds, in plain forward passes of its batch: the same in every run."""
    return live_peak(sweep.fast) / live_peak(plain_batch(sweep)[1])


def peaks(sweep: Sweep, device: str) -> dict:
    """The most memory that the engine takes as the system counts it, in plain forward passes of its batch."""
    rows, plain = plain_batch(sweep)
    plain_peak, fast_peak = peak(plain, device), peak(sweep.fast, device)
    return {
        "peak_ratio": fast_peak / plain_peak,
        "plain_batch": rows,
        "plain_peak_mb": plain_peak / 2**20,
        "fast_peak_mb": fast_peak / 2**20,
    }


def measure(sweep: Sweep, naive_pairs: int, device: str) -> dict:
    """Times, agreement, memory, and where the time goes."""
    result = race(sweep, naive_pairs, device) | peaks(sweep, device) | {"live_ratio": live_ratio(sweep)}
    naive_work = flops(lambda: sweep.slow(0)) * len(sweep.pairs)
    fast_work = flops(sweep.fast)
    limit = machine_flops(device, sweep.vlm.dtype)
    return result | {
        "operations_ratio": naive_work / fast_work,
        "naive_share_of_limit": naive_work / result["naive_seconds"] / limit,
        "fast_share_of_limit": fast_work / result["fast_seconds"] / limit,
    }


PARTS = {  # functions of the engine, and what they do
    "encode": "image encoder, every distinct picture once",
    "prefill": "keys and values of pictures",
    "ask": "questions, unpatched and against edited pictures",
    "run_last": "the last token from every slot",
    "run": "runs from a slot on",
    "logits": "logits of the whole vocabulary",
}


@contextmanager
def clocked(vlm: VLM):
    """Own seconds of each of PARTS while the block runs: what a part calls counts as its own, other parts aside.

    `run` called by another part belongs to that part: only a sweep's own runs count as runs.
    """
    own, nested = dict.fromkeys(PARTS, 0.0), []
    owners = {name: vlm if name in ("encode", "logits") else vlm.language for name in PARTS}
    before = {name: vars(owner).get(name) for name, owner in owners.items()}

    def counted(name: str, method: Callable) -> Callable:
        def call(*args, **kwargs):
            if name == "run" and nested:
                return method(*args, **kwargs)
            nested.append(0.0)
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - started
                own[name] += seconds - nested.pop()
                if nested:
                    nested[-1] += seconds

        return call

    for name, owner in owners.items():
        setattr(owner, name, counted(name, getattr(owner, name)))  # on this object; the class stays as it is
    try:
        yield own
    finally:
        for name, owner in owners.items():
            delattr(owner, name)
            if before[name] is not None:
                setattr(owner, name, before[name])


def where_time_goes(sweep: Sweep) -> pd.DataFrame:
    """Share of the engine's time in each of PARTS, and the rest: preparing pictures, tables, and Python in between."""
    with clocked(sweep.vlm) as own:
        started = time.perf_counter()
        sweep.fast()
        total = time.perf_counter() - started
    own["rest"] = total - sum(own.values())
    rows = [{"sweep": sweep.name, "part": part, "share": seconds / total} for part, seconds in own.items()]
    return pd.DataFrame(rows).assign(does=lambda t: t["part"].map(PARTS | {"rest": "tables, pictures, Python"}))


def against_slots(vlm: VLM, pairs: list, naive_pairs: int, device: str) -> pd.DataFrame:
    """Seconds of both procedures when the first k slots of an even spread are asked for."""
    rows = []
    every = list(vlm.slots)
    for count in sorted({1, 2, 4, len(every) // 2, len(every)}):
        slots = sorted({every[round(i)] for i in np.linspace(0, len(every) - 1, count)})
        for kind, own in ((LastToken, pairs["last"]), (Tokens, pairs["mirrored"])):
            result = race(kind(vlm, own, slots), naive_pairs, device)
            for how in ("naive", "fast"):
                rows.append({"sweep": kind.name, "how": how, "slots": len(slots), "seconds": result[f"{how}_seconds"]})
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Time against number of slots, naive and fast."""
    import matplotlib.pyplot as plt

    from lib.artifact.figures import panels, use_style

    use_style()
    sweeps = list(dict.fromkeys(table["sweep"]))
    figure, axes = panels(1, len(sweeps), sharey=True)
    for ax, sweep in zip(np.atleast_1d(axes), sweeps, strict=True):
        for how, line in (("naive", "--"), ("fast", "-")):
            part = table[(table["sweep"] == sweep) & (table["how"] == how)]
            ax.plot(part["slots"], part["seconds"], line, marker="o", label=how)
        ax.set(title=sweep.replace("_", " "), xlabel="slots", yscale="log")
    np.atleast_1d(axes)[0].set_ylabel("seconds")
    np.atleast_1d(axes)[0].legend()
    for suffix in (".png", ".pdf"):
        with files.atomic(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference", help=", ".join(models.NAMES))
    parser.add_argument("--layers", type=int, help="language-model layers (default: the model's)")
    parser.add_argument("--encoder", type=int, help="image-encoder layers (default: the model's)")
    parser.add_argument("--pairs", type=int, default=50, help="pairs per direction")
    parser.add_argument("--naive-pairs", type=int, default=20, help="pairs to time the naive procedure on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch chooses")
    parser.add_argument("--sweeps", default="last_token,tokens,enhancement")
    parser.add_argument("--memory", type=int, metavar="N", help="only measure memory, N times")
    parser.add_argument("--slots", action="store_true", help="also time against number of slots")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype or ("float32" if options.device == "cpu" else "bfloat16"))
    vlm = models.build(options.model, options.layers, options.encoder, options.device, dtype)
    pairs = {
        "last": last_token_pairs("squares", vlm.grid, options.pairs),
        "mirrored": mirrored_pairs("squares", vlm.grid, options.pairs),
    }
    sweeps = {
        "last_token": lambda: LastToken(vlm, pairs["last"]),
        "tokens": lambda: Tokens(vlm, pairs["mirrored"]),
        "enhancement": lambda: Enhancement(vlm, twice(pairs["mirrored"][: options.pairs], vlm.grid)),
    }
    facts = {
        "model": options.model,
        "layers": len(vlm.layers),
        "encoder_layers": len(vlm.encoder.layers),
        "device": options.device if options.device == "cpu" else torch.cuda.get_device_name(),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    if options.memory:
        return memory(sweeps, options, facts)
    rows, parts = [], []
    for name in options.sweeps.split(","):
        sweep = sweeps[name]()
        rows.append(measure(sweep, options.naive_pairs, options.device) | facts)
        parts.append(where_time_goes(sweep).assign(**facts))
        shown = ["sweep", "naive_seconds", "fast_seconds", "ratio", "operations_ratio", "peak_ratio"]
        print(pd.DataFrame([rows[-1]])[[*shown, "max_abs_difference"]].to_string(index=False), flush=True)
    record(pd.DataFrame(rows), "sweeps", ["sweep", "model", "layers", "device"], options)
    record(pd.concat(parts), "time", ["sweep", "model", "layers", "device", "part"], options)
    if options.slots:
        table = against_slots(vlm, pairs, max(1, options.naive_pairs // 4), options.device).assign(**facts)
        record(table, "slots", ["sweep", "model", "layers", "device", "how", "slots"], options)
        draw(table, places.outputs("benchmarks") / f"slots_{options.model}")


def memory(sweeps: dict[str, Callable], options: argparse.Namespace, facts: dict) -> None:
    """`peaks` of the chosen sweeps, several times."""
    rows = []
    for name in options.sweeps.split(","):
        sweep = sweeps[name]()
        live = live_ratio(sweep)  # warms up, too: kernels, plans
        for number in range(options.memory):
            run = {"sweep": name, "number": number, "live_ratio": live}
            rows.append(run | peaks(sweep, options.device) | facts)
            print(pd.DataFrame(rows[-1:]).iloc[:, :7].to_string(index=False, header=number == 0), flush=True)
    record(pd.DataFrame(rows), "memory", ["sweep", "number", "model", "layers", "device"], options)


def record(table: pd.DataFrame, name: str, keys: list[str], options: argparse.Namespace) -> None:
    """Write rows, in place of older ones with the same keys."""
    path = places.outputs("benchmarks") / f"{name}.csv"
    if path.exists():
        table = pd.concat([storage.read_csv(path), table]).drop_duplicates(keys, keep="last", ignore_index=True)
    parameters = {key: value for key, value in vars(options).items() if key != "model"}
    storage.write_csv(table, path, storage.provenance(options.model, 0, **parameters))


if __name__ == "__main__":
    with cli():
        main()
