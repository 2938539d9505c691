"""A runner that is killed with SIGKILL, at random moments and before random writes, leaves a record that is wholly that
of the earlier run or wholly that of the new one."""

import json
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from safetensors.numpy import save_file

from lib import places
from lib.artifact import manifests
from lib.artifact.manifests import Run

KILLS = 20
WORK = """
import json, os, time
from lib import files, places
folder = places.outputs(model)
for name in ("a", "b", "c", f"only-{seed}"):
    files.write_bytes(folder / "tables" / f"{name}.json", json.dumps(seed).encode())
row = {"claim": "C4", "metric": "strip_code", "notebook": "01_first", "verdict": "reproduced"}
row |= {"value": seed, "low": seed, "high": seed}
files.write_bytes(folder / "ledger.json", json.dumps([row]).encode())
"""
# The runner in a child of a process that has done the slow imports; the child kills itself before its n-th write below
# the record, or is killed after so many seconds.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
import papermill
import lib.artifact.kernel
from lib.run import main

house, how, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
number, kind = float(how[:-1]), how[-1]
count = 0

def watch(event, arguments):
    global count
    if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") and "/out/" in str(arguments[0]):
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

if kind == "w":
    sys.addaudithook(watch)
if kind == "s":
    if not (child := os.fork()):
        os._exit(main(["--fresh", "-p", f"seed={seed}"], house / "notebooks", house / "models"))
    time.sleep(number)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    sys.exit(9)
sys.exit(main(["--fresh", "-p", f"seed={seed}"], house / "notebooks", house / "models"))
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "models/reference").mkdir(parents=True)
    cells = [
        nbformat.v4.new_code_cell('model = "reference"\nseed = 0', metadata={"tags": ["parameters"]}, id="a"),
        nbformat.v4.new_code_cell(WORK, id="b"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks/01_first.ipynb")
    (tmp_path / "models/reference/config.json").write_text("{}")
    save_file({"w": np.arange(6.0)}, tmp_path / "models/reference/model.safetensors")
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "out"))
    monkeypatch.setenv("PYTHONPATH", str(places.ROOT))
    return tmp_path


def start(house, how: str, seed: int) -> int:
    command = [sys.executable, "-c", DRIVER, str(house), how, str(seed)]
    return subprocess.run(command, cwd=places.ROOT, capture_output=True, timeout=300).returncode


def stands(house) -> int:
    """The seed of the run that stands, once everything in the record is found to be of it."""
    run = Run(house / "out", "reference", "01_first")
    manifests.finish(run.root)
    manifest = manifests.read(run)
    seed = manifest["parameters"]["seed"]
    names = {f"tables/{name}.json" for name in ("a", "b", "c", f"only-{seed}")}
    assert manifests.damaged(run, manifest) == {}
    assert set(manifest["results"]) == names | {"notebooks/01_first.ipynb"}
    assert {path.relative_to(run.folder).as_posix() for path in run.folder.glob("tables/*")} == names
    assert all(json.loads((run.folder / name).read_bytes()) == seed for name in names)
    assert [row["value"] for row in json.loads((run.folder / "ledger.json").read_bytes())] == [seed]
    assert [row["value"] for row in manifest["ledger"]] == [seed]
    strays = [path.relative_to(run.root) for path in manifests.strays(run.root)]
    assert all(path.parts[0] == manifests.STAGED or path.name.startswith(".") for path in strays), strays
    return seed


@pytest.mark.slow
def test_a_killed_runner_leaves_the_old_run_or_the_new_one(house):
    assert start(house, "0w", 1) == 0  # nothing is killed: a first run
    earlier, rng = stands(house), np.random.default_rng(0)
    assert earlier == 1
    stood = set()
    for seed in range(2, 2 + KILLS):
        how = f"{rng.uniform(0.1, 6):.2f}s" if seed % 4 == 0 else f"{rng.integers(1, 45)}w"
        start(house, how, seed)
        now = stands(house)
        assert now in (earlier, seed), how
        stood.add(now == seed)
        earlier = now
    assert stood == {True, False}  # some kills came too early, some after the commit
    assert start(house, "0w", 0) == 0 and stands(house) == 0
    assert not list((house / "out").glob(f"{manifests.STAGED}/*/*/*"))  # what kills left is cleared
