"""What is left of the answers when each source of order is silenced by itself (PROTOCOL.md 9.6).

The fingerprint says who wins where sources disagree, not what each could do alone. Here one source at a time is made
uninformative, as it was in the training of the planted model `redundant`:

- the encoder: the picture is cut into tiles of one image token, the tiles are encoded in random order, and their tokens
  put back where the tiles came from. Every token stands at its place in the language model's input, but the encoder saw
  it somewhere else;
- the backbone: image tokens come to the language model in random order.

A source that suffices keeps the answers when the other one is silenced; with both silenced no order is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image

from lib.analysis import ladder, statistics, studies
from lib.analysis.position_schemes import in_random_order
from lib.analysis.studies import Study
from lib.engine.tensors import ImageTokens
from lib.engine.vlm import VLM
from lib.stimuli.grids import ORIENTATIONS
from lib.stimuli.pairs import mirrored_pairs

# What is silenced: the encoder, the backbone.
CONDITIONS = {"none": (False, False), "encoder": (True, False), "backbone": (False, True), "both": (True, True)}
# What a planted model must keep its answers under, for left-right and for above-below; under all else of `CONDITIONS`
# but "none" it must lose them. `vision_only` and `backbone_only` cannot do otherwise: what is silenced is the half that
# is blind. `redundant` was trained for it. `split` was not: it never met tokens in random order, so that answers it
# loses by naming neither candidate say that it is confused, not that it took the order from the silenced half.
# `strip_code` is not here: random order parts objects from the background around them.
MUST_KEEP = {
    "vision_only": (("backbone",), ("backbone",)),
    "backbone_only": (("encoder",), ("encoder",)),
    "split": (("backbone",), ("encoder",)),
    "redundant": (("encoder", "backbone"), ("encoder", "backbone")),
}
KEPT = 0.9  # of the questions answered correctly
FLOOR = 0.5  # correct answers of a model that knows the two candidates but no order


def tiles_in_random_order(vlm: VLM, pictures: Sequence[Image.Image], seed: int = 0) -> ImageTokens:
    """Image tokens of pictures whose tiles the encoder sees in random order, a new one for every picture; each token
    back at the place that its tile has in the picture."""
    rng, side = np.random.default_rng(seed), vlm.grid.side
    orders = np.stack([rng.permutation(side**2) for _ in pictures])
    mixed = vlm.encode([_in_order(picture, order, side) for picture, order in zip(pictures, orders, strict=True)])
    back = torch.from_numpy(np.argsort(orders, axis=1)).to(mixed.device)
    return mixed.gather(1, back[..., None].expand(mixed.shape))


def _in_order(picture: Image.Image, order: np.ndarray, side: int) -> Image.Image:
    """The picture whose k-th tile (raster order) is its tile order[k]."""
    pixels = np.asarray(picture)
    tiles = pixels.reshape(side, len(pixels) // side, side, -1, pixels.shape[-1]).swapaxes(1, 2)
    mixed = tiles.reshape(side**2, *tiles.shape[2:])[order].reshape(tiles.shape).swapaxes(1, 2)
    return Image.fromarray(np.ascontiguousarray(mixed.reshape(pixels.shape)))


def silenced(study: Study, encoder: bool, backbone: bool, seed: int = 0) -> Study:
    """The study with the encoder's places, the backbone's, or both made uninformative."""
    if encoder:
        images = tiles_in_random_order(study.vlm, studies.pictures(study), seed)
        runs = [replace(run, images=images) for run in (study.clean, study.counterfactual)]
        study = replace(study, clean=runs[0], counterfactual=runs[1])
    return in_random_order(study, seed + 1) if backbone else study


def answers(vlm: VLM, setting: str = "squares", n: int = 8, seed: int = 0) -> pd.DataFrame:
    """What is answered under each of `CONDITIONS`, on n pairs per direction of centred lines.

    Columns orientation, silenced, n (questions), correct, low, high (Wilson), names_neither.
    """
    plain = studies.study(vlm, mirrored_pairs(setting, vlm.grid, n=n, seed=seed))
    table = ladder.left({name: silenced(plain, *which, seed) for name, which in CONDITIONS.items()})
    rows = []
    for (axis, name), cell in table.groupby(["orientation", "step"], sort=False):
        share = statistics.proportion(int(cell["correct"].sum()), len(cell))
        rows.append((axis, name, share.n, share.value, share.low, share.high, cell["names_neither"].mean()))
    return pd.DataFrame(rows, columns=["orientation", "silenced", "n", "correct", "low", "high", "names_neither"])


def against_planted(table: pd.DataFrame) -> pd.DataFrame:
    """`answers` of planted models (column model) with what was built in: columns expected ("kept", "lost", "" where
    nothing is fixed) and holds (kept: at least `KEPT` correct; lost: the interval reaches down to `FLOOR`)."""
    rows = []
    for row in table.itertuples():
        keeps = MUST_KEEP.get(row.model)
        kept = keeps and row.silenced in ("none", *keeps[ORIENTATIONS.index(row.orientation)])
        expected = "" if keeps is None else "kept" if kept else "lost"
        holds = {"": True, "kept": row.correct >= KEPT, "lost": row.low <= FLOOR}[expected]
        rows.append((expected, holds))
    return table.assign(expected=[row[0] for row in rows], holds=[row[1] for row in rows])


def in_words(table: pd.DataFrame) -> str:
    """One sentence on the table of `against_planted`."""
    wrong = table[~table["holds"]]
    names = ", ".join(dict.fromkeys(table.loc[table["expected"] != "", "model"]))
    if wrong.empty:
        return f"Silencing shows what was built into {names}."
    cases = "; ".join(
        f"{x.model}, {x.orientation}, silenced {x.silenced}: {x.correct:.2f} correct, expected to be {x.expected} "
        f"({x.names_neither:.2f} name neither candidate)"
        for x in wrong.itertuples()
    )
    return f"Silencing does not show what was built in: {cases}."
