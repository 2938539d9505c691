"""`make run MODEL=qwen2-vl-2b` with stand-in weights: a tiny random Qwen2-VL in the layout of the true checkpoint, in
the place where downloads lie, without the internet. Shows that the path works, not what the true weights answer."""

import json
import os
import re
import subprocess
import sys

import pytest
import tiny

from lib import places
from lib.artifact import manifests, storage
from lib.artifact.manifests import Run
from lib.engine.families import CHECKPOINTS
from lib.stimuli.questions import SYSTEM_TEXT

REVISION = "0" * 40
SMALL = ("-p", "natural_items=8", "-p", "photograph_items=4", "-p", "seed=1")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """A folder like ~/.cache/huggingface with the one model in it: sharded weights, tokenizer, processor, template."""
    home = tmp_path_factory.mktemp("huggingface")
    repository = home / "hub" / f"models--{CHECKPOINTS['qwen2-vl-2b'].replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(REVISION)
    known = json.loads((places.MODELS / "reference/tokenizer.json").read_text())["model"]["vocab"]
    asked = re.findall(r"\w+|[^\w\s]", SYSTEM_TEXT.lower())
    words = tiny.WORDS
    tiny.WORDS = list(dict.fromkeys([*words, *asked, *(word for word in known if re.fullmatch(r"\w+|\W", word))]))
    try:
        vlm = tiny.tiny("qwen2-vl")
    finally:
        tiny.WORDS = words
    vlm.model.save_pretrained(snapshot, max_shard_size="100KB")
    vlm.tokenizer.save_pretrained(snapshot)
    vlm.processor.save_pretrained(snapshot)
    (snapshot / "chat_template.jinja").unlink(missing_ok=True)  # this checkpoint still has it as JSON
    (snapshot / "chat_template.json").write_text(json.dumps({"chat_template": vlm.tokenizer.chat_template}))
    assert len(list(snapshot.glob("model-*-of-*.safetensors"))) > 1
    return home


def run(downloads, outputs, *words):
    settings = {**os.environ, "HF_HOME": str(downloads), "HF_HUB_OFFLINE": "1", "DUAL_OUTPUTS": str(outputs)}
    settings |= {"PYTHONPATH": str(places.ROOT), "HF_HUB_CACHE": str(downloads / "hub")}
    call = [sys.executable, "-m", "lib.run", *words]
    return subprocess.run(call, cwd=places.ROOT, env=settings, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_the_notebook_runs_on_a_checkpoint_by_its_short_name(downloads, tmp_path):
    done = run(downloads, tmp_path, "--model", "qwen2-vl-2b", "--notebooks", "01", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "qwen2-vl-2b"
    text = (folder / "notebooks/01_scene_generation.ipynb").read_text()
    assert '"output_type": "error"' not in text and str(downloads) not in text and str(tmp_path) not in text
    table = storage.read_csv(folder / "tables/behaviour.csv")
    assert {"squares", "shapes", "objects"} <= set(table["setting"])
    manifest = manifests.read(Run(tmp_path, folder.name, "01_scene_generation"))
    assert manifest["parameters"]["seed"] == 1 and "figures/01-behaviour.csv" in manifest["results"]
    assert manifest["made_from"]["weights"] == f"{CHECKPOINTS['qwen2-vl-2b']}@{REVISION}"


def test_weights_that_were_never_downloaded_are_told_in_a_sentence(downloads, tmp_path):
    done = run(downloads, tmp_path, "--model", "gemma-3-4b", "--notebooks", "01")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: google/gemma-3-4b-it is not in the cache, and HF_HUB_OFFLINE forbids to download it")
    assert "Traceback" not in done.stderr
