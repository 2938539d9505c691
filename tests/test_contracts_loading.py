"""Loading, bad input, spellings, and the two calibration models' special wiring."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import BLIND, tiny
from tiny import tokenizer as tiny_tokenizer

from lib.engine.batching import run_batches
from lib.engine.families import FAMILIES, family, written
from lib.engine.plans import causal_mask
from lib.engine.vlm import load
from lib.errors import UserError

QUESTIONS = [
    "the color of the square to the left of the red square is",
    "the square above the blue square is",
]


def save(vlm, folder):
    """A checkpoint folder as save_pretrained makes it."""
    with torch.no_grad():
        for weight in vlm.model.parameters():
            weight.copy_(weight.half())
    vlm.model.save_pretrained(folder, state_dict={key: x.half() for key, x in vlm.model.state_dict().items()})
    vlm.tokenizer.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


def canvas(vlm, seed=0, count=1):
    rng = np.random.default_rng(seed)
    side = vlm.grid.canvas
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tiny("reference", dual=BLIND), tmp_path_factory.mktemp("models") / "small")


def test_a_saved_model_answers_like_the_one_in_memory(folder):
    vlm, loaded = tiny("reference", dual=BLIND), load(folder)
    assert loaded.family.name == "reference" and loaded.language.marks == BLIND
    assert (loaded.grid.side, loaded.grid.pixels) == (6, 4)
    assert loaded.dtype == torch.float32
    with torch.no_grad():
        for weight in vlm.model.parameters():
            weight.copy_(weight.half())
    ask = dict(questions=QUESTIONS, words=[["red", "blue"]] * 2, progress=False)
    ours, theirs = (v.answer(canvas(v, count=2), **ask) for v in (vlm, loaded))
    assert np.allclose(ours["probability"], theirs["probability"], atol=1e-6)
    assert (ours["top"] == theirs["top"]).all()


@pytest.mark.parametrize("name", ["qwen2-vl", "gemma-3", "internvl3", "smolvlm", "llava-onevision"])
def test_other_families_load_from_a_folder(name, tmp_path):
    vlm = tiny(name)
    loaded = load(save(vlm, tmp_path / "m"), grid=vlm.grid, attn="eager")
    assert loaded.family == vlm.family and type(loaded.processor) is type(vlm.processor)
    assert loaded.tokens(QUESTIONS).ids.tolist() == vlm.tokens(QUESTIONS).ids.tolist()


def test_unknown_names_and_architectures(tmp_path):
    with pytest.raises(UserError, match="unknown model 'qwen3'.*qwen2-vl-2b"):
        load("qwen3")
    assert written("llava", "clip_vision_model") and not written("llava", "dinov2") and not written("bert", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "novelty"}))
    with pytest.raises(UserError, match="Add your model"):
        load(tmp_path)
    with pytest.raises(UserError, match="attn must be"):
        load(tmp_path, attn="flash_attention_2")
    with pytest.raises(UserError, match="Unknown family"):
        family("novelty")


def test_grids_have_room_for_lines_of_three():
    for record in FAMILIES:
        grid = record.grid
        assert sum(grid.strips) == grid.side and 3 * grid.entity + 2 * grid.gap <= grid.side


def test_damaged_weights(folder, tmp_path):
    whole = (folder / "model.safetensors").read_bytes()
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or cut short"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read.*model.safetensors"):
        load(tmp_path)


def test_missing_tensors(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(key for key in tensors if "q_proj" in key))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="weights are missing.*q_proj"):
        load(tmp_path)


def test_wrong_picture_size():
    vlm = tiny("reference")
    with pytest.raises(UserError, match="24 x 24 pixels.*not 30 x 24"):
        vlm.encode([Image.new("RGB", (30, 24))])


def test_spellings():
    vlm = tiny("reference")
    ids = vlm.candidates([["red", "blue"]])
    assert ids.shape == (1, 2, 1)  # four spellings, one id: counted once
    assert vlm.tokenizer.convert_ids_to_tokens(ids[0, :, 0].tolist()) == ["red", "blue"]
    with pytest.raises(UserError, match="'turquoise' is not one token"):
        vlm.candidates([["red", "turquoise"]])
    with pytest.raises(UserError, match="'red square' is not one token"):
        vlm.candidates([["red square"]])
    spread = torch.zeros(1, len(vlm.tokenizer))
    vlm.logits = lambda last: spread
    probability, logit = vlm.score(torch.zeros(1, 32), torch.tensor([[[3, 4], [5, -1]]]))
    assert torch.allclose(probability, torch.tensor([[2.0, 1.0]]) / spread.shape[1])
    assert torch.allclose(logit, torch.log(torch.tensor([[2.0, 1.0]])))


def test_a_template_that_loses_the_question():
    vlm = tiny("reference")
    vlm.tokenizer.chat_template = "{{ bos_token }} <image> nothing"
    with pytest.raises(UserError, match="Cannot write a prompt"):
        vlm.tokens(QUESTIONS)


def test_a_template_without_system_role():
    vlm = tiny("reference")
    vlm.tokenizer.chat_template = (
        "{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}"
        "{% endfor %}"
    )
    text = vlm.prompts.text(QUESTIONS[0], system="answer with one word .")
    assert text.endswith("answer with one word .\n" + QUESTIONS[0]) and text.startswith("<image>")


# the calibration models -------------------------------------------------------------------------------------


def test_the_blind_backbone_cannot_tell_where_image_tokens_stand():
    """Shared position and no attention among image tokens: their order changes nothing at all."""
    for dual, blind in ((BLIND, True), (None, False)):
        vlm = tiny("reference", dual=dual)
        tokens = vlm.encode(canvas(vlm, count=2))
        shuffled = tokens[:, torch.randperm(36, generator=torch.Generator().manual_seed(0))]
        prompt = vlm.tokens(QUESTIONS)
        a, b = (vlm.logits(vlm.forward(prompt, x).last) for x in (tokens, shuffled))
        assert ((a - b).abs().max() < 1e-5) == blind


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_blind_backbone_equals_transformers_given_the_same_mask(attn):
    vlm = tiny("reference", attn, dual=BLIND)
    prompt, tokens = vlm.tokens(QUESTIONS[:1]), vlm.encode(canvas(vlm))
    length, image = prompt.length, prompt.image[0]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    for token in image:
        for before in image[image < token]:
            mask[token, before] = torch.finfo(torch.float32).min
    first, last = int(image[0]), int(image[-1])
    positions = torch.tensor([*range(first), *[first] * 36, *range(first + 1, first + length - last)])
    hidden = vlm.language.embed(prompt, tokens)
    with torch.no_grad():
        plain = vlm.model(inputs_embeds=hidden, attention_mask=mask[None, None], position_ids=positions[None]).logits[
            :, -1
        ]
    assert (vlm.logits(vlm.forward(prompt, tokens).last) - plain).abs().max() < 1e-5
    padded = vlm.tokens(QUESTIONS)
    both = vlm.forward(padded, tokens.expand(2, -1, -1))
    assert (vlm.logits(both.last)[0] - plain[0]).abs().max() < 1e-5
    fast = vlm.answer(tokens, QUESTIONS[:1], [["red"]], progress=False)["probability"]
    assert np.allclose(fast, torch.softmax(plain, -1)[0, vlm.candidates(["red"])[0, 0, 0]], atol=1e-6)


def test_weights_offloaded_to_the_cpu_give_the_same_answers():
    accelerate = pytest.importorskip("accelerate")
    vlm = tiny("qwen2-vl")
    pictures, ask = (
        canvas(vlm, count=2),
        dict(questions=QUESTIONS, words=[["red", "blue"]] * 2, progress=False),
    )
    plain = vlm.answer(pictures, **ask)
    accelerate.cpu_offload(vlm.model, execution_device=torch.device("cpu"))
    assert vlm.layers[0].mlp.gate_proj.weight.device.type == "meta"
    vlm.language._plans.clear()
    assert np.allclose(plain["probability"], vlm.answer(pictures, **ask)["probability"], atol=1e-6)


# memory -----------------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_and_loses_nothing():
    seen = []

    def work(index):
        if len(index) > 3:
            raise torch.OutOfMemoryError("full")
        seen.extend(index.tolist())
        return len(index)

    sizes = [result for _, result in run_batches(10, work, 8)]
    assert seen == list(range(10)) and sizes[0] == 2

    def always(index):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(UserError, match="Out of memory with a single row"):
        list(run_batches(4, always, 4))


def test_the_mask_of_a_later_stretch_is_causal():
    assert causal_mask(2, 4, "cpu")[0, 0].tolist() == [[True, True, True, False], [True] * 4]


def test_tiny_tokenizer_lower_cases():
    words = tiny_tokenizer("reference")
    forms = ["red", "Red", " red", " Red"]
    assert len({tuple(words(f, add_special_tokens=False)["input_ids"]) for f in forms}) == 1
