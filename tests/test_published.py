"""What lies in outputs/: every kind of staleness is found, the summary puts models side by side, ledgers survive
notebooks that run at the same time."""

import json
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from lib import files, places
from lib.analysis.statistics import Estimate
from lib.artifact import figures, ledger, record, storage
from lib.artifact.notebooks import load_notebook
from lib.errors import UserError

RECORD = """
import sys
from lib.analysis.statistics import Estimate
from lib.artifact import ledger
notebook, metric = sys.argv[1:]
for n in range(1, 11):
    ledger.record("reference", [ledger.row(metric, Estimate(0.9, 0.8, 1.0, n), notebook, "cell")], notebook, seed=0)
"""


def row(metric="strip_effect", value=0.9, notebook="01_first", **where):
    return ledger.row(metric, Estimate(value, value - 0.1, value + 0.1, 50), notebook, "cell", **where)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """outputs/ with one run, one figure and one ledger, all in order; returns the notebooks."""
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "out"))
    cells = [
        nbformat.v4.new_code_cell('model = "reference"', metadata={"tags": ["parameters"]}, id="a"),
        nbformat.v4.new_code_cell('figures.save(figure, "01-curve", data)', id="b"),
    ]
    source = tmp_path / "01_first.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    notebook = load_notebook(source)
    running = {"notebook": "01_first", "notebook_parameters": {"seed": 0}, "lib": record.code_digest(notebook)}
    monkeypatch.setenv("DUAL_NOTEBOOK", json.dumps(running))
    executed, stamp = record.run_files("01_first", "reference")
    files.write_bytes(executed, source.read_bytes())
    made_of = {"schema": storage.SCHEMA, "lib": record.code_digest(notebook), "notebook": notebook.digest}
    storage.write_json(made_of | {"executed": files.file_digest(executed)}, stamp)
    figure, _ = figures.panels()
    figures.save(figure, "01-curve", pd.DataFrame({"x": [1]}))
    plt.close(figure)
    ledger.record("reference", [row(setting="squares")], "01_first", seed=0)
    record.write_summary()
    return [notebook]


def told(house, tmp_path):
    return record.complaints(house, tmp_path / "no models")


def test_all_in_order(house, tmp_path):
    assert told(house, tmp_path) == []
    assert record.runs() == [("01_first", "reference")] and record.models() == ["reference"]
    note = storage.read_provenance(places.outputs("reference") / "figures/01-curve.csv")
    assert note["notebook"] == "01_first" and note["notebook_parameters"] == {"seed": 0}


def test_a_picture_of_another_run(house, tmp_path):
    (places.outputs("reference") / "figures/01-curve.png").write_bytes(b"another")
    (complaint,) = told(house, tmp_path)
    assert complaint.endswith("figures/01-curve.png: it is not the picture saved with its numbers")
    (places.outputs("reference") / "figures/02-drawn-by-hand.png").write_bytes(b"no numbers")
    assert "no numbers beside it" in told(house, tmp_path)[-1]


def test_a_figure_that_its_notebook_no_longer_makes(house, tmp_path):
    text = house[0].path.read_text()
    house[0].path.write_text(text.replace("01-curve", "01-line"))
    assert any("does not name it any more" in each for each in told([load_notebook(house[0].path)], tmp_path))


def test_a_ledger_that_does_not_follow_from_the_rules(house, tmp_path):
    wrong = row() | {"verdict": "not reproduced"}
    gone = row() | {"metric": "no_such_measure"}
    elsewhere = row("strip_minus_object", notebook="09_other")
    storage.write_json([wrong, gone, elsewhere], ledger.path("reference"), storage.provenance("reference", 0))
    complaints = " ".join(told(house, tmp_path))
    assert "verdict on strip_effect does not follow" in complaints
    assert "no measure no_such_measure" in complaints
    assert "strip_minus_object is of 09_other, of which no run is here" in complaints
    assert "summary.csv: the ledgers changed since" in complaints


def test_few_units_give_no_verdict():
    assert row(value=0.9)["verdict"] == "reproduced"
    assert ledger.row("strip_effect", Estimate(0.9, 0.9, 0.9, 1), "01_first", "cell")["verdict"] == "inconclusive"


def test_models_beside_the_own_one_count_where_a_notebook_loads_them(house, tmp_path):
    write = lambda name: storage.write_json({"name": name}, tmp_path / name / "config.json")  # noqa: E731
    alone = record.made_from(house[0], "reference", "digest", tmp_path)
    beside = replace(house[0], reads_all_models=True)
    with_others = record.made_from(beside, "reference", "digest", tmp_path)
    assert "shipped" not in alone and with_others["shipped"] == {}
    assert "shipped" not in record.made_from(beside, "joint", "digest", tmp_path)
    write("joint")
    save_file({"w": np.zeros(1)}, tmp_path / "joint/model.safetensors")
    assert set(record.made_from(beside, "reference", "digest", tmp_path)["shipped"]) == {"joint"}


def test_seeds_that_are_not_those_shipped(house, tmp_path):
    (tmp_path / "models/reference").mkdir(parents=True)
    storage.write_json({}, tmp_path / "models/reference/config.json")
    table = pd.DataFrame([{"recipe": "reference", "seed": 0, "where": "squares", **row(setting="squares")}])
    file, note = places.outputs() / "seeds/seeds.csv", storage.provenance("reference", 0)
    storage.write_csv(table, file, note)
    assert record.stale_seeds(tmp_path / "models") == []
    storage.write_csv(pd.concat([table, table.assign(seed=1)]), file, note)
    assert "shipped with other seeds" in record.stale_seeds(tmp_path / "models")[0]
    storage.write_csv(table.assign(value=0.5), file, note)
    assert "says something else" in record.stale_seeds(tmp_path / "models")[0]
    file.write_text("cut short")
    assert record.stale_seeds(tmp_path / "models") == []  # and told once, with the results
    assert any("seeds.csv" in each for each in told(house, tmp_path))


def test_a_ledger_edited_by_hand(house, tmp_path):
    path = ledger.path("reference")
    path.write_text(path.read_text().replace("0.9", "0.95"))
    with pytest.raises(UserError):
        ledger.load("reference")
    assert any("ledger.json" in each and "not readable" in each for each in told(house, tmp_path))


def test_summary_has_a_column_per_model(house):
    ledger.record("joint", [row(value=0.3, setting="squares"), row("order_lost", setting="shapes")], "01_first", 0)
    table = record.write_summary()
    assert list(table) == ["claim", "metric", "where", "reference", "joint"]
    assert table.loc[0].tolist() == [
        "C4", "strip_effect", "squares", "0.90 [0.80, 1.00] reproduced", "0.30 [0.20, 0.40] not reproduced"
    ]  # fmt: skip
    assert table.loc[1, "reference"] == "" and table.loc[1, "joint"].startswith("0.90")
    assert record.summary_path().read_text().count("\n") == 3


def test_notebooks_that_run_together_share_a_ledger(tmp_path, monkeypatch):
    """Without a lock, of two notebooks reading, changing and writing one file one loses its rows."""
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path))
    jobs = {"02_a": "strip_effect", "03_b": "order_peak", "04_c": "strip_score"}
    started = [subprocess.Popen([sys.executable, "-c", RECORD, *job], cwd=places.ROOT) for job in jobs.items()]
    assert [job.wait() for job in started] == [0, 0, 0]
    assert {each["notebook"]: each["n"] for each in ledger.load("reference")} == dict.fromkeys(jobs, 10)


def test_the_lock_keeps_others_out(tmp_path):
    path = tmp_path / "x.json"
    code = f"from filelock import FileLock, Timeout\nFileLock({str(tmp_path / '.x.json.lock')!r}, timeout=0).acquire()"
    with files.locked(path):
        assert b"Timeout" in subprocess.run([sys.executable, "-c", code], capture_output=True).stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_empty_place_gives_an_empty_summary(tmp_path, monkeypatch):
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path))
    assert record.write_summary().empty and not record.summary_path().exists()
    assert json.loads(record.summary().to_json()) == {"claim": {}, "metric": {}, "where": {}}


def test_readers_never_see_minus_zero():
    row = {"value": -0.004, "low": -0.006, "high": 0.0, "verdict": "inconclusive"}
    assert record.in_words(row) == "0.00 [-0.01, 0.00] inconclusive"
