"""Probe maps over background tokens: are they organised in strips? (PROTOCOL.md 3 and 8.6; floor 3: no files, no plots)

`strip_score` and its null distribution say whether a map has strips. Lines at other places than those the probe was
trained on tell the place in the line (relative) from the place on the canvas (absolute).

Image tokens are flat indices r * N + c. A token's *strip* is its place on the canvas: first, middle or last (0, 1, 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from lib.analysis import statistics
from lib.analysis.line_images import LineImages
from lib.analysis.probes import Probe, shuffled_labels, train
from lib.analysis.probes import score as probe_score
from lib.engine.tensors import ImageTokens
from lib.engine.vlm import VLM
from lib.stimuli import token_sets
from lib.stimuli.grids import Grid
from lib.stimuli.questions import DIRECTIONS, ORIENTATION, line_item
from lib.stimuli.scenes import entities

READABLE = 0.8  # share of object tokens on which a probe must be correct for its maps to mean anything
FLAT = 1e-5  # a map whose probabilities vary by less (root mean square) is flat: rounding in float32 reaches 1e-7

# --- the map and its strips -----------------------------------------------------------------------------------


def order_probe(lines: LineImages, images, recipe: str = "adamw", shuffled: int | None = None, seed: int = 0) -> Probe:
    """The probe of the ordinal place, trained on the object tokens of some images.

    shuffled: the seed of shuffled training labels; None keeps the true ones.
    """
    rows = lines.objects.rows(np.isin(lines.objects.image, images))
    labels = rows.place if shuffled is None else shuffled_labels(rows, shuffled)
    return train(rows.x, labels, 3, recipe, seed)


def random_probe(like: Probe, seed: int) -> Probe:
    """A probe of random directions, each as long as the one it replaces, without bias."""
    weight = torch.randn(like.weight.shape, generator=torch.Generator().manual_seed(seed))
    return Probe(weight * like.weight.norm(dim=0) / weight.norm(dim=0), torch.zeros_like(like.bias))


def token_maps(probe: Probe, images: ImageTokens) -> Float[np.ndarray, "image token label"]:
    """Class probabilities of every token of every image; their mean over images is the strip map of PROTOCOL.md 3."""
    return probe.probabilities(images).cpu().numpy()


def mean_maps(maps: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Maps [image, token, label] averaged over images: columns token, first, middle, last, and map (its name)."""
    places = ["first", "middle", "last"]
    means = [pd.DataFrame(found.mean(0), columns=places).assign(map=name) for name, found in maps.items()]
    return pd.concat(means).rename_axis("token").reset_index()


def control_maps(
    lines: LineImages, probe: Probe, training, testing, shuffles: int, random_probes: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Maps [image, map, token, label] of the test pictures by probes that cannot know the order.

    shuffled: trained like the order probe `probe`, on shuffled labels. random: of random directions in its place.
    """
    probes = {
        "shuffled": [order_probe(lines, training, shuffled=seed + k, seed=seed) for k in range(shuffles)],
        "random": [random_probe(probe, seed + k) for k in range(random_probes)],
    }
    images = lines.images[testing]
    return {name: np.stack([token_maps(p, images) for p in each], 1) for name, each in probes.items()}


def unseen_entities(
    vlm: VLM, setting: str, orientation: str, bare: ImageTokens, seed: int = 0
) -> tuple[Float[np.ndarray, "image token label"], Float[np.ndarray, "bare_map token label"]]:
    """Maps of pictures whose entities the probe never saw, and the same probes' maps of pictures without objects.

    Two probes, each trained on pictures of one half of the setting's entities, read the pictures of the other half. The
    first half of the maps is the first probe's, in both arrays, as `unseen_beyond_bare` wants it.
    """
    halves = np.array_split(np.random.default_rng(seed).permutation(entities(setting, vlm.grid)), 2)
    drawn = [LineImages.of(vlm, setting, list(permutations(half, 3)), orientation) for half in halves]
    probes = [order_probe(lines, range(len(lines.triples)), seed=seed) for lines in drawn]
    maps = [token_maps(probe, lines.images) for probe, lines in zip(probes, drawn[::-1], strict=True)]
    return np.concatenate(maps), np.concatenate([token_maps(probe, bare) for probe in probes])


def as_horizontal(maps: Float[np.ndarray, "image token label"], orientation: str) -> np.ndarray:
    """The maps as those of a horizontal line: maps of vertical lines are transposed.

    Maps of both orientations can then be averaged token by token.
    """
    if orientation == "horizontal":
        return maps
    side = round(maps.shape[1] ** 0.5)
    return maps.reshape(len(maps), side, side, -1).swapaxes(1, 2).reshape(maps.shape)


def both_axes(
    found: Mapping[str, tuple[np.ndarray, np.ndarray]], where: token_sets.Tokens
) -> tuple[Float[np.ndarray, "image axis token label"], Float[np.ndarray, "bare_map axis token label"]]:
    """Maps of lines of both orientations, those of columns turned on their side, at the tokens `where` of a row.

    found: for each orientation maps [image, token, label], and maps of pictures without objects.
    """
    turned = [[as_horizontal(maps, axis)[:, where] for maps in pair] for axis, pair in found.items()]
    shown, bare = (np.stack(each, axis=1) for each in zip(*turned, strict=True))
    return shown, bare


def strip_index(grid: Grid, orientation: str) -> Int[np.ndarray, " token"]:
    """The strip (0, 1, 2) of every token: its *absolute* place on the canvas."""
    out = np.empty(grid.side**2, dtype=int)
    for place in range(3):
        out[token_sets.strip_tokens(grid, orientation, place)] = place
    return out


def strip_score(
    values: Float[np.ndarray, "... token label"], strip: Int[np.ndarray, " token"]
) -> Float[np.ndarray, " ..."]:
    """Share of a map's variance over tokens that lies between strips: 1 for a perfect strip map, near 0 for noise.

    The correlation ratio (eta squared; Fisher 1925): between-strip over total sum of squares, both summed over
    labels; 0 for a flat map, which has no strips. Which place a strip is read as is the question of `agreement`.
    """
    values = np.asarray(values, dtype=float)  # the mean of a flat map in float32 leaves residue that scores near 1
    centred = values - values.mean(-2, keepdims=True)
    member = (strip[:, None] == np.unique(strip)).astype(float)
    sums = np.einsum("...tl,ts->...sl", centred, member)
    between = (sums**2 / member.sum(0)[:, None]).sum((-2, -1))
    total = (centred**2).sum((-2, -1))
    flat = total <= FLAT**2 * values[..., 0].shape[-1]
    return np.where(flat, 0.0, between / np.where(flat, 1.0, total))


def agreement(values: Float[np.ndarray, "... token label"], strip: Int[np.ndarray, " token"]) -> np.ndarray:
    """Share of a map's tokens whose most probable place is their own strip (1/3 if all tokens get the same place)."""
    return (values.argmax(-1) == strip).mean(-1)


def strip_score_estimate(
    maps: Float[np.ndarray, "image map token label"], strip: Int[np.ndarray, " token"], seed: int = 0
) -> tuple[statistics.Estimate, float]:
    """Strip score of the map averaged over images, with its interval over whole images, and the corrected score.

    Of several maps of the same images the mean score counts. Noise lowers a score, and resampled images are noisier
    than the images themselves, so that a bootstrap of the score would lie below it. The spread therefore comes from
    the delete-one jackknife (Efron and Tibshirani 1993, chapter 11): its pseudo-values, one per image, are resampled
    and their interval is centred on the score. Their mean is the corrected score: free of the bias that the noise of
    few images brings, it estimates the score of a map of very many images.
    """
    maps = np.asarray(maps, dtype=float)
    n, total = len(maps), maps.sum(0)
    score = float(strip_score(total / n, strip).mean())
    without = strip_score((total - maps) / (n - 1), strip).mean(-1)
    spread = statistics.mean(n * score - (n - 1) * without, seed=seed)
    low, high = (float(np.clip(bound - spread.value + score, 0, 1)) for bound in (spread.low, spread.high))
    return statistics.Estimate(score, low, high, n), spread.value


def beyond_bare(
    maps: Float[np.ndarray, "image map token label"],
    bare: Float[np.ndarray, "... token label"],
    strip: Int[np.ndarray, " token"],
    seed: int = 0,
) -> statistics.Estimate:
    """Strip score of maps, minus the mean score of the same probes' maps of a picture without objects (C3)."""
    found, _ = strip_score_estimate(maps, strip, seed)
    without = float(strip_score(bare, strip).mean())
    return statistics.Estimate(found.value - without, found.low - without, found.high - without, found.n)


def unseen_beyond_bare(
    maps: Float[np.ndarray, "image map token label"],
    bare: Float[np.ndarray, "... token label"],
    strip: Int[np.ndarray, " token"],
    seed: int = 0,
) -> statistics.Estimate:
    """The same for two probes, each of which read one half of the pictures: the mean of both, each scored alone.

    maps: the first probe's pictures, then as many of the second's. bare: maps [bare_map, ...] of the first probe, then
    of the second.
    The interval is the mean of both intervals, which is rather too wide than too narrow.
    """
    halves = zip(np.split(maps, 2), np.split(bare, 2), strict=True)
    both = [beyond_bare(shown, without, strip, seed) for shown, without in halves]
    value, low, high = (np.mean([getattr(each, key) for each in both]) for key in ("value", "low", "high"))
    return statistics.Estimate(float(value), float(low), float(high), sum(each.n for each in both))


def strips_in_words(verdicts: Mapping[str, str], readable: Mapping[str, float]) -> str:
    """A sentence per setting: the verdict on its strips, and whether the probe is good enough for one.

    readable: by setting, the share of object tokens of test pictures on which the probe is correct.
    """
    doubt = " (the probe is correct on only {:.2f} of object tokens: a better probe might find strips that it misses)"
    doubts = {name: "" if share >= READABLE else doubt.format(share) for name, share in dict(readable).items()}
    return "\n".join(f"Strips on white, {name}: {verdict}{doubts[name]}." for name, verdict in verdicts.items())


def permutation_null(
    values: Float[np.ndarray, "token label"], strip, resamples: int = 999, seed: int = 0
) -> np.ndarray:
    """Scores of the same map with its tokens permuted: the strips that arise by chance.

    The null assumes that neighbouring tokens are independent, so that a map that is merely smooth exceeds it. What
    smoothness alone gives is measured by `random_probe` and by the strips of the other axis.
    """
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(len(strip)), (resamples, 1)), axis=1)
    return strip_score(values[orders], strip)


def score_rows(
    maps: Float[np.ndarray, "image map token label"],
    grid: Grid,
    orientation: str,
    where: token_sets.Tokens,
    seed: int = 0,
) -> pd.DataFrame:
    """Two rows for the maps at the tokens `where`: scored by the strips of their own axis and of the other axis.

    Columns axis (own, other), n (images), score, low, high, corrected, null_mean, p, agreement, agreement_low,
    agreement_high. null_mean and p belong to the first map; agreement is the mean over single images.
    """
    other = {"horizontal": "vertical", "vertical": "horizontal"}[orientation]
    maps, rows = maps[:, :, where], []
    for axis, along in (("own", orientation), ("other", other)):
        strip = strip_index(grid, along)[where]
        (found, corrected), first = strip_score_estimate(maps, strip, seed), maps[:, 0].mean(0)
        null = permutation_null(first, strip, seed=seed)
        agrees = statistics.mean(agreement(maps, strip).mean(1), seed=seed)
        row = {"axis": axis, "n": found.n, "score": found.value, "low": found.low, "high": found.high}
        row |= {"corrected": corrected, "null_mean": null.mean()}
        row |= {"p": statistics.rank_p(float(strip_score(first, strip)), null)}
        rows.append(row | {"agreement": agrees.value, "agreement_low": agrees.low, "agreement_high": agrees.high})
    return pd.DataFrame(rows)


def profile(maps: Float[np.ndarray, "image token label"], grid: Grid, orientation: str, where) -> pd.DataFrame:
    """Mean class probabilities over the tokens `where` of each column (horizontal) or row (vertical) of the grid.

    Columns image, place, probability, position (number of the column or row).
    """
    position = np.asarray(where) % grid.side if orientation == "horizontal" else np.asarray(where) // grid.side
    parts = []
    for at in range(grid.side):
        mean = maps[:, np.asarray(where)[position == at]].mean(1)
        frame = pd.DataFrame(mean).rename_axis(index="image", columns="place").stack().rename("probability")
        parts.append(frame.reset_index().assign(position=at))
    return pd.concat(parts, ignore_index=True)


# --- place in the line (relative) or place on the canvas (absolute) -------------------------------------------


def nearest_place(grid: Grid, orientation: str, shift: tuple[int, int] = (0, 0)) -> Int[np.ndarray, " token"]:
    """For every token the place in the line (0, 1, 2) of the object nearest along the axis; of two, the earlier one."""
    along = shift[1] if orientation == "horizontal" else shift[0]
    centres = np.array(grid.starts) + along + (grid.entity - 1) / 2
    nearest = np.abs(np.arange(grid.side)[:, None] - centres).argmin(1)
    row, column = np.divmod(np.arange(grid.side**2), grid.side)
    return nearest[column if orientation == "horizontal" else row]


def readings(probe: Probe, lines: LineImages) -> pd.DataFrame:
    """Which place the probe predicts for tokens whose place in the line and place on the canvas differ.

    Columns image, part (object, background), and shares of the part's tokens: relative (predicted as their place in
    the line), absolute (as their place on the canvas), neither; relative_shuffled and absolute_shuffled are the shares
    to be expected if the part's predictions were shuffled over its tokens. No rows where the two places agree
    everywhere, as they do for lines at the place where probes are trained.
    """
    grid, axis = lines.grid, lines.orientation
    found = token_maps(probe, lines.images).argmax(-1)
    relative, absolute = nearest_place(grid, axis, lines.shift), strip_index(grid, axis)
    outside = np.isin(np.arange(grid.side**2), lines.background)
    parts = []
    for part, inside in (("object", ~outside), ("background", outside)):
        where = inside & (relative != absolute)
        if not where.any():
            continue
        as_relative = (found[:, where] == relative[where]).mean(1)
        as_absolute = (found[:, where] == absolute[where]).mean(1)
        shares = {"relative": as_relative, "absolute": as_absolute, "neither": 1 - as_relative - as_absolute}
        frequency = np.stack([(found[:, inside] == place).mean(1) for place in range(3)], 1)  # of each prediction
        shares |= {"relative_shuffled": frequency[:, relative[where]].mean(1)}
        shares |= {"absolute_shuffled": frequency[:, absolute[where]].mean(1)}
        parts.append(pd.DataFrame({"image": np.arange(len(found)), "part": part, **shares}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["image", "part"])


def lone_readings(vlm: VLM, probe: Probe, setting: str, orientation: str) -> pd.DataFrame:
    """What a probe of the ordinal place says of entities that stand alone in each of the three places.

    One row per picture and reading: image, place, read (0 first, 1 middle, 2 last), share (of the object's tokens). An
    entity alone is first, middle and last at once: a probe of order alone has no reason to prefer its own place.
    """
    alone = [
        tuple(e if k == place else None for k in range(3)) for e in entities(setting, vlm.grid) for place in range(3)
    ]
    objects = LineImages.of(vlm, setting, alone, orientation).objects
    said = probe.probabilities(objects.x).argmax(-1).cpu().numpy()
    rows = pd.DataFrame({"image": objects.image, "place": objects.place})
    parts = [rows.assign(read=k, share=(said == k).astype(float)) for k in range(3)]
    return pd.concat(parts).groupby(["image", "place", "read"], as_index=False)["share"].mean()


def unseen_place(places: Sequence[LineImages], left_out: int, recipe: str = "adamw", seed: int = 0) -> np.ndarray:
    """Share of object tokens [image] whose place *in the line* is predicted by probes trained on lines elsewhere.

    places: the same triples at several places of the canvas. Two folds over triples, so that neither the place nor the
    triples of the tested pictures have been seen. A code of the place on the canvas fails here, a code of order does
    not.
    """
    out = np.zeros(len(places[left_out].triples))
    for fold in range(2):
        others = [p.objects.rows(p.objects.image % 2 != fold) for k, p in enumerate(places) if k != left_out]
        probe = train(torch.cat([o.x for o in others]), np.concatenate([o.place for o in others]), 3, recipe, seed)
        tested = places[left_out].objects.rows(places[left_out].objects.image % 2 == fold)
        correct = probe.probabilities(tested.x).argmax(-1).numpy() == tested.place
        out[np.unique(tested.image)] = pd.Series(correct).groupby(tested.image).mean().sort_index()
    return out


def correct_answers(vlm: VLM, lines: LineImages) -> Float[np.ndarray, "image direction"]:
    """Whether the model answers the two questions about each picture correctly (its most probable token of all)."""
    directions = [d for d in DIRECTIONS if ORIENTATION[d] == lines.orientation]
    items = [line_item(lines.setting, vlm.grid, triple, d) for triple in lines.triples for d in directions]
    index = np.repeat(np.arange(len(lines.triples)), len(directions))
    words = [item.candidates for item in items]
    found = vlm.answer(lines.images, [item.question for item in items], words, index, progress=False)
    return found.groupby("item")["is_top"].first().to_numpy(dtype=float).reshape(-1, len(directions))


def shares_at_place(vlm: VLM, probe: Probe, places: Sequence[LineImages], number: int, seed: int = 0) -> pd.DataFrame:
    """What is read from lines at one place of the canvas, and answered: columns image, measure, value (a share).

    places: the same triples at several places; number: the one that counts. Measures: of object tokens, those whose
    place in the line is predicted by the probe of the usual place (`probe`) and by a probe of all other places; correct
    answers; and `readings` of tokens in conflict, where there are any.
    """
    lines = places[number]
    shares = {
        "probe of the usual place": np.array(probe_score(probe, lines.objects).groupby("image")["correct"].mean()),
        "probe of all other places": unseen_place(places, number, seed=seed),
        "correct answers": correct_answers(vlm, lines).mean(1),
    }
    table = pd.DataFrame(shares).rename_axis("image").reset_index().melt("image", var_name="measure")
    read = readings(probe, lines)
    if read.empty:
        return table
    read = read.melt(["image", "part"], var_name="reading")
    read["measure"] = read.pop("part") + " tokens read as " + read.pop("reading")
    return pd.concat([table, read], ignore_index=True)
