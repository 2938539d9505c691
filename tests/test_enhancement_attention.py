"""Attention to image tokens with scaled logits: a factor of 1 changes nothing, others the logits and nothing else."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny

from lib.analysis import enhancement, enhancement_attention, head_attention
from lib.engine.hooks import hooks
from lib.errors import UserError
from lib.stimuli import questions, scenes


@pytest.fixture(scope="module", params=["reference", "qwen2-vl", "gemma-3", "pixtral"])
def asked(request):
    vlm = tiny(request.param)
    many = questions.natural_questions(vlm.grid, scenes.HELD_OUT_PHOTOGRAPHS, n=12, seed=1, per_scene=4)
    many = [item for item in many if item.orientation == "horizontal"][:4]
    return enhancement.item_run(vlm, many, "reference_point")


@pytest.mark.parametrize("reader", enhancement_attention.READERS)
def test_a_factor_of_one_changes_nothing_and_others_do(asked, reader):
    route = enhancement_attention.scaled_answers(asked, [1.0], reader)
    pairs = route.pivot_table(index="question", values="probability", aggfunc=["min", "max"])
    assert len(route) == 2 * len(asked.run)
    assert (pairs["max"] - pairs["min"]).to_numpy().max() < 1e-5
    plain = enhancement.sweep(asked, {}, []).set_index("item")["p_after"]
    assert np.allclose(route.groupby("item")["probability"].mean(), plain.sort_index(), atol=1e-5)
    far = enhancement_attention.scaled_answers(asked, [0.0, 8.0], reader).pivot(
        index="question", columns="alpha", values="probability"
    )
    assert (far.max(axis=1) - far.min(axis=1)).max() > 1e-5


def test_logits_are_multiplied_within_the_image_and_left_alone_elsewhere(asked):
    """In the first layer, where the last token is the same: log ratios of weights between image tokens grow by the
    factor, those between text tokens stay."""
    language, factor = asked.vlm.language, 1.7
    frame = language.frames(asked.run.prompt)[0]
    group, seen = frame.groups[0], []
    rows = np.arange(len(group.rows))
    images = asked.run.images[asked.run.index[group.rows.numpy()]]
    past = language.prefill(frame, images).keys
    read = (language.layers[0].self_attn, "after", lambda module, args, output: seen.append(output[1].double()))
    for keys in (past, enhancement_attention.scaled(past, frame.image, factor)):
        with head_attention.weights_returned(language), hooks(read):
            language.ask(frame, group, rows, keys, mask=head_attention._additive(asked.vlm.dtype))
    plain, changed = (weights[:, :, -1].log() for weights in seen)
    text = torch.tensor([k for k in range(group.plan.length) if k not in set(frame.image.tolist())])
    for columns, expected in ((frame.image, factor), (text, 1.0)):
        visible = plain[..., columns].isfinite()  # a sliding window may hide the rest
        top = plain[..., columns].argmax(-1, keepdim=True)
        before, after = ((x[..., columns] - x[..., columns].gather(-1, top))[visible] for x in (plain, changed))
        assert torch.allclose(after, expected * before, atol=1e-3)


def test_an_unknown_reader_is_refused(asked):
    with pytest.raises(UserError, match="reader"):
        enhancement_attention.scaled_answers(asked, [2.0], "first")


def answers():
    """Forty items, two questions each: the unsure half (confidence .55) is right at .5 alone, the sure half at 1.2."""
    rows = []
    for question in range(80):
        unsure = question % 4 < 2
        for factor in (1.0, 0.5, 0.8, 1.2, 1.5, 2.0):
            right = factor == 0.5 if unsure else factor in (1.0, 1.2)
            rows.append((question, question // 2, question // 4, factor, right, 0.55 if unsure else 0.95))
    table = pd.DataFrame(rows, columns=["question", "item", "scene", "alpha", "right", "confidence"])
    return table.assign(axis="horizontal", weight=1.0, probability=0.5)


def test_items_are_right_in_both_orders():
    table = answers()
    table.loc[(table["question"] == 1) & (table["alpha"] == 0.5), "right"] = False
    items = enhancement_attention.as_items(table, "spread")
    half = items[items["alpha"] == 0.5].set_index("item")
    assert not half.loc[0, "after"] and half.loc[2, "after"] and not half.loc[1, "after"]
    assert half["before"].tolist() == [False, True] * 20 and set(items["alpha"]) == {0.5, 0.8, 1.2, 1.5, 2.0}
    assert enhancement.score(items).set_index("alpha").loc[1.2, "net"] == 0


def test_adaptive_takes_the_factor_that_suits_the_confidence():
    found = enhancement_attention.adaptive(answers())
    assert found["after"].all() and found["before"].mean() == 0.5 and sorted(found["item"]) == list(range(40))
    assert set(found["unsure"]) == {0.5} and set(found["sure"]) == {1.2}
