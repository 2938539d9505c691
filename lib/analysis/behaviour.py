"""Does the model answer right? Accuracy of the most probable next token (floor 3)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lib.analysis import statistics
from lib.engine.vlm import VLM
from lib.stimuli.questions import Item, SideItem

# The paper's Table 1 (top-1 accuracy over all directions).
PAPER = {
    "squares": {"qwen2-vl-7b": 1.00, "gemma-3-4b": 0.98, "pixtral-12b": 0.60},
    "shapes": {"qwen2-vl-7b": 1.00, "gemma-3-4b": 0.99, "pixtral-12b": 0.55},
    "objects": {"qwen2-vl-7b": 1.00, "gemma-3-4b": 0.99, "pixtral-12b": 0.63},
}


def behaviour(vlm: VLM, items: Sequence[Item], progress: bool = True) -> pd.DataFrame:
    """One row per item: setting, direction, split, item, answer, top, correct, and the candidates' probabilities.

    correct: the most probable token of the whole vocabulary is a spelling of the answer (PROTOCOL.md 1). target,
    opposite, reference: probabilities of these roles; opposite is the sum over all others where there are more.
    """
    canvas = vlm.grid.canvas
    pictures = [item.scene.image(canvas) for item in items]
    words = [item.candidates for item in items]
    answers = vlm.answer(pictures, [item.question for item in items], words, progress=progress)
    return pd.DataFrame(
        {
            "setting": item.setting,
            "direction": item.direction,
            "split": item.split,
            "item": number,
            "answer": item.answer,
            "top": rows["top"].iloc[0],
            "correct": bool(rows["is_top"].iloc[0]),
            "target": rows["probability"].iloc[0],
            "opposite": rows["probability"].iloc[1:-1].sum(),
            "reference": rows["probability"].iloc[-1],
        }
        for (number, item), (_, rows) in zip(enumerate(items), answers.groupby("item"), strict=True)
    )


def side_behaviour(vlm: VLM, items: Sequence[SideItem], form: str = "", progress: bool = True) -> pd.DataFrame:
    """One row per item: setting, direction (the true relation), split, item, first, second, correct.

    form: see questions.side_question; by default the one the paper asks this family in.

    first, second: right with the options in the usual order and reversed; correct: in both (*strict*, chance 1/4).
    """
    pictures = [item.scene.image(vlm.grid.canvas) for item in items for _ in range(2)]
    texts = [text for item in items for text in item.questions(form or vlm.family.side_form)]
    answers = vlm.answer(pictures, texts, [item.candidates for item in items for _ in range(2)], progress=progress)
    right = answers.groupby("item")["is_top"].first().to_numpy().reshape(-1, 2)
    return pd.DataFrame(
        {
            "setting": item.setting,
            "direction": item.relation,
            "split": "test",
            "item": number,
            "first": bool(right[number, 0]),
            "second": bool(right[number, 1]),
            "correct": bool(right[number].all()),
        }
        for number, item in enumerate(items)
    )


def accuracy(
    table: pd.DataFrame, by: Sequence[str] = ("setting", "direction", "split"), column: str = "correct"
) -> pd.DataFrame:
    """Share of right items in each cell of `by`, with Wilson's 95 % interval: by, n, accuracy, low, high."""
    rows = []
    for key, cell in table.groupby(list(by), sort=False):
        share = statistics.proportion(int(cell[column].sum()), len(cell))
        rows.append((*key, share.n, share.value, share.low, share.high))
    return pd.DataFrame(rows, columns=[*by, "n", "accuracy", "low", "high"])
