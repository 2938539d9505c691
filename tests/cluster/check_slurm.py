"""The Snakefile on a real SLURM of one node: `make test-cluster`. The name keeps it out of `make test`."""

import os
import subprocess

import pytest
from cluster.project import Project, finished
from cluster.slurm import Slurm, wait_until

# squeue, because sacct fails where SLURM keeps no accounts, and Snakemake would wait for ever
ON_SLURM = ("--executor", "slurm", "--jobs", "2", "--slurm-status-command", "squeue")
QUICKLY = ("--slurm-init-seconds-before-status-checks", "3", "--slurm-keep-successful-logs")
# Waits the first time it is run, until somebody kills it; ends at once the second time.
UNTIL_KILLED = """
import os, time
from lib import places
flags = places.record().parent / "flags"
flags.mkdir(parents=True, exist_ok=True)
first = not (flags / "started").exists()
(flags / "started").write_text(os.environ["SLURM_JOB_ID"])
time.sleep(900 if first else 0)
assert not first, "nobody killed the node"
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def job(slurm: Slurm, number: str) -> str:
    return slurm.command("scontrol", "--oneliner", "show", "job", number)


def test_sacct_fails_without_accounts(slurm):
    done = subprocess.run(["sacct"], env=os.environ | slurm.settings, capture_output=True, text=True)
    assert done.returncode != 0 and "disabled" in done.stderr


def test_two_notebooks_at_once_each_with_a_gpu_of_its_own(slurm, project):
    project.add_two_that_wait_for_each_other()
    said = project.snakemake(*ON_SLURM, *QUICKLY, "--config", "gpus=1", "mem_mb=1000", **slurm.settings)
    print(said)
    assert project.executed() == ["01_a.ipynb", "02_b.ipynb"]
    assert sorted(project.flags().values()) == ["0", "1"]  # CUDA_VISIBLE_DEVICES
    numbers = [line.split()[0] for line in slurm.command("squeue", "-h", "--states=all").splitlines()]
    assert len(numbers) == 2
    for number in numbers:
        facts = job(slurm, number)
        print(facts)
        assert "JobState=COMPLETED" in facts and "TresPerJob=gres:gpu:1" in facts and "mem=1000M" in facts


def test_a_job_whose_node_dies_runs_again(slurm, project):
    project.add("01_a", UNTIL_KILLED, "strip_code")
    snakemake = project.start(*ON_SLURM, *QUICKLY, "--config", "mem_mb=1000", **slurm.settings)
    try:
        wait_until(lambda: "started" in project.flags(), 900, "the job has not started")
        number = project.flags()["started"]
        slurm.kill_node()
        wait_until(slurm.is_down, 120, "SLURM has not noticed")
        assert "JobState=PENDING" in job(slurm, number) and snakemake.poll() is None
        slurm.start_node()
        said = finished(snakemake)  # SLURM holds a job that it queues again back for two minutes
    finally:
        snakemake.kill()
    print(said, slurm.log())
    assert project.executed() == ["01_a.ipynb"] and project.flags()["started"] == number
    assert "JobState=COMPLETED" in job(slurm, number) and "Restarts=1" in job(slurm, number)
    assert f"requeue job JobId={number} due to failure of node" in slurm.log()
