"""Interventions on a tiny model: what the tables say, who gets which tokens, and that an interrupted sweep
goes on."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import tiny

from lib import parts
from lib.engine.tensors import put
from lib.errors import UserError
from lib.patching.edits import Interchange, amplify, ordering_ablation, swap
from lib.patching.results import BASELINE
from lib.patching.runs import Run, question_states
from lib.patching.sites import RESIDUAL
from lib.patching.sweep import amplification_sweep, encoder_sweep, knockout_sweep, last_token_sweep, token_sweep

GRID = np.arange(36).reshape(6, 6)
LEFT, RIGHT = GRID[:, :2].ravel(), GRID[:, 4:].ravel()
QUESTIONS = [f"the color of the square {where} the red square is" for where in ("to the left of", "above", "below")]
ROLES = ["clean", "counterfactual"]


@pytest.fixture(scope="module")
def vlm():
    return tiny("reference")


@pytest.fixture(scope="module")
def pictures(vlm):
    rng = np.random.default_rng(0)
    side = vlm.grid.canvas
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture(scope="module")
def tokens(vlm, pictures):
    return vlm.encode(pictures)


@pytest.fixture(scope="module")
def ids(vlm):
    return vlm.candidates([["red", "blue"]] * 5)


@pytest.fixture(scope="module")
def run(vlm, tokens):
    return Run.of(vlm, [QUESTIONS[i % 3] for i in range(5)], tokens, [0, 1, 0, 2, 0])


OTHER = np.array([1, 0, 3, 3, 1])


def direct(vlm, run, pair, ids, images):
    """Probabilities of one pair answered by a full forward with given image tokens."""
    out = vlm.forward(run.prompt.rows([pair]), images[None])
    return vlm.score(out.last, ids[[pair]])[0][0].numpy()


def cells(table, pair, **where):
    for key, value in where.items():
        table = table[table[key] == value]
    return table[table["pair"] == pair]["probability"].to_numpy()


def test_table_of_a_token_sweep(vlm, run, ids):
    labels = pd.DataFrame({"direction": list("abcde"), "setting": "squares"})
    edits = {"strip": swap(LEFT, RIGHT), "none": Interchange(LEFT, LEFT, own=True)}
    table = token_sweep(vlm, run, edits, ids, ROLES, OTHER, labels, progress=False)
    columns = {"pair", "direction", "setting", "slot", "role", "probability", "logit", "run", "edit"}
    assert set(table.columns) == columns
    assert len(table) == 5 * 2 * (2 * len(vlm.slots) + 2)
    assert table["probability"].between(0, 1).all() and table.notna().all().all()
    assert (table["direction"] == table["pair"].map(dict(enumerate("abcde")))).all()
    for pair in range(5):
        clean = cells(table, pair, run="clean", slot=BASELINE)
        assert np.allclose(clean, direct(vlm, run, pair, ids, run.images[run.index[pair]]), atol=1e-6)
        other = cells(table, pair, run="counterfactual")
        assert np.allclose(other, direct(vlm, run, pair, ids, run.images[OTHER[pair]]), atol=1e-6)
        same = cells(table, pair, edit="none", run="patched").reshape(len(vlm.slots), 2)
        assert np.allclose(same, clean, atol=1e-6)  # tokens replaced by themselves


def test_token_sets_of_each_pair(vlm, run, ids):
    """One region per pair gives the same as each pair with its own sweep."""
    rng = np.random.default_rng(3)
    targets, sources = (np.stack([rng.permutation(36)[:4] for _ in range(5)]) for _ in range(2))
    table = token_sweep(vlm, run, {"x": Interchange(targets, sources)}, ids, ROLES, OTHER, slots=[0], progress=False)
    for pair in range(5):
        images = run.images[run.index[pair]].clone()
        images[targets[pair]] = run.images[OTHER[pair]][sources[pair]]
        assert np.allclose(cells(table, pair, run="patched"), direct(vlm, run, pair, ids, images), atol=1e-6)


class Replace:
    """Image tokens `targets` become given vectors: any function with a call and a key is an edit."""

    def __init__(self, targets, values):
        self.targets, self.values = targets, values

    def key(self, pair):
        return b""

    def __call__(self, clean, other, pairs):
        return put(clean, self.targets, self.values)


def test_interchange_within_one_picture_and_replacement(vlm, run, ids):
    mean, zero = run.images.mean((0, 1)), torch.zeros(32)
    before = run.images.clone()
    edits = {
        "own": swap(LEFT, RIGHT, own=True),
        "zero": Replace(LEFT, zero),
        "mean": Replace(LEFT, mean),
        "each": Replace(LEFT, run.images[3, LEFT]),
    }
    table = token_sweep(vlm, run, edits, ids, ROLES, slots=[0], progress=False)
    assert "counterfactual" not in set(table["run"])
    for pair in range(5):
        base = run.images[run.index[pair]]
        for name, values in {
            "own": (np.r_[LEFT, RIGHT], base[np.r_[RIGHT, LEFT]]),
            "zero": (LEFT, zero),
            "mean": (LEFT, mean),
            "each": (LEFT, run.images[3, LEFT]),
        }.items():
            images = base.clone()
            images[values[0]] = values[1]
            expected = direct(vlm, run, pair, ids, images)
            assert np.allclose(cells(table, pair, edit=name, run="patched"), expected, atol=1e-6), name
    amplification_sweep(vlm, run, {"d": torch.ones(1, 32)}, [1.0], ids, ROLES, progress=False)
    assert torch.equal(run.images, before), "the image tokens handed in must stay as they are"


def test_regions_of_unequal_size_are_refused():
    with pytest.raises(UserError, match="as many sources as targets"):
        Interchange(LEFT, RIGHT[:3])


def test_slots_outside_the_model_are_refused(vlm, run, ids):
    with pytest.raises(UserError, match="slots must lie in 0..3"):
        token_sweep(vlm, run, {"x": swap(LEFT, RIGHT)}, ids, ROLES, OTHER, slots=[0, 7], progress=False)


def test_states_of_question_tokens_and_chosen_slots(vlm, run, ids):
    states, last = question_states(vlm, run, [(RESIDUAL, 1), (RESIDUAL, 3)], np.array([-3, -1]))
    whole = vlm.forward(run.prompt, run.images, run.index, capture=[1, 3]).hidden
    for slot in (1, 3):
        assert torch.allclose(states["residual", slot], whole[slot][:, [-3, -1]], atol=1e-5)
    assert torch.allclose(last, whole[3][:, -1], atol=1e-5)
    other = run.rows([4, 3, 2, 1, 0])
    full = last_token_sweep(vlm, run, other, ids, ROLES, progress=False)
    some = last_token_sweep(vlm, run, other, ids, ROLES, slots=[1, 2], progress=False)
    part = full[full["slot"].isin([BASELINE, 1, 2])].reset_index(drop=True)
    assert np.allclose(part["probability"], some["probability"], atol=1e-6)
    end, cf = (cells(full, 2, run="patched", slot=3), cells(full, 2, run="counterfactual"))
    assert np.allclose(end, cf, atol=1e-6)


@pytest.mark.parametrize("which", ["last", "tokens", "encoder", "amplify", "knockout"])
def test_an_interrupted_sweep_goes_on(which, vlm, run, ids, pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(vlm.language, "batch_size", lambda tokens: 1)  # one picture at a time
    monkeypatch.setattr(parts, "SHORT", 0)
    written, left = [], [2]  # names of the files; how many more may be written

    def sweep():
        options = {"progress": False}
        if which == "last":
            return last_token_sweep(vlm, run, run.rows([4, 3, 2, 1, 0]), ids, ROLES, **options)
        if which == "tokens":
            return token_sweep(vlm, run, {"s": swap(LEFT, RIGHT)}, ids, ROLES, OTHER, **options)
        if which == "encoder":
            return encoder_sweep(vlm, pictures, run, OTHER, {"s": swap(LEFT, RIGHT)}, ids, ROLES, **options)
        if which == "amplify":
            directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
            return amplification_sweep(vlm, run, {"d": directions}, [1.0, 2.0], ids, ROLES, **options)
        return knockout_sweep(vlm, run, {"left": LEFT, "one": LEFT[:1]}, ids, ROLES, **options)

    write = parts.files.write_bytes

    def killed(path, content):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        written.append(path.name)
        return write(path, content)

    monkeypatch.setattr(parts.files, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt), parts.kept_in(tmp_path / "parts", "key"):
        sweep()
    assert len(set(written)) == 2
    left[0] = 100
    with parts.kept_in(tmp_path / "parts", "key"):
        resumed = sweep()
    assert len(written) == len(set(written)) > 3  # no batch is written twice
    pd.testing.assert_frame_equal(resumed, sweep(), check_exact=True)


def test_batches_do_not_matter(vlm, run, ids, monkeypatch):
    def sweep():
        return token_sweep(vlm, run, {"s": swap(LEFT, RIGHT)}, ids, ROLES, OTHER, progress=False)

    whole = sweep()
    monkeypatch.setattr(vlm.language, "batch_size", lambda tokens: 1)
    pd.testing.assert_frame_equal(whole, sweep(), atol=1e-5)


def test_pictures_are_shared(vlm, run, ids, monkeypatch):
    """Five pairs about three distinct pictures: three image parts are run, not ten."""
    seen = []
    prefill = vlm.language.prefill
    monkeypatch.setattr(
        vlm.language, "prefill", lambda frame, images, **o: seen.append(len(images)) or prefill(frame, images, **o)
    )
    last_token_sweep(vlm, run, run, ids, ROLES, progress=False)
    assert sum(seen) == 3  # the clean runs come back to the pictures of the counterfactual ones
    seen.clear()
    token_sweep(vlm, run, {"s": swap(LEFT, RIGHT)}, ids, ROLES, OTHER, progress=False)
    assert sum(seen) == 4


# ordering ablation ------------------------------------------------------------------------------------------


def test_ordering_ablation_by_hand():
    places, middle = GRID[2:4].reshape(2, 3, 2).transpose(1, 0, 2).reshape(3, 4), GRID[2:4, 2:4].ravel()
    alone, empty = torch.randn(4, 36, 8), torch.randn(36, 8)
    out = ordering_ablation(alone, empty, np.array([[0, 1, 2], [3, 2, 0]]), places, middle)
    for scene, who in enumerate([[0, 1, 2], [3, 2, 0]]):
        for token in range(36):
            at = [(place, list(t).index(token)) for place, t in enumerate(places) if token in t]
            expected = alone[who[at[0][0]], middle[at[0][1]]] if at else empty[token]
            assert torch.equal(out[scene, token], expected)


# amplification ----------------------------------------------------------------------------------------------


def test_amplify_by_hand():
    h, w = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert torch.allclose(amplify(h, w[:1], 2.0), torch.tensor([[9.0, 4.0]]))  # the part along w, times 1 + alpha
    assert torch.allclose(amplify(h, w, 1.0), 2 * h)
    assert torch.allclose(amplify(h, w, 3.0, "add"), h + torch.tensor([6.0, 3.0]))
    assert torch.equal(amplify(h, w, 0.0), h)
    with pytest.raises(UserError, match="project"):
        amplify(h, w, 1.0, "multiply")


def test_amplification_table(vlm, run, ids):
    two = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(1))
    table = amplification_sweep(vlm, run, {"one": two[0], "other": two[1]}, [0.0, 2.0], ids, ROLES, progress=False)
    assert len(table) == 5 * 2 * (1 + 2 * 2)
    for pair in range(5):
        base = run.images[run.index[pair]]
        clean = cells(table, pair, run="clean")
        assert np.allclose(clean, direct(vlm, run, pair, ids, base), atol=1e-6)
        for name, w in zip(("one", "other"), two, strict=True):
            assert np.allclose(cells(table, pair, edit=name, alpha=0.0), clean, atol=1e-6)
            expected = direct(vlm, run, pair, ids, amplify(base, w, 2.0))
            assert np.allclose(cells(table, pair, edit=name, alpha=2.0), expected, atol=1e-6)


# attention --------------------------------------------------------------------------------------------------


def test_knockout_of_nothing_and_of_everything(vlm, run, ids):
    """Cut off from all image tokens, the last token still hears of them through the question."""
    spans = [range(0, 3)]
    table = knockout_sweep(vlm, run, {"all": np.arange(36), "one": np.array([5])}, ids, ROLES, spans, progress=False)
    assert set(table.columns) == {"pair", "run", "slot", "stop", "edit", "role", "probability", "logit"}
    for pair in range(5):
        clean = cells(table, pair, run="clean")
        gone, one = (np.abs(cells(table, pair, edit=name) - clean).max() for name in ("all", "one"))
        assert gone > 1e-4 and one < gone
