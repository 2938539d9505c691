"""A small copy of this project for tests of the Snakefile: lib/, a model without sense, notebooks of two cells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
from safetensors.numpy import save_file

from lib import places

# What a notebook does after its own code: a row in the ledger, so that lib.run has something to file.
RECORD = """
from lib.analysis.statistics import Estimate
from lib.artifact import ledger
rows = [ledger.row({metric!r}, Estimate(0.9, 0.8, 1.0, 50), {own!r}, "cell", setting="squares")]
ledger.record(model, rows, {own!r}, seed=0)
"""
# Two notebooks that wait for each other: they end only if they run at the same time. A flag holds the job's GPU.
TOGETHER = """
import os, time
from lib import places
flags = places.record().parent / "flags"
flags.mkdir(parents=True, exist_ok=True)
(flags / {own!r}).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
deadline = time.monotonic() + 200
while not (flags / {other!r}).exists() and time.monotonic() < deadline:
    time.sleep(0.1)
assert (flags / {other!r}).exists(), "the other notebook is not running at the same time"
"""


class Project:
    """The copy in a folder, and Snakemake in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copytree(places.LIB, folder / "lib", ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("Snakefile", "pyproject.toml"):
            shutil.copy(places.ROOT / file, folder)
        model = folder / "data/models/reference"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        save_file({"w": np.arange(6.0)}, model / "model.safetensors")
        (folder / "notebooks").mkdir()

    def add(self, name: str, code: str, metric: str) -> None:
        """A notebook that runs `code` and then records one row of `metric`."""
        cells = [
            nbformat.v4.new_code_cell('model = "reference"', metadata={"tags": ["parameters"]}, id="a"),
            nbformat.v4.new_code_cell(code + RECORD.format(own=name, metric=metric), id="b"),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), self.folder / f"notebooks/{name}.ipynb")

    def add_two_that_wait_for_each_other(self) -> None:
        for own, other, metric in (("01_a", "02_b", "strip_code"), ("02_b", "01_a", "order_beyond_words")):
            self.add(own, TOGETHER.format(own=own, other=other), metric)

    def start(self, *words: str, **settings: str) -> subprocess.Popen:
        """Snakemake with these words on its command line and `settings` added to its environment."""
        environment = os.environ | settings
        environment |= dict.fromkeys(("PYTHONPATH", "HOME", "XDG_CACHE_HOME"), str(self.folder))
        environment.pop("DUAL_OUTPUTS", None)
        call = [sys.executable, "-m", "snakemake", "--nocolor", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(call, cwd=self.folder, env=environment, **pipes)

    def snakemake(self, *words: str, **settings: str) -> str:
        """What Snakemake says; AssertionError where it fails."""
        return finished(self.start(*words, **settings))

    def executed(self) -> list[str]:
        """Names of the notebooks that were filed."""
        return sorted(path.name for path in (self.folder / "runs/reference/notebooks").iterdir())

    def flags(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.folder / "flags").glob("*")}


def finished(process: subprocess.Popen, seconds: float = 900) -> str:
    """What a process said until it ended, within so many seconds and without a fault."""
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said
