"""The authors' procedure, written plainly: the reference for speed and for the contract "fast equals naive".

For each slot one full counterfactual forward pass and one full patched one, image encoder included, with forward hooks
on plain transformers models. Of the adapter only token ids and pixel values are used; nothing is cached.
`lib.engine.certificate` compares the adapter with it on a loaded checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.engine.derived.observe import named_arguments, plain_forward
from lib.engine.hooks import hooks, on_output
from lib.engine.vlm import VLM


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
    """Next-token logits [batch, vocabulary] of a full forward pass, one slot edited and all slots read with hooks.

    edit: function from and to the residual stream [batch, token, hidden] at `slot`; read(slot, stream): called at every
    slot, with what was written there.
    """
    layers = vlm.language.own_layers

    def visited(number: int, hidden: Tensor) -> Tensor:
        hidden = edit(hidden) if number == slot else hidden
        if read:
            read(number, hidden)
        return hidden

    def before(number: int) -> Callable:
        def hook(module, args, kwargs):
            hidden, given = named_arguments(module, args, kwargs)
            return (visited(number, hidden),), given

        return hook

    last = on_output(layers[-1], lambda hidden: visited(len(layers), hidden))
    with hooks(*((layer, "before", before(number)) for number, layer in enumerate(layers)), last):
        return plain_forward(vlm.model, batch)[:, -1].float()


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
