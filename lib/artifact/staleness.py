"""Is a run of the present code? What a run is made from, and what of that has changed since."""

from functools import lru_cache
from pathlib import Path

from lib import places
from lib.artifact.notebooks import Notebook
from lib.engine import checkpoints
from lib.engine.checkpoints import Model
from lib.errors import UserError

# Versions are recorded in a manifest, too, but not compared: they differ between machines that should agree.


def made_from(notebook: Notebook, model: Model, notes: list[dict], models_folder: Path = places.MODELS) -> dict:
    """What a finished run was made from.

    notes: what the notebook noted: models that were read (`model`), recipes whose training seeds were listed
    (`seeds_of`). Digests are taken now, so that a model downloaded by the run has one.
    """
    specs = [note["model"] for note in notes if "model" in note]
    read = {checkpoints.find_model(spec, models_folder) for spec in (model.argument, *specs)}
    recipes = {note["seeds_of"] for note in notes if "seeds_of" in note}
    return {
        "cells": notebook.digest,
        "code": notebook.code,
        "weights": {each.name: each.digest for each in sorted(read, key=lambda each: each.name)},
        "seeds": {recipe: list(checkpoints.seeds(recipe, models_folder).values()) for recipe in sorted(recipes)},
    }


def changes(manifest: dict, notebook: Notebook, model: Model | None = None, models_folder=places.MODELS) -> list[str]:
    """What has changed since a run, in words; empty where it stands.

    model: the run's own; None: the shipped one of that name, or, for a model from elsewhere, not compared.
    """
    made = manifest["made_from"]
    found = [] if made["cells"] == notebook.digest else ["the notebook"]
    names = sorted(set(made["code"]) | set(notebook.code))
    found += [name for name in names if made["code"].get(name) != notebook.code.get(name)]
    for name, digest in made["weights"].items():
        now = model.digest if model and name == model.name else weights(name, models_folder)
        found += [] if now in (digest, None) else [f"the model {name}"]
    for recipe, members in made["seeds"].items():
        if members != list(checkpoints.seeds(recipe, models_folder).values()):
            found.append(f"the training seeds of {recipe}")
    return found


def weights(name: str, models_folder: Path) -> str | None:
    """The digest of a shipped model, None for one from elsewhere; "damaged" where its files are."""
    folder = checkpoints.shipped(models_folder).get(name)
    if folder is None:
        return None
    return _digest(folder, tuple((path.name, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())))


@lru_cache(maxsize=64)
def _digest(folder: Path, files: tuple) -> str:
    """files: names and times of the folder's files, so that a change is seen."""
    try:
        return checkpoints.folder_digest(folder)
    except UserError:
        return "damaged"
