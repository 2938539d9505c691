"""Surveys that stop when there are enough failures, weighted samples of them, and what was found with what power."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny

from lib.analysis import enhancement, enhancement_samples, statistics
from lib.errors import UserError
from lib.stimuli import questions, scenes


@pytest.fixture(scope="module")
def vlm():
    return tiny("reference")


def draw(vlm, n=30):
    def batch(number):
        many = questions.natural_questions(vlm.grid, scenes.HELD_OUT_PHOTOGRAPHS, n=n, seed=number, per_scene=20)
        return enhancement.one_axis_each(many, most=5)

    return batch


def test_a_survey_asks_until_every_axis_has_its_failures(vlm):
    """The random model answers nothing correctly, so the first batch is enough for few failures."""
    few = enhancement_samples.survey(vlm, draw(vlm), failures=3, batches=4)
    assert set(few["batch"]) == {0} and not few["correct"].any()
    many = enhancement_samples.survey(vlm, draw(vlm), failures=25, batches=4)
    asked = many.groupby(["axis", "batch"]).size().unstack(fill_value=0)
    for _, counts in asked.iterrows():
        before = np.cumsum([0, *counts])[: len(counts)]
        assert ((before < 25) == (counts > 0)).all(), "an axis is asked about as long as it lacks failures"
    assert set(enhancement_samples.survey(vlm, draw(vlm), failures=10**6, batches=2)["batch"]) == {0, 1}
    with pytest.raises(UserError, match="no items"):
        enhancement_samples.survey(vlm, lambda _: [], failures=1, batches=2)


def table(wrong=30, right=60):
    rows = [("horizontal", False)] * wrong + [("vertical", False)] * 2 * wrong
    rows += [("horizontal", True)] * right + [("vertical", True)] * right
    return pd.DataFrame(rows, columns=["axis", "correct"])


def test_weights_of_a_sample_add_up_to_the_whole():
    whole = table()
    part = enhancement_samples.sample(whole, failures=40, right=15, seed=1)
    keys = ["axis", "correct"]
    assert part.groupby(keys).size().tolist() == [30, 15, 40, 15]
    assert part.groupby(keys)["weight"].sum().tolist() == whole.groupby(keys).size().tolist()
    again = enhancement_samples.sample(part, failures=10, right=5, seed=2)
    assert again.groupby(keys)["weight"].sum().tolist() == pytest.approx(whole.groupby(keys).size().tolist())
    assert not enhancement_samples.sample(whole, failures=5, right=0)["correct"].any()
    assert part.index.is_monotonic_increasing and part.index.is_unique


def on_tokens(asked, values):
    """The run of items with other image tokens: [picture, token] for each axis, in a dimension of its own."""
    images = torch.zeros_like(asked.run.images)
    for k, each in enumerate(values):
        images[..., k] = torch.as_tensor(each).to(images)
    return replace(asked, run=replace(asked.run, images=images))


def test_a_code_of_place_fails_where_order_and_place_disagree_and_a_code_of_order_does_not(vlm):
    items = {
        item.key: item for item in draw(vlm, n=120)(0)
    }  # one item of each picture, or order would contradict itself
    asked = enhancement.item_run(vlm, list(items.values()))
    width, side = asked.run.images.shape[-1], vlm.grid.side
    directions = {axis: torch.zeros(2, width) for axis in ("horizontal", "vertical")}
    directions["horizontal"][1, 0] = directions["vertical"][1, 1] = 1.0
    nothing = on_tokens(asked, [])
    tokens = np.arange(side**2)
    place = on_tokens(asked, [tokens % side - (side - 1) / 2, tokens // side - (side - 1) / 2])
    ordered = np.zeros((len(asked.run.images), side**2))
    for item, picture in zip(asked.items, asked.picture, strict=True):
        for end, sign in zip(enhancement.end_tokens(item, vlm.grid), (-1, 1), strict=True):
            ordered[picture, end] = sign
    for code, in_conflict in ((place, 0), (on_tokens(asked, [ordered, ordered]), 1)):
        read = enhancement_samples.order_or_place(code, directions, nothing)
        assert set(read["axis"]) == set(directions) and 0 < read["conflict"].mean() < 1
        assert (read.loc[read["conflict"], "as_order"] == in_conflict).all()
        assert (read.loc[~read["conflict"], "as_order"] == 1).all()


def test_a_sampled_run_carries_its_weights_into_every_table(vlm):
    asked = enhancement_samples.survey(vlm, draw(vlm), failures=3, batches=1)
    asked["correct"] = np.arange(len(asked)) % 2 == 0
    chosen = enhancement_samples.sample(asked, failures=8, right=3)
    run = enhancement_samples.sampled_run(vlm, chosen)
    assert run.items == tuple(chosen["item"]) and run.weight.sum() == len(asked)
    rows = enhancement.sweep(run, {"order": enhancement.change(run, enhancement.order_directions(run))}, [1.0])
    assert np.allclose(rows.sort_values("item")["weight"], chosen["weight"])
    part = enhancement_samples.fewer(run, chosen, failures=2, right=2)
    assert len(part) == 8 and part.weight.sum() == pytest.approx(len(asked))
    assert set(part.items) < set(run.items)


def test_correct_agrees_with_the_sweep(reference):
    asked = enhancement.item_run(reference, draw(reference, n=60)(0))
    rows = enhancement.sweep(asked, {}, []).sort_values("item")
    assert (enhancement.correct(asked) == rows["after"]).all()


def tried(exact, sets):
    """Ten failures and two right items per axis: how many each condition repairs, in the order of items."""
    rows = []
    for axis in ("horizontal", "vertical"):
        for condition, repaired in {"exact": exact[axis], **{f"random {k}": n for k, n in enumerate(sets)}}.items():
            for item in range(12):
                after = item < repaired if item < 10 else False
                rows.append((condition, axis, 15.0, f"{axis}{item}", f"{axis}{item}", item >= 10, after))
    columns = ["condition", "axis", "alpha", "item", "scene", "before", "after"]
    return pd.DataFrame(rows, columns=columns).assign(p_before=0.1, p_after=0.5)


def test_each_axis_has_its_own_row_and_both_have_one():
    rows = tried({"horizontal": 8, "vertical": 2}, [2, 4])
    found = enhancement_samples.beyond_random(rows, "exact")
    assert list(found) == ["horizontal", "vertical", "both"]
    assert [round(found[name].value, 6) for name in found] == [0.5, -0.1, 0.2]
    assert [found[name].n for name in found] == [10, 10, 20]
    out = enhancement_samples.power_table(rows, found, "exact")
    shares = out.loc["horizontal", ["repaired", "random", "random_low", "random_high"]].tolist()
    assert shares == pytest.approx([0.8, 0.3, 0.2, 0.4])
    assert out["p"].tolist() == [pytest.approx(1 / 3), 1.0, pytest.approx(1 / 3)]
    for name, estimate in found.items():
        assert out.loc[name, "detectable"] == statistics.detectable(estimate)
    said = enhancement_samples.power_sentence("left-right", found["horizontal"], "reproduced")
    assert said.startswith("left-right: 10 failures; repaired beyond random +0.500") and "four cases of five" in said


def test_nothing_to_repair_is_said():
    rows = tried({"horizontal": 8, "vertical": 2}, [2, 4])
    found = enhancement_samples.beyond_random(rows[rows["before"]], "exact")
    assert found["both"].n == 0 and np.isnan(found["both"].value)
    assert enhancement_samples.power_table(rows[rows["before"]], found, "exact")["repaired"].isna().all()
    assert "nothing to repair" in enhancement_samples.power_sentence("both axes", found["both"], "not testable")
