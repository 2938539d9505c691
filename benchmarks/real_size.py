"""A published size through the whole library: load, certificate, one pair of each sweep, beside the plan's forecast.

    python -m benchmarks.real_size            Qwen2-VL-2B at full depth and width: 4.4 GB written, up to 10 GB of memory
    python -m benchmarks.real_size --small    the same steps on the tests' tiny Qwen2-VL, in seconds

The model has random weights in bfloat16 and, where the extra `vocabularies` is installed, Qwen's own tokenizer. It is
written as a checkpoint by a process of its own and deleted in the end (--folder keeps it). Every step then tells its
seconds and the largest resident memory of the process while it ran; runs/by-hand/benchmarks/real_size.csv.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from benchmarks import models
from benchmarks.memory import HIGH_WATER, most_resident, resident
from benchmarks.sweeps import Enhancement, LastToken, Tokens
from lib import places
from lib.artifact import forecast, storage
from lib.artifact.forecast import GIB
from lib.engine import certificate
from lib.engine.vlm import VLM, load
from lib.errors import UserError, cli
from lib.stimuli.pairs import last_token_pairs, mirrored_pairs
from tests import tiny

NAME = "qwen2-vl-2b"
DTYPE = torch.bfloat16
CPU = torch.device("cpu")
PROMPTS = 4  # timed one by one; the other steps are counted in them


# --- the checkpoint --------------------------------------------------------------------------------------


def write(folder: Path, small: bool) -> None:
    """A checkpoint with random weights, as `save_pretrained` lays it out."""
    vlm = tiny.tiny("qwen2-vl") if small else models.build(NAME, None, None, "cpu", DTYPE, true_words())
    vlm.model.to(DTYPE).save_pretrained(folder)
    vlm.tokenizer.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)


def true_words():
    """Qwen's tokenizer with its chat template, as the tests read it; None where its package is not installed."""
    if find_spec("dashscope") is None:
        return None
    from tests.test_tokenizers import FOUND, qwen  # slow to import, and --small does not need it

    words = qwen()
    words.chat_template = FOUND["qwen2-vl"].chat
    return words


# --- steps -----------------------------------------------------------------------------------------------


def measured(step: str, work: Callable) -> tuple[dict, object]:
    """What a step took, and its result; memory in GiB: `peak` of the whole process, `growth` from before the step.

    cpu_seconds are those that the process computed: on a busy machine it waits for the rest.
    """
    before, start, cpu = resident(), time.perf_counter(), time.process_time()
    result = work()
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    most = most_resident()
    row = {"step": step} | took | {"peak": most / GIB, "growth": (most - before) / GIB}
    print({key: value if key == "step" else round(value, 3) for key, value in row.items()}, flush=True)
    return row, result


def checked(vlm: VLM, folder: Path) -> pd.DataFrame:
    """What `load(..., check=True)` does after loading, made anew."""
    kept = places.RUNS / places.BY_HAND / places.model_name(vlm.name) / "certificate.json"
    kept.unlink(missing_ok=True)
    return certificate.require(vlm, str(folder))


def sweeps(vlm: VLM) -> dict[str, Callable]:
    """One pair through each sweep, pictures encoded anew; the engine's part of `benchmarks.sweeps`."""
    pair, mirrored = (draw("squares", vlm.grid, 1)[:1] for draw in (last_token_pairs, mirrored_pairs))
    last = len(vlm.layers)
    return {
        "last-token sweep, all slots": LastToken(vlm, pair).fast,
        "token sweep, 3 slots": Tokens(vlm, mirrored, [0, last // 2, last - 1]).fast,
        "amplification, 15 alphas": Enhancement(vlm, mirrored).fast,
    }


def steps(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per step, and the certificate; `prompts` says how many prompts would take as much computing."""
    row, vlm = measured("load", lambda: load(folder, "cpu", DTYPE))
    rows = [row]
    row, prompt = measured(f"{PROMPTS} prompts, one by one", lambda: forecast.seconds_per_prompt(vlm, PROMPTS - 1))
    rows.append(row)
    each = row["cpu_seconds"] / PROMPTS
    for name, work in sweeps(vlm).items():
        rows.append(measured(name, work)[0])
    row, contracts = measured("certificate", lambda: checked(vlm, folder))
    rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(prompts=table["cpu_seconds"] / each, prompt_seconds=prompt), contracts


def foreseen(folder: Path) -> forecast.Memory:
    """The memory that the plan foresees in the same precision."""
    return forecast.memory(forecast.size_of(str(folder)), DTYPE, CPU)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the tests' tiny model")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here, or use the one that lies here")
    parser.add_argument("--write", action="store_true", help="only write the checkpoint to --folder")
    options = parser.parse_args()
    if not HIGH_WATER.exists():
        raise UserError("the largest resident memory of a step can only be read on Linux")
    if options.write:
        return write(options.folder, options.small)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / ("tiny-qwen2-vl" if options.small else f"{NAME}-random")
        if not (folder / "config.json").exists():
            again = [sys.executable, "-m", "benchmarks.real_size", "--write", "--folder", str(folder)]
            subprocess.run(again + ["--small"] * options.small, check=True, cwd=places.ROOT)
        room = foreseen(folder)
        table, contracts = steps(folder)
    print(contracts.to_string(index=False), table.round(3).to_string(index=False), sep="\n\n")
    print(f"\nforecast in GiB: weights {room.weights / GIB:.2f}, a batch up to {room.batch / GIB:.2f}", flush=True)
    foreseen_gib = {"weights_foreseen": room.weights / GIB, "batch_foreseen": room.batch / GIB}
    table = table.assign(model=folder.name, **foreseen_gib, threads=torch.get_num_threads())
    storage.write_csv(table, places.outputs("benchmarks") / "real_size.csv", storage.provenance(folder.name, 0))


if __name__ == "__main__":
    with cli():
        main()
