"""Attention knock-out: which image tokens the last token is cut off from (PROTOCOL.md 6; floor 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int

from lib.analysis.studies import Study, centred
from lib.patching.interventions import (
    BASELINE,
)
from lib.stimuli.token_sets import background, object_tokens, random_background


def reading_sets(study: Study, seed: int = 0) -> dict[str, Int[np.ndarray, "pair token"]]:
    """Image tokens that the last token may read: those of target, opposite and middle object, the background, all, and,
    as a control, as many random background tokens as an object has."""
    centred(study.pairs)
    grid, out = study.vlm.grid, []
    rng = np.random.default_rng(seed)
    for pair in study.pairs:
        names = [entity.name for entity in pair.clean.entities]
        where = [object_tokens(grid, pair.orientation, names.index(word)) for word in pair.candidates]
        random = random_background(grid, pair.orientation, len(where[0]), rng)
        out.append((*where, background(grid, pair.orientation), np.arange(grid.side**2), random))
    names = ("target", "opposite", "middle", "background", "all", "random")
    return {name: np.stack(column) for name, column in zip(names, zip(*out, strict=True), strict=True)}


def spans(layers: int) -> list[range]:
    """Ranges of layers to cut: each alone, and from each one to the end."""
    return [range(k, k + 1) for k in range(layers)] + [range(k, layers) for k in range(layers - 1)]


def knocked_out(table: pd.DataFrame, layers: int, role: str = "clean") -> pd.DataFrame:
    """A knock-out sweep as change of a probability per pair: pair, edit, slot, span (alone, onward), change.

    The last layer alone belongs to both spans.
    """
    table = table[table["role"] == role]
    base = table[table["slot"] == BASELINE].set_index("pair")["probability"]
    cut = table[table["slot"] != BASELINE]
    cut = cut.assign(change=cut["probability"] - cut["pair"].map(base))
    parts = [cut[cut["stop"] == cut["slot"] + 1].assign(span="alone"), cut[cut["stop"] == layers].assign(span="onward")]
    return pd.concat(parts, ignore_index=True)
