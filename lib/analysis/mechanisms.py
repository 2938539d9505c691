"""Fingerprint and ladder of a model in a few numbers, to put models side by side (PROTOCOL.md 9.6)."""

from __future__ import annotations

import pandas as pd

from lib.analysis import fingerprint, ladder, statistics, studies
from lib.analysis.fingerprint import RIVALS
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


def by_recipe(rivals: pd.DataFrame) -> list[str]:
    """What the trainings of each recipe say: which source decides, one line per recipe with several trainings, and one
    for all others, of which a single training says nothing about the recipe.

    rivals: `rival_table` of models that were trained alike but for the seed (column model: NAME, NAME-seed1, ...).
    """
    decides = {
        key: fingerprint.winner({row.rival: (row.low, row.high) for row in cell.itertuples() if row.rival in RIVALS})
        for key, cell in rivals.groupby(["model", "orientation"], sort=False)
    }
    names = list(dict.fromkeys(rivals["model"]))
    trainings = {
        recipe: [x for x in names if x.split("-seed")[0] == recipe] for recipe in names if "-seed" not in recipe
    }
    lines = []
    for recipe, members in trainings.items():
        if len(members) > 1:
            said = [[decides[name, axis] for name in members] for axis in ("horizontal", "vertical")]
            agree = "they agree" if all(len(set(own)) == 1 for own in said) else "they do not agree"
            left_right, above_below = (", ".join(own) for own in said)
            lines.append(
                f"{recipe}, {len(members)} trainings: left-right {left_right}; above-below {above_below}: {agree}"
            )
    single = [recipe for recipe, members in trainings.items() if len(members) == 1]
    return [*lines, f"one training each, which says nothing about the recipe: {', '.join(single) or 'none'}"]
