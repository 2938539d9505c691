"""Fingerprint and ladder of a model in a few numbers, to put models side by side (PROTOCOL.md 9.6)."""

from __future__ import annotations

import pandas as pd

from lib.analysis import fingerprint, ladder, statistics, studies
from lib.engine.vlm import VLM
from lib.stimuli.pairs import mirrored_pairs


def mechanism(vlm: VLM, setting: str = "squares", n: int = 10, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rivals at slot 0 and what the ladder leaves, on n pairs per direction of centred lines.

    Returns `fingerprint.rival_table` without its checks, and per axis: setting, orientation, intact (accuracy), n,
    correct, total, accuracy, low, high after the ladder's last step (the paper's ablation), as
    `published_counts.after_ablation` has it for true checkpoints, and named (`ladder.order_named`).
    """
    plain = studies.study(vlm, mirrored_pairs(setting, vlm.grid, n=n, seed=seed))
    rivals = fingerprint.rival_table(fingerprint.sweep(plain, fingerprint.RIVALS.values()), seed=seed)
    table = ladder.left({step: study for step, study in ladder.steps(plain).items() if step in ("intact", "middle")})
    rows = []
    for orientation, cell in table.groupby("orientation", sort=False):
        after, before = (cell[cell["step"] == step]["correct"] for step in ("middle", "intact"))
        share = statistics.proportion(int(after.sum()), len(after))
        named = ladder.order_named(cell, "middle", seed)
        rows.append(
            {
                "setting": setting,
                "orientation": orientation,
                "intact": before.mean(),
                "correct": int(after.sum()),
                "total": len(after),
                "accuracy": share.value,
                "low": share.low,
                "high": share.high,
                "named": named.value,
                "named_low": named.low,
                "named_high": named.high,
                "names_neither": cell[cell["step"] == "middle"]["names_neither"].mean(),
            }
        )
    return rivals, pd.DataFrame(rows)
