"""A second remedy beside the amplification of directions: attention to the image, sharpened or spread out.

Chen et al. 2025, "Why is spatial reasoning hard for VLMs? An attention mechanism perspective on focus areas", multiply
the logits of the attention that the last token pays to image tokens by a factor, in all layers (ScalingVis): above 1
attention concentrates on what it favours already, below 1 it spreads out. AdaptVis takes a factor below 1 where the
model is unsure of its answer and one above 1 where it is sure.

A logit is a product of a query and a key, so the keys of image tokens times the factor give exactly these logits,
after position codes and normalisation; values stay as they are. This is not the same as adding log(factor) to the
logits, which would give the image more attention and leave its distribution over the image alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from torch import Tensor

from lib.analysis.enhancement import ItemRun
from lib.engine.keys_values import KeyValues
from lib.engine.tensors import pick
from lib.engine.vlm import VLM
from lib.errors import UserError, unknown
from lib.patching.results import Table
from lib.patching.routes import Route
from lib.patching.runs import Pairs
from lib.patching.sweep import run_pairs

READERS = ("last", "question")  # whose attention is scaled: the last token's, or that of all tokens of the question
FACTORS = (0.5, 0.8, 1.2, 1.5, 2.0)  # those that Chen et al. try
UNSURE, SURE = (0.5, 0.8), (1.2, 1.5, 2.0)  # those that AdaptVis chooses from on either side of its threshold
THRESHOLDS = (0.6, 0.7, 0.8, 0.9)  # of the probability of the likelier option; with two options it is rarely below 1/2


def scaled(past: KeyValues, image: Tensor, factor: float) -> KeyValues:
    """Keys and values in which the keys of image tokens are multiplied by a factor, in every layer."""
    out = KeyValues()
    for layer, (keys, values) in past.layers.items():
        keys = keys.clone()
        keys[:, :, image.to(keys.device)] *= factor
        out.layers[layer] = (keys, values)
    return out


class ScaledAttention(Route):
    """Attention from a question to the image tokens with its logits multiplied by each of some factors."""

    def __init__(self, vlm: VLM, pairs: Pairs, factors: Sequence[float], reader: str):
        super().__init__(vlm, pairs, {"edit": "none", "alpha": 1.0})
        if reader not in READERS:
            raise unknown("reader", reader, READERS)
        if self.language.plain_because:
            raise UserError(f"Attention of {vlm.name} cannot be scaled: {self.language.plain_because}.")
        self.factors, self.reader = factors, reader

    def batch(self, frame, units, parts):
        past = self.language.prefill(frame, pick(self.pairs.clean.images, units)).keys
        for group, part, row_of in parts:
            own, split = past.rows(row_of), group.plan.length - 1
            last, at = self.reader == "last", slice(-1, None)
            clean = self.language.ask(frame, group, part, own, capture=[0] if last else (), at=at, keep=last)
            versions = [(self.baseline("clean"), clean.last)]
            for factor in self.factors:
                if last:
                    before = scaled(clean.keys.first(split), frame.image, factor)
                    run = self.language.run(group.plan, clean.hidden[0], first=split, past=before)
                else:
                    run = self.language.ask(frame, group, part, scaled(own, frame.image, factor))
                columns = {"run": "patched", "slot": 0, "edit": self.reader, "alpha": float(factor)}
                versions.append((columns, run.last))
            yield group.rows[part].numpy(), versions


def scaled_answers(asked: ItemRun, factors: Sequence[float] = FACTORS, reader: str = "last") -> pd.DataFrame:
    """One row per question and factor, the unscaled run (factor 1) among them.

    Columns question (its row in the run), item, scene, axis, weight, alpha (the factor), right (the most probable token
    of the whole vocabulary is the answer), probability (of the answer), confidence (probability of the likelier
    candidate without scaling).
    """
    roles = tuple(f"candidate {k}" for k in range(asked.ids.shape[1]))
    results = Table(asked.vlm, asked.ids, roles, is_top=True)
    table = run_pairs(results, asked.run, None, lambda pairs: ScaledAttention(asked.vlm, pairs, factors, reader), False)
    plain = table[table["edit"] == "none"].groupby("pair")["probability"].max()
    out = table[table["role"] == roles[0]].rename(columns={"pair": "question", "is_top": "right"})
    item = asked.item_of[out["question"]]
    weight = np.ones(len(asked)) if asked.weight is None else asked.weight
    out = out.assign(item=item, scene=asked.scene[item], axis=asked.axis[item], weight=weight[item])
    out["confidence"] = out["question"].map(plain)
    columns = ["question", "item", "scene", "axis", "weight", "alpha", "right", "probability", "confidence"]
    return out[columns].reset_index(drop=True)


def as_items(answers: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Rows like those of `enhancement.sweep`, one per item and factor other than 1."""
    keys = ["item", "scene", "axis", "weight"]
    found = answers.groupby([*keys, "alpha"], sort=False).agg(after=("right", "all"), p_after=("probability", "mean"))
    found = found.reset_index()
    plain = found[found["alpha"] == 1].set_index("item")
    found = found[found["alpha"] != 1].assign(condition=condition)
    before, p_before = (plain[name].loc[found["item"]].to_numpy() for name in ("after", "p_after"))
    return found.assign(before=before, p_before=p_before).reset_index(drop=True)


def adaptive(answers: pd.DataFrame, seed: int = 0, folds: int = 2) -> pd.DataFrame:
    """Rows like those of `enhancement.sweep` when each question takes a factor by the model's confidence (AdaptVis).

    Threshold and both factors are chosen for strict accuracy on the other folds, which are of whole scenes. alpha: the
    threshold.
    """
    right = answers.pivot(index="question", columns="alpha", values="right")
    of_question = answers.drop_duplicates("question").set_index("question").loc[right.index]
    scenes = np.unique(of_question["scene"])
    fold_of = dict(zip(scenes, np.random.default_rng(seed).permutation(len(scenes)) % folds, strict=True))
    tried = {}
    for threshold, low, high in product(THRESHOLDS, UNSURE, SURE):
        if {low, high} <= set(right.columns):
            answer = np.where(of_question["confidence"] < threshold, right[low], right[high])
            rows = of_question.assign(before=right[1.0], after=answer)
            keys = ["item", "scene", "axis", "weight"]
            items = rows.groupby(keys, sort=False)[["before", "after"]].all().reset_index()
            tried[threshold, low, high] = items.assign(fold=items["scene"].map(fold_of), alpha=threshold)
    parts = []
    for fold in range(folds):
        others = {key: rows[rows["fold"] != fold] for key, rows in tried.items()}
        best = max(others, key=lambda key: (others[key]["after"] * others[key]["weight"]).sum())
        chosen = tried[best]
        parts.append(chosen[chosen["fold"] == fold].assign(unsure=best[1], sure=best[2]))
    return pd.concat(parts, ignore_index=True).assign(condition="adaptive")
