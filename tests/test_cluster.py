"""The Snakefile on a small copy of this project: what it would run, and two jobs that run at the same time."""

import importlib.util
import shutil
import subprocess

import numpy as np
import pytest
from cluster.project import Project
from safetensors.numpy import save_file

from lib.places import ROOT

needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="needs Snakemake: pip install -e '.[cluster]'"
)


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    project.add_two_that_wait_for_each_other()
    return project


@needs_snakemake
def test_dry_run_then_two_jobs_at_once_then_nothing_until_the_weights_change(project):
    told = project.snakemake("-n").replace(" ", "")
    assert "notebook2" in told and "summary1" in told and not (project.folder / "outputs").exists()

    project.snakemake("--cores", "2")
    assert project.executed() == ["01_a.ipynb", "02_b.ipynb"]
    summary = (project.folder / "runs/summary.csv").read_text().splitlines()
    assert summary[0] == "claim,metric,where,reference" and len(summary) == 3  # no row lost

    assert "notebook1" not in project.snakemake("-n", "--config", "notebooks=02").replace(" ", "")
    weights = project.folder / "data/models/reference/model.safetensors"
    save_file({"w": np.ones(6)}, weights)
    assert "notebook2" in project.snakemake("-n").replace(" ", "")


@needs_snakemake
def test_code_in_every_folder_of_the_library_makes_a_job_due(project):
    marks = project.folder / "runs/.snakemake/reference"
    marks.mkdir(parents=True)
    for name in ("01_a", "02_b"):
        (marks / f"{name}.done").touch()
    assert "notebook2" not in project.snakemake("-n").replace(" ", "")
    with (project.folder / "lib/analysis/statistics.py").open("a") as file:
        file.write("# changed\n")
    assert "notebook2" in project.snakemake("-n").replace(" ", "")


def test_make_says_what_a_cluster_needs(tmp_path):
    call = [shutil.which("make"), "test-cluster", "READY="]  # READY=: no environment is set up
    done = subprocess.run(call, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2 and "error: munged is needed" in done.stderr and "apt-get install" in done.stderr
