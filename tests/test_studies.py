"""Pairs as runs: every pair in both runs, pictures behind their tokens, shifted lines refused."""

import numpy as np
import pytest
import torch

from lib.analysis import ablation, interchange, knockout, ladder, studies
from lib.errors import UserError
from lib.stimuli import pairs


def test_lines_that_are_shifted_are_refused(model):
    """Token sets belong to centred lines: an edit of others would interchange background, and nothing would show it."""
    drawn = pairs.ablated_pairs("squares", model.grid, n=1, shift=(1, 0))
    study = studies.study(model, drawn)
    for call in (
        lambda: interchange.regions(study, ["object"]),
        lambda: ablation.ablated_study(model, drawn),
        lambda: ladder.steps(study),
        lambda: interchange.partial_strips(study, 1),
        lambda: interchange.in_place(study, "object"),
        lambda: ablation.partial_ablation(study, study, "object"),
        lambda: knockout.reading_sets(study),
    ):
        with pytest.raises(UserError, match="without shift"):
            call()


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
