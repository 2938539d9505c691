"""Executing one notebook for one model, as a transaction of lib/artifact/manifests.py."""

import time
from pathlib import Path

from lib.artifact import manifests, storage
from lib.artifact.manifests import Run
from lib.artifact.notebooks import Notebook, tidy, write_notebook
from lib.artifact.staleness import made_from, recorded
from lib.engine.checkpoints import Model, hub_digest
from lib.places import show

PATIENCE = (
    600  # seconds for a kernel to start or to hand over output; on a busy machine papermill's 60 and 4 are not enough
)


def execute(run: Run, notebook: Notebook, model: Model, parameters: dict, models_folder: Path, bar: bool) -> dict:
    """Execute a notebook and commit what it leaves; returns the manifest. bar: show papermill's progress bar.

    Whatever goes wrong, the earlier results stay; how far the notebook got is kept as <name>.failed.ipynb.
    """
    made = made_from(notebook, model.name, model.digest, models_folder)
    started = time.monotonic()
    with manifests.staged(run) as folder:
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


def run_cells(notebook: Notebook, draft: Path, given: dict, bar: bool) -> None:
    """Run the cells by papermill into `draft`; only parameters that differ from the notebook's own are written in."""
    import papermill  # slow to import, and --list does not need it

    from lib.artifact.kernel import ThisPython

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
