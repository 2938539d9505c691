"""Interchange of regions of image tokens, between two runs or within one (PROTOCOL.md 4; floor 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.analysis.studies import Study, pictures, require_centred
from lib.patching.edits import Interchange, swap
from lib.patching.sweep import encoder_sweep, token_sweep
from lib.stimuli import token_sets
from lib.stimuli.grids import Grid
from lib.stimuli.token_sets import interchange_regions


def regions(
    study: Study, names: Sequence[str], own: bool = False, width: int | None = None, seed: int = 0
) -> dict[str, Interchange]:
    """For each name the interchange of the two outer regions (`token_sets.interchange_regions`) along each pair's axis.

    own=False: each region takes the *other* region's vectors from the counterfactual, its mirror image: the entity
    stays, its order code moves. own=True: the regions change places within the clean run: each entity moves together
    with its code. Random regions are drawn afresh for every pair. The lines must be centred.
    """
    require_centred(study.pairs)
    rng = np.random.default_rng(seed)
    out = {}
    for name in names:
        sets = [interchange_regions(study.vlm.grid, pair.orientation, name, width, rng) for pair in study.pairs]
        first, last = (np.stack(side) for side in zip(*sets, strict=True))
        out[name] = swap(first, last, own)
    return out


def interchange_sweep(
    study: Study,
    code: Sequence[str] = (),
    entity: Sequence[str] = (),
    slots=None,
    width: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Regions interchanged at slots of the language model: the rows of `token_sweep` with columns region and moves.

    code: regions whose order code moves; entity: regions whose entity moves (see `regions`).
    """
    edits = {("code", name): edit for name, edit in regions(study, code, False, width, seed).items()}
    edits |= {("entity", name): edit for name, edit in regions(study, entity, True, width, seed).items()}
    named = {"-".join(key): edit for key, edit in edits.items()}
    table = token_sweep(
        study.vlm, study.clean, named, study.ids, study.roles, study.other, study.labels, slots, progress
    )
    split = {"none": ("none", "none")} | {"-".join(key): key for key in edits}
    moves, region = zip(*table.pop("edit").map(split), strict=True)
    return table.assign(region=region, moves=moves)


def encoder_interchange_sweep(
    study: Study, code: Sequence[str], slots=None, seed: int = 0, progress: bool = False
) -> pd.DataFrame:
    """The same interchange on patches inside the image encoder, at encoder slots (one random region per axis)."""
    require_centred(study.pairs)
    images, orientations = pictures(study), study.labels["orientation"].to_numpy()
    parts = []
    for orientation in dict.fromkeys(orientations):
        rows = np.flatnonzero(orientations == orientation)
        part, rng = study.rows(rows), np.random.default_rng(seed)
        edits = {name: swap(*interchange_regions(study.vlm.grid, orientation, name, rng=rng)) for name in code}
        table = encoder_sweep(
            study.vlm, images, part.clean, part.other, edits, part.ids, part.roles, part.labels, slots, progress
        )
        parts.append(table.assign(pair=rows[table["pair"]]))
    table = pd.concat(parts, ignore_index=True).rename(columns={"edit": "region"})
    return table.assign(moves=np.where(table["region"] == "none", "none", "code"))


def same_content(study: Study, edit: Interchange) -> float:
    """Share of interchanged tokens whose patch of the picture looks the same before and after.

    On white scenes an interchange with the mirrored counterfactual must give 1: only the code moves. An edit that does
    not mirror, or does not cross the regions, gives less.
    """
    grid, images = study.vlm.grid, pictures(study)
    blocks = (grid.side, grid.pixels, grid.side, grid.pixels, -1)
    patches = [x if x is None else np.asarray(x.convert("RGB")).reshape(blocks).swapaxes(1, 2) for x in images]
    patches = [x if x is None else x.reshape(grid.side**2, -1) for x in patches]
    same = []
    for k in range(len(study)):
        target, source = (np.broadcast_to(x, (len(study), np.shape(x)[-1]))[k] for x in (edit.targets, edit.sources))
        origin = patches[study.clean.index[k] if edit.own else study.other[k]]
        same.append((patches[study.clean.index[k]][target] == origin[source]).all(-1))
    return float(np.mean(same))


# --- some tokens of a region ----------------------------------------------------------------------------------


def partial_strips(
    study: Study, count: int, objects: bool = True, scattered: bool = False, seed: int = 0
) -> Interchange:
    """Interchange of the outer objects and of `count` background tokens of their strips, drawn for each pair.

    With objects, count 0 is the interchange of objects, and the largest count (`strip_background_size`) that of whole
    strips. Without them, 0 changes nothing and the largest count is the interchange of background strips. scattered is
    a control: the background tokens of both sides are drawn from the whole canvas, so that they change places but do
    not go from one strip to the other.
    """
    require_centred(study.pairs)
    rng, grid = np.random.default_rng(seed), study.vlm.grid
    first, last = [], []
    for pair in study.pairs:
        inner = interchange_regions(grid, pair.orientation, "object")
        region = "random" if scattered else "background_strip"
        outer = interchange_regions(grid, pair.orientation, region, rng=rng)
        chosen = rng.permutation(len(outer[0]))[:count]
        kept = [np.concatenate([i, o[chosen]]) if objects else o[chosen] for i, o in zip(inner, outer, strict=True)]
        first.append(kept[0])
        last.append(kept[1])
    return swap(np.stack(first), np.stack(last))


def in_place(study: Study, part: str) -> Interchange:
    """Tokens of a part (`token_sets.PARTS`) become those of the counterfactual at the same place.

    Nothing moves: tokens of one picture stand among those of the other. "none" is the clean run, "both" the
    counterfactual run.
    """
    require_centred(study.pairs)
    sets = np.stack([token_sets.part_tokens(study.vlm.grid, pair.orientation, part) for pair in study.pairs])
    return Interchange(sets, sets)


def strip_background_size(grid: Grid) -> int:
    """How many background tokens an outer strip has: the largest `count` of `partial_strips`."""
    return len(token_sets.background_strip(grid, "horizontal", 0))
