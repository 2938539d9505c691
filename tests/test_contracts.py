"""The six contracts of the adapter, on a tiny random model of every family; `pytest -s` prints the measured
differences.

1 logits equal plain transformers'; 2 image tokens at slot 0 are the projector's output; 3 identities of
patching; 4 the fast sweeps equal the naive procedure; 5 batches, padding and several pictures change nothing;
6 hooks are gone.
"""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, SIDE, tiny

from lib.engine import oracle
from lib.engine.certificate import certificate
from lib.engine.tensors import put, take
from lib.patching.edits import swap
from lib.patching.runs import Run
from lib.patching.sweep import amplification_sweep, encoder_sweep, knockout_sweep, last_token_sweep, token_sweep

EXACT, SWEEP = 1e-5, 1e-4
QUESTIONS = [
    "the color of the square to the left of the red square is",
    "the color of the square above the blue square is",
    "the color of the square to the right of the green square is",
]
LEFT, RIGHT = np.arange(36).reshape(6, 6)[:, :2].ravel(), np.arange(36).reshape(6, 6)[:, 4:].ravel()
WORDS = [["red", "blue", "green"]] * 3
MEASURED: dict[tuple[str, str], float] = {}

families = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def contract_table():
    """Prints the measured differences, family by contract, when all tests of the module are over (`pytest -s`)."""
    yield
    contracts = sorted({contract for _, contract in MEASURED})
    print("\nlargest differences\n" + " " * 16 + "  ".join(f"{c:>14}" for c in contracts))
    for name in NAMES:
        cells = [MEASURED.get((name, contract)) for contract in contracts]
        print(f"{name:<16}" + "  ".join(f"{'-' if c is None else format(c, '.1e'):>14}" for c in cells))


@cache
def model(name, attn="sdpa"):
    return tiny(name, attn)


@cache
def pictures(name, count=4):
    rng = np.random.default_rng(1)
    side = model(name).grid.canvas
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def measure(name, contract, *pairs):
    """Record the largest difference over pairs of tensors, and return it."""
    pairs = [[x.detach() if torch.is_tensor(x) else torch.tensor(np.array(x)) for x in pair] for pair in pairs]
    largest = max(float((a - b).abs().max()) for a, b in pairs)
    MEASURED[name, contract] = max(largest, MEASURED.get((name, contract), 0.0))
    return largest


def logits(vlm, output):
    return vlm.logits(output.last)


def full(vlm, pics, questions, **options):
    """The adapter's output and prompt for one picture per question."""
    prompt = vlm.tokens(questions)
    return vlm.forward(prompt, vlm.encode(pics), **options), prompt


# --- 1 ------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_logits_equal_plain_transformers(name, attn):
    vlm, pics = model(name, attn), pictures(name)[:3]
    plain = oracle.forward(vlm, oracle.inputs(vlm, pics, QUESTIONS))  # different lengths: padded
    ours, _ = full(vlm, pics, QUESTIONS)
    assert measure(name, f"1 logits {attn}", (logits(vlm, ours), plain)) < EXACT
    assert plain.std() > 0.1
    one = oracle.forward(vlm, oracle.inputs(vlm, pics[:1], QUESTIONS[:1]))  # a single one: no mask
    ours, _ = full(vlm, pics[:1], QUESTIONS[:1])
    assert measure(name, f"1 logits {attn}", (logits(vlm, ours), one)) < EXACT


@families
def test_pictures_go_through_the_family_processor(name):
    """Canvas-sized pictures: the processor's own resizing would change nothing."""
    vlm, pics = model(name), pictures(name)[:2]
    ours = vlm.encoder.pixels(pics)["pixel_values"]
    if vlm.family.architecture in ("qwen2_vl", "qwen2_5_vl"):
        theirs = vlm.processor(images=pics, return_tensors="pt")["pixel_values"]
        assert torch.equal(ours, theirs)
    else:
        raw = np.stack([np.asarray(pic) for pic in pics]).transpose(0, 3, 1, 2) / 255
        assert torch.allclose(ours.reshape(raw.shape), torch.tensor((raw - 0.5) / 0.5).float(), atol=1e-6)


# --- 2 ------------------------------------------------------------------------------------------------------


@families
def test_slot_zero_holds_the_projectors_output(name):
    vlm, pics = model(name), pictures(name)[:2]
    batch = oracle.inputs(vlm, pics, QUESTIONS[:2])
    seen = oracle.state(vlm, batch, 0)
    prompt, tokens = vlm.tokens(QUESTIONS[:2]), vlm.encode(pics)
    assert measure(name, "2 slot 0", (take(seen, prompt.image), tokens)) < EXACT  # scale 1 in every family
    assert measure(name, "2 slot 0", (seen[prompt.mask], vlm.language.embed(prompt, tokens)[prompt.mask])) < EXACT


@families
def test_raster_order(name):
    """With attention in the encoder silenced, a change under one token changes that image token and its
    patches."""
    vlm = tiny(name)
    with torch.no_grad():
        for layer in vlm.encoder.layers:
            for key, weight in layer.named_parameters():
                if {"proj", "o_proj", "out_proj", "projection_layer"} & set(key.split(".")) and "mlp" not in key:
                    weight.zero_()
    side, pixels = vlm.grid.side, vlm.grid.pixels
    pics = [Image.new("RGB", (vlm.grid.canvas,) * 2, "white")]
    chosen = [1, side + 3, 4 * side, side * side - 1]
    for token in chosen:
        row, column = divmod(token, side)
        pic = np.full((vlm.grid.canvas, vlm.grid.canvas, 3), 255, dtype=np.uint8)
        pic[row * pixels : (row + 1) * pixels, column * pixels : (column + 1) * pixels] = (200, 30, 90)
        pics.append(Image.fromarray(pic))
    slots = list(vlm.encoder_slots)
    tokens, stream = vlm.encode(pics, capture=slots)
    for number, token in enumerate(chosen, start=1):
        moved = (tokens[number] - tokens[0]).abs().amax(-1) > 1e-4
        assert moved.nonzero().ravel().tolist() == [token]
        for slot in slots:
            moved = (stream[slot][number] - stream[slot][0]).abs().amax(-1) > 1e-5
            assert moved.nonzero().ravel().tolist() == sorted(vlm.encoder.patches([token]).tolist())


# --- 3 ------------------------------------------------------------------------------------------------------


@families
def test_patching_identities(name):
    vlm, pics = model(name), pictures(name)
    slots = list(vlm.slots)
    clean, prompt = full(vlm, pics[:2], QUESTIONS[:1] * 2, capture=slots)
    other, _ = full(vlm, pics[2:], QUESTIONS[2:] * 2, capture=slots)
    assert prompt.length == other.hidden[0].shape[1]
    base, target = logits(vlm, clean), logits(vlm, other)
    assert (base - target).abs().max() > 1e-2
    for slot in slots:
        same = vlm.forward(prompt, hidden=clean.hidden[0], edits={slot: lambda h, s=slot: clean.hidden[s]})
        whole = vlm.forward(prompt, hidden=clean.hidden[0], edits={slot: lambda h, s=slot: other.hidden[s]})
        again = vlm.forward(prompt, hidden=clean.hidden[slot], from_slot=slot)
        assert measure(name, "3 no-op", (logits(vlm, same), base), (logits(vlm, again), base)) < EXACT
        assert measure(name, "3 full patch", (logits(vlm, whole), target)) < EXACT
        if slot < slots[-1]:
            part = vlm.forward(
                prompt,
                hidden=clean.hidden[0],
                edits={slot: lambda h, s=slot: put(h, prompt.image, take(other.hidden[s], prompt.image))},
            )
            assert (logits(vlm, part) - base).abs().max() > 1e-3, "the write did not land"


@families
def test_patching_identities_in_the_encoder(name):
    vlm, pics = model(name), pictures(name)
    slots = list(vlm.encoder_slots)
    clean, stream = vlm.encode(pics[:2], capture=slots)
    other, theirs = vlm.encode(pics[2:], capture=slots)
    assert (clean - other).abs().max() > 1e-2
    for slot in slots:
        same = vlm.encode(pics[:2], edits={slot: lambda h, i, s=slot: stream[s][i]})
        whole = vlm.encode(pics[:2], edits={slot: lambda h, i, s=slot: theirs[s][i]})
        assert measure(name, "3 encoder", (same, clean)) < EXACT
        if vlm.family.patch_order != "class" or slot in (
            0,
            slots[-1],
        ):  # a class token carries the clean picture along
            assert measure(name, "3 encoder", (whole, other)) < EXACT
        else:
            assert (whole - clean).abs().max() > 1e-3, "the write did not land"


# --- 4 ------------------------------------------------------------------------------------------------------


def values(table, **where):
    """Probabilities [slot, pair, role] of the patched rows."""
    for key, value in where.items():
        table = table[table[key] == value]
    table = table[table["run"] == "patched"]
    key = "alpha" if "alpha" in table else "slot"
    shape = [table[c].nunique() for c in (key, "pair", "role")]
    order = table.assign(role=pd_roles(table)).sort_values([key, "pair", "role"])
    return torch.tensor(order["probability"].to_numpy()).reshape(shape)


def pd_roles(table):
    return table["role"].map({"clean": 0, "order": 1, "attribute": 2})


ROLES = ("clean", "order", "attribute")


@families
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_last_token_sweep_equals_naive(name, attn):
    vlm, pics = model(name, attn), pictures(name)
    tokens, ids = vlm.encode(pics), vlm.candidates(WORDS)
    clean = Run.of(vlm, QUESTIONS, tokens, [0, 1, 0])
    other = Run.of(vlm, QUESTIONS[::-1], tokens, [2, 3, 3])
    fast = last_token_sweep(vlm, clean, other, ids, ROLES, progress=False)
    for pair in range(3):
        slow = oracle.last_token(
            vlm,
            oracle.inputs(vlm, [pics[clean.index[pair]]], [QUESTIONS[pair]]),
            oracle.inputs(vlm, [pics[other.index[pair]]], [QUESTIONS[2 - pair]]),
            ids[[pair]],
        )
        ours = values(fast, pair=pair)
        assert measure(name, "4 last token", (ours, slow)) < SWEEP
        assert (slow[0] - slow[-1]).abs().max() > 1e-3
        ends = fast[(fast["pair"] == pair) & (fast["run"] == "counterfactual")]["probability"]
        assert np.allclose(ends, slow[-1].ravel(), atol=SWEEP)  # at slot L the counterfactual's answer


@families
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_token_sweep_equals_naive(name, attn):
    vlm, pics = model(name, attn), pictures(name)
    tokens, ids = vlm.encode(pics), vlm.candidates(WORDS)
    run, other = Run.of(vlm, QUESTIONS, tokens, [0, 1, 0]), np.array([2, 3, 2])
    edit = swap(LEFT, RIGHT)
    fast = token_sweep(vlm, run, {"strip": edit}, ids, ROLES, other, progress=False)
    for pair in range(3):
        places = vlm.tokens([QUESTIONS[pair]]).image
        slow = oracle.interchange(
            vlm,
            oracle.inputs(vlm, [pics[run.index[pair]]], [QUESTIONS[pair]]),
            oracle.inputs(vlm, [pics[other[pair]]], [QUESTIONS[pair]]),
            places[:, edit.targets],
            places[:, edit.sources],
            ids[[pair]],
        )
        assert measure(name, "4 tokens", (values(fast, pair=pair), slow)) < SWEEP
        clean = fast[(fast["pair"] == pair) & (fast["run"] == "clean")]["probability"]
        assert np.allclose(clean, slow[-1].ravel(), atol=SWEEP)
        assert (slow[0] - slow[-1]).abs().max() > 1e-4


@families
def test_amplification_sweep_equals_naive(name):
    vlm, pics = model(name), pictures(name)
    tokens, ids = vlm.encode(pics), vlm.candidates(WORDS)
    run = Run.of(vlm, QUESTIONS, tokens, [0, 1, 0])
    directions = torch.randn(2, tokens.shape[-1], generator=torch.Generator().manual_seed(0))
    alphas = [0.5, 1, 4]
    fast = amplification_sweep(vlm, run, {"order": directions}, alphas, ids, ROLES, progress=False)
    for pair in range(3):
        batch = oracle.inputs(vlm, [pics[run.index[pair]]], [QUESTIONS[pair]])
        places = vlm.tokens([QUESTIONS[pair]]).image
        slow = oracle.amplification(vlm, batch, places, directions, alphas, ids[[pair]])
        assert measure(name, "4 amplify", (values(fast, pair=pair, edit="order"), slow)) < SWEEP
        assert (slow[0] - slow[-1]).abs().max() > 1e-4


@families
def test_encoder_sweep_ends_where_the_backbone_sweep_begins(name):
    """Patches exchanged at the encoder's last slot are image tokens exchanged at slot 0 (the projector is
    local)."""
    vlm, pics = model(name), pictures(name)
    ids = vlm.candidates(WORDS)
    run, other = Run.of(vlm, QUESTIONS, vlm.encode(pics), [0, 1, 0]), np.array([2, 3, 2])
    edit = swap(LEFT, RIGHT)
    fast = token_sweep(vlm, run, {"strip": edit}, ids, ROLES, other, slots=[0], progress=False)
    first = encoder_sweep(vlm, pics, run, other, {"strip": edit}, ids, ROLES, progress=False)
    assert measure(name, "4 encoder", (values(first)[-1], values(fast)[0])) < SWEEP
    assert (values(first)[0] - values(first)[-1]).abs().max() > 1e-4


@families
def test_knockout_equals_a_masked_full_run(name):
    vlm, pics = model(name), pictures(name)
    run, ids = Run.of(vlm, QUESTIONS[:1], vlm.encode(pics[:1])), vlm.candidates(WORDS[:1])
    spans = [range(0, 1), range(1, 3)]
    fast = values(knockout_sweep(vlm, run, {"left": LEFT}, ids, ROLES, spans, progress=False))
    eager = model(name, "eager")  # its masks are plain numbers
    places = eager.tokens(QUESTIONS[:1]).image[:, LEFT]
    for number, span in enumerate(spans):

        def cut(layer, kwargs, span=span):
            mask = kwargs["attention_mask"].clone()
            if layer in span:
                mask[:, :, -1, places[0]] = torch.finfo(mask.dtype).min
            return kwargs | {"attention_mask": mask}

        hidden = eager.language.embed(run.prompt, run.images)
        slow = eager.score(eager.language.run(eager.language.plan(run.prompt), hidden, mask=cut).last, ids)[0]
        assert measure(name, "4 knock-out", (fast[number], slow)) < SWEEP


# --- 5 ------------------------------------------------------------------------------------------------------


@families
def test_batches_and_padding(name):
    vlm, pics = model(name), pictures(name)[:3]
    many, prompt = full(vlm, pics, QUESTIONS, capture=[1])
    for row in range(3):
        one, single = full(vlm, pics[row : row + 1], QUESTIONS[row : row + 1], capture=[1])
        shift = prompt.length - single.length
        assert torch.equal(prompt.image[row] - shift, single.image[0])
        assert (prompt.ids[row, prompt.image[row]] == vlm.language.image_id).all()
        ours, alone = take(many.hidden[1][[row]], prompt.image[[row]]), take(one.hidden[1], single.image)
        ours, alone = ours / alone.abs().max(), alone / alone.abs().max()
        assert measure(name, "5 batch", (logits(vlm, many)[row], logits(vlm, one)[0]), (ours, alone)) < EXACT
    tokens, single = vlm.encode(pics), torch.cat([vlm.encode([pic]) for pic in pics])
    assert measure(name, "5 batch", (tokens / single.abs().max(), single / single.abs().max())) < EXACT


@families
def test_answer_equals_one_by_one(name):
    vlm, pics = model(name), pictures(name)
    table = vlm.answer([*pics, pics[0]], QUESTIONS * 2, WORDS * 2, index=[0, 1, 4, 3, 0, 1], progress=False)
    assert list(table["item"]) == sorted(table["item"])
    for item, picture in enumerate([0, 1, 0, 3, 0, 1]):
        out, _ = full(vlm, [pics[picture]], [QUESTIONS[item % 3]])
        probability, _ = vlm.score(out.last, vlm.candidates(WORDS[:1]))
        ours = table[table["item"] == item]["probability"].to_numpy()
        assert measure(name, "5 answer", (ours, probability[0])) < EXACT


@families
def test_several_pictures_in_one_prompt(name):
    vlm, pics = model(name), pictures(name)
    prompt = vlm.tokens(QUESTIONS[:2], images=2)
    tokens = vlm.encode(pics).reshape(2, 2 * SIDE**2, -1)
    ours = logits(vlm, vlm.forward(prompt, tokens))
    batch = oracle.inputs(vlm, pics, QUESTIONS[:2], images=2)
    assert measure(name, "5 two pictures", (ours, oracle.forward(vlm, batch))) < EXACT


@families
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_check_of_a_checkpoint(name, attn):
    found = certificate(model(name, attn))
    assert found["holds"].all() and found["difference"].max() < EXACT, found.to_string()


# --- 6 ------------------------------------------------------------------------------------------------------


def all_hooks(vlm):
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
    )
    return {(key, kind): list(getattr(m, kind)) for key, m in vlm.model.named_modules() for kind in kinds}


@families
def test_hooks_are_gone_after_an_exception(name):
    vlm, pics = tiny(name), pictures(name)[:1]
    out, prompt = full(vlm, pics, QUESTIONS[:1])
    before = all_hooks(vlm)
    base = logits(vlm, out)

    def fail(*_):
        raise RuntimeError("in the middle of a run")

    for slot in vlm.encoder_slots:
        with pytest.raises(RuntimeError):
            vlm.encode(pics, edits={slot: fail})
    for slot in vlm.slots:
        with pytest.raises(RuntimeError):
            vlm.forward(prompt, vlm.encode(pics), edits={slot: fail})
    vlm.language._plans.clear()
    broken, vlm.language._positions = vlm.language._positions, fail
    with pytest.raises(RuntimeError):
        vlm.language.plan(prompt)
    vlm.language._positions = broken
    assert all_hooks(vlm) == before
    assert torch.equal(logits(vlm, full(vlm, pics, QUESTIONS[:1])[0]), base)
    assert getattr(vlm.language.base, "rope_deltas", None) is None
