"""Strips: does the background of a picture carry the order of its objects? (floor 3: no files, no plots)

Two questions. Is a probe's map over background tokens organised in strips (`strip_score`, its null, and which place
a token is read as when the line does not stand where the probe was trained)? And does the answer depend on the
background (order removed from some tokens only, exchanges of some tokens only)?

Image tokens are flat indices r * N + c. A token's *strip* is its place on the canvas: first, middle or last (0, 1, 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from lib.analysis import statistics
from lib.analysis.line_images import Lines
from lib.analysis.probes import Probe, shuffled_labels, train
from lib.engine.tensors import ImageTokens
from lib.engine.vlm import VLM
from lib.stimuli import token_sets
from lib.stimuli.grids import Grid
from lib.stimuli.questions import DIRECTIONS, ORIENTATION, line_item

# --- the map and its strips -----------------------------------------------------------------------------------


def order_probe(pictures: Lines, images, recipe: str = "adamw", shuffled: int | None = None, seed: int = 0) -> Probe:
    """The probe for ordinal place on the object tokens of some images; shuffled: a seed for dealing labels anew."""
    rows = pictures.objects.rows(np.isin(pictures.objects.image, images))
    labels = rows.place if shuffled is None else shuffled_labels(rows, shuffled)
    return train(rows.x, labels, 3, recipe, seed)


def random_probe(like: Probe, seed: int) -> Probe:
    """A probe of random directions, each as long as the one it stands for; no bias."""
    weight = torch.randn(like.weight.shape, generator=torch.Generator().manual_seed(seed))
    return Probe(weight * like.weight.norm(dim=0) / weight.norm(dim=0), torch.zeros_like(like.bias))


def token_maps(probe: Probe, images: ImageTokens) -> Float[np.ndarray, "image token label"]:
    """Class probabilities of every token of every image; their mean over images is `probes.maps`."""
    return probe.probabilities(images).cpu().numpy()


def lengthwise(maps: Float[np.ndarray, "image token label"], orientation: str) -> np.ndarray:
    """The maps with the axis of the line along the columns: those of columns are transposed, so that maps of both
    orientations can be averaged token by token."""
    if orientation == "horizontal":
        return maps
    side = round(maps.shape[1] ** 0.5)
    return maps.reshape(len(maps), side, side, -1).swapaxes(1, 2).reshape(maps.shape)


def strip_of(grid: Grid, orientation: str) -> Int[np.ndarray, " token"]:
    """The strip of every token: its *absolute* place on the canvas."""
    out = np.empty(grid.side**2, dtype=int)
    for slot in range(3):
        out[token_sets.strip_tokens(grid, orientation, slot)] = slot
    return out


def strip_score(
    values: Float[np.ndarray, "... token label"], strip: Int[np.ndarray, " token"]
) -> Float[np.ndarray, " ..."]:
    """Share of a map's variance over tokens that lies between strips: 1 for a perfect strip map, near 0 for noise.

    The correlation ratio (eta squared; Fisher 1925): between-strip over total sum of squares, both summed over
    labels; 0 for a flat map, which has no strips. It does not say *which* place a strip is read as: see `agreement`.
    """
    centred = values - values.mean(-2, keepdims=True)
    member = (strip[:, None] == np.unique(strip)).astype(float)
    sums = np.einsum("...tl,ts->...sl", centred, member)
    between = (sums**2 / member.sum(0)[:, None]).sum((-2, -1))
    total = (centred**2).sum((-2, -1))
    flat = total <= 1e-12
    return np.where(flat, 0.0, between / np.where(flat, 1.0, total))


def agreement(values: Float[np.ndarray, "... token label"], strip: Int[np.ndarray, " token"]) -> np.ndarray:
    """Share of tokens of a map whose most probable place is that of their own strip (one place everywhere: 1/3)."""
    return (values.argmax(-1) == strip).mean(-1)


def estimate(
    maps: Float[np.ndarray, "image map token label"], strip: Int[np.ndarray, " token"], seed: int = 0
) -> tuple[statistics.Estimate, float]:
    """The strip score of the map averaged over images (the mean over several maps of the same images), with its
    interval over whole images; and the score corrected for the noise that so few images leave in the map.

    Noise lowers a score, and resampled images are noisier than the images themselves: a bootstrap of the score would
    lie below it. So the spread comes from the delete-one jackknife (Efron and Tibshirani 1993, chapter 11): its
    pseudo-values, one per image, are resampled and their interval is centred on the score. Their mean is the
    bias-corrected score, an estimate for a map of very many images.
    """
    maps = np.asarray(maps, dtype=float)
    n, total = len(maps), maps.sum(0)
    score = float(strip_score(total / n, strip).mean())
    without = strip_score((total - maps) / (n - 1), strip).mean(-1)
    spread = statistics.mean(n * score - (n - 1) * without, seed=seed)
    low, high = (float(np.clip(bound - spread.value + score, 0, 1)) for bound in (spread.low, spread.high))
    return statistics.Estimate(score, low, high, n), spread.value


def permutation_null(
    values: Float[np.ndarray, "token label"], strip, resamples: int = 999, seed: int = 0
) -> np.ndarray:
    """Scores of the same map with its tokens dealt anew among the places: what strips there are by chance.

    The null supposes that neighbouring tokens are independent; a map that is merely smooth beats it. What smooth
    embeddings do by themselves is measured by `random_probe` and by the strips of the other axis.
    """
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(len(strip)), (resamples, 1)), axis=1)
    return strip_score(values[orders], strip)


def describe(
    maps: Float[np.ndarray, "image map token label"],
    grid: Grid,
    orientation: str,
    where: token_sets.Tokens,
    seed: int = 0,
) -> pd.DataFrame:
    """Two rows for the maps at the tokens `where`: scored by the strips of their own axis and by the other axis'.

    Columns axis (own, other), n (images), score, low, high, corrected, null_mean, p, agreement, agreement_low,
    agreement_high. Null and p are of the first map; agreement is that of single images, averaged.
    """
    other = {"horizontal": "vertical", "vertical": "horizontal"}[orientation]
    maps, rows = maps[:, :, where], []
    for axis, along in (("own", orientation), ("other", other)):
        strip = strip_of(grid, along)[where]
        (found, corrected), first = estimate(maps, strip, seed), maps[:, 0].mean(0)
        null, agrees = (
            permutation_null(first, strip, seed=seed),
            statistics.mean(agreement(maps, strip).mean(1), seed=seed),
        )
        row = {"axis": axis, "n": found.n, "score": found.value, "low": found.low, "high": found.high}
        row |= {"corrected": corrected, "null_mean": null.mean()}
        row |= {"p": statistics.rank_p(float(strip_score(first, strip)), null)}
        rows.append(row | {"agreement": agrees.value, "agreement_low": agrees.low, "agreement_high": agrees.high})
    return pd.DataFrame(rows)


def profile(maps: Float[np.ndarray, "image token label"], grid: Grid, orientation: str, where) -> pd.DataFrame:
    """Means over the tokens `where` of each column (row) along the axis: image, position, place, probability."""
    position = np.asarray(where) % grid.side if orientation == "horizontal" else np.asarray(where) // grid.side
    parts = []
    for at in range(grid.side):
        mean = maps[:, np.asarray(where)[position == at]].mean(1)
        frame = pd.DataFrame(mean).rename_axis(index="image", columns="place").stack().rename("probability")
        parts.append(frame.reset_index().assign(position=at))
    return pd.concat(parts, ignore_index=True)


# --- absolute or relative -------------------------------------------------------------------------------------


def relative_place(grid: Grid, orientation: str, shift: tuple[int, int] = (0, 0)) -> Int[np.ndarray, " token"]:
    """For every token the place in the line (0, 1, 2) of the object nearest along the axis; ties go to the earlier."""
    along = shift[1] if orientation == "horizontal" else shift[0]
    centres = np.array(grid.starts) + along + (grid.entity - 1) / 2
    nearest = np.abs(np.arange(grid.side)[:, None] - centres).argmin(1)
    row, column = np.divmod(np.arange(grid.side**2), grid.side)
    return nearest[column if orientation == "horizontal" else row]


def readings(probe: Probe, pictures: Lines) -> pd.DataFrame:
    """How tokens are read whose place in the line and whose place on the canvas differ.

    Columns image, part (object, background), relative, absolute, neither: shares of these tokens; relative dealt and
    absolute dealt: what the first two would be with the part's readings dealt at random over its tokens. No rows where
    the two places agree everywhere, as they do for lines that stand where probes are trained.
    """
    grid, axis = pictures.grid, pictures.orientation
    found = token_maps(probe, pictures.images).argmax(-1)
    relative, absolute = relative_place(grid, axis, pictures.shift), strip_of(grid, axis)
    outside = np.isin(np.arange(grid.side**2), pictures.background)
    parts = []
    for part, inside in (("object", ~outside), ("background", outside)):
        where = inside & (relative != absolute)
        if not where.any():
            continue
        as_relative = (found[:, where] == relative[where]).mean(1)
        as_absolute = (found[:, where] == absolute[where]).mean(1)
        shares = {"relative": as_relative, "absolute": as_absolute, "neither": 1 - as_relative - as_absolute}
        read = np.stack([(found[:, inside] == place).mean(1) for place in range(3)], 1)  # how often at all
        shares |= {"relative dealt": read[:, relative[where]].mean(1)}
        shares |= {"absolute dealt": read[:, absolute[where]].mean(1)}
        parts.append(pd.DataFrame({"image": np.arange(len(found)), "part": part, **shares}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["image", "part"])


def unseen_place(places: Sequence[Lines], left_out: int, recipe: str = "adamw", seed: int = 0) -> np.ndarray:
    """Share of object tokens whose place *in the line* is read right by probes trained on lines that stand elsewhere.

    places: the same triples at several places. Two folds over triples, so that neither the place nor the triples of
    the tested pictures were seen. A code of the place on the canvas fails here, one of the order does not. [image]
    """
    out = np.zeros(len(places[left_out].triples))
    for fold in range(2):
        others = [p.objects.rows(p.objects.image % 2 != fold) for k, p in enumerate(places) if k != left_out]
        probe = train(torch.cat([o.x for o in others]), np.concatenate([o.place for o in others]), 3, recipe, seed)
        tested = places[left_out].objects.rows(places[left_out].objects.image % 2 == fold)
        correct = probe.probabilities(tested.x).argmax(-1).numpy() == tested.place
        out[np.unique(tested.image)] = pd.Series(correct).groupby(tested.image).mean().sort_index()
    return out


def right(vlm: VLM, pictures: Lines) -> Float[np.ndarray, "image direction"]:
    """Does the model answer the two questions about each picture right (its most probable token of all)?"""
    asked = [d for d in DIRECTIONS if ORIENTATION[d] == pictures.orientation]
    items = [line_item(pictures.setting, vlm.grid, triple, d) for triple in pictures.triples for d in asked]
    index = np.repeat(np.arange(len(pictures.triples)), len(asked))
    words = [item.candidates for item in items]
    found = vlm.answer(pictures.images, [item.question for item in items], words, index, progress=False)
    return found.groupby("item")["is_top"].first().to_numpy(dtype=float).reshape(-1, len(asked))
