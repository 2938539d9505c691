"""Interchange on models whose source of order is known, and injected errors that must be noticed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import BLIND, tiny

from lib.analysis import effects, interchange, studies
from lib.artifact import ledger
from lib.engine import vlm
from lib.patching.edits import Interchange, swap
from lib.patching.sweep import token_sweep
from lib.stimuli import pairs, token_sets
from lib.stimuli.token_sets import strip_tokens

# --- regions and slots ----------------------------------------------------------------------------------------


def test_a_sweep_moves_codes_and_entities_of_every_region(small, model):
    table = interchange.interchange_sweep(small, ("strip", "random"), ("strip",), slots=[0])
    cells = table[table["run"] == "patched"].groupby(["moves", "region"])["pair"].nunique()
    assert cells.to_dict() == {("code", "strip"): 8, ("code", "random"): 8, ("entity", "strip"): 8}
    published = effects.interchange_rows(table, "backbone")
    columns = "setting direction region stage slot ablated role n probability low high".split()
    assert list(published)[: len(columns)] == columns
    assert set(published["region"]) == {"strip", "random", "none"}, "the interchange within one run is another table's"
    assert (published.loc[published["region"] == "strip", "n"] == 2).all()


def test_each_pair_is_edited_along_its_own_axis(small, model):
    edit = interchange.regions(small, ["strip"])["strip"]
    for k, pair in enumerate(small.pairs):
        first = strip_tokens(model.grid, pair.orientation, 0)
        assert set(edit.targets[k][: len(first)]) == set(first)
    random = interchange.regions(small, ["random"], seed=3)["random"].targets
    assert (random == interchange.regions(small, ["random"], seed=3)["random"].targets).all()
    assert not (random == interchange.regions(small, ["random"], seed=4)["random"].targets).all()


def test_at_the_encoders_input_objects_carry_all_of_the_order(trained):
    """Patches there are content plus position: interchanging objects or strips gives the mirrored picture as a set."""
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


# --- models with one part blinded -----------------------------------------------------------------------------


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
        model.language.marks = BLIND
    else:
        blind_encoder(model)
    study = studies.study(model, pairs.mirrored_pairs("squares", model.grid, n=3))
    table = interchange.interchange_sweep(study, ("object", "strip"), ("object", "strip"), slots=[0])
    out = effects.shares(table, ["region"])
    assert (out["reading"] == "divided").all() and np.allclose(out[["share", "low", "high"]], share, atol=0.05)


# --- some tokens of a region ----------------------------------------------------------------------------------


def pairs_of(edit, pair):
    return set(zip(edit.targets[pair].tolist(), edit.sources[pair].tolist(), strict=True))


def test_no_background_token_is_the_object_interchange_and_all_of_them_the_strip_interchange(small):
    grid, most = small.vlm.grid, interchange.strip_background_size(small.vlm.grid)
    for count, objects, region in ((0, True, "object"), (most, True, "strip"), (most, False, "background_strip")):
        edit = interchange.partial_strips(small, count, objects)
        for k, pair in enumerate(small.pairs):
            first, last = token_sets.interchange_regions(grid, pair.orientation, region)
            assert pairs_of(edit, k) == {*zip(first, last, strict=True), *zip(last, first, strict=True)}
    assert interchange.partial_strips(small, 0, objects=False).targets.shape == (len(small), 0)


def test_partial_strips_are_aligned_members_of_the_strips_drawn_for_each_pair(small):
    edit, again, other = (interchange.partial_strips(small, 3, objects=False, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(edit.targets, again.targets) and not np.array_equal(edit.targets, other.targets)
    for k, pair in enumerate(small.pairs):
        rests = token_sets.interchange_regions(small.vlm.grid, pair.orientation, "background_strip")
        aligned = {*zip(*rests, strict=True), *zip(*rests[::-1], strict=True)}
        assert pairs_of(edit, k) < aligned and len(pairs_of(edit, k)) == 6
    scattered = interchange.partial_strips(small, 3, objects=False, scattered=True)
    objects = token_sets.interchange_regions(small.vlm.grid, small.pairs[0].orientation, "object")
    assert not set(scattered.targets[0]) & set(np.concatenate(objects))


def test_interchanges_of_nothing_and_of_everything_are_the_baselines(small):
    edits = {"nothing": interchange.partial_strips(small, 0, objects=False), "all": interchange.in_place(small, "both")}
    table = token_sweep(small.vlm, small.clean, edits, small.ids, small.roles, small.other, slots=[0], progress=False)
    wide = table.pivot_table(index=["pair", "role"], columns=["run", "edit"], values="probability")
    assert np.allclose(wide["patched", "nothing"], wide["clean", "none"], atol=1e-5)
    assert np.allclose(wide["patched", "all"], wide["counterfactual", "none"], atol=1e-5)
    flipped = effects.flipped(table).set_index(["edit", "pair"])["flipped"]
    clean = wide["clean", "none"].unstack("role")
    assert np.array_equal(flipped["nothing"].to_numpy() == 1, clean["counterfactual"] > clean["clean"])


# --- injected errors ------------------------------------------------------------------------------------------


def verdict(study, edit):
    """C4's verdict on whole strips, had the notebook used this edit."""
    table = token_sweep(
        study.vlm, study.clean, {"strip": edit}, study.ids, study.roles, study.other, slots=[0], progress=False
    )
    row = effects.summarise(table, ["edit"]).iloc[0]
    return ledger.MEASURES["strip_effect"].verdict(row["low"], row["high"], 50)


def test_patching_the_wrong_strip_is_noticed(trained):
    """The middle strip in place of the last one: the verdict changes, and the identity of contents fails."""
    part = trained.rows((trained.labels["orientation"] == "horizontal").to_numpy())
    crossed = interchange.regions(part, ["strip"])["strip"]
    wrong = swap(*(strip_tokens(part.vlm.grid, "horizontal", slot) for slot in (0, 1)))
    assert verdict(part, crossed) == "reproduced" and interchange.same_content(part, crossed) == 1
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
    crossed = interchange.regions(trained, ["object"])["object"]
    uncrossed = Interchange(crossed.targets, crossed.targets)
    assert interchange.same_content(trained, crossed) == 1 and interchange.same_content(trained, uncrossed) == 0
    assert interchange.same_content(trained, replace(crossed, own=True)) == 0
