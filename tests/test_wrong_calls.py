"""Ten wrong calls, each in a process of its own as a user would make it: one sentence, exit code 2, nothing lost."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lib import places

RUN = ["-m", "lib.run"]


def script(body: str) -> list[str]:
    """A user's own script that ends like every command here: `with cli()` around it."""
    return ["-c", f"from lib.errors import cli\nwith cli():\n    {body}"]


CALLS = {  # what is wrong: the call, and what its sentence says
    "unknown model": ([*RUN, "--model", "refrence"], "did you mean 'reference'"),
    "misspelt parameter": ([*RUN, "-p", "sead=1"], "did you mean 'seed'"),
    "no such notebook": ([*RUN, "--notebooks", "07"], "unknown notebook '07'"),
    "truncated weights": ([*RUN, "--model", "{work}/cut"], "truncated or corrupt"),
    "outputs that cannot be written": ([*RUN, "--outputs", "{work}/file"], "cannot write"),
    "missing folder": (
        script("from lib.stimuli import photographs; photographs.whatsup('{work}/nowhere', 'reference')"),
        "There is no folder",
    ),
    "corrupt picture": (
        script("from lib.stimuli import grids, questions, scenes; grid = grids.GRIDS['reference']; "
               "asked = questions.questions('objects', grid, objects='{work}/objects'); "
               "[item.scene.image(grid.canvas) for item in asked]"),
        "not a readable picture",
    ),
    "wrong picture size": (
        script("from PIL import Image; from lib.engine import vlm; "
               "vlm.load('reference').encode([Image.new('RGB', (100, 90))])"),
        "168",
    ),
    "a word that is not one token": (
        script("from lib.engine import vlm; vlm.load('reference').candidates(['xylophone'])"),
        "not one token",
    ),
    "empty question file": (
        script("from lib.stimuli import photographs; photographs.coco_ids('{work}/empty.json')"),
        "holds no questions",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with one of everything that is wrong."""
    work = tmp_path_factory.mktemp("wrong")
    (work / "cut").mkdir()
    (work / "cut/config.json").write_text("{}")
    save_file({"w": np.arange(6.0)}, work / "cut/model.safetensors")
    whole = (work / "cut/model.safetensors").read_bytes()
    (work / "cut/model.safetensors").write_bytes(whole[:-8])
    (work / "file").write_text("a file where a folder should be")
    (work / "empty.json").write_text(json.dumps([]))
    (work / "objects").mkdir()
    for name in ("apple", "bell", "hat", "key", "pot"):
        Image.new("RGBA", (56, 56)).save(work / f"objects/{name}.png")
    (work / "objects/apple.png").write_bytes(b"\x89PNG then nothing")
    return work


@pytest.mark.parametrize("wrong", CALLS)
def test_a_wrong_call_gets_one_sentence_and_exit_code_2(wrong, work, tmp_path):
    words, sentence = CALLS[wrong]
    earlier = tmp_path / "reference/ledger.json"
    earlier.parent.mkdir()
    earlier.write_text("an earlier result")
    command = [sys.executable, *(word.replace("{work}", str(work)) for word in words)]
    settings = {"DUAL_OUTPUTS": str(tmp_path), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=places.ROOT, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    told = [line for line in done.stderr.splitlines() if not re.match(r"Loading weights|\s*$", line)]
    assert len(told) == 1 and told[0].startswith("error: ") and sentence in told[0]
    assert len(told[0]) < 500 and "Traceback" not in done.stderr
    assert earlier.read_text() == "an earlier result"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [earlier]
