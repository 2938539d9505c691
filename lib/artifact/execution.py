"""Executing one notebook for one model, as a transaction of lib/artifact/manifests.py.

A run that is killed, or fails, keeps what it had computed (lib/parts.py) for the next one that is made from the same
code, weights, parameters and versions.
"""

import hashlib
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from lib import files, parts
from lib.artifact import manifests, storage
from lib.artifact.manifests import Run
from lib.artifact.notebooks import Notebook, tidy, write_notebook
from lib.artifact.staleness import made_from, recorded
from lib.engine.checkpoints import Model, cached, hub_digest
from lib.places import show

PATIENCE = (
    600  # seconds for a kernel to start or to hand over output; on a busy machine papermill's 60 and 4 are not enough
)
NO_START = "Kernel died before replying"  # of nbclient


def execute(
    run: Run,
    notebook: Notebook,
    model: Model,
    parameters: dict,
    models_folder: Path,
    bar: bool,
    fresh: bool = False,
) -> dict:
    """Execute a notebook and commit what it leaves; returns the manifest. bar: show papermill's progress bar.

    Whatever goes wrong, the earlier results stay; how far the notebook got is kept as <name>.failed.ipynb. fresh: take
    nothing from a run that was killed.
    """
    made = made_from(notebook, model.name, model.digest, models_folder)
    started = time.monotonic()
    with manifests.staged(run) as folder, kept_parts(run, model, made, parameters, fresh):
        draft = folder / "notebooks" / f"{run.notebook}.ipynb"
        draft.parent.mkdir()
        shown = f"outputs/{run.model}"
        hidden = {model.argument: model.name, str(draft): draft.name, str(folder): shown, show(folder): shown}
        try:
            run_cells(notebook, draft, parameters | {"model": model.argument}, bar)
        except Exception:
            if draft.is_file():
                write_notebook(tidy(draft, hidden), run.failed)
            raise
        seconds = round(time.monotonic() - started, 1)
        write_notebook(tidy(draft, hidden), draft)
        if not Path(model.source).is_dir():
            made["weights"] = hub_digest(model.source)  # its revision is known now that it has been downloaded
        facts = {
            "parameters": recorded(parameters, model.name),
            "made_from": made,
            "versions": storage.versions(),
            "commit": storage.commit(),
            "seconds": seconds,
        }
        manifest = manifests.commit(run, folder, facts)
    run.failed.unlink(missing_ok=True)
    return manifest


def kept_parts(run: Run, model: Model, made: dict, parameters: dict, fresh: bool) -> AbstractContextManager:
    """Keep the parts of a run for one that is made alike; `made`: what it is made from."""
    if fresh:
        shutil.rmtree(run.parts, ignore_errors=True)
    made = made | {"weights": weights(model)}
    if not made["weights"]:
        return nullcontext()
    everything = {"made_from": made, "parameters": recorded(parameters, model.name), "versions": storage.versions()}
    return parts.kept_in(run.parts, hashlib.sha256(files.dump_json(everything)).hexdigest()[:16])


def weights(model: Model) -> str:
    """What tells the weights of a model from others, also of one that will only be downloaded: its revision on the hub.

    Empty where nobody can say: then no part of a run is kept, since the next one may have other weights.
    """
    if Path(model.source).is_dir() or cached(model.source):
        return model.digest
    try:
        from huggingface_hub import model_info

        return f"{model.source}@{model_info(model.source, timeout=5).sha}"
    except Exception:  # of httpx or requests, by version; without access to a gated model, too
        return ""


def run_cells(notebook: Notebook, draft: Path, given: dict, bar: bool) -> None:
    """Run the cells by papermill into `draft`; only parameters that differ from the notebook's own are written in."""
    import papermill  # slow to import, and --list does not need it

    from lib.artifact.kernel import ThisPython

    def run() -> None:
        papermill.execute_notebook(
            notebook.path,
            draft,
            {name: value for name, value in given.items() if value != notebook.parameters[name]},
            kernel_name="python3",
            language="python",
            kernel_manager_class=ThisPython,
            cwd=notebook.path.parent,
            progress_bar=bar,
            start_timeout=PATIENCE,
            iopub_timeout=PATIENCE,
        )

    try:
        run()
    except RuntimeError as error:  # kernels that start at the same moment may take the same port; no cell has run yet
        if NO_START not in str(error):
            raise
        run()
