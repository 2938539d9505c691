"""Transformers' own forward pass, watched: what a processor hands over, what every layer is given and returns.

Nothing here knows a model family. It is the reference for what is derived (`lib.engine.derived.derive`) and for the
adapter's certificate (`lib.engine.certificate`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib.engine.hooks import first_output, hooks
from lib.errors import UserError

CACHE_ARGUMENTS = ("past_key_values", "past_key_value", "use_cache", "cache_position")
# Their token types mean something else (prefix and suffix), and are left out when a question is asked
WITHOUT_TYPES = ("paligemma",)


class Refused(UserError):
    """The model cannot be used; the message is the reason, one sentence."""


@dataclass
class Watched:
    """One forward pass of transformers: every call of the layers of interest, in order."""

    logits: Tensor | None = None
    hidden: list[Tensor] = field(default_factory=list)  # input of each layer
    output: list[Tensor] = field(default_factory=list)
    given: list[dict] = field(default_factory=list)  # what each layer got besides


# --- watching a forward pass --------------------------------------------------------------------------------


def named_arguments(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[Tensor, dict]:
    """The residual stream of a call of a layer, and its other arguments by name."""
    names = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    given = dict(zip(names, args, strict=False)) | kwargs
    hidden = given.pop(names[0])
    return hidden, given


@torch.no_grad()
def watch(model, layers: Sequence[torch.nn.Module], batch: dict) -> Watched:
    """A forward pass with the inputs, outputs and further arguments of layers."""
    seen = Watched()

    def before(module, args, kwargs):
        hidden, given = named_arguments(module, args, kwargs)
        seen.hidden.append(hidden)
        seen.given.append(given)

    def after(module, args, output):
        seen.output.append(first_output(output))

    registered = [(layer, when, hook) for layer in layers for when, hook in (("before", before), ("after", after))]
    with hooks(*registered):
        seen.logits = plain_forward(model, batch)
    return seen


@torch.no_grad()
def plain_forward(model, batch: dict) -> Tensor:
    """Transformers' own forward pass: logits [batch, token, vocabulary]."""
    for part in (model, getattr(model, "model", None)):
        if getattr(part, "rope_deltas", None) is not None:  # left behind by an earlier prompt
            part.rope_deltas = None
    more = {"use_cache": False} if accepts(model.forward, "use_cache") else {}
    return model(**batch, **more).logits


def accepts(function, name: str) -> bool:
    return name in inspect.signature(function).parameters


def inputs(model, ids: Tensor, mask: Tensor, image_id: int, pixels: dict) -> dict:
    """What a processor hands to transformers' forward pass: ids and mask [batch, token], pixels by name."""
    image = ids == image_id
    batch = {"input_ids": ids, "attention_mask": mask.long()} | pixels
    for name in ("mm_token_type_ids", "token_type_ids"):
        if accepts(model.forward, name) and model.config.model_type not in WITHOUT_TYPES:
            batch[name] = image.int() if name.startswith("mm") else image.long()
    if not bool(mask.all()) and not positions_are_own(model):  # as generate() does
        first = int(model.config.model_type in WITHOUT_TYPES)  # PaliGemma counts from 1
        batch["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0) + first
    return batch


def positions_are_own(model) -> bool:
    """The model makes positions from the ids and the mask by itself (three rotary positions per token)."""
    parts = (model, getattr(model, "model", None))
    return any(hasattr(part, "get_rope_index") for part in parts) or not accepts(model.forward, "position_ids")


def image_token(config) -> int:
    """The id of the image token, by the configuration."""
    for part in (config, getattr(config, "text_config", None)):
        for key in ("image_token_id", "image_token_index", "image_patch_id"):
            if isinstance(getattr(part, key, None), int):
                return getattr(part, key)
    raise Refused("the configuration names no image token: the picture does not enter as tokens of the text")


# --- features of pictures -----------------------------------------------------------------------------------


def feature_owner(model):
    """The module that has get_image_features."""
    for part in (getattr(model, "model", None), model):
        if hasattr(part, "get_image_features"):
            return part
    raise Refused("transformers has no get_image_features for this model: it does not hand out image tokens")


@torch.no_grad()
def features(model, pixels: dict, pictures: int) -> tuple[Tensor, list[Tensor]]:
    """Image tokens [picture, token, hidden] as the projector gives them, and the further features (same shape) that
    early layers of the language model add."""
    function = feature_owner(model).get_image_features
    known = inspect.signature(function).parameters
    own = {key: value for key, value in pixels.items() if key in known or "args" in known}
    out = function(**own, return_dict=True)
    more = getattr(out, "deepstack_features", None)
    more = [] if more is None else list(more)
    tokens, owner = _stack(out, pictures), feature_owner(model)
    if tokens.shape[-1] != model.get_input_embeddings().weight.shape[1] and hasattr(owner, "multi_modal_projector"):
        tokens = owner.multi_modal_projector(tokens)  # Llama 4 projects in its forward pass
    return tokens, [_stack(part, pictures) for part in more]


def _stack(out, pictures: int) -> Tensor:
    for key in ("pooler_output", "last_hidden_state"):
        if getattr(out, key, None) is not None:
            out = getattr(out, key)
            break
    if not isinstance(out, Tensor):
        flat = [part if isinstance(part, Tensor) else part[0] for part in out]
        out = torch.cat([part.reshape(-1, part.shape[-1]) for part in flat])
    return out.reshape(pictures, -1, out.shape[-1])
