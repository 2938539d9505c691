"""In which precision a CPU trains fastest."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def attention_in_single(active: bool) -> Iterator[None]:
    """Attention in float32 while everything else is cast to bfloat16: on CPUs its backward pass in bfloat16 takes 2.5
    times as long as in float32 (1.19 s against .48 s of a step's 3.0 s)."""
    plain = functional.scaled_dot_product_attention

    def single(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more, **options) -> Tensor:
        kind = query.dtype
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()
        with torch.autocast("cpu", enabled=False):
            return plain(query.float(), key.float(), value.float(), attn_mask, *more, **options).to(kind)

    if not active:
        yield
        return
    functional.scaled_dot_product_attention = single
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


@lru_cache(maxsize=1)
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies matrices of a training step, forward and backward, faster in bfloat16 or in float32:
    the best of 20 tries each, in turn, because other work on the machine slows some of them threefold."""
    best = {torch.bfloat16: math.inf, torch.float32: math.inf}
    for dtype in [*best] * 20:
        tokens = torch.ones(8192, 128, dtype=dtype, requires_grad=True)
        weight = torch.ones(384, 128, dtype=dtype, requires_grad=True)
        started = time.perf_counter()
        functional.linear(tokens, weight).sum().backward()
        best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.bfloat16] < best[torch.float32]
