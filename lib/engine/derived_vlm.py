"""The adapter on a derived record: the same reading and writing of the residual stream for models without a record
written by hand.

What differs from `lib.engine.vlm.VLM`: what each layer is given is recorded from transformers' whole forward pass,
picture included. And where the picture reaches the language model by more roads than slot 0, the other roads travel
with the token: at slot l the vector of a token is the residual stream followed by what later layers will add to it
(Qwen3-VL) or be given for it (Gemma 4). Whoever copies a token's vector copies all roads with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.engine.derive import Derived, output_head
from lib.engine.loading import chat
from lib.engine.observe import (
    CACHE_ARGUMENTS,
    accepts,
    features,
    image_token,
    inputs,
    named_arguments,
    plain_forward,
    tensor_of,
)
from lib.engine.runs import KeyValues, Plan, Prompt, hooks, pick, put
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.stimuli.questions import SYSTEM_TEXT

STATE_LAYERS = ("conv", "linear", "mamba", "recurrent", "delta")  # parts of the names of layers with a state


@dataclass(frozen=True)
class RecordedPlan(Plan):
    """What transformers hands to each layer, of whatever names: tensors with one entry per token are cut by token."""

    def part(self, layer: int, first: int, stop: int) -> dict:
        given = self.layers[layer]
        if first == 0 and stop == self.length:
            return dict(given)
        index = torch.arange(first, stop)
        out = {key: self._at(key, value, index, stop) for key, value in given.items()}
        if out.get("attention_mask") is None and first > 0 and stop - first > 1:
            out["attention_mask"] = (torch.arange(stop)[None, :] <= index[:, None])[None, None].to(self.device)
        return out

    def variants(self, layer: int, count: int) -> dict:
        last = self.length - 1
        index = torch.full((count,), last)
        out = {key: self._at(key, value, index, last) for key, value in self.layers[layer].items()}
        before = out.get("attention_mask")
        own = torch.eye(count, dtype=torch.bool, device=self.device)
        if before is None:
            before = torch.ones(1, 1, count, last, dtype=torch.bool, device=self.device)
        elif before.dtype != torch.bool:  # an additive mask
            own = torch.zeros_like(own, dtype=before.dtype).masked_fill(~own, torch.finfo(before.dtype).min)
        out["attention_mask"] = torch.cat([before, own.expand(*before.shape[:2], count, count)], dim=-1)
        return out

    @property
    def device(self) -> torch.device:
        tensors = (part for given in self.layers for value in given.values() for part in _tensors(value))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def _at(self, key: str, value, index: Tensor, stop: int):
        """An argument at chosen tokens, masks up to token `stop`."""
        if isinstance(value, (tuple, list)):
            return type(value)(self._at(key, part, index, stop) for part in value)
        if not isinstance(value, Tensor):
            return value
        if "mask" in key:
            return value[..., index.to(value.device), :stop] if value.ndim >= 3 else value[:, :stop]
        axes = [i for i in range(value.ndim) if value.shape[i] == self.length]
        axis = next((i for i in axes if i > 0), axes[0] if axes else None)  # the first after the batch
        return value if axis is None else value.index_select(axis, index.to(value.device))


def _tensors(value) -> list[Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


class DerivedVLM(VLM):
    """A model read by `lib.engine.derive.derive`.

    pixels: function from pictures to the image arguments of the model's forward pass; see `VLM` for the rest.
    """

    def __init__(self, model, tokenizer, pixels: Callable, derived: Derived, name="model", template=None):
        self.model, self.config = model.eval(), model.config
        self.tokenizer, self.processor, self.template = tokenizer, pixels, template
        self.family, self.grid, self.wiring = derived.family, derived.grid, derived.wiring
        self.name, self.merge = name, derived.family.merge
        self.base = getattr(model, "model", model)
        self.language = model.get_submodule(self.wiring.decoder)
        self.layers = model.get_submodule(self.wiring.layers)
        self.encoder_layers = model.get_submodule(self.wiring.encoder) if self.wiring.encoder else ()
        self.norm = model.get_submodule(self.wiring.norm) if self.wiring.norm else torch.nn.Identity()
        self.head = output_head(model)
        self.image_id = image_token(self.config)
        self.special: dict = {}
        self._plans, self._texts, self._spelled = {}, {}, {}
        self._constants: Tensor | None = None
        self._stores = [name for name in CACHE_ARGUMENTS[:2] if accepts(self.layers[0].forward, name)]

    @cached_property
    def plain_because(self) -> str | None:
        """Why keys and values cannot be kept and every run is a whole one; None where they can."""
        if self.wiring.prefix:
            return "text sees later text, so no part of a prompt can be reused: every run is a plain one"
        inside = {type(module).__name__.lower() for layer in self.layers for module in layer.modules()}
        if any("indexer" in kind for kind in inside):
            return "attention keeps an index beside keys and values: every run is a plain one"
        kinds = [*self.wiring.kinds, *(type(m).__name__.lower() for layer in self.layers for m in layer.children())]
        if any(word in kind for word in STATE_LAYERS for kind in kinds if kind != "linear"):
            return "a layer has a state instead of keys and values: every run is a plain one"
        return None

    @property
    def fast(self) -> bool:
        return self.plain_because is None

    # pictures -----------------------------------------------------------------------------------------------

    def _pixels(self, images: Sequence[Image.Image]) -> dict:
        side = self.grid.canvas
        if any(image.size != (side, side) for image in images):
            raise UserError(f"{self.name} needs pictures of {side} x {side} pixels: render or resize them to that.")
        return {key: value.to(self.device) for key, value in self.processor(images).items()}

    def _features(self, inputs_: dict) -> Tensor:
        tokens, more = features(self.model, inputs_, 1)
        parts = [x.reshape(-1, self.wiring.count, x.shape[-1]) for x in (tokens, *more[: self.wiring.added])]
        every = torch.cat(parts, dim=-1)
        if self._constants is None:
            others = sorted(set(range(self.wiring.count)) - set(self.wiring.tokens))
            self._constants = every[0, others]
        return every[:, list(self.wiring.tokens)]

    # questions ----------------------------------------------------------------------------------------------

    def text(self, question: str, system: str | None = SYSTEM_TEXT, images: int = 1) -> str:
        token = self.tokenizer.convert_ids_to_tokens(self.image_id)
        placeholder = self.family.placeholder or token
        text = chat(self.tokenizer, self.template, question, system, images, placeholder, self.name)
        picture = self.family.before + token * self.wiring.count + self.family.after
        return picture.join(text.split(placeholder))

    @property
    def _per_picture(self) -> int:
        return self.wiring.count

    @property
    def _raster(self):
        return list(self.wiring.tokens)

    # slot 0 -------------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    def _words(self, ids: Tensor) -> Tensor:
        words = self.model.get_input_embeddings()(ids)
        return self._with_roads(words * self.wiring.text_scale, ids, words)

    def _with_roads(self, hidden: Tensor, ids: Tensor, embedded: Tensor, more: Tensor | None = None) -> Tensor:
        """The residual stream at slot 0 with what later layers add or are given, behind it."""
        if self.wiring.added:
            more = hidden.new_zeros(*hidden.shape[:2], self.wiring.added * self.width) if more is None else more
            return torch.cat([hidden, more], dim=-1)
        if self.wiring.own_input:
            own = self.language.get_per_layer_inputs(ids, None)
            own = self.language.project_per_layer_inputs(embedded, own)
            return torch.cat([hidden, own.flatten(2)], dim=-1)
        return hidden

    def embed(self, prompt: Prompt, images: Tensor, index=None) -> Tensor:
        ids = prompt.ids.to(self.device)
        image = ids == self.image_id
        text = getattr(self.config, "text_config", self.config)
        ids = ids.masked_fill(image, getattr(text, "pad_token_id", None) or 0)
        table = self.model.get_input_embeddings()
        images = images if index is None else pick(images, index)
        d = self.width
        embedded = self._fill(table(ids), image, prompt, images[..., :d], 0)
        hidden = self._fill(table(ids) * self.wiring.text_scale, image, prompt, images[..., :d] * self.wiring.scale, 0)
        more = None
        if self.wiring.added:
            more = hidden.new_zeros(*hidden.shape[:2], self.wiring.added * d)
            more = self._fill(more, image, prompt, images[..., d:], d)
        return self._with_roads(hidden, ids, embedded, more)

    def _fill(self, hidden: Tensor, image: Tensor, prompt: Prompt, images: Tensor, start: int) -> Tensor:
        """Image tokens in their places, and the constant ones between them."""
        width = hidden.shape[-1]
        if self.wiring.count > len(self.wiring.tokens):
            if self._constants is None:
                self.encode([Image.new("RGB", (self.grid.canvas,) * 2)])
            others = sorted(set(range(self.wiring.count)) - set(self.wiring.tokens))
            places = image.nonzero()[:, 1].reshape(len(hidden), -1, self.wiring.count)[:, :, others]
            constants = self._constants[:, start : start + width].to(hidden)
            hidden = put(hidden, places.flatten(1), constants.repeat(places.shape[1], 1)[None])
        images = images.reshape(len(prompt), -1, images.shape[-1])
        return put(hidden, prompt.image.to(hidden.device), images)

    # language model -----------------------------------------------------------------------------------------

    def plain_inputs(self, pictures: Sequence[Image.Image], prompt: Prompt) -> dict:
        """What transformers' own forward pass takes."""
        ids, mask = prompt.ids.to(self.device), prompt.mask.to(self.device)
        return inputs(self.model, ids, mask, self.image_id, self._pixels(pictures))

    @torch.no_grad()
    def plan(self, prompt: Prompt) -> Plan:
        alike = bool(prompt.mask.all()) and bool((prompt.image == prompt.image[0]).all())
        prompt = prompt.rows([0]) if alike else prompt
        key = (prompt.length, tuple(prompt.image[0].tolist())) if alike else None
        if key in self._plans:
            return self._plans[key]
        seen: list[dict] = []

        def record(module, args, kwargs):
            given = named_arguments(module, args, kwargs)[1]
            left_out = (*CACHE_ARGUMENTS, self.wiring.own_input)
            seen.append({k: v for k, v in given.items() if k not in left_out})

        pictures = prompt.image.shape[1] // len(self.wiring.tokens) * len(prompt)
        blank = [Image.new("RGB", (self.grid.canvas,) * 2)] * pictures
        with hooks(*((layer, "before", record) for layer in self.layers)):
            plain_forward(self.model, self.plain_inputs(blank, prompt))
        out = RecordedPlan(tuple(seen), prompt.length)
        if alike:
            self._plans[key] = out
        return out

    def _layer(self, slot: int, hidden: Tensor, store: KeyValues | None, kwargs: dict) -> Tensor:
        d = self.width
        hidden, ahead = hidden[..., :d], hidden[..., d:]
        if self.wiring.own_input:
            each = ahead.shape[-1] // (len(self.layers) - slot)
            kwargs = kwargs | {self.wiring.own_input: ahead[..., :each]}
            ahead = ahead[..., each:]
        if store is not None and self.fast:
            kwargs = kwargs | {name: store for name in self._stores or ["past_key_values"]}
        out = tensor_of(self.layers[slot](hidden, **kwargs))
        if self.wiring.added and ahead.shape[-1]:
            out, ahead = out + ahead[..., :d], ahead[..., d:]
        return torch.cat([out, ahead], dim=-1) if ahead.shape[-1] else out

    @torch.no_grad()
    def logits(self, last: Tensor) -> Tensor:
        out = self.head(self.norm(last)).float() * self.wiring.logit_scale
        return self.wiring.cap * torch.tanh(out / self.wiring.cap) if self.wiring.cap else out

    def last_states(self, prompt: Prompt, images, index, progress: bool = False):
        """As `VLM.last_states`; without keys and values every prompt is run as a whole."""
        if self.fast:
            yield from super().last_states(prompt, images, index, progress)
            return
        index = np.asarray(index)
        for frame in self.frames(prompt):
            for group in frame.groups:
                rows = group.rows.numpy()
                yield rows, self.forward(group.prompt, pick(images, index[rows])).last
