"""Components on a tiny random model: heads add up to attention, direct effects to the logits, the null to nothing."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny

from lib.analysis import components, head_attention, studies
from lib.engine import oracle
from lib.engine.hooks import hooks
from lib.patching.sites import ATTENTION
from lib.stimuli import pairs

EXACT = 1e-5


def study_of(vlm):
    return studies.study(vlm, pairs.mirrored_pairs("squares", vlm.grid, n=1))


@pytest.fixture(scope="module")
def swept(small):
    return components.patched(small)


def test_all_draws_of_the_null_of_a_pair_are_one_unit(small, swept, monkeypatch):
    """Their counterfactuals differ, so that each draw of a pair is about other pictures."""
    units, ratios = [], components.ratios

    def seen(table, seed=0, by=components.KEYS):
        units.append(table.groupby("pair")["couple"].nunique().max())
        return ratios(table, seed, by)

    nulls = components.with_same_answer(small, draws=2)
    assert nulls[0].labels["couple"].tolist() != nulls[1].labels["couple"].tolist()
    controls = {"null": [components.patched(null) for null in nulls]}
    monkeypatch.setattr(components, "ratios", seen)
    components._summary(small, swept, controls, "counterfactual", "probability", 0)
    assert units == [1, 1]


@pytest.mark.parametrize("family", ["reference", "qwen2-vl", "gemma-3"])
def test_all_heads_patched_together_are_the_attention_output(family):
    """At the last token, layer by layer: sets of heads by the route of the checks against the sweep's own site."""
    study = study_of(tiny(family))
    every = range(study.vlm.language.config.num_attention_heads)
    layers = range(len(study.vlm.layers))
    together = head_attention.patch_together(study, {str(k): [(k, head) for head in every] for k in layers})
    together = together[together["run"] == "patched"].astype({"edit": int}).sort_values(["edit", "pair", "role"])
    whole = components.patched(study, ["last"])
    whole = whole[(whole["site"] == ATTENTION.name) & (whole["run"] == "patched")].sort_values(["slot", "pair", "role"])
    assert np.abs(together["probability"].to_numpy() - whole["probability"].to_numpy()).max() < EXACT
    assert np.abs(whole.groupby("slot")["logit"].mean().diff().dropna()).max() > EXACT  # layers differ


@pytest.mark.parametrize("family", ["reference", "qwen2-vl", "gemma-3"])
def test_direct_effects_sum_to_the_difference_of_logits(family):
    study = study_of(tiny(family))
    found = components.direct(study)
    whole = found[~found["site"].str.startswith("head")].groupby("pair")["contribution"].sum()
    rows = study.baselines.query("run == 'clean'").pivot(index="pair", columns="role", values="logit")
    assert np.abs(whole - (rows["clean"] - rows["counterfactual"])).max() < 1e-4
    of_heads = found[found["site"].str.startswith("head")].groupby(["pair", "layer"])["contribution"].sum()
    attention = found[found["site"] == "attention"].groupby(["pair", "layer"])["contribution"].sum()
    assert np.abs(of_heads - attention).max() < 1e-4


def test_the_null_of_a_self_patch_is_nothing(small):
    same = components.replace(small, counterfactual=small.clean)
    table = components.patched(same)
    moved = components.effects.swing(table).pivot(index=["pair"], columns=["run", "token", "site", "layer"])["swing"]
    assert np.abs(moved["patched"].to_numpy() - moved["clean"].to_numpy()).max() < EXACT
    clean, source = components.states(same)
    assert components.patch_sizes(clean, source, "size")["size"].max() < EXACT


def test_the_null_has_the_clean_answer_and_the_length_of_the_patch(small):
    null, other = components.with_same_answer(small, draws=2)
    for pair, changed in zip(small.pairs, null.pairs, strict=True):
        assert changed.counterfactual.answer == pair.clean.answer
        assert changed.counterfactual.question == pair.clean.question
        assert changed.counterfactual.entities != pair.clean.entities
    assert [p.counterfactual.entities for p in null.pairs] != [p.counterfactual.entities for p in other.pairs]
    clean, source = components.states(small)
    long = components.stretched(clean, source, components.states(null)[1])
    for key, state in clean.items():
        assert torch.allclose((long[key] - state).norm(dim=-1), (source[key] - state).norm(dim=-1), atol=1e-4)


def test_given_states_of_the_counterfactual_run_are_its_patch(small, swept):
    given = components.patched_with(small, components.states(small)[1])
    keys = ["run", "token", "site", "layer", "pair", "role"]
    both = [rows.sort_values(keys)["probability"].to_numpy() for rows in (swept, given)]
    assert np.abs(both[0] - both[1]).max() < EXACT


def test_a_planted_difference_is_found(small, swept):
    """One head is made to carry everything: its rows of a sweep are those of the counterfactual run."""
    planted = swept.copy()
    here = (planted["token"] == "last") & (planted["site"] == "head 1") & (planted["layer"] == 2)
    other = planted[planted["run"] == "counterfactual"].drop_duplicates(["pair", "role"]).set_index(["pair", "role"])
    for scale in ("probability", "logit"):
        keys = pd.MultiIndex.from_frame(planted.loc[here, ["pair", "role"]])
        planted.loc[here, scale] = other.loc[keys, scale].to_numpy()
    moved = components.shifts(planted, "probability", "counterfactual")
    found = components.ratios(moved).set_index(components.KEYS)["effect"]
    assert found["last", "head 1", 2] == pytest.approx(1)


@pytest.mark.parametrize("family", ["reference", "qwen2-vl", "gemma-3", "pixtral"])
def test_attention_is_that_of_a_full_forward_pass(family):
    """In Gemma 3 image tokens see each other, which later layers show; Pixtral has line breaks among them."""
    study, heads, seen = study_of(tiny(family)), [(0, 0), (1, 1), (2, 1)], {}
    vlm, items = study.vlm, [pair.clean for pair in study.pairs]
    found = head_attention.attention(vlm, study.clean, heads, components.position(study, "last"))
    batch = oracle.inputs(vlm, [item.scene.image(vlm.grid.canvas) for item in items], [item.question for item in items])
    readers = [(layer.self_attn, "after", head_attention._reader(seen, k)) for k, layer in enumerate(vlm.layers)]
    with head_attention.weights_returned(vlm.language), hooks(*readers):
        oracle.forward(vlm, batch)
    image = (batch["input_ids"] == vlm.language.image_id).numpy()
    for k, (layer, head) in enumerate(heads):
        own = [weights[shown] for weights, shown in zip(seen[layer][:, head, -1], image, strict=True)]
        assert np.abs(found[:, k] - np.stack(own)).max() < EXACT


@pytest.mark.parametrize("family", ["reference", "qwen2-vl", "gemma-3"])
def test_a_head_is_cut_off_from_the_picture_and_nothing_else(family):
    """Attention to the picture is 0 after the cut in that head alone; no cut changes nothing."""
    small = study_of(tiny(family))
    vlm, position = small.vlm, components.position(small, "last")
    heads = [(0, 0), (0, 1), (2, 3)]
    weights = head_attention.attention(vlm, small.clean, heads, position)
    assert (weights > 0).any(-1).all() and (weights.sum(-1) < 1 + EXACT).all()
    rows = head_attention.cut_heads(small, {"nothing": [], "one": [(0, 1)]}, position)
    probability = rows.pivot(index=["pair", "role"], columns="edit", values="probability")
    assert np.abs(probability["nothing"] - probability["none"]).max() < EXACT
    assert np.abs(probability["one"] - probability["none"]).max() > 1e-6


def test_the_table_of_a_tiny_model(small):
    found = components.table(small, draws=2)
    layers, heads = len(small.vlm.layers), small.vlm.language.config.num_attention_heads
    assert len(found) == 2 * 2 * layers * (heads + 2)
    last = found[(found["token"] == "reference") & (found["layer"] == layers - 1)]
    assert last["effect"].abs().max() < EXACT  # reaches no answer
    assert "At the last token" in components.headline(found, "last")
