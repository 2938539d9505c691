"""Which contracts hold on a loaded model, with numbers: `certificate(vlm)`.

The reference is transformers' own forward pass on the same inputs, with plain hooks where something is edited; nothing
of the adapter is used for it but token ids and pixels.

1 logits equal transformers'; 2 slot 0 holds the projector's output; 3 patching a run with its own activations changes
nothing, and the whole picture of the other run gives the other run; 4 the fast runs (keys and values kept, several
slots side by side) equal the plain ones; 5 batches, padding and order of rows change nothing; 6 hooks are gone after
an exception.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from PIL import Image
from torch import Tensor

from lib import places
from lib.engine import oracle
from lib.engine.checkpoints import folder_digest, hub_digest
from lib.engine.hooks import hooks, on_input
from lib.engine.planted import BUILT_IN
from lib.engine.tensors import put, take
from lib.errors import UserError
from lib.files import write_json

CONTRACTS = {
    1: "logits equal transformers'",
    2: "slot 0 holds the projector's output",
    3: "own activations change nothing, the other picture's give the other run",
    4: "fast runs equal plain ones",
    5: "batches and padding change nothing",
    6: "hooks are gone after an exception",
}
QUESTIONS = (
    "the color of the square to the left of the red square is",
    "the color of the square above the blue square is",
)


@torch.no_grad()
def certificate(vlm) -> pd.DataFrame:
    """One row per contract: contract, holds, difference (largest, relative to the largest logit), reason.

    Questions are two of different length, pictures noise of the canvas size, the hardest case for exactness.
    UserError for planted models, parts of which transformers does not run.
    """
    built_in = [mark for mark in BUILT_IN if mark in vlm.language.marks]
    if built_in:
        raise UserError(f"{vlm.name} has {', '.join(built_in)} of its own, which transformers does not run.")
    rng = np.random.default_rng(0)
    side = vlm.grid.canvas
    pictures = [Image.fromarray(x) for x in rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8)]
    case, rows = None, []
    for number, check in enumerate((_logits, _slot_zero, _patching, _fast, _batches, _hooks), start=1):
        try:
            case = case or _Case(vlm, pictures, list(QUESTIONS))
            difference, reason = check(case)
            holds = difference <= _tolerance(vlm)
        except Exception as error:  # a contract that cannot even be tried does not hold, and says why
            difference, holds = float("nan"), False
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            reason = first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
        rows.append((f"{number} {CONTRACTS[number]}", bool(holds), difference, reason))
    return pd.DataFrame(rows, columns=["contract", "holds", "difference", "reason"])


def require(vlm, source: str, revision: str | None = None) -> pd.DataFrame:
    """The certificate of a loaded checkpoint, made when it is first used and kept in runs/by-hand/<model>/.

    source: the folder or hub id it was read from, revision: of the hub. It is made anew when the checkpoint, its
    precision, its attention or the version of transformers is another. A UserError names what does not hold, except
    that sweeps need contract 4 and plain questions do not: a model whose runs cannot be continued may still be asked.
    """
    path = places.RUNS / places.BY_HAND / places.model_name(vlm.name) / "certificate.json"
    made_of = {
        "checkpoint": folder_digest(Path(source)) if Path(source).is_dir() else hub_digest(source, revision),
        "transformers": transformers.__version__,
        "precision": str(vlm.dtype),
        "attention": vlm.model.config._attn_implementation,
        "device": vlm.device.type,
        "canvas": vlm.grid.canvas,
    }
    table = _kept(path, made_of)
    if table is None:
        table = certificate(vlm)
        rows = table.astype({"difference": object}).where(table["difference"].notna(), None).to_dict("records")
        write_json({"made_of": made_of, "contracts": rows}, path)
    broken = table[~table["holds"] & ~table["contract"].str.startswith("4")]
    if len(broken):
        what = "; ".join(f"{row.contract} ({row.reason or row.difference})" for row in broken.itertuples())
        raise UserError(f"{vlm.name} cannot be used, contracts do not hold on this checkpoint: {what}.")
    return table


def _kept(path: Path, made_of: dict) -> pd.DataFrame | None:
    """The certificate kept at a path if it is of the same checkpoint and software."""
    try:
        kept = json.loads(path.read_bytes())
        return pd.DataFrame(kept["contracts"]) if kept["made_of"] == made_of else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tolerance(vlm) -> float:
    return 2e-5 if vlm.dtype == torch.float32 else vlm.tolerance


class _Case:
    """Two questions of different length about two pictures, in the adapter and in transformers.

    slots: at most seven, the first and the last among them. further: the slots before this one have more routes of
    the picture than the residual stream. scale: slot 0 is this times the projector's output.
    """

    def __init__(self, vlm, pictures, questions):
        self.vlm, self.pictures, self.questions = vlm, pictures, questions
        self.prompt = vlm.tokens(questions[:1])
        self.tokens = vlm.encode(pictures)
        last = len(vlm.layers)
        self.slots = sorted({round(slot) for slot in np.linspace(0, last, min(last + 1, 7))})
        wiring = getattr(vlm.language, "wiring", None)
        self.scale = wiring.scale if wiring else 1.0
        self.further = (last if wiring.own_input else wiring.added) if wiring else 0

    def batch(self, picture: int) -> dict:
        return oracle.inputs(self.vlm, [self.pictures[picture]], self.questions[:1])

    def embed(self, picture: int) -> Tensor:
        return self.vlm.language.embed(self.prompt, self.tokens[[picture]])

    def relative(self, ours: Tensor, plain: Tensor) -> float:
        return float((ours - plain).abs().max() / plain.abs().max())

    def logits(self, output) -> Tensor:
        return self.vlm.logits(output.last)


def plain(vlm, batch: dict, slot: int | None = None, edit: Callable | None = None) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits of the last token and the residual stream at every slot, of transformers' forward pass, edited at one."""
    seen: dict[int, Tensor] = {}
    return oracle.forward(vlm, batch, slot, edit, read=seen.__setitem__), seen


def _logits(case: _Case) -> tuple[float, str]:
    vlm = case.vlm
    differences = []
    for picture in (0, 1):
        ours = case.logits(vlm.forward(case.prompt, hidden=case.embed(picture)))
        differences.append(case.relative(ours, plain(vlm, case.batch(picture))[0]))
    return max(differences), ""


def _slot_zero(case: _Case) -> tuple[float, str]:
    vlm = case.vlm
    seen = plain(vlm, case.batch(0))[1][0]
    width, scale = seen.shape[-1], case.scale
    hidden, image = case.embed(0)[..., :width], take(seen, case.prompt.image)
    difference = max(case.relative(hidden, seen), case.relative(case.tokens[[0], :, :width] * scale, image))
    return difference, "" if scale == 1 else f"times {scale:.6g}"


def _patching(case: _Case) -> tuple[float, str]:
    """Own activations at several slots; all image tokens at slot 0; what a patch of slot 0 alone would miss."""
    vlm, slots = case.vlm, case.slots
    runs = [vlm.forward(case.prompt, hidden=case.embed(p), capture=slots) for p in (0, 1)]
    clean, other = (plain(vlm, case.batch(p))[0] for p in (0, 1))
    if case.relative(clean, other) < 1e-4:
        return float("nan"), "the two pictures give the same logits: nothing can be tested"
    differences = []
    for slot in slots:
        for run, wanted in ((runs[0], clean), (runs[1], other)):
            out = vlm.forward(case.prompt, hidden=run.hidden[slot], from_slot=slot)
            differences.append(case.relative(case.logits(out), wanted))
    swapped = put(case.embed(0), case.prompt.image, take(case.embed(1), case.prompt.image))
    differences.append(case.relative(case.logits(vlm.forward(case.prompt, hidden=swapped)), other))
    reason = ""
    seen = plain(vlm, case.batch(1))[1][0]
    naive = plain(vlm, case.batch(0), 0, lambda h: put(h, case.prompt.image, take(seen, case.prompt.image)))[0]
    if case.relative(naive, other) > _tolerance(vlm):
        reason = (
            f"a patch of slot 0 alone misses {case.relative(naive, other):.2g} of the other run: the picture has more "
            "than one route into the language model, and the adapter patches them together"
        )
    return max(differences), reason


def _fast(case: _Case) -> tuple[float, str]:
    vlm, language = case.vlm, case.vlm.language
    frame = language.frames(case.prompt)[0]
    group, plan, length = frame.groups[0], language.plan(case.prompt), case.prompt.length
    past = language.prefill(frame, case.tokens[:1]).keys
    differences = [case.relative(case.logits(language.ask(frame, group, [0], past)), plain(vlm, case.batch(0))[0])]
    other = vlm.forward(case.prompt, hidden=case.embed(1), capture=case.slots)
    clean = vlm.forward(case.prompt, hidden=case.embed(0), keep=True, capture=case.slots)
    # the last token of the other run, entering at every slot side by side
    states = {slot: other.hidden[slot][:, -1:] for slot in case.slots}
    swept = language.run_last(plan, states, clean.keys.first(length - 1))
    seen = plain(vlm, case.batch(1))[1]
    for number, slot in enumerate(case.slots):
        naive = plain(vlm, case.batch(0), slot, lambda h, s=slot: torch.cat([h[:, :-1], seen[s][:, -1:]], dim=1))[0]
        differences.append(case.relative(vlm.logits(swept[:, number]), naive))
    # half of the image tokens of the other run, running on from every slot against the text before
    half = case.prompt.image[:, : case.prompt.image.shape[1] // 2]
    first = frame.first
    for slot in case.slots[:-1]:
        hidden = put(clean.hidden[slot], half, take(other.hidden[slot], half))
        out = language.run(plan, hidden[:, first:], slot, first=first, past=clean.keys.first(first))
        if slot < case.further:  # hooks on transformers' layers reach one route only: the adapter's whole run
            naive = case.logits(vlm.forward(case.prompt, hidden=hidden, from_slot=slot))
        else:
            naive = plain(vlm, case.batch(0), slot, lambda h, s=slot: put(h, half, take(seen[s], half)))[0]
        differences.append(case.relative(case.logits(out), naive))
    because = getattr(language, "plain_because", None)
    return max(differences), f"{because}: every run is a whole one" if because else ""


def _batches(case: _Case) -> tuple[float, str]:
    vlm = case.vlm
    prompt = vlm.tokens(case.questions)
    tokens = vlm.encode([case.pictures[1]])
    differences = [case.relative(tokens[0], case.tokens[1])]
    padded = vlm.forward(prompt, case.tokens)
    batch = oracle.inputs(vlm, case.pictures, case.questions)
    differences.append(case.relative(case.logits(padded), plain(vlm, batch)[0]))
    for row, question in enumerate(case.questions):
        single = vlm.forward(vlm.tokens([question]), case.tokens[[row]])
        differences.append(case.relative(case.logits(padded)[[row]], case.logits(single)))
    return max(differences), ""


def _hooks(case: _Case) -> tuple[float, str]:
    vlm = case.vlm
    kinds = ("_forward_hooks", "_forward_pre_hooks")

    def all_hooks():
        modules = (*vlm.model.modules(), *vlm.layers.modules())  # a derived model's layers are the adapter's own
        return [list(getattr(module, kind)) for module in modules for kind in kinds]

    class Stopped(Exception):
        """Of this trial, and of nothing that goes wrong by itself."""

    def fail(*_):
        raise Stopped

    before, raised = all_hooks(), 0

    def hooked(layer):
        vlm.language._plans.clear()  # the next run records transformers' arguments by hooks of its own
        with hooks(on_input(layer, fail)):
            vlm.forward(case.prompt, case.tokens[:1])

    trials = [lambda s=slot: hooked(vlm.layers[s]) for slot in case.slots[:-1]]
    if vlm.encoder.slots:
        trials.append(lambda: vlm.encode(case.pictures[:1], edits={0: fail}))
    trials.append(lambda: plain(vlm, case.batch(0), 1, fail))
    for trial in trials:
        try:
            trial()
        except Stopped:
            raised += 1
    same = all_hooks() == before and raised == len(trials)
    return 0.0 if same else float("inf"), "" if same else "a hook was left behind"
