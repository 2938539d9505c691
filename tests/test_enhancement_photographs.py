"""Notebook 05 from end to end on samples of COCO-spatial and What'sUp, with a tiny random model: the path works, what
the model answers says nothing."""

import json
import re

import pytest
import tiny
from test_photographs import SAMPLES, needs_coco, needs_whatsup
from test_real_layout import run

from lib import places
from lib.artifact import storage

SMALL = {"failures": 6, "right_items": 4, "ablation_items": 2, "random_sets": 2, "down_sets": 1, "line_items": 4}
SMALL |= {"fact_items": 2, "alphas": "[1, 4]", "factors": "[0.5, 1.2]"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tiny random Qwen2-VL that has a word for every object, on the photographs, too."""
    known = json.loads((places.MODELS / "reference/tokenizer.json").read_text())["model"]["vocab"]
    pictures = (SAMPLES / "whatsup_sample/controlled_images").glob("*.jpeg")
    objects = {part for path in pictures for part in re.split(r"_(?:left_of|right_of|on|under)_", path.stem)}
    words = tiny.WORDS
    tiny.WORDS = list(dict.fromkeys([*words, *(w for w in known if re.fullmatch(r"\w+", w)), *sorted(objects)]))
    try:
        vlm = tiny.tiny("qwen2-vl")
    finally:
        tiny.WORDS = words
    folder = tmp_path_factory.mktemp("weights") / "tiny-qwen2-vl"
    for part in (vlm.model, vlm.tokenizer, vlm.processor):
        part.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axes"),
    [
        pytest.param("coco", ["left-right", "above-below", "both axes"], marks=needs_coco),
        pytest.param("whatsup", ["left-right"], marks=needs_whatsup),
    ],
)
def test_the_notebook_runs_on_photographs(name, axes, checkpoint, tmp_path):
    options = [word for key, value in SMALL.items() for word in ("-p", f"{key}={value}")]
    folder = SAMPLES / f"{name}_sample"
    call = ("-p", "seed=2", "--model", str(checkpoint), "--notebooks", "05", "-p", f"{name}={folder}", *options)
    done = run(tmp_path, tmp_path / "out", *call)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out = tmp_path / "out" / checkpoint.name
    power = storage.read_csv(out / "tables/enhancement_power.csv")
    assert power["axis"].tolist() == axes and (power["failures"] > 0).all()
    assert power["verdict"].eq("not testable").all(), "far fewer than 300 failures"
    scaled = storage.read_csv(out / "tables/enhancement.csv")
    assert {"order", "exact probe", "attention, last token"} <= set(scaled["condition"])
