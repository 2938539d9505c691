"""Is a run of the present code? What a run is made from, and what of that has changed since."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import nbformat

from lib.artifact import digests, manifests
from lib.artifact.manifests import Run
from lib.artifact.notebooks import Notebook
from lib.engine import embedded
from lib.engine.checkpoints import Model, find_model, folder_digest, known_models, shipped
from lib.errors import UserError
from lib.places import show

WORDS = {"code": "lib", "cells": "notebook", "weights": "model", "shipped": "the shipped models"}  # for readers
TEXT = "only the text of its notebook changed since"  # no result depends on it: `renewal.copy` makes the page new
INJECTED = "injected-parameters"  # tag of the cell that papermill adds


def made_from(notebook: Notebook, model: str, digest: str, models_folder: Path) -> dict:
    """Everything the result of a run depends on, its parameters aside; digest: that of the model.

    All shipped models count where a notebook, run on its own model, puts them beside it. Versions are recorded in the
    manifest, not compared: they differ between machines that should agree.
    """
    code = code_digest(notebook.code, derived=embedded.recipe(model) is None)
    made = {"code": code, "cells": notebook.digest, "weights": digest}
    if model == notebook.parameters["model"] and notebook.reads_all_models:
        made["shipped"] = {name: folder_digest(folder) for name, folder in shipped(models_folder).items()}
    return made


@lru_cache(maxsize=100)
def code_digest(sources: tuple[str, ...], derived: bool) -> str:
    """Digest of the modules of lib that code cells reach by import; derived: see `digests.code`."""
    return hashlib.sha256(json.dumps(digests.code(sources, derived=derived), sort_keys=True).encode()).hexdigest()


def why_stale(run: Run, notebook: Notebook, parameters: dict, models_folder: Path, model: Model | None = None) -> str:
    """Why a run does not stand (any more); empty where it does, `TEXT` where its page alone is old.

    parameters: what it should have been run with. model: the run's own; without it the shipped or known one of that
    name, and one from elsewhere, which is not at hand, is not compared.
    """
    if not run.manifest.is_file():
        return "it never finished"
    try:
        manifest = manifests.read(run)
        changed = changes(manifest, notebook, models_folder, model)
    except UserError as error:
        return str(error)
    damage = manifests.damaged(run, manifest)
    text = not damage and text_only(run, notebook, changed)
    if changed and not text:
        return f"{' and '.join(changed)} changed since"
    if manifest["parameters"] != recorded(parameters, run.model):
        return "it was run with other parameters"
    return next((f"{show(path)}: {why}" for path, why in damage.items()), TEXT if text else "")


def changes(manifest: dict, notebook: Notebook, models_folder: Path, model: Model | None = None) -> list[str]:
    """What has changed since a run, in words."""
    name, found = manifest["model"], manifest["made_from"]
    if model is None and name in known_models(models_folder):
        model = find_model(name, models_folder)
    wanted = made_from(notebook, name, model.digest if model else found["weights"], models_folder)
    return [word for key, word in WORDS.items() if found.get(key) != wanted.get(key)]


def text_only(run: Run, notebook: Notebook, changed: list[str]) -> bool:
    """Whether what changed since a run that is whole is nothing but the text around its code cells."""
    return changed == [WORDS["cells"]] and code_cells(run.executed) == code_cells(notebook.path)


def code_cells(path: Path) -> list[tuple[str, str, list[str]]]:
    """Identity, source and tags of the code cells that a notebook has from its author."""
    return [
        (cell.id, cell.source, cell.metadata.get("tags", []))
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and not injected(cell)
    ]


def injected(cell) -> bool:
    return INJECTED in cell.metadata.get("tags", [])


def recorded(parameters: dict, model: str) -> dict:
    """Parameters as they read back from a manifest."""
    return json.loads(json.dumps(parameters | {"model": model}))
