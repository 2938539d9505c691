"""Every wrong call of docs/REFUSALS.md: one sentence, exit code 2, nothing lost, and the page says that sentence."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_contracts_loading import folder  # noqa: F401 (a fixture)

from lib import places, run
from lib.engine import vlm
from lib.errors import cli
from lib.patching import edits
from lib.stimuli import photographs, questions

PAGE = places.ROOT / "docs/REFUSALS.md"
CALLS = re.findall(r"(?m)^\| `(.+)` \| (\d) \| (.*) ?\|$", PAGE.read_text("utf-8"))


@pytest.fixture(scope="module")
def model():
    return vlm.load("reference", device="cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory, folder):  # noqa: F811
    """The folder that the page describes, with one of everything that is wrong."""
    work = tmp_path_factory.mktemp("wrong")
    for name in ("cut", "untold", "wider", "broken"):
        shutil.copytree(folder, work / name)
    weights = work / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    for file in (work / "untold").glob("*token*"):
        file.unlink()
    config = json.loads((work / "wider/config.json").read_text())
    config["text_config"]["hidden_size"] = 48
    (work / "wider/config.json").write_text(json.dumps(config))
    tensors = load_file(work / "broken/model.safetensors")
    tensors[next(key for key in tensors if "q_proj" in key)][0, 0] = torch.nan
    save_file(tensors, work / "broken/model.safetensors", metadata={"format": "pt"})
    for name in ("empty", "pictures"):
        (work / name).mkdir()
    (work / "file").write_text("a file where a folder should be")
    (work / "empty.json").write_text("[]")
    for name in ("apple", "bell", "hat", "key", "pot"):
        Image.new("RGBA", (56, 56)).save(work / f"pictures/{name}.png")
    (work / "pictures/apple.png").write_bytes(b"\x89PNG then nothing")
    return work


@pytest.fixture
def earlier(work, tmp_path, monkeypatch):
    """An earlier result in an empty record; calls are made in the folder `work`, without a hub and without a GPU."""
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path))
    monkeypatch.chdir(work)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    earlier = tmp_path / "reference/ledger.json"
    earlier.parent.mkdir()
    earlier.write_text("an earlier result")
    return earlier


def make(call: str, model) -> None:
    """What a shell or Python would do with the call."""
    if call.startswith("python -m "):
        _, _, module, *words = shlex.split(call)
        assert module == "lib.run"
        run.main(words)
    else:
        picture = Image.fromarray(np.zeros((model.grid.canvas, model.grid.canvas, 3), np.uint8))
        known = {"run": run, "vlm": vlm, "edits": edits, "photographs": photographs, "questions": questions}
        eval(call, known | {"model": model, "picture": picture, "Image": Image, "torch": torch})


@pytest.mark.parametrize("call, code, sentence", CALLS, ids=[call for call, _, _ in CALLS])
def test_a_wrong_call_gets_the_sentence_of_the_page(call, code, sentence, model, work, earlier, capfd):
    with pytest.raises(SystemExit) as ended, cli():
        make(call, model)
    assert ended.value.code == int(code)
    told = [line for line in capfd.readouterr().err.splitlines() if not re.match(r"Loading weights|\s*$", line)]
    assert len(told) == 1 and told[0].startswith("error: ") and len(told[0]) < 500, told
    said, written = told[0].removeprefix("error: ").replace(f"{work}/", ""), re.escape(sentence.strip())
    assert re.fullmatch(written.replace(r"known\ are\ \.\.\.", "known are .*"), said)
    assert earlier.read_text() == "an earlier result"
    assert [path for path in earlier.parents[1].rglob("*") if path.is_file()] == [earlier]
