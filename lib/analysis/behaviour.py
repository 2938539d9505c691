"""Are the model's answers correct? Accuracy of the most probable next token (PROTOCOL.md 1; floor 3)."""

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

    top: the most probable token of the whole vocabulary; correct: it is a spelling of the answer. target, opposite,
    reference: probabilities of these roles; with more than three candidates opposite is the sum over all others.
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
    """One row per item: setting, direction (the true relation), split, item, correct_order1, correct_order2, correct.

    correct_order1: correct with the options in the usual order; correct_order2: with the options reversed; correct: in
    both orders (*strict*, chance 1/4). form: see `questions.side_question`, by default the paper's for this family.
    """
    pictures = [item.scene.image(vlm.grid.canvas) for item in items for _ in range(2)]
    texts = [text for item in items for text in item.questions(form or vlm.family.side_form)]
    answers = vlm.answer(pictures, texts, [item.candidates for item in items for _ in range(2)], progress=progress)
    correct = answers.groupby("item")["is_top"].first().to_numpy().reshape(-1, 2)
    return pd.DataFrame(
        {
            "setting": item.setting,
            "direction": item.relation,
            "split": "test",
            "item": number,
            "correct_order1": bool(correct[number, 0]),
            "correct_order2": bool(correct[number, 1]),
            "correct": bool(correct[number].all()),
        }
        for number, item in enumerate(items)
    )


def accuracy(
    table: pd.DataFrame, by: Sequence[str] = ("setting", "direction", "split"), column: str = "correct"
) -> pd.DataFrame:
    """Share of correct items in each cell of `by`, with Wilson's 95 % interval: by, n, accuracy, low, high."""
    rows = []
    for key, cell in table.groupby(list(by), sort=False):
        share = statistics.proportion(int(cell[column].sum()), len(cell))
        rows.append((*key, share.n, share.value, share.low, share.high))
    return pd.DataFrame(rows, columns=[*by, "n", "accuracy", "low", "high"])
