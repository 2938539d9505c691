"""Training dynamics: the rules by which snapshots are read, the shipped tables, and one measured snapshot."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from lib.analysis import dynamics
from lib.artifact import dynamics_figures
from lib.engine import vlm
from lib.errors import UserError
from lib.reference import architectures, train
from lib.reference import dynamics as measuring
from lib.reference.recipes import RECIPES
from lib.stimuli.battery import NOTHING, ROWS
from lib.stimuli.questions import DIRECTIONS

FULL, TINY = architectures.SIZES["cpu"], architectures.Size(width=32, heads=2, encoder=1, backbone=2, feed=32)


# --- the rules, on made-up tables ------------------------------------------------------------------------------------


def made_up(lows: list[float], effects: list[dict[str, float]] | None = None) -> pd.DataFrame:
    """A training whose snapshots have these lower bounds of `sign` on left-right, and these effects (O, S, B, P; {}:
    none is defined). Above-below is never learned."""
    rows = []
    for k, low in enumerate(lows):
        own = {"model": "m", "seed": 0, "stage": "a" if k < 2 else "b", "step": 10 * k, "lessons": 100 * k, "n": 8}
        rows.append(own | {"metric": "sign", "axis": "horizontal", "value": low + 0.1, "low": low, "high": low + 0.2})
        rows.append(own | {"metric": "sign", "axis": "vertical", "value": 0.5, "low": 0.4, "high": 0.6})
        for axis, direction in (("horizontal", "left"), ("vertical", "below")):
            cell = {"metric": "accuracy", "part": "two", "axis": direction, "value": (k + 2) / 8}
            rows.append(own | cell | {"low": 0.0, "high": 1.0})
            middle = {"metric": "correct", "part": "middle", "axis": axis, "value": k / 4, "low": 0.0, "high": 1.0}
            rows.append(own | middle)
            rows.append(own | {"metric": "place", "axis": axis, "value": k / 10, "low": k / 10, "high": k / 10})
        for source, value in (effects[k] if effects else {}).items():
            bounds = {"value": value, "low": value - 0.1, "high": value + 0.1}
            rows.append(own | {"metric": "effect", "part": source, "axis": "horizontal"} | bounds)
    return pd.DataFrame(rows).fillna({"part": ""}).reindex(columns=list(dynamics.COLUMNS), fill_value="")


def wins(source: str) -> dict[str, float]:
    return {each: 0.9 if each == source else 0.0 for each in "OSBP"}


@pytest.mark.parametrize(
    "lows, place",
    [
        ([0.4, 0.6, 0.7, 0.8], 1),
        ([0.6, 0.4, 0.7, 0.8], 2),  # it came, went and stayed
        ([0.6, 0.6, 0.6, 0.6], 0),
        ([0.4, 0.5, 0.5, 0.5], None),  # 1/2 is not above 1/2
        ([0.6, 0.6, 0.6, 0.4], None),
        ([0.4, 0.4, 0.4, 0.9], None),  # nothing confirms the last snapshot
    ],
)
def test_the_sign_is_learned_where_it_is_above_one_half_and_stays(lows, place):
    table = made_up(lows)
    assert dynamics.sign_learned(table, "horizontal") == place
    assert dynamics.sign_learned(table, "vertical") is None


def test_a_source_is_replaced_only_by_another_one_that_wins_at_the_end():
    lows = [0.4, 0.6, 0.6, 0.6]
    cases = {
        ("B", "O"): [{}, wins("B"), wins("B"), wins("O")],
        None: [wins("P"), wins("B"), wins("O"), wins("B")],  # before the sign, and what passes in between
    }
    for change, effects in cases.items():
        table = made_up(lows, effects)
        assert dynamics.replaced(dynamics.winners(table, "horizontal"), since=100) == change
    several = made_up(lows, [{}, wins("B"), wins("B"), {each: 0.5 for each in "OSBP"}])
    found = dynamics.winners(several, "horizontal")
    assert found["winner"].tolist() == ["B", "B", "several"] and dynamics.replaced(found, 100) is None


def test_sentences_follow_the_table():
    said = "\n".join(dynamics.in_words(made_up([0.4, 0.6, 0.6], [{}, wins("B"), wins("O")])))
    learned, not_learned = said.split("above-below:\n")
    assert "left-right:\n  the sign is learned by step 10 of stage a, after 100 lessons (0.70 [0.60," in learned
    assert "follows B at first and O at the end; B is replaced by O" in learned
    assert "battery: 0.25 [0.07, 0.59] before, 0.38 [0.14, 0.69] then, 0.50" in learned
    assert "in the middle: 0.00 [0.00, 1.00] before, 0.25 [0.00, 1.00] then, 0.50 [0.00, 1.00] at the end" in learned
    assert "column: 0.00 [0.00, 0.00] before, 0.10 [0.10, 0.10] then" in learned
    assert "  the sign is not learned by step 20 of stage b" in not_learned
    assert "follows" not in not_learned
    assert "row: 0.00 [0.00, 0.00] at first, 0.20 [0.20, 0.20] at the end" in not_learned
    said = "\n".join(dynamics.in_words(made_up([0.4, 0.6])))
    assert "above chance at the last snapshot, step 10 of stage a (0.70 [0.60, 0.80]), and no later one" in said
    said = "\n".join(dynamics.in_words(made_up([0.6, 0.6])))
    assert "there from the first snapshot on" in said and "no effect can be stated" in said
    said = "\n".join(dynamics.in_words(made_up([0.6, 0.6], [wins("B"), wins("B")])))
    assert "the answer follows B at first and at the end\n" in said and "replaced" not in said


# --- measuring -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny model's two snapshots in the folders of a training, and what the command makes of them."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(architectures.SIZES, "cpu", TINY)
        patch.setattr(train, "CHECKPOINTS", folder / "checkpoints")
        patch.setattr(train, "TRAINING", folder / "training")
        patch.setattr(dynamics, "FOLDER", folder / "dynamics")
        where = train.files("joint", 0)
        for step in (350, 700):
            torch.manual_seed(step)
            model = architectures.build(TINY, step, places="waves")
            train.save_weights(model, where.snapshot(0, step))
        measuring.run("joint", 0, fresh=False, pairs=2, per_cell=1, scenes=20)
        return where, dynamics.read("joint")


def test_every_snapshot_is_measured_in_every_way(finished):
    _, table = finished
    states = dynamics.snapshots(table)
    assert states.to_numpy().tolist() == [["contested", 0, 0], ["contested", 350, 22400], ["contested", 700, 44800]]
    for _, cell in table.groupby("step"):
        assert set(cell["metric"]) | {"effect"} == set(dynamics.METRICS)
        assert len(dynamics.of(cell, "accuracy")) == (len(ROWS) + 1) * len(DIRECTIONS)
        assert set(dynamics.of(cell, "accuracy")["part"]) == {*ROWS, NOTHING}
        assert set(dynamics.of(cell, "place")["axis"]) == {"horizontal", "vertical"}
    assert within(table)


def test_what_is_measured_is_not_measured_again_and_what_is_missing_is_told(finished, monkeypatch, tmp_path):
    where, table = finished
    for name in ("CHECKPOINTS", "TRAINING"):
        monkeypatch.setattr(train, name, where.going.parent if name == "CHECKPOINTS" else where.kept.parent)
    monkeypatch.setattr(dynamics, "FOLDER", where.going.parents[1] / "dynamics")
    monkeypatch.setattr(measuring, "measured", lambda *rest, **sizes: pytest.fail("measured again"))
    assert len(measuring.run("joint", 0, fresh=False)) == len(table)
    with pytest.raises(UserError, match="holds no snapshots"):
        measuring.run("split", 0, fresh=False)
    with pytest.raises(UserError, match="damaged or of another recipe"):
        broken = tmp_path / "stage0-step00001.safetensors"
        broken.write_bytes(b"no weights")
        measuring.state(RECIPES["joint"], 0, measuring.Snapshot(0, 1, broken), where)
    monkeypatch.setitem(architectures.SIZES, "cpu", TINY)
    with pytest.raises(UserError, match="stage0.safetensors is missing"):
        measuring.state(RECIPES["joint"], 0, measuring.Snapshot(1, 0), where)


def test_the_command_refuses_in_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(train, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["dynamics", "split"])
    with pytest.raises(SystemExit, match="2"):
        measuring.main()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_trained_model_is_told_from_one_without_order(reference):
    """On the shipped model: the right sign everywhere, and the readout of place that its log has at the end."""
    with torch.no_grad():
        study = measuring.studies.study(reference, measuring.mirrored_pairs("squares", reference.grid, n=2))
        assert all(row[3] == 1 for row in measuring.signs(study, 0))
        assert {row[1] for row in measuring.effects(study, 0)} == set("OSBP")
        found = measuring.readout(reference, measuring.free_scenes(reference.grid, 200), 0)
    logged = {"vertical": 0.45, "horizontal": 0.45}
    for _, _, axis, value, low, high, n in found:
        assert low < value < high and n == 100 and abs(value - logged[axis]) < 0.25


def test_the_readout_finds_a_place_that_is_there_and_none_where_there_is_none():
    rng, fitted = np.random.default_rng(0), np.arange(400) < 200
    y = rng.normal(size=(400, 2))
    x = torch.from_numpy(rng.normal(size=(400, 6)))
    x[:, 0] = torch.from_numpy(y[:, 0])
    missed = ((measuring.ridge(x, y, fitted) - y)[~fitted] ** 2).mean(0)
    assert missed[0] < 0.01 and missed[1] > 0.8


# --- the shipped tables and the figure -------------------------------------------------------------------------------


def within(table: pd.DataFrame) -> bool:
    return bool(((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all())


@pytest.mark.parametrize("name", dynamics.names())
def test_shipped_tables_are_whole(name):
    table = dynamics.read(name)
    assert within(table) and (table["n"] > 0).all() and set(table["metric"]) == set(dynamics.METRICS)
    assert not table.duplicated(["stage", "step", "metric", "part", "axis"]).any()
    states = dynamics.snapshots(table)
    assert len(states) >= 8 and states["lessons"].is_monotonic_increasing and states["lessons"].iloc[0] == 0
    recipe = RECIPES[table["model"].iloc[0]]
    assert set(states["stage"]) <= {stage.name for stage in recipe.stages}
    assert "left-right:" in dynamics.in_words(table) and "above-below:" in dynamics.in_words(table)


def test_the_opening_of_the_notebook_says_what_the_tables_say():
    """Its `In short`, sentence by sentence; whoever measures anew and sees this fail has to write it anew."""
    split, redundant, gemma = (dynamics.read(name) for name in ("split", "redundant", "gemma_style"))
    later, earlier = (dynamics.sign_learned(split, axis) for axis in ("horizontal", "vertical"))
    assert later == earlier + 1 and dynamics.of(split, "place", "horizontal").iloc[0]["low"] > 0.9
    for table, axis, source in ((split, "horizontal", "O"), (split, "vertical", "P"), (redundant, "horizontal", "P"),
                                (redundant, "vertical", "P")):  # fmt: skip
        place = dynamics.sign_learned(table, axis)
        since = dynamics.of(table, "sign", axis).iloc[place]["lessons"]
        found = dynamics.winners(table, axis)
        assert set(found[found["lessons"] >= since]["winner"]) == {source}
    assert all(dynamics.sign_learned(redundant, axis) == 0 for axis in ("horizontal", "vertical"))
    left, above = (dynamics.sign_learned(gemma, axis) for axis in ("horizontal", "vertical"))
    lessons = dynamics.snapshots(gemma)["lessons"]
    assert left == above + 1 and lessons[left] - lessons[above] == 6400
    assert round(dynamics.of(gemma, "sign", "horizontal").iloc[left]["value"], 2) == 0.95
    for axis, place in (("horizontal", left), ("vertical", above)):
        since = dynamics.winners(gemma, axis)
        assert set(since[since["lessons"] >= lessons[place]]["winner"]) == {"B"}
        readout = dynamics.of(gemma, "place", axis).iloc[1:]
        assert readout["value"].max() - readout["value"].min() < 0.06 and readout["value"].max() < 0.65
    end, centred = ("four, reference at the end", "three, centred")
    right = dynamics.of(gemma, "accuracy").groupby(["lessons", "part"])["value"].mean()
    assert right[lessons[left], end] == 0 and round(right[lessons[left], centred], 2) == 0.94
    assert round(right[lessons[left + 1], end], 2) == 0.66
    assert round(right[lessons[left], "three, reference at the end"], 2) == 0.5
    taught = lessons[(right[:, "nothing there"] > 0.9).to_numpy().argmax()]  # "nothing" is an answer from here on
    emptied = {metric: dynamics.of(gemma, metric, part="empty background") for metric in ("correct", "named")}
    before, since = (emptied["correct"]["lessons"] < taught, emptied["correct"]["lessons"] >= taught)
    assert emptied["correct"][before]["value"].max() == pytest.approx(0.7, abs=0.02)
    assert emptied["correct"][since]["value"].between(0.18, 0.51).all()
    assert emptied["named"][since]["value"].min() > 0.6


def test_a_missing_table_is_told():
    with pytest.raises(UserError, match="nobody.csv is missing: measured are"):
        dynamics.read("nobody")


def test_the_figure_shows_every_row_and_the_step(finished):
    _, table = finished
    learned = pd.concat([table, table.assign(step=table["step"] + 700, lessons=table["lessons"] + 50000)])
    learned.loc[(learned["metric"] == "sign") & (learned["axis"] == "vertical"), ["value", "low", "high"]] = 0.9
    figure = dynamics_figures.training(learned, guess=0.4)
    axes = np.array(figure.axes).reshape(4, 2)
    for ax, axis in zip(axes.T, ("horizontal", "vertical"), strict=True):
        drawn = {line.get_label(): list(line.get_ydata()) for panel in ax for line in panel.lines}
        assert drawn["intact"] == dynamics.of(learned, "correct", axis, "intact")["value"].tolist()
        assert drawn[next(iter(dynamics_figures.ANSWERS))] == dynamics.of(learned, "sign", axis)["value"].tolist()
    marks = [[line for line in ax.lines if line.get_linewidth() == 3] for ax in axes[0]]
    assert len(marks[1]) == 1 and marks[1][0].get_xdata()[0] == 0
    looks = [*dynamics_figures.SOURCES.values()], [*dynamics_figures.RUNGS.values()]
    for together in looks:
        assert len({look.line for look in together}) == len({look.marker for look in together}) == 4
    plt.close(figure)


def test_snapshots_are_read_like_shipped_models(finished, tmp_path):
    """The adapter's weights are those of the snapshot."""
    where, _ = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(architectures.SIZES, "cpu", TINY)
        path = where.snapshot(0, 350)
        model = measuring.state(RECIPES["joint"], 0, measuring.Snapshot(0, 350, path), where)
    loaded = measuring.as_shipped(model, tmp_path)
    assert isinstance(loaded, vlm.VLM) and loaded.dtype == torch.float32
    saved = train.load_file(path)
    for name, weight in loaded.model.state_dict().items():
        torch.testing.assert_close(weight, saved[name].float(), atol=0, rtol=0)


def test_a_training_from_another_model_begins_with_that_model(tmp_path):
    """`redundant` starts from another model's weights."""
    assert architectures.SIZES["cpu"] is FULL
    where = train.Files(tmp_path, tmp_path)
    began = measuring.state(RECIPES["redundant"], 0, measuring.Snapshot(0, 0), where).state_dict()
    other = vlm.load(RECIPES["redundant"].start, device="cpu").model.state_dict()
    assert other.keys() == began.keys()
    for name, weight in other.items():
        if weight.any():  # what is zero there it has not learned
            torch.testing.assert_close(began[name], weight.float(), atol=0, rtol=0)
