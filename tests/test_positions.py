"""Positions of image tokens by scheme, against positions counted token by token."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from lib.analysis import ladder, position_schemes, studies
from lib.engine import positions, vlm
from lib.errors import UserError
from lib.stimuli.grids import ORIENTATIONS
from lib.stimuli.pairs import mirrored_pairs

SIDE = 3


def counted(ids: str, scheme: str) -> list[int]:
    """By hand: . padding, t text, i image token, | row break; the position of every token."""
    down, right = positions.STEPS[scheme]
    out, following, number, start = [], 0, 0, None
    for token in ids:
        if token == ".":
            out.append(0)
        elif token == "i":
            start = following if number % SIDE**2 == 0 else start
            row, column = divmod(number % SIDE**2, SIDE)
            out.append(start + row * down + column * right)
            number += 1
            following = out[-1] + 1
        elif token == "|" and number % SIDE**2:
            out.append(out[-1])
        else:
            out.append(following)
            following += 1
    return out


@pytest.mark.parametrize("scheme", positions.STEPS)
@pytest.mark.parametrize(
    "ids", ["..tt" + "i" * 9 + "ttt", "t" + "iii|iii|iii|" + "tt", "t" + "i" * 9 + "t" + "i" * 9 + "tt"]
)
def test_positions_as_counted(scheme, ids):
    mask = torch.tensor([[token != "." for token in ids]])
    image = torch.tensor([[k for k, token in enumerate(ids) if token == "i"]])
    assert positions.placed(mask, image, SIDE, scheme)[0].tolist() == counted(ids, scheme)


def test_raster_counts_tokens():
    mask = torch.tensor([[False, True, True, True]])
    assert positions.placed(mask, torch.tensor([[2]]), 1, "raster")[0].tolist() == [0, 0, 1, 2]


def test_unknown_scheme_is_refused(model):
    with pytest.raises(UserError, match="unknown position scheme 'rws': did you mean 'rows'"):
        model.language.with_positions("rws")


def test_other_positions_leave_the_model_as_it_is(small):
    other = position_schemes.under(small, "shared").baselines["probability"]
    again = replace(small).baselines["probability"]
    assert (small.baselines["probability"] == again).all()
    assert (small.baselines["probability"] - other).abs().max() > 1e-6


def test_image_tokens_that_see_each_other_have_no_order_but_their_positions():
    """gemma models: at one position, tokens in another order give the same answers; at their own they do not."""
    model = vlm.load("gemma_joint")
    plain = studies.study(model, mirrored_pairs("squares", model.grid, n=1))
    apart = []
    for scheme in ("shared", "own"):
        at = position_schemes.under(plain, scheme)
        mixed = position_schemes.in_random_order(at)
        apart.append((at.baselines["probability"] - mixed.baselines["probability"]).abs().max())
    assert apart[0] < 1e-4 < 1e-2 < apart[1]


def test_table_of_all_schemes(reference):
    plain = studies.study(reference, mirrored_pairs("squares", reference.grid, n=2))
    table = position_schemes.summary(position_schemes.answers(ladder.steps(plain)))
    assert set(table["scheme"]) == set(position_schemes.SCHEMES)
    rows = table.set_index(["orientation", "scheme", "step", "measure"])["value"]
    for axis in ORIENTATIONS:  # the model's own positions are raster ones
        assert rows[axis, "own", "middle", "named"] == pytest.approx(rows[axis, "raster", "middle", "named"], abs=1e-5)


@pytest.mark.parametrize(
    ("intact", "left", "neither", "reading"),
    [
        (0.9, (0.6, 0.9), 0.0, "survives"),
        (0.9, (0.1, 0.4), 0.0, "lost"),
        (0.9, (0.4, 0.6), 0.0, "undecided"),
        (0.9, (0.6, 0.9), 0.6, "not readable"),  # the answers name neither candidate
        (0.4, (0.1, 0.4), 0.0, "not readable"),  # the intact picture fails, too
    ],
)
def test_readings_of_a_scheme(intact, left, neither, reading):
    first, last = ladder.STEPS[0], ladder.STEPS[-1]
    cells = [
        (first, "named", intact, intact, intact), (last, "named", sum(left) / 2, *left),
        (first, "names_neither", 0, 0, 0), (last, "names_neither", neither, neither, neither),
    ]  # fmt: skip
    table = pd.DataFrame(cells, columns=["step", "measure", "value", "low", "high"])
    table = pd.concat([table.assign(orientation="vertical", scheme=scheme) for scheme in ("own", "rows")])
    found = position_schemes.readings(table)
    assert list(found["reading"]) == [reading] * 2
    assert position_schemes.in_words(found).startswith(f"{reading} under own, rows (control, new numbers that keep")
