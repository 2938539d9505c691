"""The contracts catch what they are there for: each test breaks one thing on purpose and expects a contract
to fail."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import test_contracts as contracts
import torch
from tiny import tiny

import lib.engine.vlm
from lib.engine.vlm import VLM, KeyValues, Plan, Prompt


@contextmanager
def caught():
    """The contract must fail: by its assertion, or by running into the damage."""
    with pytest.raises(Exception) as failure:  # noqa: B017
        yield
    assert "module 'test_contracts'" not in str(failure.value), "there is no such contract"


@pytest.fixture
def use(monkeypatch):
    """Let the contracts run on this adapter."""
    return lambda vlm: monkeypatch.setattr(contracts, "model", lambda name, attn="sdpa": vlm)


def test_image_positions_shifted_by_one(use, monkeypatch):
    tokens = VLM.tokens

    def shifted(self, *args, **kwargs):
        prompt = tokens(self, *args, **kwargs)
        return Prompt(prompt.ids, prompt.mask, prompt.image + 1)

    use(tiny("reference"))
    monkeypatch.setattr(VLM, "tokens", shifted)
    with caught():
        contracts.test_logits_equal_plain_transformers("reference", "sdpa")
    with caught():
        contracts.test_slot_zero_holds_the_projectors_output("reference")


def test_gemma_without_token_type_ids(use):
    vlm = tiny("gemma-3")
    vlm.family = replace(vlm.family, bidirectional=False)
    use(vlm)
    with caught():
        contracts.test_logits_equal_plain_transformers("gemma-3", "sdpa")


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl"])
def test_qwen_with_one_dimensional_positions(use, name):
    vlm = tiny(name)
    vlm.family = replace(vlm.family, positions="1d")
    use(vlm)
    with caught():
        contracts.test_logits_equal_plain_transformers(name, "sdpa")


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl"])
def test_stale_rope_deltas(use, name):
    """A plain pass leaves rope_deltas behind: explicit positions make the adapter immune, leaving it to the
    model not."""
    vlm = tiny(name)
    clean = contracts.logits(
        vlm, contracts.full(vlm, contracts.pictures(name)[:1], contracts.QUESTIONS[:1])[0]
    )
    vlm._plans.clear()
    vlm.base.rope_deltas = torch.tensor([[-30]])
    stale = contracts.logits(
        vlm, contracts.full(vlm, contracts.pictures(name)[:1], contracts.QUESTIONS[:1])[0]
    )
    assert torch.equal(clean, stale)
    use(vlm)
    vlm._positions = lambda prompt: None
    vlm._plans.clear()
    with caught():
        contracts.test_logits_equal_plain_transformers(name, "sdpa")


def test_a_layer_gets_the_arguments_of_another(use, monkeypatch):
    plan = VLM.plan

    def rotated(self, prompt):
        out = plan(self, prompt)
        return Plan((*out.layers[1:], out.layers[0]), out.length)

    use(tiny("gemma-3"))  # the only family whose layers differ
    monkeypatch.setattr(VLM, "plan", rotated)
    with caught():
        contracts.test_logits_equal_plain_transformers("gemma-3", "sdpa")


def test_patches_in_the_wrong_order(use, monkeypatch):
    vlm = tiny("qwen2.5-vl")
    vlm.family = replace(vlm.family, order="blocks")  # windows forgotten
    use(vlm)
    monkeypatch.setattr(contracts, "tiny", lambda name: vlm)
    with caught():
        contracts.test_raster_order("qwen2.5-vl")


def test_columns_taken_for_rows(use, monkeypatch):
    features = VLM._features

    def turned(self, inputs):
        out = features(self, inputs)
        return out.unflatten(1, (6, 6)).transpose(1, 2).flatten(1, 2)

    use(tiny("reference"))
    monkeypatch.setattr(VLM, "_features", turned)
    with caught():
        contracts.test_logits_equal_plain_transformers("reference", "sdpa")


def test_cached_keys_of_one_token_too_few(use, monkeypatch):
    first = KeyValues.first
    use(tiny("pixtral"))
    monkeypatch.setattr(KeyValues, "first", lambda self, tokens: first(self, tokens - 1))
    with caught():
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
    monkeypatch.setattr(lib.engine.vlm, "hooks", careless)
    with caught():
        contracts.test_hooks_are_gone_after_an_exception("reference")
