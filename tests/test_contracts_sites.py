"""Contracts of the sites inside layers, on a tiny random model of every family: patched runs equal full forward passes
with plain hooks, all heads together are the attention output, and a run's own activations change nothing."""

import numpy as np
import pytest
import torch
from test_contracts import EXACT, LEFT, QUESTIONS, RIGHT, ROLES, SWEEP, WORDS, families, model, pictures, values

from lib.engine import oracle
from lib.engine.hooks import hooks
from lib.errors import UserError
from lib.patching.edits import LAST_TOKEN, Interchange, swap
from lib.patching.runs import Run
from lib.patching.sites import ATTENTION, MLP, RESIDUAL, Site, heads
from lib.patching.sweep import last_token_sweep, sweep, token_sweep

VALUES = Site("values", "self_attn.v_proj")  # read of the last layer, too, where what attention gives out is not
ENTERING = Site("entering", "self_attn", "before")
SITES = (RESIDUAL, ATTENTION, MLP, Site("head 1", "self_attn.o_proj", "before", 1), VALUES, ENTERING)
TAIL = Interchange(np.array([-3, -1]), np.array([-1, -4]))
IMAGE = swap(LEFT, RIGHT)


def runs(name):
    """Two pairs: other questions of another length, other pictures."""
    vlm, pics = model(name), pictures(name)
    tokens = vlm.encode(pics)
    clean, other = ([0, 1], QUESTIONS[:2]), ([2, 3], QUESTIONS[:0:-1])
    return [(Run.of(vlm, texts, tokens, index), [(pics[i], text) for i, text in zip(index, texts, strict=True)])
            for index, texts in (clean, other)]  # fmt: skip


def naive(vlm, site, slot, clean, other, targets, sources):
    """Probabilities of one pair by two full forward passes with hooks of torch's own."""
    seen, layers = [], vlm.layers
    module = layers[min(slot, len(layers) - 1)].get_submodule(site.module)
    before = site.when == "before" or (site is RESIDUAL and slot < len(layers))
    count = vlm.language.config.num_attention_heads

    def share(tensor):
        return tensor if site.head is None else tensor[..., site.head * (w := tensor.shape[-1] // count) :][..., :w]

    def run(batch, visit):
        def hook(module, args, output=None):
            first = args[0] if before else output
            tensor = first if isinstance(first, torch.Tensor) else first[0]
            visit(share(tensor))

        def by_keyword(module, args, kwargs):
            visit(share(args[0] if args else kwargs["hidden_states"]))

        handle = (
            module.register_forward_pre_hook(by_keyword, with_kwargs=True)
            if before
            else module.register_forward_hook(hook)
        )
        try:
            return oracle.forward(vlm, batch)
        finally:
            handle.remove()

    def write(tensor):
        tensor[:, targets] = seen[0][:, sources]

    run(oracle.inputs(vlm, *([part] for part in other)), lambda tensor: seen.append(tensor.clone()))
    logits = run(oracle.inputs(vlm, *([part] for part in clean)), write)
    return oracle.probabilities(logits, vlm.candidates(WORDS[:1]))[0]


def compare(name, edit, same_question):
    """Sweep and plain passes at every site and slot; returns the largest effect."""
    vlm, ((clean, asked), (other, asked_other)) = model(name), runs(name)
    if same_question:
        other = Run(clean.prompt, clean.images, other.index)
        asked_other = [(pic, text) for (pic, _), (_, text) in zip(asked_other, asked, strict=True)]
    table = sweep(vlm, clean, other, {"edit": edit}, vlm.candidates(WORDS[:2]), ROLES, SITES, progress=False)
    moved = 0.0
    for pair in range(2):
        lengths = [vlm.tokens([text]) for _, text in (asked[pair], asked_other[pair])]
        if edit.in_question:
            targets, sources = (
                [p + n.length for p in part] for part, n in zip((edit.targets, edit.sources), lengths, strict=True)
            )  # noqa: E501
        else:
            targets, sources = (
                n.image[0, torch.as_tensor(part)] for part, n in zip((edit.targets, edit.sources), lengths, strict=True)
            )  # noqa: E501
        base = table.query("run == 'clean' and pair == @pair")["probability"].to_numpy()
        for site in SITES:
            for slot in site.slots(vlm.language):
                own = table[(table["site"] == site.name) & (table["slot"] == slot) & (table["pair"] == pair)]
                slow = naive(vlm, site, slot, asked[pair], asked_other[pair], targets, sources).detach().numpy()
                assert np.abs(own["probability"].to_numpy() - slow).max() < SWEEP, (site.name, slot)
                moved = max(moved, np.abs(slow - base).max())
    return moved


@families
def test_last_tokens_at_every_site_equal_plain_hooks(name):
    assert compare(name, LAST_TOKEN, same_question=False) > 1e-3


@families
def test_question_tokens_at_every_site_equal_plain_hooks(name):
    assert compare(name, TAIL, same_question=False) > 1e-3


@families
def test_image_tokens_at_every_site_equal_plain_hooks(name):
    assert compare(name, IMAGE, same_question=True) > 1e-4


@families
def test_all_heads_of_a_layer_are_its_attention_output(name):
    """Patched together, one hook a head, against the attention output; every head alone moves the answer."""
    vlm, ((clean, _), _) = model(name), runs(name)
    language, prompt = vlm.language, vlm.tokens(QUESTIONS[:1])
    images, every = clean.images, heads(vlm.language)

    def answer(picture, *registrations):
        with hooks(*registrations):
            return vlm.logits(vlm.forward(prompt, images[[picture]]).last)

    for layer in range(len(vlm.layers)):
        seen = {}

        def read(site, seen=seen, layer=layer):
            return site.hook(language, layer, lambda tensor: seen.setdefault(site.name, tensor.clone()) * 0 + tensor)

        def write(site, seen=seen, layer=layer):
            return site.hook(language, layer, lambda tensor: seen[site.name])

        answer(2, *(read(site) for site in (ATTENTION, *every)))
        plain, together, whole = answer(0), answer(0, *map(write, every)), answer(0, write(ATTENTION))
        assert (together - whole).abs().max() < EXACT
        assert (whole - plain).abs().max() > 1e-3
        assert all((answer(0, write(site)) - plain).abs().max() > 1e-5 for site in every)


@families
def test_own_activations_change_nothing_at_any_site(name):
    vlm, ((clean, _), _) = model(name), runs(name)
    ids, sites = vlm.candidates(WORDS[:2]), (*SITES, *heads(vlm.language))
    itself = {"tail": Interchange(np.array([-4, -2, -1]), np.array([-4, -2, -1])), "last": LAST_TOKEN}
    whole = {"strip": Interchange(LEFT, LEFT)}
    for edits in (itself, whole):
        table = sweep(vlm, clean, clean, edits, ids, ROLES, sites, progress=False)
        base = table[table["run"] == "clean"].set_index(["pair", "role"])["probability"]
        rows = table[table["run"] == "patched"]
        assert len(rows) == sum(len(site.slots(vlm.language)) for site in sites) * len(edits) * 2 * len(ROLES)
        same = base.reindex(pd_index(rows)).to_numpy()
        assert np.abs(rows["probability"].to_numpy() - same).max() < EXACT


def pd_index(rows):
    return list(zip(rows["pair"], rows["role"], strict=True))


def test_presets_are_sweeps_of_the_residual_stream():
    vlm, ((clean, _), (other, _)) = model("reference"), runs("reference")
    ids = vlm.candidates(WORDS[:2])
    general = sweep(vlm, clean, other, {"last": LAST_TOKEN}, ids, ROLES, progress=False)
    assert torch.equal(values(general), values(last_token_sweep(vlm, clean, other, ids, ROLES, progress=False)))
    same = Run(clean.prompt, clean.images, other.index)
    general = sweep(vlm, clean, same, {"strip": IMAGE}, ids, ROLES, progress=False)
    preset = token_sweep(vlm, clean, {"strip": IMAGE}, ids, ROLES, other.index, progress=False)
    assert torch.equal(values(general), values(preset))


def test_edits_that_no_sweep_can_run_are_refused():
    vlm, ((clean, _), (other, _)) = model("reference"), runs("reference")
    ids = vlm.candidates(WORDS[:2])

    def refused(match, run, edits):
        with pytest.raises(UserError, match=match):
            sweep(vlm, clean, run, edits, ids, ROLES, progress=False)

    refused("need a sweep each", other, {"strip": IMAGE, "last": LAST_TOKEN})
    refused("need counterfactual runs", None, {"last": LAST_TOKEN})
    refused("the same questions", other, {"strip": IMAGE})
    refused("Token -60 lies before the question", other, {"far": Interchange(np.array([-60]), np.array([-1]))})
    refused("one counterfactual run", other.rows([0]), {"last": LAST_TOKEN})
    with pytest.raises(UserError, match="of image tokens .* or of those of the question"):
        Interchange(np.array([-1]), np.array([3]))


def test_a_site_of_ones_own():
    """The trial: neurons of the MLP, that is, what its last projection reads; one line, and every sweep takes it."""
    neurons = Site("neurons", "mlp.down_proj", "before")
    vlm, ((clean, _), (other, _)) = model("gemma-3"), runs("gemma-3")
    ids = vlm.candidates(WORDS[:2])
    table = sweep(vlm, clean, other, {"last": LAST_TOKEN}, ids, ROLES, (neurons, MLP), progress=False)
    cells = table[table["run"] == "patched"].pivot(index=["pair", "slot", "role"], columns="site", values="probability")
    assert np.allclose(cells["neurons"], cells["mlp"], atol=1e-6)  # the projection is linear
