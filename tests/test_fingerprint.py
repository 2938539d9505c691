"""The fingerprint: edits that are what they say, models whose source of order is known, and the independent script."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import test_architectures as architectures
from tiny import BLIND, tiny

from lib import places
from lib.analysis import calibration, fingerprint, mechanisms, studies
from lib.artifact import markdown
from lib.engine import vlm
from lib.stimuli import pairs
from lib.stimuli.grids import GRIDS

GRID = GRIDS["reference"]


def line(pair):
    return fingerprint.LineTokens.of(pair.clean.scene, GRID, pair.orientation)


@pytest.mark.parametrize("shifted", [False, True])
def test_edits_write_where_they_say(shifted):
    drawn = fingerprint.shifted_pairs("squares", GRID, 2) if shifted else pairs.mirrored_pairs("squares", GRID, n=2)
    for pair in drawn:
        own = line(pair)
        objects = set(np.concatenate(own.objects))
        assert len(objects) == 3 * GRID.entity**2 and not objects & set(own.background)
        edits = own.edits
        assert list(edits) == list(fingerprint.EDITS)
        assert all(edits[k].own == (k >= 7) for k in edits)
        assert set(edits[5].targets) == set(own.background) == set(edits[5].sources)
        assert set(edits[6].targets) == objects
        assert not set(edits[9].targets) & objects and not set(edits[3].targets) & objects
        for k in (1, 2, 3, 7, 8, 9):  # two regions trade places, token by token
            there = dict(zip(edits[k].targets, edits[k].sources, strict=True))
            assert all(there[there[token]] == token for token in there)


def test_shifted_lines_put_order_and_place_at_odds():
    for pair in fingerprint.shifted_pairs("squares", GRID, 2):
        axis = 0 if pair.orientation == "horizontal" else 1
        centres = [p.centre[axis] / GRID.canvas for p in pair.clean.scene.placements]
        assert centres[1] < 1 / 3 or centres[1] > 2 / 3 or centres[0] > 1 / 3 or centres[2] < 2 / 3


def rivals(model, n=2):
    study = studies.study(model, pairs.mirrored_pairs("squares", model.grid, n=n))
    table = fingerprint.rival_table(fingerprint.sweep(study))
    return table.pivot(index="orientation", columns="rival", values="value")


def test_a_backbone_blind_to_places_gives_no_effect_to_token_places():
    found = rivals(tiny("reference", dual=BLIND))
    assert found["P"].abs().max() < 1e-3


def test_backbone_only_goes_by_token_places_alone():
    found = rivals(vlm.load("backbone_only"))
    assert np.allclose(found["P"], 1, atol=0.02) and np.allclose(found[["O", "S", "B"]], 0, atol=0.02)
    assert np.allclose(found[list(fingerprint.CHECKS)], 0, atol=0.05)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"O": (0.8, 0.9), "S": (0, 0.1), "B": (0.1, 0.2), "P": (0, 0)}, "O"),
        ({"O": (0.4, 0.6), "S": (0, 0.1), "B": (0.3, 0.5), "P": (0, 0)}, "several"),
        ({"O": (0.4, 0.6), "S": (0, 0.1), "B": (0.1, 0.2), "P": (0, 0)}, "O in part"),
        ({"O": (0, 0.1), "S": (0, 0.1), "B": (0.0, 0.2), "P": (0, 0)}, "none"),
    ],
)
def test_the_winner(values, said):
    assert fingerprint.winner(values) == said


def test_winners_over_slots_are_told_in_runs():
    """B until slot 1, O and B at slot 2, nothing from slot 3."""
    by_slot = [{5: 0.9}, {5: 0.8}, {1: 0.5, 5: 0.4}, {}, {}]
    rows = [("vertical", slot, edit, 12, own.get(edit, 0.0)) for slot, own in enumerate(by_slot)
            for edit in fingerprint.RIVALS.values()]  # fmt: skip
    table = pd.DataFrame(rows, columns=["orientation", "slot", "edit", "n", "effect"])
    table = table.assign(low=table["effect"] - 0.05, high=table["effect"] + 0.05)
    (said,) = fingerprint.slots_in_words(table)
    assert said == (
        "above-below, n = 12 pairs: scene code in the background (B) at slots 0 to 1; several sources at slot 2; "
        "none of the four sources at slots 3 to 4"
    )
    table.loc[(table["slot"] == 0), ["low", "high"]] = [[0, 0.1], [0, 0.1], [0, 0.1], [0.9, 1]]  # O, S, B, P
    assert "patches (P) at slot 0;" in fingerprint.slots_in_words(table, fingerprint.NAMES_INSIDE)[0]


def test_strips_are_held_against_random_tokens_of_the_same_number():
    rows = [("strips", 44, 0.5), ("strips", 88, 0.01), ("strips", 132, 1.0)]
    rows += [("random", 20, 0.0), ("random", 44, 0.1), ("random", 88, 0.02), ("random", 132, 1.0)]
    table = pd.DataFrame(rows, columns=["region", "tokens", "effect"]).assign(orientation="horizontal")
    table = table.assign(low=table["effect"] - 0.02, high=table["effect"] + 0.02)
    (said,) = fingerprint.dose_in_words(table)
    assert "44 tokens 0.50 [0.48, 0.52] against 0.10 [0.08, 0.12] (intervals apart)" in said
    assert "88 tokens 0.01 [-0.01, 0.03] against 0.02 [0.00, 0.04] (neither moves the answer)" in said
    assert "132" not in said and "20 tokens" not in said


def test_the_share_of_the_first_round_cannot_tell_strips_from_objects_or_scenes():
    said = fingerprint.predicted_shares()
    assert said["O"]["strips"] == said["S"]["strips"] == "1" and said["P"] == {"objects": "0", "strips": "0"}
    assert said["S"]["objects"] == "0" and said["B"]["objects"] == "neither" and said["B"]["strips"] != "0"


def test_the_share_of_the_first_round_is_0_where_token_places_decide():
    model = vlm.load("backbone_only")
    study = studies.study(model, pairs.mirrored_pairs("squares", model.grid, n=2))
    found = fingerprint.old_shares(fingerprint.sweep(study, (1, 2, 7, 8)))
    assert len(found) == 4 and (found["reading"] == "divided").all()
    assert found["value"].abs().max() < 0.02 and found["within"].min() > 0.98
    assert fingerprint.share_reading(0.1, 0.1) == "neither" and fingerprint.share_reading(0.8, 0.9) == "both"


def test_lead_is_the_distance_to_the_strongest_rival(trained):
    table = fingerprint.sweep(trained, fingerprint.RIVALS.values())
    for orientation, cell in table.groupby("orientation"):
        own = fingerprint.rival_table(cell).set_index("rival")["value"]
        for name in fingerprint.RIVALS:
            others = max(own[rival] for rival in fingerprint.RIVALS if rival != name)
            assert fingerprint.lead(cell, name).value == pytest.approx(own[name] - others, abs=1e-6), orientation


def test_doses_take_more_and_more_of_the_background_and_end_at_all_of_it(small):
    own = line(small.pairs[0])
    edits = fingerprint.doses(own)
    sizes = [len(edit.targets) for name, edit in edits.items() if name.startswith("random")]
    assert sizes == sorted(set(sizes)) and sizes[-1] < len(own.background)
    assert all(set(edit.targets) <= set(own.background) and not edit.own for edit in edits.values())
    table = fingerprint.sweep(small, [fingerprint.RIVALS["B"]], extra=fingerprint.doses)
    found = fingerprint.dose_table(table, own)
    whole = fingerprint.effect_table(table[table["edit"].isin(["none", "5"])]).set_index("orientation")["effect"]
    for (orientation, _), curve in found.groupby(["orientation", "region"]):
        assert curve["tokens"].is_monotonic_increasing and curve["tokens"].iloc[-1] == len(own.background)
        assert curve["effect"].iloc[-1] == pytest.approx(whole[orientation])


def test_edits_in_the_encoder_end_as_edits_of_its_output(small):
    """At the encoder's last slot only the projector follows, which looks at one patch at a time."""
    inside = fingerprint.effect_table(fingerprint.encoder_edits(small, [5, 9], slots=[small.vlm.encoder_slots[-1]]))
    outside = fingerprint.effect_table(fingerprint.sweep(small, [5, 9]))
    keys = ["orientation", "edit"]
    both = inside.merge(outside, on=keys, suffixes=("_inside", "_outside"))
    assert len(both) == 4
    assert (both["effect_inside"] - both["effect_outside"]).abs().max() < 1e-3


def test_calibration_holds_planted_models_to_their_row():
    rows = [("backbone_only", axis, True, rival, 8, float(rival == "P")) for axis in ("horizontal", "vertical")
            for rival in "OSBP"]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "orientation", "centred", "rival", "n", "value"])
    table = table.assign(low=table["value"], high=table["value"])
    assert calibration.calibration(table)["holds"].all()
    assert "In backbone_only the construction fixes" in calibration.calibrated(calibration.calibration(table))
    table.loc[table["rival"] == "B", "high"] = 0.4
    assert "misses what was built in" in calibration.calibrated(calibration.calibration(table))


def test_what_split_must_show_holds_whatever_its_weights(tmp_path):
    """Left-right no S and no P, above-below P alone: so it is in a random model of this construction."""
    model = vlm.load(str(architectures.saved(architectures.small("siglip_llama", planted="split"), tmp_path)))
    study = studies.study(model, pairs.mirrored_pairs("squares", model.grid, n=1))
    table = fingerprint.rival_table(fingerprint.sweep(study, fingerprint.RIVALS.values())).assign(model="split")
    found = calibration.calibration(table)
    assert len(found) == 6 and found["holds"].all() and (found["check"] == "plumbing").all()
    swapped = table.assign(orientation=table["orientation"].map({"horizontal": "vertical", "vertical": "horizontal"}))
    assert not calibration.calibration(swapped)["holds"].all()


def test_an_independent_script_gives_the_same_effects():
    """Plain transformers, no code of this library: benchmarks/oracle_fingerprint.py."""
    script = places.ROOT / "benchmarks" / "oracle_fingerprint.py"
    call = [sys.executable, "-I", str(script), str(places.MODELS / "reference"), "3"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = dict(line.split() for line in done.stdout.strip().splitlines())
    model = vlm.load("reference")
    study = studies.study(model, [p for p in pairs.mirrored_pairs("squares", GRID, n=3) if p.direction == "left"])
    ours = fingerprint.moved_at_start(fingerprint.sweep(study, fingerprint.RIVALS.values()))
    for edit in fingerprint.RIVALS.values():
        assert ours[edit].mean() == pytest.approx(float(theirs[str(edit)]), abs=1e-4)


def rows_of(model, winner, value=1.0):
    """`rival_table` of a model that one source decides on both axes."""
    rows = [(model, axis, True, rival, 8, value * (rival == winner)) for axis in ("horizontal", "vertical")
            for rival in "OSBP"]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "orientation", "centred", "rival", "n", "value"])
    return table.assign(low=table["value"], high=table["value"])


def test_a_planted_model_without_a_known_row_is_measured_only():
    found = calibration.calibration(rows_of("redundant", "P"))
    assert found.empty and found["holds"].all() and "not calibrated" in calibration.calibrated(found)
    both = calibration.calibration(pd.concat([rows_of("redundant", "O"), rows_of("backbone_only", "P")]))
    assert set(both["model"]) == {"backbone_only"} and both["holds"].all()


def test_trainings_of_a_recipe_are_held_against_each_other():
    table = pd.concat(
        [rows_of("a", "B"), rows_of("a-seed1", "O"), rows_of("b", "P"), rows_of("b-seed1", "P"), rows_of("c", "O")]
    )
    lines = mechanisms.by_recipe(table)
    assert lines[0].endswith("2 trainings: left-right B, O; above-below B, O: they do not agree")
    assert lines[1].endswith("above-below P, P: they agree") and lines[2].endswith("the recipe: c")


def test_the_loose_reading_is_order_in_the_background_in_any_form(trained):
    found = fingerprint.rival_table(fingerprint.sweep(trained, fingerprint.RIVALS.values()))
    for _, cell in found.groupby("orientation"):
        own = cell.set_index("rival")["value"]
        assert own[fingerprint.LOOSE] == pytest.approx(own["S"] + own["B"])


def test_numbers_as_a_table_are_bold_where_the_interval_clears_one_half():
    text = markdown.estimates(
        rows_of("a", "B").assign(low=lambda t: t["value"] - 0.2), ["model", "orientation"], "rival", bold="OSBP"
    )
    assert text.splitlines()[0] == "| model | orientation | n | O | S | B | P |"
    assert "| a | horizontal | 8 | 0.00 [-0.20, 0.00] |" in text and "| **1.00 [0.80, 1.00]** |" in text
    unclear = markdown.estimates(rows_of("a", "B", 0.6).assign(low=0.4), ["model", "orientation"], "rival", bold="OSBP")
    assert "**" not in unclear


def test_what_an_edit_leaves_on_the_two_candidates_is_their_probability(small):
    table = fingerprint.sweep(small, [5])
    said = fingerprint.effect_table(table).set_index("orientation")["on_the_two"]
    for orientation, cell in table[(table["run"] == "patched") & (table["edit"] == "5")].groupby("orientation"):
        own = cell.pivot(index="pair", columns="role", values="probability")[["clean", "counterfactual"]]
        assert said[orientation] == pytest.approx(own.sum(axis=1).mean()) and 0 < said[orientation] <= 1 + 1e-6
