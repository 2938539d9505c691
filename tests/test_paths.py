"""Results are written whole or not at all, and what is not whole is not read."""

import errno
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from records import file_run, reseal

from lib import files, places
from lib.analysis.statistics import Estimate
from lib.artifact import ledger, manifests, storage
from lib.artifact.manifests import Run
from lib.errors import UserError, unknown


@pytest.fixture
def table():
    return pd.DataFrame({"condition": ["none", "NA", None], "value": [1 / 3, np.nan, 1e-17], "n": [1, 2, 3]})


@pytest.fixture
def note():
    return storage.provenance("reference", 0, setting="squares", n=50)


def test_csv_reads_back_in_six_digits(tmp_path, table, note):
    path = storage.write_csv(table, tmp_path / "a/b/t.csv", note)
    back = storage.read_csv(path)
    assert list(back.condition[:2]) == ["none", "NA"] and pd.isna(back.condition[2])  # words are not missing values
    np.testing.assert_array_equal(back.value, [0.333333, np.nan, 1e-17])
    assert list(back.n) == [1, 2, 3] and back.n.dtype == int
    assert [p.name for p in path.parent.iterdir()] == ["t.csv"]
    before = path.read_bytes()
    assert storage.write_csv(back, path, note).read_bytes() == before  # once rounded, rounding changes nothing


def test_numbers_that_differ_in_the_seventh_digit_leave_equal_files(tmp_path):
    numbers = {"a": np.array([0.1234564, 1.0, -1e-9]), "b": np.float32([0.1, 2.5, -0.0]), "c": [12345678, 0, -1]}
    table = pd.DataFrame(numbers)
    first = storage.write_csv(table, tmp_path / "a.csv").read_text()
    assert first == "a,b,c\n0.123456,0.1,12345678\n1.0,2.5,0\n-1e-09,0.0,-1\n"
    table.loc[0, "a"] += 1e-8
    assert storage.write_csv(table.astype({"b": float}), tmp_path / "a.csv").read_text() == first


def test_a_verdict_is_that_of_the_digits_that_are_filed():
    rows = [ledger.row("strip_code", Estimate(0.7, 0.5 + more, 0.8, 50), "02_x", "c") for more in (0, 1e-9)]
    assert rows[0] == rows[1] and rows[0]["verdict"] == "inconclusive"


def test_json_reads_back_and_takes_numpy(tmp_path, note):
    path = storage.write_json({"a": np.float64(0.1), "b": np.arange(2)}, tmp_path / "x.json", note)
    assert storage.read_json(path) == {"a": 0.1, "b": [0, 1]}
    with pytest.raises(ValueError):
        storage.write_json({"a": float("nan")}, path, note)
    assert storage.read_json(path)["a"] == 0.1


@pytest.mark.parametrize("damage", ["cut", "edited", "of no run", "manifest cut", "manifest edited", "empty"])
def test_corrupt_results_are_refused(tmp_path, table, note, damage):
    file_run(tmp_path, "reference", "01_x", lambda folder: storage.write_csv(table, folder / "t.csv", note))
    path, manifest = tmp_path / "reference/t.csv", tmp_path / "reference/runs/01_x.json"
    assert manifests.checked(tmp_path, "reference", "t.csv") == path
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-5])
        case "edited":
            path.write_bytes(path.read_bytes().replace(b"none", b"None"))
        case "of no run":
            manifest.unlink()
        case "manifest cut":
            manifest.write_text(manifest.read_text()[:40])
        case "manifest edited":
            manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
        case "empty":
            path.write_bytes(b"")
    with pytest.raises(UserError, match="repairs it|make run"):
        manifests.checked(tmp_path, "reference", "t.csv")


def test_a_manifest_of_another_schema_is_refused(tmp_path):
    file_run(tmp_path, "reference", "01_x")
    run = Run(tmp_path, "reference", "01_x")
    reseal(run, lambda manifest: manifest.update(schema=1))
    with pytest.raises(UserError, match="schema 1"):
        manifests.read(run)


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failing_writer_leaves_the_old_file(tmp_path, error):
    path = storage.write_json([1], tmp_path / "x.json")
    with (
        pytest.raises(UserError if isinstance(error, OSError) else type(error)),
        files.atomic(path) as temporary,
    ):
        temporary.write_text("half")
        raise error
    assert storage.read_json(path) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = storage.write_json([1], tmp_path / "x.json")
    code = (
        f"import os; from lib import files\nwith files.atomic({str(path)!r}) as t:\n"
        "    t.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=places.ROOT).returncode == 9
    assert storage.read_json(path) == [1]


def test_unwritable_places_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        storage.write_json([1], tmp_path / "file" / "x.json")
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        storage.write_json([1], tmp_path / "taken.json")
    assert "no space left" in str(files.unwritable("x", OSError(errno.ENOSPC, "")))


def test_outputs_go_by_short_names(tmp_path, monkeypatch):
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert places.record() == tmp_path
    for spec in ("reference", "org/reference", "/no/such/reference"):
        assert places.record(spec) == tmp_path / "reference"
        assert places.outputs(spec) == tmp_path / "by-hand/reference"
    monkeypatch.chdir(tmp_path / "mine")
    assert places.record(".") == tmp_path / "mine"
    monkeypatch.setenv(places.STAGED, str(tmp_path / "staged"))
    assert places.outputs("reference") == tmp_path / "staged"
    monkeypatch.delenv("DUAL_OUTPUTS")
    assert places.record("reference") == places.ROOT / "runs/reference"
    monkeypatch.delenv(places.STAGED)
    assert places.outputs("reference") == places.ROOT / "runs/by-hand/reference"


def test_a_manifest_holds_what_results_were_made_with(tmp_path, table, note):
    manifest = file_run(tmp_path, "reference", "01_x", lambda folder: storage.write_csv(table, folder / "t.csv", note))
    facts = manifest["results"]["t.csv"]
    assert set(facts) == {"sha256", "model", "seed", "parameters"} and facts["parameters"]["n"] == 50
    assert storage.versions()["numpy"] and str(places.ROOT) not in str(manifest)


def test_waiting_threads_do_not_spin():
    """lib is imported before torch is, and the user's own setting wins."""
    code = "import os, lib; print(os.environ['GOMP_SPINCOUNT'])"
    for own, wanted in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        settings = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | own
        done = subprocess.run([sys.executable, "-c", code], cwd=places.ROOT, env=settings, capture_output=True)
        assert done.stdout.decode().strip() == wanted


def test_unknown_suggests(capsys):
    assert str(unknown("model", "jiont", ["reference", "joint"])).startswith(
        "unknown model 'jiont': did you mean 'joint'? known are"
    )
