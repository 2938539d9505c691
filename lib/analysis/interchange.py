"""Interchange of regions of image tokens, between two runs or within one (PROTOCOL.md 4; floor 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.analysis.studies import Study, require_centred
from lib.patching.edits import Interchange, swap
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


DOSES = {  # options of `partial_strips`
    "object": {},
    "background_strip": {"objects": False},
    "random": {"scattered": True},
    "random_alone": {"objects": False, "scattered": True},
}


def dose_edits(study: Study, counts: Sequence[int], draws: int, seed: int = 0) -> dict[str, Interchange]:
    """Interchanges of more and more background tokens, and of whole parts in place; `by_dose` reads their names.

    For each kind of DOSES and each count an interchange with so many background tokens, drawn `draws` times where there
    is a choice; then `in_place` for the background, the objects and both.
    """
    every = strip_background_size(study.vlm.grid)
    edits = {
        f"{region} {count} {draw}": partial_strips(study, count, seed=seed + draw, **options)
        for region, options in DOSES.items()
        for count in counts
        for draw in range(draws if 0 < count < every else 1)
    }
    return edits | {f"in_place_{part} 0 0": in_place(study, part) for part in ("background", "object", "both")}


def by_dose(table: pd.DataFrame) -> pd.DataFrame:
    """A sweep of `dose_edits` with columns region, tokens and draw: "none", -1 and -1 for the unpatched runs."""
    names = table["edit"].where(table["edit"] != "none", "none -1 -1").str.split(" ", expand=True)
    return table.assign(region=names[0], tokens=names[1].astype(int), draw=names[2].astype(int))


def strip_background_size(grid: Grid) -> int:
    """How many background tokens an outer strip has: the largest `count` of `partial_strips`."""
    return len(token_sets.background_strip(grid, "horizontal", 0))
