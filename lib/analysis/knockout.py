"""Attention knock-out: which image tokens the last token is cut off from (PROTOCOL.md 6; floor 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int

from lib.analysis.studies import Study, require_centred
from lib.patching.results import BASELINE
from lib.stimuli.token_sets import background, object_tokens, random_background


def reading_sets(study: Study, seed: int = 0) -> dict[str, Int[np.ndarray, "pair token"]]:
    """Sets of image tokens from which the last token may be cut off, one row per pair.

    target, opposite, middle: the tokens of that object; background; all; and as a control random: as many random
    background tokens as an object has. The lines must be centred.
    """
    require_centred(study.pairs)
    grid, out = study.vlm.grid, []
    rng = np.random.default_rng(seed)
    for pair in study.pairs:
        names = [entity.name for entity in pair.clean.entities]
        where = [object_tokens(grid, pair.orientation, names.index(word)) for word in pair.candidates]
        random = random_background(grid, pair.orientation, len(where[0]), rng)
        out.append((*where, background(grid, pair.orientation), np.arange(grid.side**2), random))
    names = ("target", "opposite", "middle", "background", "all", "random")
    return {name: np.stack(column) for name, column in zip(names, zip(*out, strict=True), strict=True)}


def layer_ranges(layers: int) -> list[range]:
    """Ranges of layers in which to cut: each layer alone, and from each layer to the last."""
    return [range(k, k + 1) for k in range(layers)] + [range(k, layers) for k in range(layers - 1)]


def probability_changes(table: pd.DataFrame, layers: int, role: str = "clean") -> pd.DataFrame:
    """What each cut of a knock-out sweep changes in the probability of a role, per pair.

    Columns of the sweep, and span (alone: one layer; onward: from that layer to the last) and change. The cut of the
    last layer belongs to both spans.
    """
    table = table[table["role"] == role]
    base = table[table["slot"] == BASELINE].set_index("pair")["probability"]
    cut = table[table["slot"] != BASELINE]
    cut = cut.assign(change=cut["probability"] - cut["pair"].map(base))
    parts = [cut[cut["stop"] == cut["slot"] + 1].assign(span="alone"), cut[cut["stop"] == layers].assign(span="onward")]
    return pd.concat(parts, ignore_index=True)
