"""The Snakefile on a small copy of this project: what it would run, and two jobs that run at the same time."""

import importlib.util
import os
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from safetensors.numpy import save_file

from lib import places

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="needs Snakemake: pip install -e '.[cluster]'"
)
TOGETHER = """
import time
from lib import places
from lib.analysis.statistics import Estimate
from lib.artifact import ledger
flags = places.record().parent / "flags"
flags.mkdir(parents=True, exist_ok=True)
(flags / {own!r}).touch()
deadline = time.monotonic() + 200
while not (flags / {other!r}).exists() and time.monotonic() < deadline:
    time.sleep(0.1)
assert (flags / {other!r}).exists(), "the other notebook is not running at the same time"
rows = [ledger.row({metric!r}, Estimate(0.9, 0.8, 1.0, 50), {own!r}, "cell", setting="squares")]
ledger.record(model, rows, {own!r}, seed=0)
"""


@pytest.fixture
def project(tmp_path):
    """lib/, the Snakefile, one model without sense and two notebooks that wait for each other."""
    shutil.copytree(places.LIB, tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("Snakefile", "pyproject.toml"):
        shutil.copy(places.ROOT / file, tmp_path)
    model = tmp_path / "data/models/reference"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    save_file({"w": np.arange(6.0)}, model / "model.safetensors")
    (tmp_path / "notebooks").mkdir()
    for own, other, metric in (("01_a", "02_b", "strip_code"), ("02_b", "01_a", "order_beyond_words")):
        cells = [
            nbformat.v4.new_code_cell('model = "reference"', metadata={"tags": ["parameters"]}, id="a"),
            nbformat.v4.new_code_cell(TOGETHER.format(own=own, other=other, metric=metric), id="b"),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"notebooks/{own}.ipynb")

    def snakemake(*words):
        settings = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
        settings.pop("DUAL_OUTPUTS", None)
        call = [sys.executable, "-m", "snakemake", "--nocolor", *words]
        return subprocess.run(call, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=500)

    return tmp_path, snakemake


def test_dry_run_then_two_jobs_at_once_then_nothing(project):
    folder, snakemake = project
    dry = snakemake("-n")
    assert dry.returncode == 0, dry.stderr
    told = (dry.stdout + dry.stderr).replace(" ", "")
    assert "notebook2" in told and "summary1" in told and not (folder / "outputs").exists()

    done = snakemake("--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    written = sorted(path.name for path in (folder / "runs/reference/notebooks").iterdir())
    assert written == ["01_a.ipynb", "02_b.ipynb"]
    summary = (folder / "runs/summary.csv").read_text().splitlines()
    assert summary[0] == "claim,metric,where,reference" and len(summary) == 3  # no row lost

    again = snakemake("-n", "--config", "notebooks=02")
    told = (again.stdout + again.stderr).replace(" ", "")
    assert "notebook1" not in told
