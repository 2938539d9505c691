"""Batches that fit into memory, and where they go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from lib.errors import UserError


def run_batches(
    count: int, work: Callable[[np.ndarray], object], size: int, progress: bool = False, unit: str = "rows"
):
    """(indices, work(indices)) over 0..count-1 in batches; out of memory halves a batch and loses nothing."""
    silent = {} if progress else {"disable": True}  # no key when shown: TQDM_DISABLE counts, too
    with tqdm(total=count, unit=f" {unit}", leave=False, **silent) as bar:
        start = 0
        while start < count:
            index = np.arange(start, min(start + size, count))
            try:
                result = work(index)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if size == 1:
                    raise UserError(
                        "Out of memory with a single row: choose a smaller model or dtype=bfloat16."
                    ) from error
                size = max(1, size // 2)
                torch.cuda.empty_cache()
                continue
            yield index, result
            start += len(index)
            bar.update(len(index))


def _out_of_memory(error: Exception) -> bool:
    """On a GPU torch has an error of its own, on a CPU only words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def batch_size(tokens: int, width: int, layers: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows of so many tokens, each a vector of `width`, a stack of layers can run within the budget."""
    # larger batches leave a CPU's caches: prefilling `reference` took 1.8 times as long
    most = 64 if device.type == "cuda" else 24
    return int(min(most, max(1, budget(device) // row_bytes(tokens, width, layers, dtype))))


def row_bytes(tokens: int, width: int, layers: int, dtype: torch.dtype) -> int:
    """Working memory of one row of so many tokens in a stack of layers: keys, values and a state for each layer, and
    what one layer needs while it runs."""
    return tokens * width * dtype.itemsize * (16 + 3 * layers)


def budget(device: torch.device) -> int:
    """Bytes that a batch may take, weights aside: half of what is free on a GPU, 512 MiB on a CPU."""
    return free_memory(device) // 2 if device.type == "cuda" else 2**29


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a GPU: what the driver calls free, and what torch holds without using it."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def input_device(model: torch.nn.Module) -> torch.device:
    """Where the inputs of a model go; weights that are offloaded have no device of their own."""
    table = model.get_input_embeddings()
    offloaded = table.weight.device.type == "meta"
    return torch.device(table._hf_hook.execution_device) if offloaded else table.weight.device
