"""The headless runner on tiny notebooks and a tiny model: what it skips, resumes, refuses and reports."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import papermill
import pytest
from safetensors.numpy import save_file

from lib import places
from lib.artifact import kernel, manifests
from lib.artifact.bounds import read_value
from lib.artifact.manifests import Run
from lib.artifact.notebooks import joined, load_notebook, scrub
from lib.errors import UserError
from lib.run import main

PARAMETERS = 'model = "reference"\nseed = 0  # of every draw\nrate = 0.5\nword = "a#b"\nsizes = [1, 2]\n'
WORK = """
import os, sys, pathlib
from lib import places
from lib.artifact import storage
log = places.record().parent / f"{places.model_name(model)}.log"
log.open("a").write(f"{places.model_name(model)} {seed} {rate} {word} {sizes}\\n")
print(sys.executable, places.ROOT, os.environ["TQDM_DISABLE"])
storage.write_json([1], places.outputs(model) / "work.json", storage.provenance(model, seed))
"""


def write(path, *cells, parameters=PARAMETERS):
    head = nbformat.v4.new_markdown_cell(f"# {path.stem}: a question?\n\n**Cost:** two seconds on a CPU.", id="head")
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters")
    code = [nbformat.v4.new_code_cell(source, id=f"code-{i}") for i, source in enumerate(cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=[head, tagged, *code]), path)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A folder of two notebooks, one of models, and an empty place for outputs."""
    for part in ("notebooks", "models/reference", "models/other"):
        (tmp_path / part).mkdir(parents=True)
    for name in ("reference", "other"):
        (tmp_path / f"models/{name}/config.json").write_text(json.dumps({"name": name}))
        save_file({"w": np.arange(6.0)}, tmp_path / f"models/{name}/model.safetensors")
    write(tmp_path / "notebooks/01_first.ipynb", WORK)
    write(tmp_path / "notebooks/02_second.ipynb", "print(seed)", parameters='model = "reference"\nseed = 0\n')
    shadow = tmp_path / "jupyter/kernels/python3"  # the user's own kernel of that name must not be taken
    shadow.mkdir(parents=True)
    (shadow / "kernel.json").write_text('{"argv": ["false"], "display_name": "mine", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "out"))
    monkeypatch.setattr(places, "PUBLISHED", tmp_path / "published")
    return tmp_path


def run(house, *words):
    return main(list(words), house / "notebooks", house / "models")


def log(house, model="reference"):
    path = house / f"{model}.log"
    return path.read_text().splitlines() if path.exists() else []


def test_a_kernel_that_dies_before_it_starts_is_started_once_more(house, monkeypatch, capsys):
    started, start = [], papermill.execute_notebook

    def failing(*arguments, **options):
        started.append(1)
        if len(started) == 1:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return start(*arguments, **options)

    monkeypatch.setattr(papermill, "execute_notebook", failing)
    assert main(["--notebooks", "02"], house / "notebooks", house / "models") == 0
    assert len(started) == 2


def test_runs_skips_and_runs_again(house, capsys):
    assert run(house) == 0
    copy = house / "out/reference/notebooks/01_first.ipynb"
    nb, text = nbformat.read(copy, as_version=4), copy.read_text()
    assert nb.cells[2].outputs[0].text.split() == [sys.executable.replace(sys.prefix, "<python>"), ".", "1"]
    assert all(c.execution_count for c in nb.cells if c.cell_type == "code")
    assert "papermill" not in text and str(house) not in text and str(places.ROOT) not in text
    assert not list((house / "out").rglob("*.failed.ipynb")) and not list((house / "out").rglob("*.tmp*"))
    stamp = manifests.read(Run(house / "out", "reference", "01_first"))
    assert stamp["parameters"]["seed"] == 0 and stamp["seconds"] > 0 and stamp["versions"]["torch"]

    assert run(house) == 0 and len(log(house)) == 1  # nothing is run twice
    assert "up to date" in capsys.readouterr().out
    assert run(house, "--notebooks", "1", "--fresh") == 0 and len(log(house)) == 2
    assert copy.read_text() == text  # and an equal run leaves an equal file

    copy.write_text(text.replace("a question", "an edit"))  # a copy that is not the one stamped is made anew
    assert run(house, "--notebooks", "01_first") == 0 and copy.read_text() == text

    write(house / "notebooks/01_first.ipynb", WORK, "1 + 1")
    assert run(house, "--verify") == 1 and "notebook changed since" in capsys.readouterr().out
    assert run(house) == 0 and len(log(house)) == 4
    assert run(house, "--verify") == 0


def test_outputs_are_shown_in_the_sources_only_when_asked_and_true(house, capsys):
    source, copy = house / "notebooks/01_first.ipynb", house / "out/reference/notebooks/01_first.ipynb"
    bare = source.read_bytes()
    with pytest.raises(UserError, match="never finished"):
        run(house, "--publish")
    assert run(house) == 0 and source.read_bytes() == bare  # a run leaves the sources alone
    assert run(house, "--publish") == 0 and source.read_bytes() == copy.read_bytes() != bare
    assert run(house, "--verify") == 0 and run(house) == 0 and len(log(house)) == 1  # outputs make nothing stale
    book = nbformat.read(source, as_version=4)
    book.cells[2].source = "1 / 0"
    nbformat.write(book, source)
    assert run(house) == 1
    failed = nbformat.read(copy.with_suffix(".failed.ipynb"), as_version=4)
    assert not any("stream" in output.output_type for cell in failed.cells[2:] for output in cell.get("outputs", []))
    with pytest.raises(UserError, match="notebook changed since"):
        run(house, "--publish")
    source.write_bytes(bare)
    assert run(house, "-p", "seed=3") == 0
    with pytest.raises(UserError, match="other parameters"):
        run(house, "--publish")
    assert source.read_bytes() == bare
    capsys.readouterr()


def test_without_a_model_the_plan_is_run(house, capsys):
    """The default on all notebooks; with --all joint, too, where it is shipped, on those that look for mechanisms."""
    shutil.copytree(house / "models/other", house / "models/joint")
    assert run(house) == 0
    assert "[2/2] reference 02_second" in capsys.readouterr().out
    assert run(house, "--all", "--fresh") == 0
    told = capsys.readouterr().out
    jobs = [line.split(":")[0] for line in told.splitlines() if line.startswith("[")]
    assert jobs == ["[1/3] reference 01_first", "[2/3] reference 02_second", "[3/3] joint 02_second"]
    assert re.search(r"(?m)^total \d+ s; results are in", told)
    assert run(house, "--model", "other", "--notebooks", "02") == 0  # a model that is named overrides the plan
    assert "[1/1] other 02_second" in capsys.readouterr().out


def test_the_revision_of_a_hub_model_is_recorded_once_it_has_been_downloaded(house, monkeypatch, capsys):
    cached = []
    monkeypatch.setattr("lib.run.check_reachable", lambda source: None)

    def found_now(hub_id):
        cached.append(hub_id)
        return f"{hub_id}@revision"

    monkeypatch.setattr("lib.engine.checkpoints.hub_digest", lambda hub_id: f"{hub_id}@revision" if cached else hub_id)
    monkeypatch.setattr("lib.artifact.execution.hub_digest", found_now)
    for told in ("done in", "up to date"):
        assert run(house, "--model", "owner/name", "--notebooks", "02") == 0
        assert told in capsys.readouterr().out


def test_printed_text_is_one_output_however_the_kernel_cuts_it():
    printed = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in
               (("stdout", "a\n"), ("stdout", "b\n"), ("stderr", "c\n"), ("stdout", "d\n"))]  # fmt: skip
    assert [each.text for each in joined(printed)] == ["a\nb\n", "c\n", "d\n"]
    assert joined([]) == []


def test_results_name_notebook_and_parameters(house):
    assert run(house, "--model", f"{house}/models/other", "--notebooks", "01", "-p", "seed=5") == 0
    manifest = manifests.read(Run(house / "out", "other", "01_first"))
    assert manifest["parameters"] == {"model": "other", "seed": 5, "rate": 0.5, "word": "a#b", "sizes": [1, 2]}
    assert manifest["results"]["work.json"]["seed"] == 5 and set(manifest["results"]) == {
        "work.json",
        "notebooks/01_first.ipynb",
    }
    assert places.STAGED not in os.environ and not list((house / "out/.staged").rglob("work.json"))


def test_results_that_a_notebook_no_longer_writes_go(house):
    assert run(house, "--notebooks", "01") == 0 and (house / "out/reference/work.json").is_file()
    write(house / "notebooks/01_first.ipynb", WORK.replace("work.json", "renamed.json"))
    assert run(house, "--notebooks", "01") == 0
    assert sorted(path.name for path in (house / "out/reference").glob("*.json")) == ["renamed.json"]


def test_two_notebooks_that_write_one_file_are_refused(house, capsys):
    write(house / "notebooks/02_second.ipynb", WORK)
    assert run(house) == 2
    assert "02_second and 01_first both write work.json" in capsys.readouterr().err


def test_what_is_run_by_hand_leaves_the_record_alone(house):
    """By papermill called directly, as from JupyterLab: no staging folder in the environment."""
    import papermill

    assert run(house, "--notebooks", "01") == 0
    before = {path: path.read_bytes() for path in (house / "out/reference").rglob("*") if path.is_file()}
    by_hand = house / "by-hand.ipynb"
    papermill.execute_notebook(
        house / "notebooks/01_first.ipynb", by_hand, {"seed": 7}, kernel_manager_class=kernel.ThisPython,
        kernel_name="python3", language="python", progress_bar=False,
    )  # fmt: skip
    assert "run by hand: results go to" in by_hand.read_text()
    assert (house / "out/by-hand/reference/work.json").is_file()
    assert before == {path: path.read_bytes() for path in (house / "out/reference").rglob("*") if path.is_file()}
    assert run(house, "--verify") == 0


def test_parameters_and_several_models(house):
    given = ["-p", "seed=3", "-p", "rate=1", "-p", "word=7", "-p", "sizes=[3]", "--notebooks", "01"]
    assert run(house, "--model", f"reference,{house}/models/other", *given) == 0
    assert log(house) == ["reference 3 1.0 7 [3]"] and log(house, "other") == ["other 3 1.0 7 [3]"]
    cells = nbformat.read(house / "out/reference/notebooks/01_first.ipynb", as_version=4).cells
    assert cells[2].id == "injected-parameters-0" and "model" not in cells[2].source  # only what differs
    elsewhere = house / "elsewhere" / "mine"
    (house / "models/other").rename(elsewhere.parent.mkdir() or elsewhere)
    assert run(house, "--model", str(elsewhere), "--notebooks", "01") == 0
    assert str(house) not in (house / "out/mine/notebooks/01_first.ipynb").read_text()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--model", "refrence"], "did you mean 'reference'"),
        (["--model", ""], "names nothing"),
        (["--notebooks", ","], "names nothing"),
        (["--model", "x" * 5000], "no name and no path"),
        (["--model", "~nosuchuser"], "no such user"),
        (["--outputs", "{house}/nowhere"], "there is no folder"),
        (["--outputs", "~nosuchuser"], "no such user"),
        (["--outputs", ""], "names no folder"),
        (["--model", "./nowhere"], "a folder with config.json"),
        (["--model", "{house}/notebooks"], "not a model folder"),
        (["--notebooks", "01,07"], "unknown notebook '07'"),
        (["-p", "sead=1"], "did you mean 'seed'"),
        (["-p", "seed=one"], "does not fit 01_first"),
        (["-p", "seed=True"], "value like 0 is needed"),
        (["-p", "sizes=3"], "value like \\[1, 2\\]"),
        (["-p", "sizes=[]"], "at least one entry"),
        (["-p", "seed=-1"], "must be at least 0"),
        (["-p", "seed"], "NAME=VALUE"),
        (["-p", "model=other"], "--model"),
        (["--notebooks", "02", "-p", "rate=1"], "unknown parameter 'rate'"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(house, words, sentence):
    with pytest.raises(UserError, match=sentence):
        run(house, *[word.format(house=house) for word in words])
    assert not (house / "out").exists()


def test_damaged_models_are_refused(house):
    weights = house / "models/reference/model.safetensors"
    whole = weights.read_bytes()
    for damage in (whole[:-8], whole[:20], b"", b"\xff" * 40):
        weights.write_bytes(damage)
        with pytest.raises(UserError, match="truncated or corrupt"):
            run(house)
    weights.unlink()
    with pytest.raises(UserError, match="missing"):
        run(house)
    (house / "models/reference/model.safetensors.index.json").write_text('{"weight_map": {"w": "part-1.safetensors"}}')
    with pytest.raises(UserError, match="part-1.safetensors are missing"):
        run(house)
    (house / "models/reference/part-1.safetensors").write_bytes(whole)
    assert run(house, "--notebooks", "02") == 0


def test_names_that_would_share_results_are_refused(house):
    twin = house / "twin" / "reference"
    twin.parent.mkdir()
    (house / "models/reference").rename(twin)
    (house / "models/reference").mkdir()
    (house / "models/reference/config.json").write_text("{}")
    with pytest.raises(UserError, match="rename it"):
        run(house, "--model", str(twin))


def test_unwritable_outputs_leave_one_sentence(house):
    (house / "out").write_text("a file where the folder should be")  # root may write anywhere, so no chmod here
    with pytest.raises(UserError, match="cannot write .*DUAL_OUTPUTS"):
        run(house)


def test_broken_notebooks_are_refused(house):
    path = house / "notebooks/02_second.ipynb"
    for source in ("model = 'x'\nseed = 1 + len('a')", "model = 'x'\nimport os", "seed = 0"):
        write(path, parameters=source)
        with pytest.raises(UserError, match="parameters"):
            run(house)
    path.write_text('{"cells": [')
    with pytest.raises(UserError, match="not a readable notebook"):
        run(house)


def test_failures_are_told_and_leave_earlier_results(house, capsys):
    assert run(house) == 0
    copy = house / "out/reference/notebooks/01_first.ipynb"
    before = copy.read_bytes()
    write(house / "notebooks/01_first.ipynb", "print('so far')", "1 / 0")
    write(
        house / "notebooks/02_second.ipynb",
        "from lib.errors import UserError",
        "raise UserError('give a red one')",
    )
    assert run(house) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in told and "01_first.failed.ipynb" in told
    assert "reference 02_second: give a red one" in told and "Traceback" not in told
    assert "so far" in (copy.parent / "01_first.failed.ipynb").read_text()
    assert copy.read_bytes() == before
    assert run(house, "--notebooks", "02") == 2  # bad input, not a bug
    write(house / "notebooks/01_first.ipynb", WORK)
    assert run(house, "--notebooks", "01") == 0 and not (copy.parent / "01_first.failed.ipynb").exists()


def test_killed_half_way_it_finishes_next_time(house):
    write(
        house / "notebooks/02_second.ipynb",
        "import pathlib, time",
        f"flag = pathlib.Path({str(house / 'started')!r})",
        "if not flag.exists():\n    flag.touch(); time.sleep(600)",
    )
    call = (
        f"import sys; from pathlib import Path; from lib.run import main;"
        f"sys.exit(main([], Path({str(house / 'notebooks')!r}), Path({str(house / 'models')!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", call], cwd=places.ROOT, stdout=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 300  # a busy machine is slow to start a kernel
    while not (house / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (house / "started").exists()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (house / "out/reference/notebooks/02_second.ipynb").exists()
    assert run(house) == 0
    assert len(log(house)) == 1  # the first notebook was done before the kill and is not run again
    assert (house / "out/reference/notebooks/02_second.ipynb").exists()


def test_verify_names_what_is_stale(house, capsys):
    assert run(house, "--notebooks", "02") == 0
    assert run(house, "--verify") == 0
    (house / "models/reference/config.json").write_text('{"changed": 1}')
    assert run(house, "--verify") == 1
    told = capsys.readouterr().out
    assert "02_second.json: model changed since" in told


def test_list_says_what_there_is(house, capsys):
    assert run(house, "--list") == 0
    told = capsys.readouterr().out
    for piece in (
        "reference",
        "01_first: 01_first: a question?",
        "two seconds on a CPU",
        "seed = 0",
        "of every draw",
    ):
        assert piece in told


def test_a_reader_who_leaves_does_not_make_a_notebook_fail(house):
    """As in `python -m lib.run | head -1`, and with standard output closed."""
    call = (
        f"import sys; from pathlib import Path; from lib.run import main;"
        f"sys.exit(main(['--fresh'], Path({str(house / 'notebooks')!r}), Path({str(house / 'models')!r})))"
    )
    for shell, code in (('"$0" -c "$1" | true; exit ${PIPESTATUS[0]}', 0), ('"$0" -c "$1" >&-', 0)):
        command = ["bash", "-c", shell, sys.executable, call]
        done = subprocess.run(command, cwd=places.ROOT, env=os.environ, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert not list((house / "out").rglob("*.failed.ipynb"))


@pytest.mark.parametrize(
    "to, code, sentence",
    [
        ("| true; exit ${PIPESTATUS[0]}", 0, ""),
        (">&-", 0, ""),
        ("> /dev/full", 2, "error: no space left to write to: free some and run again, nothing is lost\n"),
    ],
)
def test_a_list_that_nobody_takes_is_no_traceback(to, code, sentence):
    command = ["bash", "-c", f'"$0" -m lib.run --list {to}', sys.executable]
    done = subprocess.run(command, cwd=places.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, sentence)


def test_command_line_exit_code(house):
    call = [sys.executable, "-m", "lib.run", "--notebooks", "99"]
    done = subprocess.run(call, cwd=places.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_values_follow_the_type_of_the_default():
    assert read_value("1e-3", 0.5) == 1e-3 and read_value("2", 0.5) == 2.0 and isinstance(read_value("2", 0.5), float)
    assert read_value("true", False) is True and read_value("no", "x") == "no" and read_value("'7'", "x") == "7"
    assert read_value("(1,)", [1]) == [1] and read_value("squares", None) == "squares"
    with pytest.raises(UserError):
        read_value("1.5", 1)


def test_comments_of_parameters_survive_hashes(house):
    notebook = load_notebook(house / "notebooks/01_first.ipynb")
    assert notebook.comments == {"model": "", "seed": "of every draw", "rate": "", "word": "", "sizes": ""}
    assert notebook.parameters["word"] == "a#b" and notebook.cost == "two seconds on a CPU"


def test_scrub_leaves_pictures_alone():
    value = {"text/plain": ["at /a/made-up/place"], "image/png": "ab/a/made-up/cd"}
    assert scrub(value, [("/a/made-up", "~")]) == {"text/plain": ["at ~/place"], "image/png": "ab/a/made-up/cd"}
