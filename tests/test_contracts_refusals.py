"""Wrong input to the engine is refused at once, with one sentence that says what to do."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_contracts_loading import QUESTIONS, canvas, folder  # noqa: F401 (folder: a fixture)
from tiny import tiny

from lib.engine.certificate import certificate
from lib.engine.vlm import load
from lib.errors import UserError
from lib.patching.edits import Along, Amplification, amplify
from lib.patching.runs import Run
from lib.patching.sweep import amplification_sweep


@pytest.fixture(scope="module")
def vlm():
    return tiny("reference")


def copied(source, target):
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "fp16"}, "dtype must be one of float32, bfloat16, float16, not 'fp16'"),
        ({"dtype": "nn"}, "dtype must be one of"),
        ({"dtype": torch.int8}, "dtype must be one of"),
        ({"device": "gpuu"}, "device must be 'auto', 'cpu'"),
        ({"device": None}, "device must be 'auto', 'cpu'"),
        ({"device_map": "nonsense"}, "device_map must be one of auto"),
        ({"attn": "flash_attention_2"}, "attn must be"),
    ],
)
def test_options_of_load(folder, options, match):  # noqa: F811
    with pytest.raises(UserError, match=match):
        load(folder, **options)


def test_a_gpu_that_is_not_there(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU is seen here"):
        load(folder, device="cuda")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (None, "not by None"),
        ("", "not by ''"),
        ("x" * 5000, "not by a text of 5000 characters"),
        ("~nosuchuser", "no such user"),
        (7, "not by 7"),
    ],
)
def test_names(name, match):
    with pytest.raises(UserError, match=match):
        load(name)


def test_a_folder_without_tokenizer(folder, tmp_path):  # noqa: F811
    for file in copied(folder, tmp_path).glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="the folder has no tokenizer"):
        load(tmp_path)


def test_a_folder_with_another_hidden_size(folder, tmp_path):  # noqa: F811
    config = json.loads((copied(folder, tmp_path) / "config.json").read_text())
    config["text_config"]["hidden_size"] = 48
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="do not have the sizes that config.json gives"):
        load(tmp_path)


def test_weights_that_are_not_numbers(folder, tmp_path):  # noqa: F811
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied(folder, tmp_path) / "model.safetensors")
    tensors[next(key for key in tensors if "q_proj" in key)][0, 0] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="q_proj.* are not all finite numbers"):
        load(tmp_path)


def test_lists_that_do_not_belong_together(vlm):
    pics, words = canvas(vlm, count=2), [["red", "blue"]] * 2
    for arguments, match in [
        ((pics, QUESTIONS[:1], words[:1]), "2 pictures and 1 questions"),
        ((pics, QUESTIONS, words[:1]), "2 questions and 1 lists of candidates"),
        ((pics, [], []), "0 questions"),
        (([], [], []), "0 questions"),
        ((pics, QUESTIONS[0], words), "a list of questions"),
        ((pics, QUESTIONS, ["red", "blue"]), "for each a list of candidate words"),
        ((pics, QUESTIONS, [["red"], []]), "at least one word"),
        ((pics, QUESTIONS, words, [0]), "`index` has 1 entries for 2 questions"),
        ((pics, QUESTIONS, words, [0, 2]), "must name pictures 0..1"),
    ]:
        with pytest.raises(UserError, match=match):
            vlm.answer(*arguments, progress=False)
    for call, match in [
        (lambda: vlm.encode([]), "no picture to encode"),
        (lambda: vlm.candidates([]), "at least one word"),
        (lambda: vlm.candidates([[]]), "at least one word"),
        (lambda: vlm.tokens([]), "at least one text"),
        (lambda: vlm.tokens(QUESTIONS[0]), "at least one text"),
        (lambda: Run.of(vlm, QUESTIONS, vlm.encode(pics[:1])), "need as many pictures"),
        (lambda: vlm.encode([Image.new("RGB", (10, 10))]), "needs pictures of 24 x 24"),
    ]:
        with pytest.raises(UserError, match=match):
            call()


def test_a_planted_model_has_no_certificate():
    with pytest.raises(UserError, match="image_attention of its own"):
        certificate(tiny("reference", dual={"image_attention": "self"}))


def test_questions_that_cannot_be_asked(vlm):
    with pytest.raises(UserError, match="contains <image>, which stands for a picture"):
        vlm.tokens(["the color of <image> is"])
    with pytest.raises(UserError, match="has 1024 positions, and this prompt has .* tokens"):
        vlm.tokens(["red " * 1100])


@pytest.mark.parametrize("alpha", [np.nan, np.inf])
def test_alphas_that_are_no_numbers(vlm, alpha):
    images = vlm.encode(canvas(vlm))
    run = Run.of(vlm, QUESTIONS[:1], images)
    with pytest.raises(UserError, match="finite number"):
        amplification_sweep(vlm, run, {"d": torch.ones(1, 32)}, [1.0, alpha], vlm.candidates(["red"]), ["a"])
    for call in (lambda: amplify(images, torch.ones(1, 32), alpha), lambda: Amplification(Along(images), alpha)):
        with pytest.raises(UserError, match="finite number"):
            call()
