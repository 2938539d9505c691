"""Pairs as runs, effects with known answers, planted models whose source of order is known, and injected errors that
must be noticed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny

from lib.analysis import ablation, effects, interchange, knockout, statistics, studies
from lib.artifact import ledger
from lib.engine import vlm
from lib.errors import UserError
from lib.patching.edits import Interchange, swap
from lib.patching.sweep import token_sweep
from lib.stimuli import pairs
from lib.stimuli.token_sets import object_tokens, strip_tokens

BLIND = {"image_positions": "shared", "image_attention": "self"}


@pytest.fixture(scope="module")
def model():
    return tiny("reference")


@pytest.fixture(scope="module")
def small(model):
    return studies.study(model, pairs.mirrored_pairs("squares", model.grid, n=2))


@pytest.fixture(scope="module")
def reference():
    return vlm.load("reference")


@pytest.fixture(scope="module")
def trained(reference):
    return studies.study(reference, pairs.mirrored_pairs("squares", reference.grid, n=3))


def planted(clean, counterfactual, **patched):
    """A sweep table of two roles: swings of each pair's clean, counterfactual and patched runs (by region)."""
    rows = []
    runs = {("clean", "none"): clean, ("counterfactual", "none"): counterfactual}
    runs |= {("patched", name): values for name, values in patched.items()}
    for (run, name), values in runs.items():
        moves, _, region = name.partition("_")
        for pair, value in enumerate(values):
            for role, sign in (("clean", -1), ("counterfactual", 1)):
                where = {"slot": 0 if run == "patched" else -1, "moves": moves, "region": region or "none"}
                rows.append({"pair": pair, "run": run, **where, "role": role, "probability": (1 + sign * value) / 2})
    return pd.DataFrame(rows)


def test_lines_that_are_shifted_are_refused(model):
    """Sets of tokens are those of the middle: an edit elsewhere would exchange background, and nothing would tell."""
    drawn = pairs.ablated_pairs("squares", model.grid, n=1, shift=(1, 0))
    study = studies.study(model, drawn)
    for call in (
        lambda: interchange.regions(study, ["object"]),
        lambda: ablation.ablated_study(model, drawn),
        lambda: interchange.encoder_interchange_sweep(study, ["object"]),
        lambda: interchange.partial_strips(study, 1),
        lambda: interchange.in_place(study, "object"),
        lambda: ablation.partial_ablation(study, study, "object"),
        lambda: knockout.reading_sets(study),
    ):
        with pytest.raises(UserError, match="without shift"):
            call()


# --- pairs as runs ----------------------------------------------------------------------------------------------


def test_a_study_holds_each_pair_in_both_runs(model, small):
    assert len(small) == len(small.labels) == 8 and small.ids.shape[:2] == (8, 3)
    assert set(small.labels["orientation"]) == {"horizontal", "vertical"}
    canvas = model.grid.canvas
    for k in (0, 5):
        assert torch.allclose(
            small.clean.images[small.clean.index[k]], model.encode([small.pairs[k].clean.scene.image(canvas)])[0]
        )
        mirrored = small.pairs[k].counterfactual.scene.image(canvas)
        assert torch.allclose(small.clean.images[small.other[k]], model.encode([mirrored])[0])
    part = small.rows([5, 0])
    assert part.pairs == (small.pairs[5], small.pairs[0]) and (part.other == small.other[[5, 0]]).all()
    with pytest.raises(UserError, match="no pair"):
        small.rows(np.zeros(8, dtype=bool))


def test_pictures_stand_behind_their_tokens(model, small):
    part = small.rows([1, 6])
    images = studies.pictures(part)
    used = {*part.clean.index, *part.other}
    assert {k for k, image in enumerate(images) if image is not None} == used
    for k in used:
        assert torch.allclose(model.encode([images[k]])[0], small.clean.images[k], atol=1e-6)


def test_ablated_pictures_hold_every_entity_as_it_stands_in_the_middle(model):
    drawn = pairs.ablated_pairs("squares", model.grid, n=1)
    out, canvas = ablation.ablated_study(model, drawn), model.grid.canvas
    for k, pair in enumerate(drawn):
        places = [object_tokens(model.grid, pair.orientation, slot) for slot in range(3)]
        alone = model.encode([scene.image(canvas) for scene in pair.alone])[:, places[1]]
        empty = model.encode([pair.empty.image(canvas)])[0]
        for run, order in ((out.clean, (0, 1, 2)), (out.counterfactual, (2, 1, 0))):
            tokens = run.images[run.index[k]]
            for slot, entity in enumerate(order):
                assert torch.allclose(tokens[places[slot]], alone[entity], atol=1e-6)
            rest = np.setdiff1d(np.arange(len(empty)), np.concatenate(places))
            assert torch.allclose(tokens[rest], empty[rest], atol=1e-6)
    assert len(out) == 4 and out.ids.shape[:2] == (4, 3)


# --- effects ----------------------------------------------------------------------------------------------------


def test_effects_of_known_size():
    """Half-way in every pair; a quarter on average; and the baselines themselves."""
    rng = np.random.default_rng(0)
    clean, other = rng.uniform(-1, -0.5, 40), rng.uniform(0.5, 1, 40)
    uneven = np.where(np.arange(40) % 2, clean, clean + (other - clean) / 2)
    table = planted(clean, other, code_a=(clean + other) / 2, code_b=uneven, code_c=clean, code_d=other)
    out = effects.summarise(table, ["region"]).set_index("region")
    assert np.allclose(out.loc["a", ["effect", "low", "high"]].astype(float), 0.5) and out.loc["a", "n"] == 40
    assert out.loc["b", "low"] < 0.25 < out.loc["b", "high"] and out.loc["b", "high"] - out.loc["b", "low"] < 0.25
    assert np.allclose(out.loc[["c", "d"], "effect"], [0, 1])
    gap = effects.contrast(table, "d", "a")
    assert np.allclose([gap.value, gap.low, gap.high], 0.5)


def test_without_a_difference_there_is_no_effect_and_no_verdict():
    table = planted([-0.5, -0.7], [-0.5, -0.7], code_a=[0.2, 0.1])
    row = effects.summarise(table, ["region"]).iloc[0]
    assert np.isnan(row["effect"]) and np.isnan(row["low"])
    with pytest.raises(ValueError, match="not a number"):
        ledger.MEASURES["strip_effect"].verdict(row["low"], row["high"], 50)


def test_ratio_is_the_bootstrap_of_a_quotient():
    rng = np.random.default_rng(1)
    above, below = rng.normal(1, 1, 60), rng.normal(2, 0.3, 60)
    units = np.repeat(np.arange(20), 3)
    fast = statistics.ratio(above, below, units)
    slow = statistics.bootstrap(lambda a, b: a.mean() / b.mean(), above, below, units=units)
    assert fast.n == slow.n == 20 and fast.value == pytest.approx(slow.value)
    assert abs(fast.low - slow.low) < 0.03 and abs(fast.high - slow.high) < 0.03
    for below in ([0, 0], [1e-7, -2e-7]):  # nothing but rounding
        none = statistics.ratio([1, 2], below)
        assert np.isnan([none.value, none.low, none.high]).all() and none.n == 2


# --- shares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "entity", "reading", "share"),
    [
        (1, 0, "divided", 1),
        (0, 1, "divided", 0),
        (0.6, 0.2, "divided", 0.75),
        (0.1, 0.1, "neither", None),
        (0.9, 0.8, "both", None),
        (0.9, 0.7, "divided", 0.5625),
    ],
)
def test_shares_of_known_effects(code, entity, reading, share):
    rng = np.random.default_rng(2)
    clean, other = rng.uniform(-1, -0.8, 30), rng.uniform(0.8, 1, 30)
    between = other - clean
    table = planted(clean, other, code_strip=clean + code * between, entity_strip=clean + entity * between)
    row = effects.shares(table, ["region"]).iloc[0]
    assert row["code"] == pytest.approx(code) and row["entity"] == pytest.approx(entity)
    assert row["reading"] == reading and row["n"] == 30
    if share is None:
        assert np.isnan(row["share"]) and np.isnan(row["low"])
    else:
        assert row["share"] == pytest.approx(share, abs=1e-6) and row["low"] <= share + 1e-6 <= row["high"] + 2e-6


def test_shares_need_both_exchanges():
    table = planted([-1, -1], [1, 1], code_strip=[1, 1], entity_strip=[-1, -1], code_middle=[-1, -1])
    assert effects.shares(table, ["region"])["region"].tolist() == ["strip"]


def blind_encoder(model):
    """The model, its encoder without positions and without attention between patches."""
    with torch.no_grad():
        for key, weight in model.model.named_parameters():
            if "vision" in key and ("position_embedding" in key or "self_attn.out_proj" in key):
                weight.zero_()
    return model


def moved_by(study, moves, slots):
    table = interchange.interchange_sweep(study, ("object", "strip"), ("object", "strip"), slots=slots)
    out = effects.moved(table)
    return out.loc[out["moves"] == moves, "moved"].abs()


def test_a_backbone_blind_to_places_goes_by_the_code_alone():
    blind = tiny("reference", dual=BLIND)
    study = studies.study(blind, pairs.mirrored_pairs("squares", blind.grid, n=1))
    assert moved_by(study, "entity", [0, 1]).max() < 1e-5 < 1e-3 < moved_by(study, "code", [0, 1]).max()


def test_an_encoder_blind_to_places_gives_no_code():
    blind = blind_encoder(tiny("reference"))
    study = studies.study(blind, pairs.mirrored_pairs("squares", blind.grid, n=1))
    assert moved_by(study, "code", [0]).max() < 1e-5 < 1e-3 < moved_by(study, "entity", [0]).max()
    assert moved_by(study, "code", [1]).max() > 1e-3, "from slot 1 on the stream holds what the backbone wrote, too"


@pytest.mark.parametrize(("blinded", "share"), [("backbone", 1), ("encoder", 0)])
def test_shares_of_the_reference_model_with_one_part_blinded(blinded, share):
    """Blind to places in one part, a trained model can have order from the other part only - and the share shows it."""
    model = vlm.load("reference")
    if blinded == "backbone":
        model.special = BLIND
    else:
        blind_encoder(model)
    study = studies.study(model, pairs.mirrored_pairs("squares", model.grid, n=3))
    table = interchange.interchange_sweep(study, ("object", "strip"), ("object", "strip"), slots=[0])
    out = effects.shares(table, ["region"])
    assert (out["reading"] == "divided").all() and np.allclose(out[["share", "low", "high"]], share, atol=0.05)


RIGHT = {"vision_only": (0.97, 1.01), "backbone_only": (-0.01, 0.05)}


@pytest.mark.parametrize(
    ("model", "region", "reading", "interval", "sentence"),
    [
        ("vision_only", "object", "divided", (0.95, 1.02), "right about both"),
        ("vision_only", "object", "neither", (np.nan, np.nan), "right about both"),
        ("vision_only", "object", "both", (np.nan, np.nan), "fails on vision_only"),
        ("vision_only", "object", "divided", (0.85, 1.0), "fails on vision_only"),
        ("vision_only", "strip", "neither", (np.nan, np.nan), "fails on vision_only"),
        ("backbone_only", "strip", "divided", (0.05, 0.15), "fails on backbone_only"),
        ("backbone_only", "object", "divided", (0.2, 0.3), "fails on backbone_only"),
        ("backbone_only", None, None, None, "Not calibrated in full: backbone_only"),
    ],
)
def test_the_calibration_rule(model, region, reading, interval, sentence):
    """All rows right but the one in question; region None: the model is not there at all."""
    known = [name for name in RIGHT if region or name != model]
    rows = [("reference", "strip", "divided", 0.4, 0.6)]
    rows += [(name, where, "divided", *RIGHT[name]) for name in known for where in ("object", "strip")]
    rows += [(model, region, reading, *interval)] if region else []
    assert sentence in effects.calibration_verdict(
        pd.DataFrame(rows, columns=["model", "region", "reading", "low", "high"])
    )


# --- interchange ------------------------------------------------------------------------------------------------


def test_exchanged_gives_every_region_both_ways(small, model):
    table = interchange.interchange_sweep(small, ("strip", "random"), ("strip",), slots=[0])
    cells = table[table["run"] == "patched"].groupby(["moves", "region"])["pair"].nunique()
    assert cells.to_dict() == {("code", "strip"): 8, ("code", "random"): 8, ("entity", "strip"): 8}
    published = effects.interchange_rows(table, "backbone")
    columns = "setting direction region stage slot ablated role n probability low high".split()
    assert list(published)[: len(columns)] == columns
    assert set(published["region"]) == {"strip", "random", "none"}, "the exchange within one run is another table's"
    assert (published.loc[published["region"] == "strip", "n"] == 2).all()


def test_each_pair_is_exchanged_along_its_own_axis(small, model):
    edit = interchange.regions(small, ["strip"])["strip"]
    for k, pair in enumerate(small.pairs):
        first = strip_tokens(model.grid, pair.orientation, 0)
        assert set(edit.targets[k][: len(first)]) == set(first)
    random = interchange.regions(small, ["random"], seed=3)["random"].targets
    assert (random == interchange.regions(small, ["random"], seed=3)["random"].targets).all()
    assert not (random == interchange.regions(small, ["random"], seed=4)["random"].targets).all()


def test_at_the_encoders_input_objects_carry_all_of_the_order(trained):
    """Patches there are content plus own position: exchanging objects or strips is the mirrored picture, to a set."""
    table = interchange.encoder_interchange_sweep(trained, ("object", "strip", "background_strip"), slots=[0])
    assert (np.bincount(table.query("run == 'patched'")["pair"]) == 9).all()
    swings = effects.moved(table).pivot(index="pair", columns="region", values="swing")
    assert np.allclose(swings["object"], swings["strip"], atol=0.05)
    outside = effects.summarise(table, ["region"]).set_index("region")["effect"]["background_strip"]
    assert abs(outside) < 0.02


def test_the_projectors_output_is_slot_0(trained):
    """The encoder's last slot and the backbone's first, reached in two ways, agree where the projector is per token."""
    last = max(trained.vlm.encoder_slots)
    inside = interchange.encoder_interchange_sweep(trained, ("strip",), slots=[last])
    outside = interchange.interchange_sweep(trained, ("strip",), slots=[0])
    first, second = (t[t["run"] == "patched"].sort_values(["pair", "role"])["probability"] for t in (inside, outside))
    assert np.allclose(first, second, atol=1e-4)


# --- answers ----------------------------------------------------------------------------------------------------


def test_a_model_without_any_order_is_right_half_the_time():
    """A blind backbone on ablated pictures has nothing to go by: both runs of a pair get one answer."""
    blind = tiny("reference", dual=BLIND)
    out = ablation.answers(ablation.ablated_study(blind, pairs.ablated_pairs("squares", blind.grid, n=2)))
    assert len(out) == 16 and set(out["run"]) == {"clean", "counterfactual"}
    assert out.groupby("pair")["order"].mean().abs().max() < 1e-6


def test_roles_follow_the_run(trained):
    out = ablation.answers(trained)
    assert out["correct"].mean() > 0.9 and out["target"].mean() > 0.9
    assert (out.loc[out["correct"], "target"] > out.loc[out["correct"], "opposite"]).all()
    swapped = ablation.answers(replace(trained, clean=trained.counterfactual, counterfactual=trained.clean))
    first, second = (each.set_index(["run", "pair"])["order"] for each in (out, swapped))
    assert np.allclose(first["counterfactual"], -second["clean"], atol=1e-5)  # each run by its own picture
    gone = out.assign(order=out["order"] / 4)
    found = ablation.order_kept(out, gone)
    assert found["order_lost"].value == pytest.approx(0.75) and found["order_lost"].n == len(trained)
    assert found["order_left"].value == pytest.approx(out["order"].mean() / 4)


# --- injected errors --------------------------------------------------------------------------------------------


def verdict(study, edit):
    """C4's verdict on whole strips, had the notebook used this exchange."""
    table = token_sweep(
        study.vlm, study.clean, {"strip": edit}, study.ids, study.roles, study.other, slots=[0], progress=False
    )
    row = effects.summarise(table, ["edit"]).iloc[0]
    return ledger.MEASURES["strip_effect"].verdict(row["low"], row["high"], 50)


def test_patching_the_wrong_strip_is_noticed(trained):
    """The middle strip in place of the last one: the verdict changes, and the identity of contents fails."""
    part = trained.rows((trained.labels["orientation"] == "horizontal").to_numpy())
    right = interchange.regions(part, ["strip"])["strip"]
    wrong = swap(*(strip_tokens(part.vlm.grid, "horizontal", slot) for slot in (0, 1)))
    assert verdict(part, right) == "reproduced" and interchange.same_content(part, right) == 1
    assert verdict(part, wrong) != "reproduced" and interchange.same_content(part, wrong) < 1


def test_forgetting_to_mirror_is_noticed(trained):
    """The clean picture as its own counterfactual: contents differ, and no effect can be had."""
    clean = replace(
        trained, counterfactual=trained.clean, pairs=tuple(replace(p, counterfactual=p.clean) for p in trained.pairs)
    )
    edit = interchange.regions(clean, ["strip"])["strip"]
    assert interchange.same_content(clean, edit) < 1 and (clean.clean.index == clean.other).all()
    with pytest.raises(ValueError, match="not a number"):
        verdict(clean, edit)


def test_forgetting_to_cross_the_regions_is_noticed(trained):
    """Left into left and right into right moves the entities as well: contents differ."""
    right = interchange.regions(trained, ["object"])["object"]
    uncrossed = Interchange(right.targets, right.targets)
    assert interchange.same_content(trained, right) == 1 and interchange.same_content(trained, uncrossed) == 0
    assert interchange.same_content(trained, replace(right, own=True)) == 0
