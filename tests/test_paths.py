"""Results are written whole or not at all, and what is not whole is not read."""

import errno
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lib import files, places
from lib.artifact import storage
from lib.errors import UserError, unknown


@pytest.fixture
def table():
    return pd.DataFrame({"condition": ["none", "NA", None], "value": [1 / 3, np.nan, 1e-17], "n": [1, 2, 3]})


@pytest.fixture
def note():
    return storage.provenance("reference", 0, setting="squares", n=50)


def test_csv_reads_back_exactly(tmp_path, table, note):
    path = storage.write_csv(table, tmp_path / "a/b/t.csv", note)
    back = storage.read_csv(path)
    assert list(back.condition[:2]) == ["none", "NA"] and pd.isna(back.condition[2])  # words are not missing values
    np.testing.assert_array_equal(back.value, table.value)
    assert sorted(p.name for p in path.parent.iterdir()) == ["t.csv", "t.csv.provenance.json"]


def test_json_reads_back_and_takes_numpy(tmp_path, note):
    path = storage.write_json({"a": np.float64(0.1), "b": np.arange(2)}, tmp_path / "x.json", note)
    assert storage.read_json(path) == {"a": 0.1, "b": [0, 1]}
    with pytest.raises(ValueError):
        storage.write_json({"a": float("nan")}, path, note)
    assert storage.read_json(path)["a"] == 0.1


@pytest.mark.parametrize("damage", ["cut", "edited", "no note", "broken note", "empty", "list note"])
def test_corrupt_results_are_refused(tmp_path, table, note, damage):
    path = storage.write_csv(table, tmp_path / "t.csv", note)
    beside = storage.provenance_path(path)
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-5])
        case "edited":
            path.write_bytes(path.read_bytes().replace(b"none", b"None"))
        case "no note":
            beside.unlink()
        case "broken note":
            beside.write_text(beside.read_text()[:40])
        case "empty":
            path.write_bytes(b"")
        case "list note":
            beside.write_text("[]")
    with pytest.raises(UserError, match="make run"):
        storage.read_csv(path)


def test_another_schema_is_refused(tmp_path, table, note):
    path = storage.write_csv(table, tmp_path / "t.csv", note | {"schema": 0})
    with pytest.raises(UserError, match="schema 0"):
        storage.read_csv(path)


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failing_writer_leaves_the_old_file(tmp_path, error):
    path = storage.write_json([1], tmp_path / "x.json")
    with (
        pytest.raises(UserError if isinstance(error, OSError) else type(error)),
        files.atomic(path) as temporary,
    ):
        temporary.write_text("half")
        raise error
    assert storage.read_json(path, checked=False) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = storage.write_json([1], tmp_path / "x.json")
    code = (
        f"import os; from lib import files\nwith files.atomic({str(path)!r}) as t:\n"
        "    t.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=places.ROOT).returncode == 9
    assert storage.read_json(path, checked=False) == [1]


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
    assert places.outputs() == tmp_path
    for spec in ("reference", "org/reference", "/no/such/reference"):
        assert places.outputs(spec) == tmp_path / "reference"
    monkeypatch.chdir(tmp_path / "mine")
    assert places.outputs(".") == tmp_path / "mine"
    monkeypatch.delenv("DUAL_OUTPUTS")
    assert places.outputs("reference") == places.ROOT / "runs/reference"


def test_provenance_names_everything(note):
    wanted = {"schema", "seed", "model", "parameters", "notebook", "notebook_parameters", "lib", "versions", "commit"}
    assert wanted == set(note)
    assert str(places.ROOT) not in str(note) and note["versions"]["numpy"]


def test_provenance_names_the_running_notebook(monkeypatch):
    monkeypatch.delenv("DUAL_NOTEBOOK", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "/somewhere/03_probes.ipynb")
    assert storage.provenance("reference", 0)["notebook"] == "03_probes"
    monkeypatch.setenv("DUAL_NOTEBOOK", '{"notebook": "01_scenes", "notebook_parameters": {"seed": 4}}')
    note = storage.provenance("reference", 4)
    assert note["notebook"] == "01_scenes" and note["notebook_parameters"] == {"seed": 4}


def test_unknown_suggests(capsys):
    assert str(unknown("model", "jiont", ["reference", "joint"])).startswith(
        "unknown model 'jiont': did you mean 'joint'? known are"
    )
