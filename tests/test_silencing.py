"""Sources of order silenced one at a time: what is scrambled, and models in which it is known what must be left."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.analysis import silencing, studies
from lib.engine import vlm
from lib.stimuli.pairs import mirrored_pairs


@pytest.fixture(scope="module")
def backbone_only():
    return vlm.load("backbone_only")


def test_tiles_move_and_none_is_lost(backbone_only):
    grid = backbone_only.grid
    picture = mirrored_pairs("squares", grid, n=1)[0].clean.scene.image(grid.canvas)
    order = np.random.default_rng(0).permutation(grid.side**2)
    mixed = silencing._in_order(picture, order, grid.side)
    assert mixed.size == picture.size and mixed.mode == picture.mode

    def tile(image, number):
        row, column = np.divmod(number, grid.side) * np.array(grid.pixels)
        return np.asarray(image)[row : row + grid.pixels, column : column + grid.pixels]

    for place in (0, 17, grid.side**2 - 1):
        assert (tile(mixed, place) == tile(picture, order[place])).all()


def test_an_encoder_blind_to_places_gives_the_same_tokens(backbone_only):
    """Each token is back at its place: with an encoder that mixes nothing, nothing has changed."""
    study = studies.study(backbone_only, mirrored_pairs("squares", backbone_only.grid, n=1))
    torch.testing.assert_close(
        silencing.silenced(study, encoder=True, backbone=False).clean.images, study.clean.images, atol=1e-4, rtol=1e-4
    )


def test_backbone_only_loses_its_answers_when_its_tokens_are_mixed_and_not_before(backbone_only):
    table = silencing.answers(backbone_only, n=2).assign(model="backbone_only")
    found = silencing.against_planted(table)
    assert found["holds"].all() and silencing.in_words(found).endswith("into backbone_only.")
    correct = table.groupby("silenced")["correct"].min()
    assert correct[["none", "encoder"]].min() == 1 and table.query("silenced == 'backbone'")["correct"].max() < 0.9


def test_redundant_must_keep_its_answers_whichever_source_is_silenced():
    rows = [("redundant", axis, name, 16, 1.0, 0.8, 1.0, 0.0) for axis in ("horizontal", "vertical")
            for name in silencing.CONDITIONS]  # fmt: skip
    table = pd.DataFrame(
        rows, columns=["model", "orientation", "silenced", "n", "correct", "low", "high", "names_neither"]
    )
    found = silencing.against_planted(table)
    assert found.groupby("silenced")["expected"].first().to_dict() == {
        "none": "kept", "encoder": "kept", "backbone": "kept", "both": "lost"
    }  # fmt: skip
    assert set(found.loc[~found["holds"], "silenced"]) == {"both"}
    said = silencing.in_words(found)
    assert "redundant, vertical, silenced both: 1.00 correct, expected to be lost (0.00 name neither" in said
    unknown = silencing.against_planted(table.assign(model="strip_code"))
    assert unknown["holds"].all() and (unknown["expected"] == "").all()
