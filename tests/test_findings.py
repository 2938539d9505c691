"""The sentences of README and docs that follow the record: what they say where the values are others."""

import numpy as np
import pandas as pd
import pytest

from lib.artifact import findings, record
from lib.engine.checkpoints import seeds

TRAININGS = [*seeds("reference").values(), "gemma_style"]


def table_of(background):
    """`findings.rivals` of trainings by their B, and of a model whose encoder is not frozen."""
    rows = {(name, axis): b for name, b in (background | {"joint": 1.0}).items() for axis in ("horizontal", "vertical")}
    index = pd.MultiIndex.from_tuples(rows, names=["model", "orientation"])
    return pd.DataFrame({"B": list(rows.values())}, index=index)


@pytest.mark.parametrize(
    ("background", "readable", "said"),
    [
        ([1.0, 1.0, 0.0, 0.0], [0.4, 0.5, 0.9, 1.0], "R2 0.40 to 0.50 where the background wins, 0.90 or more"),
        ([1.0, 1.0, 0.0, 1.0], [0.4, 0.5, 0.9, 0.95], "the ranges overlap"),
        ([0.0, 0.0, 0.0, 0.0], [0.4, 0.5, 0.9, 1.0], "the background wins in 0"),
    ],
)
def test_what_goes_with_the_winning_source_follows_the_values(monkeypatch, background, readable, said):
    values = dict(zip(TRAININGS, readable, strict=True))
    monkeypatch.setattr(findings, "place_readable", values.__getitem__)
    text = findings.place_and_source(table_of(dict(zip(TRAININGS, background, strict=True))))
    assert said in text and "Over the 4 trainings with a frozen encoder" in text


def test_a_staged_model_without_results_is_left_out():
    assert findings.frozen(table_of({"reference": 1.0, "qwen_style": 0.0})) == ["reference", "qwen_style"]


def test_positions_are_told_where_there_is_an_axis_to_follow(monkeypatch):
    def made(name, file):
        named, neither = (0.9, 0.1) if name == "qwen_style" else (0.9, 0.8)
        rows = [("vertical", "middle", scheme, measure, value, value - 0.1)
                for scheme in ("own", "columns", "rows")
                for measure, value in (("named", named), ("names_neither", neither))]  # fmt: skip
        return pd.DataFrame(rows, columns=["orientation", "step", "scheme", "measure", "value", "low"])

    monkeypatch.setattr(record, "table", made)
    monkeypatch.setattr(record, "models", lambda: ["reference", "qwen_style", "gemma_style"])
    text = findings.positions()
    assert "`qwen_style` 0.90, 0.90, control 0.90: the loss is one of information" in text
    assert "Nothing to follow in `gemma_style`:" in text and "pixtral" not in text


@pytest.mark.parametrize(("vertical", "said"), [(0.9, "alone does not decide"), (0.5, "Does the position scheme")])
def test_schemes_are_told_by_what_the_models_show(monkeypatch, vertical, said):
    rows = [("qwen_style", "horizontal", 0.7), ("qwen_style", "vertical", vertical), ("split", "vertical", 0.9)]
    table = pd.DataFrame(rows, columns=["model", "orientation", "accuracy"])
    table = table.assign(
        setting="squares", intact=1.0, total=32, low=table["accuracy"] - 0.05, high=table["accuracy"] + 0.05,
        names_neither=0.0,
    )  # fmt: skip
    true = table.head(1).assign(model="qwen2-vl-7b", names_neither=np.nan)
    monkeypatch.setattr(record, "table", lambda name, file: pd.concat([true, table]))
    text = findings.schemes()
    assert text.startswith("- **") and said in text and "(32 questions each)" in text and "split" not in text


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (0.2, "except where \N{DAGGER} stands (`qwen_style` above-below, O 0.20):"),
        (0.97, "0.97 or more of the probability on the two."),
    ],
)
def test_answers_that_go_to_other_words_are_told(monkeypatch, left, said):
    def made(name, file):
        rows = [("squares", axis, True, edit, 0, 0.5) for axis in ("horizontal", "vertical") for edit in range(1, 10)]
        table = pd.DataFrame(rows, columns=["setting", "orientation", "centred", "edit", "slot", "effect"])
        own = (table["orientation"] == "vertical") & (table["edit"] == 1) & (name == "qwen_style")
        return table.assign(on_the_two=np.where(own, left, 1.0))

    monkeypatch.setattr(record, "table", made)
    monkeypatch.setattr(record, "models", lambda: ["reference", "qwen_style"])
    assert said in findings.answers_kept(findings.answers_left())
    together = findings.together_only(["reference", "qwen_style"])
    assert f"crossed objects (edit 1) move it 0.50 and 0.50 [0.00 and {1 - left:.2f}] of the way" in together
    assert together.count("[0.00 and 0.00]") == 2 and together.endswith("in brackets what goes to other words")
