"""The authors' counts, pooled per axis, against the numbers of PROTOCOL.md 9.4."""

import pandas as pd
import pytest

from lib import places
from lib.analysis import published_counts
from lib.errors import UserError

EXPECTED = {  # accuracy, low, high after the ablation
    ("qwen2-vl-7b", "squares", "horizontal"): (0.725, 0.665, 0.778),
    ("qwen2-vl-7b", "squares", "vertical"): (0.467, 0.405, 0.530),
    ("qwen2-vl-7b", "shapes", "horizontal"): (0.704, 0.644, 0.758),
    ("qwen2-vl-7b", "shapes", "vertical"): (0.521, 0.458, 0.583),
    ("qwen2-vl-7b", "objects", "horizontal"): (0.448, None, None),
    ("qwen2-vl-7b", "objects", "vertical"): (0.406, None, None),
    ("gemma-3-4b", "squares", "horizontal"): (0.500, 0.437, 0.563),
    ("gemma-3-4b", "squares", "vertical"): (0.633, 0.571, 0.692),
    ("gemma-3-4b", "shapes", "horizontal"): (0.517, 0.454, 0.579),
    ("gemma-3-4b", "shapes", "vertical"): (0.754, 0.696, 0.804),
    ("gemma-3-4b", "objects", "horizontal"): (0.473, None, None),
    ("gemma-3-4b", "objects", "vertical"): (0.609, 0.571, 0.645),
}


@pytest.fixture(scope="module")
def table():
    return published_counts.after_ablation().set_index(["model", "setting", "orientation"])


@pytest.mark.parametrize("key", EXPECTED, ids="-".join)
def test_pooled_counts_are_those_of_the_protocol(table, key):
    row = table.loc[key]
    for name, expected in zip(("accuracy", "low", "high"), EXPECTED[key], strict=True):
        assert expected is None or row[name] == pytest.approx(expected, abs=6e-4)


def test_the_surviving_axis_differs_between_the_two_checkpoints(table):
    left = table[table["reading"] == "order is left"].index
    assert set(left) == {
        *(("qwen2-vl-7b", setting, "horizontal") for setting in ("squares", "shapes")),
        *(("gemma-3-4b", setting, "vertical") for setting in ("squares", "shapes", "objects")),
    }


def test_pixtral_cannot_be_read(table):
    pixtral = table.loc["pixtral-12b"]
    assert (pixtral["reading"] == "not readable").all() and len(pixtral) == 6
    assert (pixtral.loc["shapes", "accuracy"] > pixtral.loc["shapes", "intact"]).all()


def test_readings_at_the_edges():
    assert published_counts.reading(1.0, 0.51, 0.6) == "order is left"
    assert published_counts.reading(1.0, 0.4, 0.49) == "below the floor"
    assert published_counts.reading(1.0, 0.4, 0.6) == "no order is shown to be left"
    assert published_counts.reading(0.89, 0.9, 1.0) == published_counts.reading(float("nan"), 0, 1) == "not readable"


def test_every_row_names_source_and_date():
    for name in ("counts", "probes"):
        rows = pd.read_csv(places.DATA / "published" / f"{name}.csv")
        assert rows["source"].str.contains("/").all() and rows["accessed"].str.fullmatch(r"\d{4}-\d\d-\d\d").all()


def test_a_table_with_other_columns_is_refused(tmp_path, monkeypatch):
    (tmp_path / "published").mkdir()
    (tmp_path / "published/counts.csv").write_text("model,correct\nx,1\n")
    monkeypatch.setattr(places, "DATA", tmp_path)
    with pytest.raises(UserError, match="must have the columns"):
        published_counts.read("counts", published_counts.COUNTS)


def embedded(model, horizontal, vertical, neither=0.0):
    """An embedded model with these accuracies after the ablation, give or take .05."""
    rows = [
        (model, "squares", axis, 1.0, 32, value, value - 0.05, value + 0.05, neither)
        for axis, value in (("horizontal", horizontal), ("vertical", vertical))
    ]
    columns = ["model", "setting", "orientation", "intact", "total", "accuracy", "low", "high", "names_neither"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize(
    ("model", "compared", "said"),
    [
        (embedded("qwen_style", 0.7, 0.5), ["alike", "alike"], "as it would be if the scheme decided"),
        (embedded("qwen_style", 0.5, 0.9), ["differs", "differs"], "the scheme alone does not decide"),
        (embedded("qwen_style", 0.7, 0.56), ["alike", "undecided"], "no answer about the schemes"),
        (embedded("gemma_style-seed1", 0.0, 0.0, 0.9), ["not readable"] * 2, "no answer about the schemes"),
        (
            embedded("pixtral_style", 0.9, 0.9),
            ["not readable"] * 2,
            "no answer about the schemes",
        ),  # nor the checkpoint
    ],
)
def test_embedded_models_are_held_against_the_checkpoint_of_their_scheme(model, compared, said):
    found = published_counts.beside_checkpoints(pd.concat([model, embedded("reference", 1.0, 1.0)]))
    assert set(found["model"]) == set(model["model"])  # reference has the scheme of none of them
    assert found["compared"].tolist() == compared
    *lines, verdict = published_counts.schemes_in_words(found)
    assert len(lines) == 1 and "n = 32 questions" in lines[0] and said in verdict


def test_without_embedded_models_there_is_no_answer_about_schemes():
    found = published_counts.beside_checkpoints(embedded("reference", 1.0, 1.0))
    assert found.empty and published_counts.schemes_in_words(found)[-1].startswith("No embedded model")
