"""Making what this machine has run the published record: outputs/ and the outputs shown in notebooks/."""

from pathlib import Path

from lib import files, places
from lib.artifact import manifests, record, renewal
from lib.artifact.manifests import Run
from lib.artifact.notebooks import Notebook
from lib.artifact.plan import PLAN
from lib.artifact.staleness import TEXT, why_stale
from lib.engine.checkpoints import shipped
from lib.engine.embedded import DEFAULT
from lib.errors import UserError
from lib.places import show


def publish(notebooks: list[Notebook], models_folder: Path) -> None:
    """Publish a run for every notebook and model of the plan; nothing changes unless all of them can be published.

    A run that was not made here (again) stays as it is published, as long as it still belongs to the code; where only
    the text of its notebook has changed, its page gets the new text. Each notebook becomes its executed copy, the same
    cells with the outputs of the default model.
    """
    own, published = places.record(), places.PUBLISHED
    if own.resolve() == published.resolve():
        raise UserError(f"{show(published)} is what is published: publish from runs/ or another folder")
    jobs = planned(notebooks, models_folder)
    chosen = [choose(own, published, model, notebook, models_folder) for model, notebook in jobs]
    for run, (_, notebook) in zip(chosen, jobs, strict=True):
        renewal.copy(run, Run(published, run.model, run.notebook), notebook)
    kept = {(model, notebook.name) for model, notebook in jobs}
    for run in manifests.all_runs(published):
        if (run.model, run.notebook) not in kept and run.model != record.SEEDS:
            manifests.remove(run)
    models = list(dict.fromkeys(model for model, _ in jobs))
    for path in manifests.strays(published):
        if path.relative_to(published).parts[0] in models:  # what others keep in outputs/ is theirs
            path.unlink()
    for notebook in notebooks:
        files.write_bytes(notebook.path, Run(published, DEFAULT, notebook.name).executed.read_bytes())
    if not (table := record.summary(models, published)).empty:
        files.write_bytes(published / "summary.csv", record.summary_bytes(table))


def planned(notebooks: list[Notebook], models_folder: Path) -> list[tuple[str, Notebook]]:
    """What is published: names of models, each with the notebooks that the plan gives it."""
    return [
        (model, notebook)
        for model, numbers in PLAN.items()
        if model in shipped(models_folder)
        for notebook in notebooks
        if numbers is None or notebook.name.startswith(numbers)
    ]


def choose(own: Path, published: Path, model: str, notebook: Notebook, models_folder: Path) -> Run:
    """The run to publish: this machine's, or, where it has none, the published one; a UserError where that does not
    stand."""
    runs = [Run(root, model, notebook.name) for root in (own, published)]
    run = next((run for run in runs if run.manifest.is_file()), runs[0])
    why = why_stale(run, notebook, notebook.parameters, models_folder)
    if why not in ("", TEXT):
        again = f"python -m lib.run --model {model} --notebooks {notebook.name[:2]}"
        raise UserError(f"{model} {notebook.name} cannot be published: {why}; `{again}` makes it anew")
    return run
