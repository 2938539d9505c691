# Notebooks x models as jobs of their own, for machines with many cores and for clusters (pip install -e '.[cluster]'):
#
#   snakemake -n                                              what would run
#   snakemake --cores 2                                       two notebooks at a time on this machine
#   snakemake --config models=reference,qwen2-vl-2b notebooks=02,03 gpus=1 --executor slurm --jobs 8
#
# A job is `python -m lib.run --model M --notebooks N`: it skips what is up to date and leaves the rest of runs/ alone.
# That is why what Snakemake sees of it is a mark in runs/.snakemake/ - it deletes its outputs before a job.

import sys

from lib import places, run
from lib.engine.checkpoints import find_model
from lib.artifact.notebooks import choose_notebooks

CHOSEN = run.words(str(config.get("notebooks", "")))
JOBS = {
    (model.name, notebook.name): model
    for model, notebook in run.choose_jobs(
        run.words(config.get("models", "")), choose_notebooks(CHOSEN, places.NOTEBOOKS), places.MODELS, everything=True
    )
}
MARK = str(places.record() / ".snakemake/{model}/{notebook}.done")


localrules: summary


rule summary:
    input:
        [MARK.format(model=model, notebook=notebook) for model, notebook in JOBS],
    shell:
        "{sys.executable} -m lib.run --summary"


rule notebook:
    input:
        str(places.NOTEBOOKS / "{notebook}.ipynb"),
        sorted(str(path) for path in places.LIB.rglob("*.py")),
    output:
        touch(MARK),
    params:
        model=lambda wildcards: JOBS[wildcards.model, wildcards.notebook].argument,
        digest=lambda wildcards: JOBS[wildcards.model, wildcards.notebook].digest,  # other weights: run again
    threads: int(config.get("threads", 1))
    resources:
        gpu=int(config.get("gpus", 0)),
        mem_mb=int(config.get("mem_mb", 4000)),
    shell:
        "OMP_NUM_THREADS={threads} {sys.executable} -m lib.run --model {params.model:q} --notebooks {wildcards.notebook:q}"
