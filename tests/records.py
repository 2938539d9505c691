"""Small records for tests: runs that are filed as the runner files them, without executing anything."""

from pathlib import Path

from lib.artifact import manifests
from lib.artifact.manifests import Run


def file_run(root: Path, model: str, notebook: str, write=lambda folder: None, parameters=None, made_from=None) -> dict:
    """File what `write(folder)` leaves as the run of a notebook; returns the manifest."""
    run = Run(Path(root), model, notebook)
    with manifests.staged(run) as folder:
        write(folder)
        made = made_from or {"code": "digest", "cells": "digest", "weights": "digest"}
        facts = {"parameters": parameters or {"seed": 0}, "made_from": made, "versions": {}, "commit": None}
        return manifests.commit(run, folder, facts | {"seconds": 1.0})


def reseal(run: Run, change) -> None:
    """Edit a manifest as a forger would: `change(manifest)`, then a seal that fits."""
    manifest = manifests.read(run)
    change(manifest)
    manifests.files.write_json(manifest | {"seal": manifests.seal_of(manifest)}, run.manifest)
