"""A runner that is killed with SIGKILL, at random moments and before random writes, leaves a record that is wholly that
of the earlier run or wholly that of the new one."""

import json
import subprocess
import sys
import time

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
# A process that has done the slow imports runs the runner in children, one for each line "how seed" that it reads. A
# child kills itself before its n-th write below the record ("12w"), or is killed after so many seconds ("0.01s"). The
# cells are executed in the child itself: a kernel would take seconds, and its writes would not be counted.
DRIVER = """
import os, shutil, signal, sys, time
from pathlib import Path
import nbformat
from lib.artifact import execution
from lib.run import main

house = Path(sys.argv[1])

def run_cells(notebook, draft, given, bar):
    nb = nbformat.read(notebook.path, as_version=4)
    own = {name: value for name, value in given.items() if value != notebook.parameters[name]}
    source = chr(10).join(f"{name} = {value!r}" for name, value in own.items())
    injected = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    nb.cells.insert(1, injected)
    exec(chr(10).join(cell.source for cell in nb.cells), {})
    nbformat.write(nb, draft)

execution.run_cells = run_cells

def child(how, seed):
    count = 0

    def watch(event, arguments):
        nonlocal count
        written = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (written or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")) and "/out/" in str(arguments[0]):
            count += 1
            if how == f"{count}w":
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = main(["--fresh", "-p", f"seed={seed}"], house / "notebooks", house / "models")
    os.write(3, f"{count} ".encode())
    os._exit(code)

real = os.dup(1)
os.dup2(real, 3)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for line in sys.stdin:
    how, seed = line.split()
    pid = os.fork()
    if not pid:
        child(how, seed)
    if how.endswith("s"):
        time.sleep(float(how[:-1]))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.write(real, f"{os.waitstatus_to_exitcode(status)}{chr(10)}".encode())
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


@pytest.fixture
def start(house):
    """A function that runs the runner with a seed and kills it in a given way; returns exit code and writes counted
    (None where it was killed)."""
    command = [sys.executable, "-c", DRIVER, str(house)]
    with subprocess.Popen(command, cwd=places.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:

        def call(how: str, seed: int) -> tuple[int, int | None]:
            driver.stdin.write(f"{how} {seed}\n")
            driver.stdin.flush()
            *counted, code = driver.stdout.readline().split()
            return int(code), int(counted[0]) if counted else None

        yield call
        driver.stdin.close()


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


def test_a_killed_runner_leaves_the_old_run_or_the_new_one(house, start):
    code, _ = start("0w", 1)  # nothing is killed: a first run
    assert code == 0 and stands(house) == 1
    begun = time.monotonic()
    code, writes = start("0w", 2)
    lasted, earlier = time.monotonic() - begun, stands(house)
    assert code == 0 and earlier == 2 and writes > 20
    rng, stood = np.random.default_rng(0), set()
    for seed in range(3, 3 + KILLS):
        how = f"{rng.uniform(0, lasted):.3f}s" if seed % 4 == 0 else f"{rng.integers(1, writes + 1)}w"
        start(how, seed)
        now = stands(house)
        assert now in (earlier, seed), how
        stood.add(now == seed)
        earlier = now
    assert stood == {True, False}  # some kills came too early, some after the commit
    assert start("0w", 0)[0] == 0 and stands(house) == 0
    assert not list((house / "out").glob(f"{manifests.STAGED}/*/*/*"))  # what kills left is cleared
