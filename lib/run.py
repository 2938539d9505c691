"""Run the notebooks headlessly: `python -m lib.run --model reference --notebooks 01,03 -p seed=1`.

Everything that can be wrong with a call is refused before the first notebook starts. Each notebook that finishes leaves
an executed copy in runs/<model>/notebooks/ and a stamp in runs/<model>/runs/ that says what it was made from; the next
call skips what is there and still matches. At the end the runs are compared with the published record in outputs/. Exit
codes: 0 all well, 1 a notebook failed or a value differs from the record (or --verify found something stale), 2 bad
input.
"""

import argparse
import ast
import errno
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from lib import files, places
from lib.artifact import comparison, record, storage
from lib.artifact.notebooks import Notebook, choose_notebooks, tidy, write_notebook
from lib.engine.checkpoints import Model, find_model, hub_digest, known_models, shipped
from lib.engine.embedded import DEFAULT, PLAN
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


def read_value(text: str, default):
    """`text` as a value of the same type as `default`; UserError where that cannot be."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = {"true": True, "false": False, "null": None}.get(text, text)
    if isinstance(default, str) and not isinstance(value, str):
        return text  # -p name=12 means the word "12" where a word is wanted
    fits = (
        default is None
        or type(value) is type(default)
        or (isinstance(default, float) and type(value) is int)
        or (isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)))
    )
    if not fits:
        raise UserError(f"a value like {default!r} is needed there ({type(default).__name__})")
    return type(default)(value) if isinstance(default, (float, list, tuple)) else value


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
            raise unknown("parameter", name, known)
        for notebook in notebooks:
            if name in notebook.parameters:
                try:
                    values[notebook.name][name] = read_value(text, notebook.parameters[name])
                except UserError as error:
                    raise UserError(f"-p {assignment} does not fit {notebook.name}: {error}") from None
    return values


# What a finished run is recognised by


def inputs(notebook: Notebook, model: Model, parameters: dict) -> dict:
    """Everything the result of a run depends on, its parameters among it."""
    recorded = json.loads(json.dumps(parameters | {"model": model.name}))  # as it reads back from a file
    return record.made_from(notebook, model.name, model.digest, places.MODELS) | {"parameters": recorded}


# Running


def run_notebook(notebook: Notebook, model: Model, parameters: dict) -> float:
    """Execute one notebook for one model, file the copy and its stamp; return the seconds it took.

    Whatever goes wrong, an earlier copy stays; the failed one is kept beside it as <name>.failed.ipynb.
    """
    import papermill  # slow to import, and --list does not need it

    from lib.artifact.kernel import ThisPython

    executed, stamp = record.run_files(notebook.name, model.name)
    failed = failed_copy(executed)
    given = parameters | {"model": model.argument}
    overrides = {name: value for name, value in given.items() if value != notebook.parameters[name]}
    wanted, started = inputs(notebook, model, parameters), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        draft = Path(folder).resolve() / executed.name
        hidden = {model.argument: model.name, str(draft): draft.name}
        running = {"notebook": notebook.name, "notebook_parameters": wanted["parameters"], "lib": wanted["lib"]}
        os.environ["DUAL_NOTEBOOK"] = json.dumps(running)  # the kernel inherits it; provenance names it
        try:
            papermill.execute_notebook(
                notebook.path,
                draft,
                overrides,
                kernel_name="python3",
                language="python",
                kernel_manager_class=ThisPython,
                cwd=notebook.path.parent,
                progress_bar=on_terminal(),
            )
        except Exception:
            if draft.is_file():
                write_notebook(tidy(draft, hidden), failed)
            raise
        finally:
            del os.environ["DUAL_NOTEBOOK"]
        seconds = round(time.monotonic() - started, 1)
        write_notebook(tidy(draft, hidden), executed)
    if not Path(model.source).is_dir():
        wanted["model"] = hub_digest(model.source)  # its revision is known now that it has been downloaded
    storage.write_json(
        wanted
        | {
            "executed": files.file_digest(executed),
            "versions": storage.versions(),
            "commit": storage.commit(),
            "seconds": seconds,
        },
        stamp,
    )
    failed.unlink(missing_ok=True)
    return seconds


def failed_copy(executed: Path) -> Path:
    return executed.with_suffix(".failed.ipynb")


def reason(error: Exception) -> str:
    """One sentence about why a notebook failed: a UserError's own, else the last line of the traceback."""
    name, text = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error)).strip()
    if name == "DeadKernelError":
        return "its Python process died, likely for want of memory: close other programs or take a smaller model"
    return text if name == "UserError" else f"{name}: {text.splitlines()[0] if text else ''}"


def run_all(jobs: list[tuple[Model, Notebook]], values: dict[str, dict], fresh: bool) -> int:
    """Run what is not done, in the order given; a failure does not stop the rest."""
    codes, started = {0}, time.monotonic()
    after_label = "\n" if on_terminal() else " "  # on a terminal papermill's bar comes in between
    for number, (model, notebook) in enumerate(jobs, 1):
        say(f"[{number}/{len(jobs)}] {model.name} {notebook.name}:", end=" ")
        executed, stamp = record.run_files(notebook.name, model.name)
        parameters = values[notebook.name]
        if not fresh and not record.why_stale(executed, stamp, inputs(notebook, model, parameters)):
            failed_copy(executed).unlink(missing_ok=True)  # of something tried since and taken back
            say("up to date (--fresh runs it again)")
            continue
        say(f"running, stated cost {notebook.cost} ...", end=after_label)
        try:
            say(f"done in {run_notebook(notebook, model, parameters)} s")
        except Exception as error:  # whatever a notebook or its kernel can throw
            say("failed")
            bad_input = "UserError" in (type(error).__name__, getattr(error, "ename", ""))
            codes.add(2 if bad_input else 1)
            kept = failed_copy(executed)
            look = f" (how far it got: {show(kept)})" if kept.is_file() else ""
            print(f"error: {model.name} {notebook.name}: {reason(error)}{look}", file=sys.stderr, flush=True)
    record.write_summary()
    say(f"total {time.monotonic() - started:.0f} s; results are in {show(places.outputs())}")
    codes.add(compared(jobs))
    return 1 if 1 in codes else max(codes)


def compared(jobs: list[tuple[Model, Notebook]]) -> int:
    """Hold the runs against the published record and say how they agree; 1 where they do not."""
    if places.outputs().resolve() == places.PUBLISHED.resolve():
        return 0
    runs = [(model.name, notebook.name) for model, notebook in jobs]
    tables = [comparison.compare(*run) for run in runs if comparison.comparable(*run)]
    text, agree = comparison.report(pd.concat(tables) if tables else pd.DataFrame())
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


def verify_all(notebooks: list[Notebook], models_folder: Path) -> int:
    """Does all of the published record still belong to the present code? Prints what does not; exit code 1 then."""
    runs, results = record.runs(), record.results()
    complaints = record.complaints(notebooks, models_folder)
    for complaint in complaints:
        print(f"stale: {complaint}")
    verdict = (
        f"{len(complaints)} stale, `make run` and `--publish` repair that" if complaints else "all belong to this code"
    )
    print(f"checked {len(runs)} notebook runs and {len(results)} results in {show(places.outputs())}: {verdict}")
    return 1 if complaints else 0


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
    parser.add_argument("--verify", action="store_true", help="tell which published results are not of this code")
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
    if args.publish:
        record.publish(choose_notebooks([], notebooks_folder), models_folder)
        print(
            f"{show(places.PUBLISHED)} is what {show(places.outputs())} was; {show(notebooks_folder)} shows `{DEFAULT}`"
        )
        return 0
    values = choose_parameters(args.parameters, notebooks)
    jobs = choose_jobs(args.model, notebooks, models_folder, args.all)
    for name in {model.name for model, _ in jobs}:
        check_writable(places.outputs(name))
    return run_all(jobs, values, args.fresh)


if __name__ == "__main__":
    with cli():
        sys.exit(main())
