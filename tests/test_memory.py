"""What sweeps hold at one time, counted in bytes of tensors: no more than the budget, whatever the number of pairs."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.memory import live_peak
from lib.engine import batching
from lib.patching.edits import LAST_TOKEN, swap
from lib.patching.runs import Run
from lib.patching.sites import ATTENTION, MLP, RESIDUAL
from lib.patching.sweep import (
    amplification_sweep,
    encoder_sweep,
    knockout_sweep,
    last_token_sweep,
    sweep,
    token_sweep,
)

BUDGET = 2**20  # five prompts of the tiny model
WORDS = ["red", "green", "blue"]
LEFT, RIGHT = np.array([0, 6, 12]), np.array([5, 11, 17])
SITES = (RESIDUAL, ATTENTION, MLP)


@pytest.fixture
def budget(monkeypatch):
    monkeypatch.setattr(batching, "budget", lambda device: BUDGET)


class Many:
    """As many pairs as asked for, each about two pictures of its own."""

    def __init__(self, vlm, count: int):
        side, rng = vlm.grid.canvas, np.random.default_rng(0)
        noise = rng.integers(0, 256, (2 * count, side, side, 3), dtype=np.uint8)
        self.vlm, self.pictures, self.other = vlm, [Image.fromarray(each) for each in noise], np.arange(count) + count
        images = vlm.encode(self.pictures)
        self.run = Run.of(vlm, ["the color of the red square is"] * count, images, np.arange(count))
        self.cf = Run(self.run.prompt, images, self.other)
        self.answers = vlm.candidates([WORDS] * count), WORDS

    def sweep(self, kind: str) -> None:
        vlm, run, answers, quiet = self.vlm, self.run, self.answers, dict(progress=False)
        strips = {"strips": swap(LEFT, RIGHT)}
        if kind == "last token":
            last_token_sweep(vlm, run, self.cf, *answers, **quiet)
        elif kind == "last token, sites":
            sweep(vlm, run, self.cf, {"last": LAST_TOKEN}, *answers, sites=SITES, **quiet)
        elif kind == "image tokens":
            token_sweep(vlm, run, strips, *answers, self.other, **quiet)
        elif kind == "image tokens, sites":
            sweep(vlm, run, self.cf, strips, *answers, sites=SITES, **quiet)
        elif kind == "encoder":
            encoder_sweep(vlm, self.pictures, run, self.other, strips, *answers, **quiet)
        elif kind == "amplification":
            amplification_sweep(vlm, run, {"d": torch.eye(2, run.images.shape[-1])}, [1.0, 2.0, 4.0], *answers, **quiet)
        else:
            knockout_sweep(vlm, run, {"left": LEFT}, *answers, **quiet)


KINDS = (
    "last token", "last token, sites", "image tokens", "image tokens, sites", "encoder", "amplification", "knockout"
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_sweep_keeps_to_the_budget(kind, model, budget):
    many = Many(model, 48)
    assert live_peak(lambda: many.sweep(kind)) <= BUDGET


def test_an_encoder_sweep_holds_what_is_swapped_in_one_batch(model, budget, monkeypatch):
    """Six of 36 patches, of the counterfactual pictures alone."""
    captured, encode = [], model.encode

    def recorded(*args, **options):
        out = encode(*args, **options)
        captured.extend(out[1].values() if "capture" in options else ())
        return out

    monkeypatch.setattr(model, "encode", recorded)
    Many(model, 12).sweep("encoder")
    assert {states.shape[1] for states in captured} == {len(LEFT) + len(RIGHT)}
    rows = sum(len(states) for states in captured) / len(model.encoder_slots)
    assert rows == 12 and max(len(states) for states in captured) < 12


def test_live_tensors_are_counted_once_and_forgotten():
    weights = torch.zeros(1000)

    def work():
        kept = weights.view(10, 100) + 1  # 4000 bytes; the view of what was there before is none
        for _ in range(3):
            kept = kept.T + 1  # the old ones go when the new one is there
        return kept

    assert live_peak(work) == 8000
