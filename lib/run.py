"""Run the notebooks headlessly: `python -m lib.run --model reference --notebooks 01,03 -p seed=1`.

Everything that can be wrong with a call is refused before the first notebook starts. The results of a notebook that
finishes take their place in runs/<model>/ at once, with a manifest in runs/<model>/runs/ that says what they were made
from; the next call skips what is there and still matches. At the end the runs are compared with the published record in
outputs/. Exit codes: 0 all well, 1 a notebook failed or a value differs from the record (or --verify found a fault),
2 bad input.
"""

import argparse
import errno
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from lib import files, places
from lib.artifact import comparison, manifests, record, renewal
from lib.artifact.bounds import bounds_of, read_value
from lib.artifact.execution import execute
from lib.artifact.manifests import Run
from lib.artifact.notebooks import Notebook, choose_notebooks
from lib.artifact.plan import PLAN
from lib.artifact.publishing import publish
from lib.artifact.staleness import TEXT, why_stale
from lib.engine.checkpoints import Model, check_reachable, find_model, known_models, shipped
from lib.engine.embedded import DEFAULT
from lib.errors import UserError, cli, unknown
from lib.places import show

LONGEST = 1000  # characters of a name or path on the command line

# What to run: models, notebooks, parameters


def choose_jobs(
    specs: list[str], notebooks: list[Notebook], folder: Path, everything: bool = False
) -> list[tuple[Model, Notebook]]:
    """Models as given, each with the notebooks by number; without models the default one, or all that PLAN has."""
    models = {}
    planned = [name for name in PLAN if name in shipped(folder)] if everything else [DEFAULT]
    for spec in specs or planned:
        model = find_model(spec, folder)
        if models.setdefault(model.name, model) != model:
            raise UserError(f"two models are called {model.name!r}: rename one, results go by that name")
    numbers = {} if specs else PLAN
    return [
        (model, notebook)
        for name, model in models.items()
        for notebook in notebooks
        if numbers.get(name) is None or notebook.name.startswith(numbers[name])
    ]


def choose_parameters(assignments: list[str], notebooks: list[Notebook]) -> dict[str, dict]:
    """For each notebook name its parameters: the defaults, overridden where it has one of that name."""
    known = {name for notebook in notebooks for name in notebook.parameters} - {"model"}
    values = {notebook.name: dict(notebook.parameters) for notebook in notebooks}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UserError(f"-p {assignment}: write it as -p NAME=VALUE")
        if name == "model":
            raise UserError("choose the model with --model, not with -p")
        if name not in known:
            raise unknown("parameter", name, known, shown=["those that `python -m lib.run --list` shows"])
        for notebook in notebooks:
            if name in notebook.parameters:
                default, comment = notebook.parameters[name], notebook.comments[name]
                try:
                    values[notebook.name][name] = read_value(text, default, bounds_of(name, default, comment))
                except UserError as error:
                    raise UserError(f"-p {assignment} does not fit {notebook.name}: {error}") from None
    return values


# Running


def reason(error: Exception) -> str:
    """One sentence about why a notebook failed: a UserError's own, else the last line of the traceback."""
    name, text = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error)).strip()
    if name == "DeadKernelError":
        return "its Python process died, likely for want of memory: close other programs or take a smaller model"
    return text if name == "UserError" else f"{name}: {text.splitlines()[0] if text else ''}"


def run_all(jobs: list[tuple[Model, Notebook]], values: dict[str, dict], fresh: bool, models_folder: Path) -> int:
    """Run what is not done, in the order given; a failure does not stop the rest."""
    codes, started = {0}, time.monotonic()
    runs = [record.run_of(notebook.name, model.name) for model, notebook in jobs]
    stand = [
        not fresh and up_to_date(run, notebook, values[notebook.name], models_folder, model)
        for run, (model, notebook) in zip(runs, jobs, strict=True)
    ]
    clock = Clock([run for run, done in zip(runs, stand, strict=True) if not done])
    for number, ((model, notebook), run, done) in enumerate(zip(jobs, runs, stand, strict=True), 1):
        say(f"[{number}/{len(jobs)}] {run.model} {run.notebook}:", end=" ")
        if done:
            run.failed.unlink(missing_ok=True)  # of something tried since and taken back
            say("up to date (--fresh runs it again)")
            continue
        after_label = "\n" if on_terminal() else " "  # on a terminal papermill's bar comes in between
        say(f"running, stated cost {notebook.cost}{clock.left(run)} ...", end=after_label)
        try:
            manifest = execute(run, notebook, model, values[notebook.name], models_folder, on_terminal(), fresh)
            say(f"done in {manifest['seconds']} s")
            clock.ran(run, manifest["seconds"])
        except Exception as error:  # whatever a notebook or its kernel can throw
            codes.add(report_failure(run, error))
    record.write_summary()
    say(f"total {time.monotonic() - started:.0f} s; results are in {show(places.record())}")
    codes.add(compared(jobs))
    return 1 if 1 in codes else max(codes)


def up_to_date(run: Run, notebook: Notebook, parameters: dict, models_folder: Path, model: Model) -> bool:
    """Whether a run stands; where only the text of its notebook has changed, its page gets that text first."""
    why = why_stale(run, notebook, parameters, models_folder, model)
    if why == TEXT:
        renewal.copy(run, run, notebook)
        say(f"{run.model} {run.notebook}: its page has the text that changed, the results stand")
    return why in ("", TEXT)


def report_failure(run: Run, error: Exception) -> int:
    """Say why a notebook failed; the exit code that it means."""
    say("failed")
    look = f" (how far it got: {show(run.failed)})" if run.failed.is_file() else ""
    print(f"error: {run.model} {run.notebook}: {reason(error)}{look}", file=sys.stderr, flush=True)
    return 2 if "UserError" in (type(error).__name__, getattr(error, "ename", "")) else 1


class Clock:
    """How much time is left, from the seconds that the published runs took and how fast this machine has been."""

    def __init__(self, waiting: list[Run]):
        self.expected = {}
        for run in waiting:
            try:
                self.expected[run] = manifests.read(Run(places.PUBLISHED, run.model, run.notebook))["seconds"]
            except UserError:
                self.expected[run] = None  # never published: nothing can be said
        self.took, self.should = 0.0, 0.0

    def ran(self, run: Run, seconds: float) -> None:
        if self.expected[run]:
            self.took, self.should = self.took + seconds, self.should + self.expected[run]

    def left(self, run: Run) -> str:
        """What to say before a run: the time for it and all that follow; nothing where one of them is unknown."""
        order = list(self.expected)
        ahead = [self.expected[each] for each in order[order.index(run) :]]
        if None in ahead:
            return ""
        seconds = sum(ahead) * (self.took / self.should if self.should else 1.0)
        return f", time left about {seconds / 60:.0f} min" if seconds > 90 else f", time left about {seconds:.0f} s"


def compared(jobs: list[tuple[Model, Notebook]]) -> int:
    """Hold the runs against the published record and say how they agree; 1 where they do not."""
    if places.record().resolve() == places.PUBLISHED.resolve():
        return 0
    runs = [(model.name, notebook.name) for model, notebook in jobs]
    left_out = {" ".join(run): why for run in runs if (why := comparison.why_not(*run))}
    tables = [comparison.compare(*run) for run in runs if " ".join(run) not in left_out]
    text, agree = comparison.report(pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), left_out)
    say(text)
    return 0 if agree else 1


# Looking


def show_summary() -> int:
    table = record.write_summary()
    print("no ledger yet: run the notebooks first" if table.empty else table.to_string(index=False))
    return 0


def list_all(notebooks: list[Notebook], models_folder: Path) -> int:
    plan = (f"{name} on {'all' if which is None else ', '.join(which)}" for name, which in PLAN.items())
    print(f"without --model: {DEFAULT} on all; with --all: {'; '.join(plan)} (where shipped)")
    print("models (or a path to a folder with config.json):")
    for name, where in known_models(models_folder).items():
        print(f"  {name:<20} {where}")
    for notebook in notebooks:
        print(f"\n{notebook.name}: {notebook.title} (cost: {notebook.cost})")
        for name, default in notebook.parameters.items():
            print(f"  {name} = {default!r:<24} {notebook.comments[name]}".rstrip())
    return 0


def show_plan(spec: str, notebooks: list[Notebook], models_folder: Path) -> int:
    """Memory and time per notebook on one model; nothing is run."""
    from lib.artifact import forecast  # imports torch

    print(forecast.plan(find_model(*names(spec)[:1], models_folder), notebooks))
    return 0


def verify_all(notebooks: list[Notebook], models_folder: Path) -> int:
    """Is the published record whole, and of the present code? Prints each fault with what repairs it; then exit code
    1."""
    from lib.artifact import verification  # slow to import: it draws the tables of README anew

    found = verification.faults(notebooks, models_folder)
    for fault in found:
        print(f"fault: {fault}")
    runs = manifests.readable(places.record())
    results = sum(len(manifest["results"]) for manifest in runs.values())
    verdict = f"{len(found)} faults; repair them in this order" if found else "all are whole and belong to this code"
    print(f"checked {len(runs)} runs with {results} results in {show(places.record())}: {verdict}")
    return 1 if found else 0


# The command line


def check_writable(folder: Path) -> None:
    try:
        for part in (folder / "notebooks", folder / "runs"):
            part.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=part):
                pass
    except OSError as error:
        raise files.unwritable(folder, error) from error


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def names(text: str) -> list[str]:
    """Names or paths separated by commas, at least one; UserError for what can be neither."""
    found = words(text)
    if not found:
        raise UserError(f"{text!r} names nothing: leave the option out to run the default")
    for word in found:
        if len(word) > LONGEST or not word.isprintable():
            raise UserError(f"{word[:20]}... is no name and no path: at most {LONGEST} printable characters")
        readable(word)
    return found


def readable(text: str) -> Path:
    """A path with ~ expanded; UserError where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: there is no such user") from error


def existing(text: str) -> Path:
    """The folder that --outputs names."""
    if not text.strip():
        raise UserError("--outputs names no folder: leave it out to write to runs/")
    folder = readable(text).resolve()
    if folder.exists() and not folder.is_dir():
        raise files.unwritable(folder, NotADirectoryError(errno.ENOTDIR, "it is a file"))
    if not folder.is_dir():
        raise UserError(f"there is no folder {text}: make it first, or correct the name")
    return folder


# Saying how far it is


def on_terminal() -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


def say(text: str, end: str = "\n") -> None:
    """Print a line of progress; where nobody reads it any more (a closed pipe), go on in silence."""
    try:
        print(text, end=end, flush=True)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # or Python fails once more when it flushes at exit


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lib.run", description=re.sub(r"\s+", " ", __doc__))
    parser.add_argument(
        "--model",
        action="extend",
        type=names,
        default=[],
        metavar="NAME|PATH",
        help="model to run on, several with commas or repeated (default: reference)",
    )
    parser.add_argument("--notebooks", action="extend", type=names, default=[], metavar="01,03", help="default: all")
    parser.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a parameter of the chosen notebooks that have it",
    )
    parser.add_argument("--all", action="store_true", help="run everything that is published: all embedded models")
    parser.add_argument("--fresh", action="store_true", help="run what is up to date, too")
    parser.add_argument("--outputs", metavar="FOLDER", help="write there instead of runs/")
    parser.add_argument("--list", action="store_true", help="show models, notebooks and their parameters")
    parser.add_argument("--summary", action="store_true", help="only write summary.csv anew and show it")
    parser.add_argument("--publish", action="store_true", help="make runs/ the published record: outputs/, notebooks/")
    about_plan = "tell memory and time that the notebooks would take on a model, and what does not fit; runs nothing"
    parser.add_argument("--plan", metavar="NAME|PATH", help=about_plan)
    about_verify = "tell what of the published record is damaged or not of this code, and what repairs it"
    parser.add_argument("--verify", action="store_true", help=about_verify)
    return parser.parse_args(argv)


def main(argv=None, notebooks_folder: Path = places.NOTEBOOKS, models_folder: Path = places.MODELS) -> int:
    args = parse(argv)
    if args.outputs is not None:
        os.environ["DUAL_OUTPUTS"] = str(existing(args.outputs))  # the kernels see it, too
    notebooks = choose_notebooks(args.notebooks, notebooks_folder)
    if args.list:
        return list_all(notebooks, models_folder)
    if args.verify:
        places.use_published()
        return verify_all(choose_notebooks([], notebooks_folder), models_folder)
    if args.summary:
        return show_summary()
    if args.plan is not None:
        return show_plan(args.plan, notebooks, models_folder)
    if args.publish:
        publish(choose_notebooks([], notebooks_folder), models_folder)
        print(
            f"{show(places.PUBLISHED)} is what {show(places.record())} was; {show(notebooks_folder)} shows `{DEFAULT}`"
        )
        return 0
    values = choose_parameters(args.parameters, notebooks)
    jobs = choose_jobs(args.model, notebooks, models_folder, args.all)
    for source in dict.fromkeys(model.source for model, _ in jobs):
        check_reachable(source)
    for name in {model.name for model, _ in jobs}:
        check_writable(places.record(name))
    return run_all(jobs, values, args.fresh, models_folder)


if __name__ == "__main__":
    with cli():
        sys.exit(main())
