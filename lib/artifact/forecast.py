"""What running the notebooks on a model would take, before anything is started: `python -m lib.run --plan MODEL`.

Memory is counted from the configuration, on a model without weights; time comes from forward passes timed here, of the
model and of `reference`, and from the seconds that the published runs of `reference` took. It errs on the long side:
part of a notebook's time (figures, statistics) does not grow with the model.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib import places
from lib.artifact import manifests
from lib.artifact.manifests import Run
from lib.artifact.notebooks import Notebook
from lib.engine.batching import budget, free_memory
from lib.engine.checkpoints import Model, shipped
from lib.engine.embedded import DEFAULT
from lib.engine.loading import default_dtype
from lib.engine.vlm import VLM, load
from lib.errors import UserError

GIB = 2**30
QUESTION = "The color of the square to the left of the red square is"


@dataclass(frozen=True)
class Size:
    """Numbers of weights and layers of a model."""

    weights: int
    layers: int
    encoder_layers: int


@dataclass(frozen=True)
class Memory:
    """Bytes: weights, working memory of a batch, which every sweep keeps to; and what is free."""

    weights: int
    batch: int
    free: int

    @property
    def fits(self) -> bool:
        return self.weights + self.batch <= self.free


def size_of(source: str) -> Size:
    """Sizes by the configuration; no weights are read."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: no plan can be made, its configuration cannot be read ({first})") from error
    text, vision = getattr(config, "text_config", config), getattr(config, "vision_config", config)
    number = lambda part, *names: next((v for n in names if isinstance(v := getattr(part, n, None), int)), 0)  # noqa: E731
    return Size(
        sum(weight.numel() for weight in model.parameters()),
        number(text, "num_hidden_layers"),
        number(vision, "num_hidden_layers", "depth"),
    )


def memory(size: Size, dtype: torch.dtype, device: torch.device) -> Memory:
    """What a run needs at most, and what is free."""
    free = free_memory(device) if device.type == "cuda" else free_on_the_host()
    return Memory(size.weights * dtype.itemsize, min(budget(device), 4 * GIB), free)


def free_on_the_host() -> int:
    """Bytes of main memory that can be had, files that the system keeps in it counted as free; all of it where the
    system does not tell."""
    table = Path("/proc/meminfo")
    if table.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", table.read_text(encoding="ascii"))):
        return int(found[1]) * 1024
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def seconds_per_prompt(vlm: VLM, repeats: int = 3) -> float:
    """The fastest of several passes of one prompt with its picture, image encoder included."""
    from PIL import Image

    picture, prompt = Image.new("RGB", (vlm.grid.canvas,) * 2, "white"), vlm.tokens([QUESTION])
    taken = []
    for _ in range(repeats + 1):  # the first one records the plan
        start = time.perf_counter()
        vlm.forward(prompt, vlm.encode([picture])).last.sum().item()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


@dataclass(frozen=True)
class Forecast:
    """Seconds of one notebook: published for `reference`, and from `low` to `high` for the model."""

    notebook: str
    published: float | None
    low: float | None
    high: float | None

    def line(self) -> str:
        if self.published is None or self.low is None:
            return f"  {self.notebook:<32} not known"
        low, high = (f"{seconds / 60:.1f}" for seconds in (self.low, self.high))
        return f"  {self.notebook:<32} {low:>8} to {high} min  (published, {DEFAULT}: {self.published / 60:.1f} min)"


def times(notebooks: Sequence[Notebook], ratio: float | None, slots: float) -> list[Forecast]:
    """Seconds per notebook, if a prompt takes `ratio` times as long as with `reference` and there are `slots` times as
    many slots: sweeps of the last token run all slots side by side, sweeps of image tokens run on from each slot."""
    out = []
    for notebook in notebooks:
        try:
            published = float(manifests.read(Run(places.PUBLISHED, DEFAULT, notebook.name))["seconds"])
        except UserError:
            published = None
        known = ratio is not None and published is not None
        low, high = (published * ratio, published * ratio * max(1.0, slots)) if known else (None, None)
        out.append(Forecast(notebook.name, published, low, high))
    return out


def plan(model: Model, notebooks: Sequence[Notebook]) -> str:
    """The whole forecast as text; the model is only loaded where it fits."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, size = default_dtype(str(device)), size_of(model.source)
    room = memory(size, dtype, device)
    lines = [described(model.name, size, room), *misfits(room)]
    ratio, slots = None, 1.0
    if room.fits and (os.path.isdir(model.source) or "@" in model.digest):
        own, reference = seconds_per_prompt(load(model.argument, str(device))), shipped()[DEFAULT]
        base = own if model.name == DEFAULT else seconds_per_prompt(load(DEFAULT, str(device)))
        ratio, slots = own / base, (size.layers + 1) / (size_of(str(reference)).layers + 1)
        lines.append(
            f"time: a prompt takes {own * 1000:.0f} ms, {ratio:.3g} times as long as with {DEFAULT}. On a machine as "
            "fast as that of the published runs, if all slots cost one pass together, and if each costs one:"
        )
    elif room.fits:
        lines.append("time: not known, the weights are not on this machine yet")
    return "\n".join([*lines, *(each.line() for each in times(notebooks, ratio, slots))])


def described(name: str, size: Size, room: Memory) -> str:
    weights, batch, free = (f"{x / GIB:.2f} GiB" for x in (room.weights, room.batch, room.free))
    return (
        f"{name}: {size.weights / 1e6:,.1f} million weights, {size.layers} layers, {size.encoder_layers} in its "
        f"encoder\nmemory: weights {weights}, a batch up to {batch}; free {free}"
    )


def misfits(room: Memory) -> list[str]:
    """What does not fit, and what to do about it."""
    if room.fits:
        return []
    return ["does not fit: weights and a batch need more than is free; take a smaller model or a larger machine"]
