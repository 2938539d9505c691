"""What a killed run has computed: taken up by a run of the same key, by no other, and bit by bit as it was."""

import json
import os
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from tiny import tiny

from lib import parts, places
from lib.artifact import execution, manifests, staleness, storage
from lib.artifact.manifests import Run
from lib.artifact.notebooks import load_notebook
from lib.artifact.staleness import made_from
from lib.engine.checkpoints import Model, find_model

ODD = pd.DataFrame(
    {
        "pair": np.arange(3),
        "probability": np.array([0.1, 1 / 3, np.nan], dtype=np.float32),
        "logit": [1 / 3, -0.0, -np.inf],
        "role": ["a", None, "c"],
        "mixed": pd.Series(["x", 1, None], dtype=object),
        "is_top": [True, False, True],
    }
)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Every step is kept, however short; gives the folder."""
    monkeypatch.setattr(parts, "SHORT", 0)
    return tmp_path / "parts"


class Killed(BaseException):
    """Stands for a kill inside one process."""


def table(value) -> pd.DataFrame:
    return pd.DataFrame({"value": [value]})


def never():
    pytest.fail("this was kept and is computed again")


# --- steps ----------------------------------------------------------------------------------------------------


def test_tables_come_back_bit_by_bit():
    for result in (ODD, (ODD, table(0.1))):
        again = parts.unpacked(parts.packed(result))
        assert type(again) is type(result)
        for one, other in zip([result] if result is ODD else result, [again] if result is ODD else again, strict=True):
            pd.testing.assert_frame_equal(one, other, check_exact=True)
            for name in one.select_dtypes("number"):
                assert one[name].to_numpy().tobytes() == other[name].to_numpy().tobytes()


@pytest.mark.parametrize(
    "bad",
    [
        ODD.set_index("pair"),
        ODD.assign(role=[("a", 1)] * 3),
        ODD.assign(role=pd.Categorical(["b", "a", "b"], categories=["b", "a"])),
    ],
)
def test_a_table_that_would_not_come_back_is_refused(bad):
    with pytest.raises(TypeError, match="plain columns"):
        parts.packed(bad)


def test_a_step_with_such_a_table_is_not_kept_but_its_parts_are(kept):
    def outer():
        return parts.resumed("inner", table, 1).set_index("value")

    with parts.kept_in(kept, "key"):
        assert parts.resumed("outer", outer).index[0] == 1
        assert [file.name for file in kept.rglob("*.json")] == ["inner-1.json"]


def test_nobody_keeps_anything_without_the_runner(kept, monkeypatch):
    monkeypatch.chdir(kept.parent)
    assert [parts.resumed("a", table, k)["value"][0] for k in (1, 2)] == [1, 2]
    assert not list(kept.parent.iterdir())


def killed_in_third(kept, key="key"):
    """Two of three steps are done inside an outer one when the process is killed."""

    def outer():
        first = [parts.resumed("inner", table, k) for k in (1, 2)]
        raise Killed(first)

    with pytest.raises(Killed), parts.kept_in(kept, key):
        parts.resumed("before", table, 0)
        parts.resumed("outer", outer)
    assert parts.PARTS not in os.environ


def test_a_killed_run_goes_on_where_it_was(kept):
    killed_in_third(kept)
    with parts.kept_in(kept, "key"):
        assert parts.resumed("before", never)["value"][0] == 0

        def outer():
            return pd.concat([parts.resumed("inner", *how) for how in ((never,), (never,), (table, 3))])

        whole = parts.resumed("outer", lambda: outer().reset_index(drop=True))
        assert list(whole["value"]) == [1, 2, 3]
        assert not list(kept.rglob("inner*"))  # the whole step has replaced its parts
        assert parts.resumed("inner", table, 9)["value"][0] == 9  # one outside is another step
    assert not kept.exists()  # nothing is left when a run has ended well


def test_steps_inside_a_step_do_not_count_outside(kept):
    def outer():
        return parts.resumed("same name", table, "inside")

    for attempt in ("killed", "again"):
        with pytest.raises(Killed), parts.kept_in(kept, "key"):
            assert parts.resumed("outer", outer)["value"][0] == "inside"
            assert (
                parts.resumed("same name", table, "outside" if attempt == "killed" else None)["value"][0] == "outside"
            )
            raise Killed


def test_parts_of_another_key_are_removed(kept):
    killed_in_third(kept)
    with parts.kept_in(kept, "other key"):
        assert not list(kept.rglob("*.json"))
        assert parts.resumed("before", table, 5)["value"][0] == 5


def test_a_part_that_the_disk_has_cut_short_is_computed_again(kept):
    killed_in_third(kept)
    (file,) = kept.rglob("before-1.json")
    file.write_bytes(file.read_bytes()[:-9])
    with parts.kept_in(kept, "key"):
        assert parts.resumed("before", table, 7)["value"][0] == 7


def test_short_steps_are_not_kept(tmp_path):
    with parts.kept_in(tmp_path / "parts", "key"):
        parts.resumed("short", table, 1)
        assert not list(tmp_path.rglob("*.json"))


# --- a sweep, killed with SIGKILL -------------------------------------------------------------------------------

SWEEP = """
import os, signal, sys
from pathlib import Path
import numpy as np
import torch
from lib import parts
from lib.patching import sweep
from lib.patching.edits import swap
from lib.patching.runs import Run
from tiny import tiny

home, last, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
parts.SHORT = 0
vlm = tiny("reference")
vlm.language.batch_size = lambda tokens: 1  # one picture at a time
colors = ("red", "green", "blue", "black", "brown", "gray")
questions = [f"what is left of the {color} square?" for color in colors]
images = torch.randn(6, 36, 32, generator=torch.Generator().manual_seed(0))
run = Run.of(vlm, questions, images)
ids = vlm.candidates([["red", "blue"]] * 6)
worked = 0

def counted(kind):
    batch = kind.batch
    def counting(self, *arguments):
        global worked
        worked += 1
        if worked > last:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from batch(self, *arguments)
    kind.batch = counting

counted(sweep.ImageTokensOfPairs)
counted(sweep.QuestionTokens)
with parts.kept_in(home, "key"):
    other = np.array([5, 4, 3, 2, 1, 0])
    tokens = sweep.token_sweep(vlm, run, {"s": swap([0, 1], [4, 5])}, ids, ("a", "b"), other, progress=False)
    last_token = sweep.last_token_sweep(vlm, run, run.rows(other), ids, ("a", "b"), progress=False)
    out.write_bytes(parts.packed((tokens, last_token)))
print(worked)
"""


@pytest.fixture
def swept(tmp_path):
    """A function that runs two sweeps of six batches, killed in a batch; returns the batches done, None if killed."""

    def call(home: str, last: int):
        command = [sys.executable, "-c", SWEEP, str(tmp_path / home), str(last), str(tmp_path / f"{home}.json")]
        path = os.pathsep.join([str(places.ROOT), str(places.ROOT / "tests")])
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, cwd=places.ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, -9), done.stderr[-2000:]
        return int(done.stdout) if done.returncode == 0 else None

    return call


def test_a_killed_sweep_loses_the_batch_in_work(swept, tmp_path):
    assert swept("whole", 100) == 12  # batches of one picture
    for last in (4, 5):  # killed in its fifth batch; then, gone on with that, in its sixth, the tenth of all
        assert swept("killed", last) is None
        files = list((tmp_path / "killed").rglob("*.json"))
        assert len(files) == (
            4 if last == 4 else 1 + 3
        )  # batches; then the first sweep whole and batches of the second
    assert swept("killed", 100) == 12 - 4 - 5
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


# --- a notebook that the runner executes, killed with SIGKILL -----------------------------------------------------

WORK = """
import os, signal
import pandas as pd
from lib import parts, places
from lib.artifact import storage
parts.SHORT = 0
root = places.record()

def step(k):
    with open(root / "log", "a") as file:
        file.write(f"{k} {seed};")
    return pd.DataFrame({"step": [k], "seed": [seed], "third": [k / 3]})

tables = [parts.resumed("step", step, k) for k in (1, 2)]
if (root / "kill").exists():
    (root / "kill").unlink()
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
tables.append(parts.resumed("step", step, 3))
storage.save_table(pd.concat(tables), "steps", model, seed)
"""
RUNNER = """
import sys
from pathlib import Path
from lib.run import main
house = Path(sys.argv[1])
sys.exit(main(sys.argv[2:], house / "notebooks", house / "models"))
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    for part in ("notebooks", "models/reference", "out"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "models/reference/config.json").write_text("{}")
    save_file({"w": np.arange(6.0)}, tmp_path / "models/reference/model.safetensors")
    write_notebook(tmp_path, WORK)
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "out"))
    monkeypatch.setenv("PYTHONPATH", str(places.ROOT))
    return tmp_path


def write_notebook(house, source):
    cells = [
        nbformat.v4.new_code_cell('model = "reference"\nseed = 0', metadata={"tags": ["parameters"]}, id="a"),
        nbformat.v4.new_code_cell(source, id="b"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), house / "notebooks/01_first.ipynb")


def run(house, *words, kill=False):
    """Run the runner in a process of its own; returns its exit code and the steps it computed, each with its seed."""
    log = house / "out/log"
    log.unlink(missing_ok=True)
    if kill:
        (house / "out/kill").touch()
    code = subprocess.run([sys.executable, "-c", RUNNER, str(house), *words], cwd=places.ROOT, stdout=-3).returncode
    return code, log.read_text().split(";")[:-1]


def steps_table(house):
    return (house / "out/reference/tables/steps.csv").read_bytes()


def test_a_killed_notebook_goes_on_and_gives_the_same(house):
    assert run(house) == (0, ["1 0", "2 0", "3 0"])
    whole = steps_table(house)
    assert run(house, "--fresh", kill=True) == (-9, ["1 0", "2 0"])
    assert steps_table(house) == whole  # of the earlier run, untouched
    (house / "out/reference/tables/steps.csv").unlink()
    assert run(house) == (0, ["3 0"])
    assert steps_table(house) == whole
    assert not Run(house / "out", "reference", "01_first").parts.exists()


def test_parts_of_another_seed_are_not_used(house):
    assert run(house, kill=True)[0] == -9
    assert len(list(Run(house / "out", "reference", "01_first").parts.rglob("*.json"))) == 2
    assert run(house, "-p", "seed=1") == (0, ["1 1", "2 1", "3 1"])


def key(house, seed=0):
    """The folder of parts that a run of the notebook would have now."""
    notebook, model = load_notebook(house / "notebooks/01_first.ipynb"), find_model("reference", house / "models")
    made = made_from(notebook, model.name, model.digest, house / "models")
    with execution.kept_parts(Run(house / "out", "reference", "01_first"), model, made, {"seed": seed}, False):
        return os.environ[parts.PARTS]


def test_the_key_knows_all_that_a_run_is_made_from(house, monkeypatch):
    keys = [key(house), key(house, seed=1)]
    assert key(house) == keys[0]
    write_notebook(house, WORK + "\n# reworded")
    keys.append(key(house))
    save_file({"w": np.arange(1, 7.0)}, house / "models/reference/model.safetensors")
    keys.append(key(house))
    monkeypatch.setattr("lib.artifact.digests.code", lambda *sources, **options: {"lib.parts": "another"})
    staleness.code_digest.cache_clear()
    keys.append(key(house))
    monkeypatch.setattr(storage, "versions", lambda: {"torch": "another"})
    keys.append(key(house))
    staleness.code_digest.cache_clear()
    assert len(set(keys)) == 6


def test_a_fresh_run_takes_no_parts(house, monkeypatch):
    monkeypatch.setattr(parts, "SHORT", 0)
    target, model = Run(house / "out", "reference", "01_first"), find_model("reference", house / "models")
    for fresh, value in ((False, 1), (False, 1), (True, 3)):
        with pytest.raises(Killed), execution.kept_parts(target, model, {}, {}, fresh):
            found = parts.resumed("step", table, value)["value"][0]
            raise Killed
        assert found == value
    with execution.kept_parts(target, model, {}, {}, fresh=False):
        assert parts.resumed("step", never)["value"][0] == 3


def test_without_a_revision_nothing_is_kept(house, monkeypatch):
    """A hub model of which nobody can say which weights the next run would get."""
    hub = Model("name", "owner/name", "owner/name", "owner/name")
    monkeypatch.setattr(execution, "cached", lambda source: "")

    def unreachable(*arguments, **options):
        raise OSError

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    with execution.kept_parts(Run(house / "out", "name", "01_first"), hub, {}, {}, False):
        assert parts.PARTS not in os.environ
    monkeypatch.setattr("huggingface_hub.model_info", lambda source, timeout: type("Info", (), {"sha": "abc"}))
    assert execution.weights(hub) == "owner/name@abc"  # as `hub_digest` names it once it is downloaded


# --- spellings that were dropped ----------------------------------------------------------------------------------


def test_dropped_spellings_are_in_the_manifest(tmp_path, monkeypatch):
    vlm, target = tiny("reference"), Run(tmp_path, "model", "01_first")
    single = vlm.prompts._single
    monkeypatch.setattr(vlm.prompts, "_single", lambda form: None if form == " red" else single(form))
    facts = {"parameters": {}, "made_from": {}, "versions": {}, "commit": None, "seconds": 1.0}
    for words, dropped in ((["red", "blue"], {vlm.name: {"red": [" red"]}}), (["green"], {})):
        with manifests.staged(target) as folder:
            vlm.candidates(words)
            storage.write_json([1], folder / "a.json")
            manifests.commit(target, folder, facts)
        assert manifests.read(target)["dropped_spellings"] == dropped
        assert set(json.loads(target.manifest.read_bytes())["results"]) == {"a.json"}
