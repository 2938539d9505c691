"""Muon: momentum, orthogonalised by Newton-Schulz, for weight matrices (Jordan et al. 2024), in float32 for CPUs.

torch's own version orthogonalises in bfloat16, which is slow on many CPUs, and takes no convolution kernels.
"""

from __future__ import annotations

from collections import defaultdict

import torch


def orthogonalised(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, approximately: quintic Newton-Schulz on a batch [n, rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    flip = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if flip else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if flip else x


class Muon(torch.optim.Optimizer):
    """lr: change of a matrix per step in spectral norm, times sqrt(rows / columns) for tall matrices."""

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same_shape[p.flatten(1).shape].append(p)
            for (rows, columns), params in same_shape.items():
                grads = [p.grad for p in params]
                buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                updates = torch._foreach_lerp(grads, buffers, group["momentum"])
                changes = orthogonalised(torch.stack([update.flatten(1) for update in updates]))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                changes = [change.view_as(p) for p, change in zip(params, changes, strict=True)]
                torch._foreach_add_(params, changes, alpha=-scale)
