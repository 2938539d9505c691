"""What lies in a record: the summary puts models side by side, runs of one model at the same time keep all rows."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
from records import file_run
from safetensors.numpy import save_file

from lib import files, places
from lib.analysis.statistics import Estimate
from lib.artifact import ledger, manifests, record, staleness, storage, verification
from lib.artifact.manifests import Run
from lib.artifact.notebooks import load_notebook

RECORD = """
import sys
from lib.analysis.statistics import Estimate
from lib.artifact import ledger
from records import file_run
notebook, metric, root = sys.argv[1:]
for n in range(1, 11):
    row = ledger.row(metric, Estimate(0.9, 0.8, 1.0, n), notebook, "cell")
    file_run(root, "reference", notebook, lambda folder: ledger.record("reference", [row], notebook, seed=0))
"""


def row(metric="strip_code", value=0.9, notebook="01_first", **where):
    return ledger.row(metric, Estimate(value, value - 0.1, value + 0.1, 50), notebook, "cell", **where)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A record of one run with a row in its ledger; returns its notebook."""
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "out"))
    cell = nbformat.v4.new_code_cell('model = "reference"', metadata={"tags": ["parameters"]}, id="a")
    source = tmp_path / "01_first.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), source)
    claim("reference", row(setting="squares"))
    return load_notebook(source)


def claim(model, *rows, notebook="01_first"):
    file_run(places.record(), model, notebook, lambda folder: ledger.record(model, list(rows), notebook, 0))


def test_few_units_give_no_verdict():
    assert row(value=0.9)["verdict"] == "reproduced"
    assert ledger.row("strip_code", Estimate(0.9, 0.9, 0.9, 1), "01_first", "cell")["verdict"] == "inconclusive"


def test_models_beside_the_own_one_count_where_a_notebook_loads_them(house, tmp_path):
    write = lambda name: storage.write_json({"name": name}, tmp_path / name / "config.json")  # noqa: E731
    alone = staleness.made_from(house, "reference", "digest", tmp_path)
    beside = replace(house, reads_all_models=True)
    with_others = staleness.made_from(beside, "reference", "digest", tmp_path)
    assert "shipped" not in alone and with_others["shipped"] == {}
    assert "shipped" not in staleness.made_from(beside, "joint", "digest", tmp_path)
    write("joint")
    save_file({"w": np.zeros(1)}, tmp_path / "joint/model.safetensors")
    assert set(staleness.made_from(beside, "reference", "digest", tmp_path)["shipped"]) == {"joint"}


def test_seeds_that_are_not_those_shipped(house, tmp_path):
    (tmp_path / "models/reference").mkdir(parents=True)
    storage.write_json({}, tmp_path / "models/reference/config.json")
    table = pd.DataFrame([{"recipe": "reference", "seed": 0, "where": "squares", **row(setting="squares")}])
    run = Run(places.record(), "seeds", "seeds")

    def told(table) -> str:
        file_run(places.record(), "seeds", "seeds", lambda folder: storage.write_csv(table, folder / "seeds.csv"))
        return " ".join(map(str, verification.of_seeds(run, tmp_path / "models")))

    assert told(table) == ""
    assert "shipped with other seeds" in told(pd.concat([table, table.assign(seed=1)]))
    assert "says something else; repaired by: make seeds" in told(table.assign(value=0.5))
    (run.folder / "seeds.csv").write_text("cut short")
    assert verification.of_seeds(run, tmp_path / "models") == []  # and told once, with the run
    assert "seeds.csv: it is not what the run wrote" in str(verification.of_run(run, None, tmp_path)[0])


def test_summary_has_a_column_per_model(house):
    claim("joint", row(value=0.3, setting="squares"), row("order_lost_named", setting="shapes"))
    table = record.write_summary()
    assert list(table) == ["claim", "metric", "where", "reference", "joint"]
    assert table.loc[0].tolist() == [
        "C4", "strip_code", "squares", "0.90 [0.80, 1.00] reproduced", "0.30 [0.20, 0.40] not reproduced"
    ]  # fmt: skip
    assert table.loc[1, "reference"] == "" and table.loc[1, "joint"].startswith("0.90")
    assert record.summary_path().read_text().count("\n") == 3


def test_notebooks_that_run_together_share_a_ledger(tmp_path, monkeypatch):
    """Each commit writes the ledger of the model anew, from all its manifests."""
    jobs = {"02_a": "strip_code", "03_b": "order_beyond_words", "04_c": "strips_beyond_bare"}
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(places.ROOT), str(places.ROOT / "tests")])}
    calls = [[sys.executable, "-c", RECORD, *job, str(tmp_path)] for job in jobs.items()]
    started = [subprocess.Popen(call, cwd=places.ROOT, env=settings) for call in calls]
    assert [job.wait() for job in started] == [0, 0, 0]
    rows = json.loads((tmp_path / "reference/ledger.json").read_bytes())
    assert rows == manifests.ledger_rows(tmp_path, "reference")
    assert {each["notebook"]: each["n"] for each in rows} == dict.fromkeys(jobs, 10)


def test_the_lock_keeps_others_out(tmp_path):
    path = tmp_path / "x.json"
    code = f"from filelock import FileLock, Timeout\nFileLock({str(tmp_path / '.x.json.lock')!r}, timeout=0).acquire()"
    with files.locked(path):
        assert b"Timeout" in subprocess.run([sys.executable, "-c", code], capture_output=True).stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_whoever_waits_is_told_for_whom(tmp_path, capsys):
    def wait():
        with files.locked(tmp_path / "x.json"):
            pass

    other = threading.Thread(target=wait)
    with files.locked(tmp_path / "x.json", "filing 01_first"):
        other.start()
        other.join(2)
        assert other.is_alive()
    other.join()
    assert f"waiting for process {os.getpid()} (filing 01_first), which holds" in capsys.readouterr().err


def test_an_empty_place_gives_an_empty_summary(tmp_path, monkeypatch):
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path))
    assert record.write_summary().empty and not record.summary_path().exists()
    assert json.loads(record.summary().to_json()) == {"claim": {}, "metric": {}, "where": {}}


def test_readers_never_see_minus_zero():
    row = {"value": -0.004, "low": -0.006, "high": 0.0, "verdict": "inconclusive"}
    assert record.in_words(row) == "0.00 [-0.01, 0.00] inconclusive"
