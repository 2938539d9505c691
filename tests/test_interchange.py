"""Interchange of regions and of some of their tokens."""

import numpy as np
import pandas as pd

from lib.analysis import effects, interchange
from lib.patching.sweep import token_sweep
from lib.stimuli import token_sets
from lib.stimuli.token_sets import strip_tokens


def test_each_pair_is_edited_along_its_own_axis(small, model):
    edit = interchange.regions(small, ["strip"])["strip"]
    for k, pair in enumerate(small.pairs):
        first = strip_tokens(model.grid, pair.orientation, 0)
        assert set(edit.targets[k][: len(first)]) == set(first)
    random = interchange.regions(small, ["random"], seed=3)["random"].targets
    assert (random == interchange.regions(small, ["random"], seed=3)["random"].targets).all()
    assert not (random == interchange.regions(small, ["random"], seed=4)["random"].targets).all()


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


def test_doses_are_drawn_where_there_is_a_choice_and_named_by_region_tokens_and_draw(small):
    every = interchange.strip_background_size(small.vlm.grid)
    edits = interchange.dose_edits(small, [0, 2, every], draws=2, seed=5)
    named = [f"{region} {dose}" for region in interchange.DOSES for dose in ("0 0", "2 0", "2 1", f"{every} 0")]
    assert list(edits) == [*named, "in_place_background 0 0", "in_place_object 0 0", "in_place_both 0 0"]
    second = interchange.partial_strips(small, 2, objects=False, seed=6)
    assert np.array_equal(edits["background_strip 2 1"].targets, second.targets)
    assert np.array_equal(edits["in_place_object 0 0"].targets, interchange.in_place(small, "object").targets)
    table = interchange.by_dose(pd.DataFrame({"edit": ["none", *edits]}))
    rows = list(table[["region", "tokens", "draw"]].itertuples(index=False, name=None))
    assert rows[:4] == [("none", -1, -1), ("object", 0, 0), ("object", 2, 0), ("object", 2, 1)]
    assert rows[-1] == ("in_place_both", 0, 0)
