"""The contracts catch what they are there for: each test breaks one thing on purpose and expects a contract
to fail."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import test_contracts as contracts
import torch
from tiny import tiny

import lib.engine.encoder
import lib.engine.language
from lib.engine.encoder import ImageEncoder
from lib.engine.keys_values import KeyValues
from lib.engine.language import LanguageModel
from lib.engine.plans import Plan
from lib.engine.prompts import Prompt


def caught(*errors):
    """The contract must fail by its assertion, or by one of the errors that the damage is known to raise."""
    return pytest.raises((AssertionError, *errors))


@pytest.fixture
def use(monkeypatch):
    """Let the contracts run on this adapter."""
    return lambda vlm: monkeypatch.setattr(contracts, "model", lambda name, attn="sdpa": vlm)


def test_image_positions_shifted_by_one(use, monkeypatch):
    vlm = tiny("reference")
    tokens = vlm.tokens

    def shifted(*args, **kwargs):
        prompt = tokens(*args, **kwargs)
        return Prompt(prompt.ids, prompt.mask, prompt.image + 1)

    use(vlm)
    monkeypatch.setattr(vlm, "tokens", shifted)
    with caught():
        contracts.test_logits_equal_plain_transformers("reference", "sdpa")
    with caught():
        contracts.test_slot_zero_holds_the_projectors_output("reference")


def test_gemma_without_token_type_ids(use):
    vlm = tiny("gemma-3")
    vlm.language.family = replace(vlm.language.family, bidirectional=False)
    use(vlm)
    with caught():
        contracts.test_logits_equal_plain_transformers("gemma-3", "sdpa")


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl"])
def test_qwen_with_one_dimensional_positions(use, name):
    vlm = tiny(name)
    vlm.language.family = replace(vlm.language.family, positions="1d")
    use(vlm)
    with caught():
        contracts.test_logits_equal_plain_transformers(name, "sdpa")


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl"])
def test_stale_rope_deltas(use, name):
    """A plain pass leaves rope_deltas behind: explicit positions make the adapter immune, leaving it to the
    model not."""
    vlm = tiny(name)
    clean = contracts.logits(vlm, contracts.full(vlm, contracts.pictures(name)[:1], contracts.QUESTIONS[:1])[0])
    vlm.language._plans.clear()
    vlm.language.base.rope_deltas = torch.tensor([[-30]])
    stale = contracts.logits(vlm, contracts.full(vlm, contracts.pictures(name)[:1], contracts.QUESTIONS[:1])[0])
    assert torch.equal(clean, stale)
    use(vlm)
    vlm.language._positions = lambda prompt: None
    vlm.language._plans.clear()
    with caught():
        contracts.test_logits_equal_plain_transformers(name, "sdpa")


def test_a_layer_gets_the_arguments_of_another(use, monkeypatch):
    plan = LanguageModel.plan

    def rotated(self, prompt):
        out = plan(self, prompt)
        return Plan((*out.layers[1:], out.layers[0]), out.length)

    use(tiny("gemma-3"))  # the only family whose layers differ
    monkeypatch.setattr(LanguageModel, "plan", rotated)
    with caught():
        contracts.test_logits_equal_plain_transformers("gemma-3", "sdpa")


def test_patches_in_the_wrong_order(use, monkeypatch):
    vlm = tiny("qwen2.5-vl")
    vlm.encoder.family = replace(vlm.encoder.family, patch_order="blocks")  # windows forgotten
    use(vlm)
    monkeypatch.setattr(contracts, "tiny", lambda name: vlm)
    with caught():
        contracts.test_raster_order("qwen2.5-vl")


def test_the_check_of_a_checkpoint_notices_damage(monkeypatch):
    vlm = tiny("gemma-3")
    vlm.language.family = replace(vlm.language.family, bidirectional=False)
    found = contracts.certificate(vlm)["difference"]
    assert found[[0, 2, 3]].min() > 1e-3  # logits, patches, fast runs
    first, vlm = KeyValues.first, tiny("reference")
    monkeypatch.setattr(KeyValues, "first", lambda self, tokens: first(self, tokens)._map(lambda x: 0.8 * x))
    found = contracts.certificate(vlm)["difference"]
    assert found[0] < 1e-5 and found[3] > 1e-3


def test_columns_taken_for_rows(use, monkeypatch):
    features = ImageEncoder.features

    def turned(self, inputs):
        out = features(self, inputs)
        return out.unflatten(1, (6, 6)).transpose(1, 2).flatten(1, 2)

    use(tiny("reference"))
    monkeypatch.setattr(ImageEncoder, "features", turned)
    with caught():
        contracts.test_logits_equal_plain_transformers("reference", "sdpa")


def test_cached_keys_of_one_token_too_few(use, monkeypatch):
    first = KeyValues.first
    use(tiny("pixtral"))
    monkeypatch.setattr(KeyValues, "first", lambda self, tokens: first(self, tokens - 1))
    with caught(RuntimeError):  # masks and keys no longer fit
        contracts.test_last_token_sweep_equals_naive("pixtral", "sdpa")


def test_a_write_that_does_not_land(use, monkeypatch):
    use(tiny("reference"))
    monkeypatch.setattr(contracts, "put", lambda hidden, positions, values: hidden)
    with caught():
        contracts.test_patching_identities("reference")


def test_hooks_left_behind(use, monkeypatch):
    @contextmanager
    def careless(*registrations):
        for module, when, function in registrations:
            if when == "before":
                module.register_forward_pre_hook(function, with_kwargs=True)
            else:
                module.register_forward_hook(function)
        yield

    use(tiny("reference"))
    for module in (lib.engine.encoder, lib.engine.language):
        monkeypatch.setattr(module, "hooks", careless)
    with caught(AttributeError):  # a recorder that is still there stops every later run before its end
        contracts.test_hooks_are_gone_after_an_exception("reference")
