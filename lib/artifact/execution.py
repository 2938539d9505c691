"""Executing one notebook for one model, as a transaction of lib/artifact/manifests.py."""

import os
import time
from pathlib import Path

from lib import places
from lib.artifact import manifests, storage
from lib.artifact.manifests import Run
from lib.artifact.notebooks import Notebook, tidy, write_notebook
from lib.artifact.staleness import changes, made_from
from lib.engine.checkpoints import Model
from lib.errors import UserError


def why_run(run: Run, notebook: Notebook, model: Model, parameters: dict, models_folder: Path) -> str:
    """Why a notebook has to run (again); empty where its results stand."""
    try:
        manifest = manifests.read(run)
    except UserError:
        return "no whole run is there"
    if manifest["parameters"] != recorded(parameters, model):
        return "it was run with other parameters"
    if damage := manifests.damaged(run, manifest):
        return damage[0]
    changed = changes(manifest, notebook, model, models_folder)
    return f"{', '.join(changed)} changed since" if changed else ""


def recorded(parameters: dict, model: Model) -> dict:
    """Parameters as they read back from a manifest."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
    return plain | {"model": model.name}


def execute(run: Run, notebook: Notebook, model: Model, parameters: dict, models_folder: Path, bar: bool) -> dict:
    """Execute a notebook and commit what it leaves; returns the manifest. bar: show papermill's progress bar.

    Whatever goes wrong, the earlier results stay; how far the notebook got is kept as <name>.failed.ipynb.
    """
    import papermill  # slow to import, and --list does not need it

    from lib.artifact.kernel import ThisPython

    given = parameters | {"model": model.argument}
    overrides = {name: value for name, value in given.items() if value != notebook.parameters[name]}
    started = time.monotonic()
    with manifests.staged(run) as folder:
        draft = folder / "notebooks" / f"{run.name}.ipynb"
        draft.parent.mkdir()
        hidden = {model.argument: model.name, str(folder): "."}
        os.environ[places.STAGING] = str(folder)  # the kernel inherits it
        try:
            papermill.execute_notebook(
                notebook.path,
                draft,
                overrides,
                kernel_name="python3",
                language="python",
                kernel_manager_class=ThisPython,
                cwd=notebook.path.parent,
                progress_bar=bar,
            )
        except Exception:
            if draft.is_file():
                write_notebook(tidy(draft, hidden), run.failed)
            raise
        finally:
            del os.environ[places.STAGING]
        seconds = round(time.monotonic() - started, 1)
        write_notebook(tidy(draft, hidden), draft)
        facts = {
            "parameters": recorded(parameters, model),
            "made_from": made_from(notebook, model, manifests.notes_of(folder), models_folder),
            "versions": storage.versions(),
            "commit": storage.commit(),
            "seconds": seconds,
        }
        manifest = manifests.commit(run, facts)
    run.failed.unlink(missing_ok=True)
    return manifest
