"""The authors' procedure, written plainly: the reference for speed and for the contract "fast equals naive".

For each slot one full counterfactual forward pass and one full patched one, image encoder included, with plain forward
hooks on plain transformers models. Of the adapter only token ids and pixel values are used; nothing is cached. `check`
compares the adapter with it on a loaded checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.engine.planted import BUILT_IN
from lib.engine.vlm import VLM
from lib.errors import UserError


def inputs(vlm: VLM, pictures: Sequence, questions: Sequence[str], **options) -> dict:
    """What the family's own processor would hand to the model for one picture per question."""
    prompt = vlm.tokens(questions, **options)
    if hasattr(vlm.language, "plain_inputs"):  # a derived record
        return vlm.language.plain_inputs(pictures, prompt)
    out = dict(input_ids=prompt.ids, attention_mask=prompt.mask.long(), **vlm.encoder.pixels(pictures))
    types = (prompt.ids == vlm.language.image_id).long()
    kind = vlm.family.architecture
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        out["mm_token_type_ids"] = types.int()
    if kind == "gemma3":
        out["token_type_ids"] = types
    if kind in ("smolvlm", "idefics3"):  # [batch, pictures of the prompt, ...]
        for key in ("pixel_values", "pixel_attention_mask"):
            out[key] = out[key].reshape(len(questions), -1, *out[key].shape[2:])
    if not prompt.mask.all() and "mm_token_type_ids" not in out:  # as generate() does
        out["position_ids"] = (prompt.mask.long().cumsum(-1) - 1).clamp(min=0)
    return {key: value.to(vlm.device) for key, value in out.items()}


@torch.no_grad()
def forward(
    vlm: VLM,
    batch: dict,
    slot: int | None = None,
    edit: Callable[[Tensor], Tensor] | None = None,
    read: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Next-token logits [batch, vocabulary] of a full forward pass, one slot edited and all slots read with
    hooks."""
    layers, handles = vlm.layers, []

    def before(index):
        def hook(module, args):
            hidden = args[0]
            if index == slot:
                hidden = edit(hidden)
            if read:
                read(index, hidden)
            return (hidden, *args[1:])

        return hook

    def after(module, args, output):
        if slot == len(layers):
            output = edit(output)
        if read:
            read(len(layers), output)
        return output

    try:
        for index, layer in enumerate(layers):
            handles.append(layer.register_forward_pre_hook(before(index)))
        handles.append(layers[-1].register_forward_hook(after))
        vlm.language.base.rope_deltas = None
        return vlm.model(**batch, use_cache=False).logits[:, -1].float()
    finally:
        for handle in handles:
            handle.remove()


def states(vlm: VLM, batch: dict) -> dict[int, Tensor]:
    """The residual stream at every slot: {slot: [batch, token, hidden]}."""
    seen: dict[int, Tensor] = {}
    forward(vlm, batch, read=lambda slot, hidden: seen.__setitem__(slot, hidden.clone()))
    return seen


def probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """[batch, role]: summed over spellings."""
    spread = torch.softmax(logits, -1)
    return (spread.gather(1, ids.clamp(min=0).flatten(1)).reshape(ids.shape) * (ids >= 0)).sum(-1)


def state(vlm: VLM, batch: dict, wanted: int) -> Tensor:
    """The residual stream at one slot, from a full pass: [batch, token, hidden]."""
    seen: list[Tensor] = []
    forward(vlm, batch, read=lambda slot, hidden: seen.append(hidden.clone()) if slot == wanted else None)
    return seen[0]


def last_token(vlm: VLM, clean: dict, counterfactual: dict, ids: Tensor, slots: Sequence[int] | None = None) -> Tensor:
    """[slot, batch, role] probabilities when the last token's vector at one slot is the counterfactual's."""
    out = []
    for slot in vlm.slots if slots is None else slots:
        source = state(vlm, counterfactual, slot)[:, -1]

        def edit(hidden, source=source):
            return torch.cat([hidden[:, :-1], source[:, None]], dim=1)

        out.append(probabilities(forward(vlm, clean, slot, edit), ids))
    return torch.stack(out)


def interchange(
    vlm: VLM,
    clean: dict,
    counterfactual: dict,
    targets: Tensor,
    sources: Tensor,
    ids: Tensor,
    slots: Sequence[int] | None = None,
) -> Tensor:
    """[slot, batch, role] when tokens at `targets` [batch, token] take the counterfactual's at `sources`."""
    rows = torch.arange(len(targets))[:, None]
    out = []
    for slot in vlm.slots if slots is None else slots:
        source = state(vlm, counterfactual, slot)[rows, sources]

        def edit(hidden, source=source):
            hidden = hidden.clone()
            hidden[rows, targets] = source
            return hidden

        out.append(probabilities(forward(vlm, clean, slot, edit), ids))
    return torch.stack(out)


def amplification(
    vlm: VLM, clean: dict, places: Tensor, directions: Tensor, alphas: Sequence[float], ids: Tensor
) -> Tensor:
    """[alpha, batch, role] when directions are amplified at slot 0, one full pass per alpha."""
    rows = torch.arange(len(places))[:, None]
    out = []
    for alpha in alphas:

        def edit(hidden, alpha=alpha):
            hidden = hidden.clone()
            tokens = hidden[rows, places]
            added = torch.zeros_like(tokens)
            for w in directions:
                added = added + alpha * ((tokens @ w) / (w @ w))[..., None] * w
            hidden[rows, places] = tokens + added
            return hidden

        out.append(probabilities(forward(vlm, clean, 0, edit), ids))
    return torch.stack(out)


# --- a checkpoint against the procedure -------------------------------------------------------------------------


def check(vlm: VLM, questions: Sequence[str] = ("what is this ?", "what is that , to the left ?")) -> dict[str, float]:
    """Largest differences of logits between the adapter and plain transformers, for one prompt on these very weights,
    as shares of the largest logit.

    Keys: logits; no-op (each slot's own activations written back); full patch (slot 0 of the counterfactual run gives
    its logits); last token (the fast route at the first, middle and last slots); hooks left (their number). A UserError
    for planted models, parts of which plain transformers does not run.
    """
    built_in = [mark for mark in BUILT_IN if mark in vlm.language.marks]
    if built_in:
        raise UserError(f"{vlm.name} has {', '.join(built_in)} of its own, which transformers does not run.")
    side = vlm.grid.canvas
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in noise]
    plain = [inputs(vlm, [picture], [question]) for picture, question in zip(pictures, questions, strict=True)]
    same = inputs(vlm, pictures[1:], questions[:1])  # the other picture, the same question: as many tokens
    base, target = forward(vlm, plain[0]), forward(vlm, same)
    before = _count_hooks(vlm)  # only now: with its first pass transformers installs hooks of its own
    language, prompt, tokens = vlm.language, vlm.tokens(questions[:1]), vlm.encode(pictures)
    clean = vlm.forward(prompt, tokens[:1], capture=vlm.slots, keep=True)
    other = vlm.forward(prompt, tokens[1:], capture=[0])
    out = {"logits": _largest(vlm.logits(clean.last), base)}
    start = clean.hidden[0]
    own = [vlm.forward(prompt, hidden=start, edits={s: lambda h, s=s: clean.hidden[s]}).last for s in vlm.slots]
    out["no-op"] = max(_largest(vlm.logits(last), vlm.logits(clean.last)) for last in own)
    whole = vlm.forward(prompt, hidden=start, edits={0: lambda h: other.hidden[0]}).last
    out["full patch"] = _largest(vlm.logits(whole), target)
    slots = sorted({0, len(vlm.layers) // 2, len(vlm.layers)})
    sources = states(vlm, plain[1])
    entering = {slot: sources[slot][:, -1:] for slot in slots}
    ends = language.run_last(language.plan(prompt), entering, clean.keys.first(prompt.length - 1))
    differences = []
    for number, slot in enumerate(slots):
        edit = lambda h, slot=slot: torch.cat([h[:, :-1], entering[slot]], dim=1)  # noqa: E731
        differences.append(_largest(vlm.logits(ends[:, number]), forward(vlm, plain[0], slot, edit)))
    return out | {"last token": max(differences), "hooks left": float(_count_hooks(vlm) - before)}


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _count_hooks(vlm: VLM) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in vlm.model.modules())
