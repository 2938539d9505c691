"""Records derived from models: equal to the written ones, certified, or refused with the reason."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_contracts import QUESTIONS, all_hooks
from tiny import NAMES, tiny

from lib import places
from lib.analysis.enhancement import enhance
from lib.analysis.enhancement_attention import ScaledAttention
from lib.engine import certificate as certificate_module
from lib.engine import checkpoints, encoder
from lib.engine.certificate import CONTRACTS, certificate
from lib.engine.derived import adapter, small_models, survey
from lib.engine.derived.adapter import DerivedVLM
from lib.engine.derived.derive import derive
from lib.engine.derived.observe import Refused
from lib.engine.tensors import put, take
from lib.engine.vlm import load
from lib.errors import UserError
from lib.patching.edits import LAST_TOKEN, Interchange
from lib.patching.runs import Pairs, Run, tokens_at
from lib.patching.sites import MLP
from lib.patching.sweep import amplification_sweep, last_token_sweep, sweep, token_sweep

# What stands in the text around a picture and how a processor is called cannot be read from a model
DERIVED = "architecture language encoder projector merge patch_order packed tokens_after_grid positions".split()
DERIVED += ["bidirectional", "inputs"]


def pixels_of(vlm):
    """The image arguments of transformers' forward pass for a tiny model of a written family."""

    def pixels(pictures):
        out = vlm.encoder.pixels(pictures)
        if vlm.family.architecture in ("smolvlm", "idefics3"):  # [prompt, picture of the prompt, ...]
            out = {key: value.reshape(len(pictures), -1, *value.shape[2:]) for key, value in out.items()}
        return out

    return pixels


def small(model_type):
    """A small model of a type in the adapter, its record derived."""
    found, model, pixels = survey.examine(model_type)
    return DerivedVLM(model, small_models.tokenizer(), pixels, found, model_type)


def pictures(vlm, count=2):
    side = vlm.grid.canvas
    rng = np.random.default_rng(3)
    return [Image.fromarray(x) for x in rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)]


@pytest.mark.parametrize("name", NAMES)
def test_the_derived_record_is_the_written_one(name):
    vlm = tiny(name)
    found = derive(vlm.model, pixels_of(vlm), vlm.grid.canvas)
    written = replace(vlm.family, merge=vlm.encoder.merge)
    ours = {key: getattr(found.family, key) for key in DERIVED}
    ours["inputs"] = tuple(key for key in ours["inputs"] if key != "batch_num_images")  # the adapter adds it
    assert ours == {key: getattr(written, key) for key in DERIVED}
    assert (found.grid.side, found.grid.pixels) == (vlm.grid.side, vlm.grid.pixels)
    assert found.family.vision == vlm.family.vision or vlm.family.vision is None
    assert found.wiring.tokens == tuple(range(36)) and found.wiring.scale == 1
    assert vlm.model.get_submodule(found.wiring.norm) is vlm.language.norm


@pytest.mark.parametrize("name", ["qwen2-vl", "gemma-3", "llava-onevision"])
def test_both_adapters_agree(name):
    """On the derived record the same residual stream and logits as on the written one."""
    vlm = tiny(name)
    found = derive(vlm.model, pixels_of(vlm), vlm.grid.canvas)
    derived = DerivedVLM(vlm.model, vlm.tokenizer, pixels_of(vlm), found)
    pics, prompt = pictures(vlm, 3), vlm.tokens(QUESTIONS)
    ours = derived.forward(prompt, derived.encode(pics), capture=vlm.slots)
    written = vlm.forward(prompt, vlm.encode(pics), capture=vlm.slots)
    for slot in vlm.slots:
        pair = (take(run.hidden[slot], prompt.image) for run in (ours, written))
        assert torch.allclose(*pair, atol=1e-5)
    assert torch.allclose(derived.logits(ours.last), vlm.logits(written.last), atol=1e-5)


@pytest.mark.parametrize(
    "model_type, added, own_input, fast, text",
    [
        ("qwen3_vl", 2, None, True, "more than one route"),
        ("gemma4", 0, "per_layer_input", True, "more than one route"),
        ("glm4v", 0, None, True, ""),
        ("mistral3", 0, None, True, ""),
        ("lfm2_vl", 0, None, False, "a state instead of keys and values"),
    ],
)
def test_models_without_a_written_record(model_type, added, own_input, fast, text):
    vlm = small(model_type)
    table = certificate(vlm)
    assert table["holds"].all(), table.to_string()
    assert list(table["contract"]) == [f"{number} {words}" for number, words in CONTRACTS.items()]
    assert (vlm.language.wiring.added, vlm.language.wiring.own_input, vlm.language.plain_because is None) == (
        added,
        own_input,
        fast,
    )
    assert text in " ".join(table["reason"])
    answers = vlm.answer(pictures(vlm), QUESTIONS[:2], [["red", "blue"]] * 2, progress=False)
    assert len(answers) == 4 and answers["probability"].between(0, 1).all()


def test_a_patch_takes_later_inputs_with_it():
    """Half of the picture at any slot: both halves together are the other run, one half is neither."""
    vlm = small("qwen3_vl")
    prompt, tokens = vlm.tokens(QUESTIONS[:1]), vlm.encode(pictures(vlm))
    runs = [vlm.forward(prompt, tokens[[k]], capture=vlm.slots) for k in (0, 1)]
    clean, other = (vlm.logits(run.last) for run in runs)
    assert (clean - other).abs().max() > 1e-3
    for slot in (0, 1):  # features are added after layers 1 and 2
        whole = put(runs[0].hidden[slot], prompt.image, take(runs[1].hidden[slot], prompt.image))
        if slot == 0:
            assert torch.allclose(vlm.logits(vlm.forward(prompt, hidden=whole).last), other, atol=1e-5)
        alone = runs[0].hidden[slot].clone()
        alone[..., : vlm.language.width] = whole[..., : vlm.language.width]  # the residual stream only
        ours, naive = (vlm.logits(vlm.forward(prompt, hidden=h, from_slot=slot).last) for h in (whole, alone))
        assert (ours - naive).abs().max() > 1e-4


@pytest.mark.parametrize("model_type", ["qwen3_vl", "lfm2_vl"])
def test_sweeps_equal_whole_runs(model_type):
    """With several routes of the picture, and with layers that have a state: every slot by sweep and by whole runs."""
    vlm = small(model_type)
    tokens, ids = vlm.encode(pictures(vlm)), vlm.candidates([["red", "blue"]])
    run, other = (Run.of(vlm, QUESTIONS[:1], tokens, [picture]) for picture in (0, 1))
    half = np.arange(vlm.grid.side**2 // 2)
    swept = token_sweep(vlm, run, {"half": Interchange(half, half)}, ids, ("a", "b"), [1], progress=False)
    last = last_token_sweep(vlm, run, other, ids, ("a", "b"), progress=False)
    clean, source = (vlm.forward(run.prompt, tokens[[k]], capture=vlm.slots) for k in (0, 1))
    positions = run.prompt.image[:, half]
    for slot in vlm.slots[:-1]:
        for table, changed in ((swept, positions), (last, torch.tensor([[run.prompt.length - 1]]))):
            hidden = put(clean.hidden[slot], changed, take(source.hidden[slot], changed))
            expected = vlm.score(vlm.forward(run.prompt, hidden=hidden, from_slot=slot).last, ids)[0][0]
            found = table.query("run == 'patched' and slot == @slot").sort_values("role")["probability"]
            assert np.allclose(found, expected, atol=1e-5), slot


def test_what_a_plain_model_cannot_do_is_refused():
    """Its layers run on all tokens every time, so that positions inside them are not those of the question."""
    vlm = small("lfm2_vl")
    tokens, ids = vlm.encode(pictures(vlm)), vlm.candidates([["red", "blue"]])
    run, other = (Run.of(vlm, QUESTIONS[:1], tokens, [picture]) for picture in (0, 1))
    with pytest.raises(UserError, match="Only the residual stream"):
        sweep(vlm, run, other, {"last": LAST_TOKEN}, ids, ("a", "b"), [MLP], progress=False)
    with pytest.raises(UserError, match="cannot be scaled"):
        ScaledAttention(vlm, Pairs(run, None), [0.5], "last")


@pytest.mark.parametrize("model_type", ["qwen3_vl", "gemma4"])
def test_image_tokens_with_inputs_of_later_layers(model_type):
    """Read at a slot they are as wide as the encoder gives them; what is defined for one slot alone is refused."""
    vlm = small(model_type)
    tokens, ids = vlm.encode(pictures(vlm)), vlm.candidates([["red", "blue"]])
    run = Run.of(vlm, QUESTIONS[:1], tokens, [0])
    assert torch.allclose(tokens_at(vlm, run, [0])[0][0] / vlm.language.wiring.scale, tokens[0], atol=1e-5)
    directions = torch.ones(1, tokens.shape[-1])
    with pytest.raises(UserError, match="the picture enters its later layers"):
        amplification_sweep(vlm, run, {"one": directions}, [1.0], ids, ("a", "b"), progress=False)
    with pytest.raises(UserError, match="the picture enters its later layers"), enhance(vlm, directions, 1.0):
        pass


def test_an_unknown_checkpoint_proves_itself_when_first_loaded(tmp_path, monkeypatch):
    """Saved, loaded without a record, certified, and not certified again; another tokenizer file makes it new."""
    monkeypatch.setattr(places, "RUNS", tmp_path / "runs")
    model = small_models.build("qwen3_vl")
    folder = tmp_path / "unknown"
    model.save_pretrained(folder)
    small_models.tokenizer().save_pretrained(folder)
    kind = transformers.Qwen2VLImageProcessorPil
    kind(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1 << 20}).save_pretrained(folder)
    vlm = load(folder)
    kept = tmp_path / "runs" / "by-hand" / "unknown" / "certificate.json"
    made = json.loads(kept.read_text())
    assert len(made["contracts"]) == 6 and all(row["holds"] for row in made["contracts"])
    assert (vlm.grid.side, vlm.grid.pixels, vlm.language.wiring.added) == (12, 8, 2)
    before = kept.stat().st_mtime_ns
    assert certificate_module.require(vlm, str(folder))["holds"].all() and kept.stat().st_mtime_ns == before
    vlm.language.wiring = replace(vlm.language.wiring, logit_scale=1.5)
    kept.unlink()
    with pytest.raises(UserError, match="contracts do not hold on this checkpoint: 1 logits"):
        certificate_module.require(vlm, str(folder))


def test_another_revision_of_a_hub_model_is_another_checkpoint(monkeypatch):
    cache = {None: "/cache/main/config.json", "b": "/cache/of-b/config.json"}
    monkeypatch.setattr(checkpoints, "cached", lambda hub_id, revision=None: cache[revision])
    assert [checkpoints.hub_digest("owner/name", revision) for revision in cache] == [
        "owner/name@main",
        "owner/name@of-b",
    ]


def test_a_hook_that_stays_breaks_the_sixth_contract(monkeypatch):
    """The adapter's own hooks are tried: those of an edit in a layer, of a recorded plan, and of the encoder."""

    @contextmanager
    def kept(*registrations):
        for module, when, function in registrations:
            register = module.register_forward_pre_hook if when == "before" else module.register_forward_hook
            register(function, **({"with_kwargs": True} if when == "before" else {}))
        yield

    for module in (certificate_module, adapter, encoder):
        with monkeypatch.context() as patch:
            patch.setattr(module, "hooks", kept)
            assert not certificate(small("glm4v"))["holds"].iloc[5], module.__name__


def test_a_certificate_says_which_contract_is_broken():
    vlm = small("qwen3_vl")
    vlm.language.wiring = replace(vlm.language.wiring, logit_scale=1.5)
    holds = certificate(vlm).set_index("contract")["holds"]
    assert not holds.iloc[0] and holds.iloc[1] and holds.iloc[5]


def test_nothing_is_left_behind():
    vlm = small("glm4v")
    before = all_hooks(vlm)
    certificate(vlm)
    assert all_hooks(vlm) == before


@pytest.mark.parametrize(
    "model_type, reason",
    [
        ("mllama", "^cross-attention: the language model reads the picture in layers of its own"),
        ("florence2", "^encoder-decoder: "),
        ("idefics2", "^resampler: image tokens do not stand for places"),
        ("llava_next", "^tiles: the picture is shown twice"),
        ("blip", "names no image token"),
    ],
)
def test_refused_with_the_reason(model_type, reason):
    with pytest.raises(Refused, match=reason):
        survey.examine(model_type)


def test_the_page_counts_what_passes():
    rows = [survey.Row("a", "passes", ("1",) * 5), survey.Row("b", "refused", note="why"), survey.Row("c", "not built")]
    page = survey.page(rows)
    assert "**1 of the 2 types" in " ".join(page.split()) and "- `b`: why" in page
