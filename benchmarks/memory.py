"""How much memory a piece of work takes: of the process, as the system counts it, or of its tensors, to the byte."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HIGH_WATER = Path("/proc/self/clear_refs")  # writing 5 resets the largest resident memory of the process (Linux)


def peak(work: Callable, device: str) -> float:
    """Bytes by which memory grows at most during work (resident memory on a CPU); NaN where nothing tells."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    if not HIGH_WATER.exists():
        return float("nan")
    before = resident()
    work()
    return most_resident() - before


def resident() -> float:
    """Bytes of resident memory now; the count of the largest starts anew."""
    trim()
    HIGH_WATER.write_text("5")
    return _status("VmRSS")


def most_resident() -> float:
    """The most bytes that were resident since `resident` was called."""
    return _status("VmHWM")


def _status(key: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return float(line.split()[1]) * 1024


def trim() -> None:
    """Give freed memory back, so that it counts when it is used again."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside the block and still alive: `now`, and `peak`, the most.

    The same in every run, unlike resident memory; what a kernel takes for itself while it runs is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for given in tree_leaves((args, kwargs or {})):
            self._meet(given, 0)  # made before the block, or counted already
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            self._meet(made, None)
        self.peak = max(self.peak, self.now)
        return out

    def _meet(self, tensor, size: int | None) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if size is None else size
        self.now += size

        def forget(_, key=key, size=size):
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, forget)


def live_peak(work: Callable) -> int:
    """The most bytes of tensors made by work that are alive at one time."""
    with LiveTensors() as tensors:
        work()
    return tensors.peak
