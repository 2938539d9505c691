"""The adapter on a derived record: the same reading and writing of the residual stream for models without a record
written by hand.

What differs from the written families: what each layer is given is recorded from transformers' whole forward pass,
picture included, and the layers are those of `lib.engine.derived.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.engine.derived.derive import Derived, Wiring, output_head
from lib.engine.derived.layers import DerivedLayer, LaterInputs, RecordedPlan
from lib.engine.derived.observe import (
    CACHE_ARGUMENTS,
    feature_owner,
    features,
    image_token,
    inputs,
    named_arguments,
    plain_forward,
)
from lib.engine.encoder import ImageEncoder
from lib.engine.families import Family
from lib.engine.hooks import hooks
from lib.engine.keys_values import StopForward
from lib.engine.language import LanguageModel
from lib.engine.plans import Plan
from lib.engine.planted import marks
from lib.engine.prompts import Prompt, PromptWriter
from lib.engine.tensors import pick, put
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.stimuli.grids import Grid

STATE_LAYERS = ("conv", "linear", "mamba", "recurrent", "delta")  # parts of the names of layers with a state


class DerivedEncoder(ImageEncoder):
    """Image processor, encoder and projector; pixels: function from pictures to arguments of the forward pass."""

    def __init__(self, model, pixels: Callable, family: Family, grid: Grid, wiring: Wiring, name: str):
        self.model, self.config, self.processor, self.family, self.name = model, model.config, pixels, family, name
        self.marks, self.wiring, self.grid, self.merge = marks(model.config), wiring, grid, family.merge
        self.layers = model.get_submodule(wiring.encoder) if wiring.encoder else ()
        self.projector = feature_owner(model).get_submodule(family.projector) if family.projector else None
        self._constants: Tensor | None = None

    @property
    def slots(self) -> range:
        return super().slots if self.closed is None else range(0)

    @property
    def closed(self) -> str | None:
        """Why no slot inside the encoder can be read or written; None where one can."""
        if not self.wiring.encoder:
            return "its image encoder is not a plain list of layers"
        known = self.family.patch_order in ("raster", "class", "blocks", "windows")
        return None if known else "the order of its encoder's patches is not known"

    def encode(self, images, edits=None, capture=(), progress=False, at=slice(None)):
        capture = list(capture)
        if (edits or capture) and self.closed:
            raise UserError(f"{self.name}: {self.closed}, so nothing inside it can be read or patched.")
        return super().encode(images, edits, capture, progress, at)

    def pixels(self, images: Sequence[Image.Image]) -> dict:
        side = self.grid.canvas
        if any(image.size != (side, side) for image in images):
            raise UserError(f"{self.name} needs pictures of {side} x {side} pixels: render or resize them to that.")
        made = self.processor([image.convert("RGB") for image in images])
        return {key: value.to(self.model.device) for key, value in made.items()}

    def features(self, inputs_: dict) -> Tensor:
        """Image tokens in raster order; behind each, what later layers add to it."""
        tokens, more = features(self.model, inputs_, 1)
        parts = [x.reshape(-1, self.wiring.count, x.shape[-1]) for x in (tokens, *more[: self.wiring.added])]
        every = torch.cat(parts, dim=-1)
        if self._constants is None:
            self._constants = every[0, self.others]
        return every[:, list(self.wiring.tokens)]

    @property
    def others(self) -> list[int]:
        """Numbers of the image tokens that are the same for every picture."""
        return sorted(set(range(self.wiring.count)) - set(self.wiring.tokens))

    @property
    def constants(self) -> Tensor:
        """The image tokens that are the same for every picture, [token, width with later inputs]."""
        if self._constants is None:
            self.encode([Image.new("RGB", (self.grid.canvas,) * 2)])
        return self._constants


class DerivedPrompts(PromptWriter):
    """Questions as token ids; a picture is its image tokens, with what the record puts around them."""

    def __init__(self, tokenizer, template, family: Family, grid: Grid, wiring: Wiring, image_id, longest, name):
        super().__init__(tokenizer, template, family, grid, image_id, longest, name)
        self.per_picture, self.raster = wiring.count, list(wiring.tokens)

    def picture(self, token: str) -> str:
        return self.family.before + token * self.per_picture + self.family.after


class DerivedLanguage(LanguageModel):
    """Embeddings, layers, final norm and head, by the paths of a derived record."""

    additive = False

    def __init__(self, model, encoder: DerivedEncoder, image_id: int):
        self.model, self.base, self.family = model, getattr(model, "model", model), encoder.family
        self.encoder, self.wiring = encoder, encoder.wiring
        self.image_id, self.side, self.merge = image_id, encoder.grid.side, encoder.merge
        self.text = model.get_submodule(self.wiring.decoder)
        self.config = getattr(model.config, "text_config", model.config)
        self.own_layers = model.get_submodule(self.wiring.layers)
        self.norm = model.get_submodule(self.wiring.norm) if self.wiring.norm else torch.nn.Identity()
        self.head, self.marks, self._plans = output_head(model), marks(model.config), {}
        self.plain_because = why_plain(self.wiring, self.own_layers)
        self.width = model.get_input_embeddings().weight.shape[1]
        share = getattr(self.text.config, "hidden_size_per_layer_input", 0) if self.wiring.own_input else 0
        self.later = LaterInputs(self.width, self.wiring.added, self.wiring.own_input, share)
        self.wide_because = "the picture enters its later layers, too" if share or self.wiring.added else None
        whole = self.plain_because is not None
        self.layers = torch.nn.ModuleList(
            DerivedLayer(own, i, self.later, whole) for i, own in enumerate(self.own_layers)
        )

    # slot 0 -------------------------------------------------------------------------------------------------

    def words(self, ids: Tensor) -> Tensor:
        words = self.model.get_input_embeddings()(ids)
        return self._with_later_inputs(words * self.wiring.text_scale, ids, words)

    def _with_later_inputs(self, hidden: Tensor, ids: Tensor, embedded: Tensor, more: Tensor | None = None) -> Tensor:
        """The residual stream at slot 0, and behind it what later layers add or are given."""
        if self.later.added:
            more = hidden.new_zeros(*hidden.shape[:2], self.later.added * self.width) if more is None else more
            return torch.cat([hidden, more], dim=-1)
        if self.later.own:
            own = self.text.get_per_layer_inputs(ids, None)
            return torch.cat([hidden, self.text.project_per_layer_inputs(embedded, own).flatten(2)], dim=-1)
        return hidden

    def embed(self, prompt: Prompt, images: Tensor, index=None) -> Tensor:
        ids = prompt.ids.to(self.device)
        image = ids == self.image_id
        ids = ids.masked_fill(image, getattr(self.config, "pad_token_id", None) or 0)
        words = self.model.get_input_embeddings()(ids)
        images = images if index is None else pick(images, index)
        d, scale = self.width, self.wiring.scale
        embedded = self._fill(words, image, prompt, images[..., :d], slice(0, d))
        scaled, first = words * self.wiring.text_scale, slice(0, d)
        hidden = self._fill(scaled, image, prompt, images[..., :d] * scale, first, scale)
        more = None
        if self.later.added:
            more = hidden.new_zeros(*hidden.shape[:2], self.later.added * d)
            more = self._fill(more, image, prompt, images[..., d:], slice(d, None))
        return self._with_later_inputs(hidden, ids, embedded, more)

    def _fill(self, hidden: Tensor, image: Tensor, prompt: Prompt, images: Tensor, part: slice, scale=1.0) -> Tensor:
        """Image tokens in their positions, and between them those that are the same for every picture."""
        others = self.encoder.others
        if others:
            positions = image.nonzero()[:, 1].reshape(len(hidden), -1, self.wiring.count)[:, :, others]
            constants = self.encoder.constants[:, part].to(hidden) * scale
            hidden = put(hidden, positions.flatten(1), constants.repeat(positions.shape[1], 1)[None])
        images = images.reshape(len(prompt), -1, images.shape[-1])
        return put(hidden, prompt.image.to(hidden.device), images)

    # plans and runs -----------------------------------------------------------------------------------------

    def plain_inputs(self, pictures: Sequence[Image.Image], prompt: Prompt) -> dict:
        """What transformers' own forward pass takes."""
        ids, mask = prompt.ids.to(self.device), prompt.mask.to(self.device)
        return inputs(self.model, ids, mask, self.image_id, self.encoder.pixels(pictures))

    def _recorded(self, prompt: Prompt) -> Plan:
        left_out, seen = (*CACHE_ARGUMENTS, self.wiring.own_input), []

        def record(module, args, kwargs):
            given = named_arguments(module, args, kwargs)[1]
            seen.append({k: v for k, v in given.items() if k not in left_out})
            if len(seen) == len(self.own_layers):
                raise StopForward

        pictures = prompt.image.shape[1] // len(self.wiring.tokens) * len(prompt)
        blank = [Image.new("RGB", (self.encoder.grid.canvas,) * 2)] * pictures
        with hooks(*((layer, "before", record) for layer in self.own_layers)):
            try:
                plain_forward(self.model, self.plain_inputs(blank, prompt))
            except StopForward:
                pass
        return RecordedPlan(tuple(seen), prompt.length, whole=self.plain_because is not None)

    def with_positions(self, scheme: str) -> LanguageModel:
        raise UserError("Other positions of image tokens are known for families with a written record only.")

    def _stretch(self, prompt: Prompt) -> tuple[int, int]:
        positions = (prompt.ids[0] == self.image_id).nonzero()[:, 0]
        return int(positions[0]), int(positions[-1]) + 1

    def run(self, plan: Plan, hidden: Tensor, *args, mask: Callable | None = None, **options):
        if mask is not None and self.plain_because:
            raise UserError(f"Attention cannot be cut in {self.family.name}: {self.plain_because}.")
        return super().run(plan, hidden, *args, mask=mask, **options)

    def prefill(self, frame, images, **options):
        if self.wiring.prefix:
            raise UserError(f"{self.plain_because}: questions can be asked, but no sweep can be run")
        return super().prefill(frame, images, **options)

    def last_states(self, prompt: Prompt, images, index, progress: bool = False):
        """As `LanguageModel.last_states`; where nothing can be reused every prompt is run as a whole."""
        if not self.wiring.prefix:
            yield from super().last_states(prompt, images, index, progress)
            return
        index = np.asarray(index)
        for row in range(len(prompt)):
            yield np.array([row]), self.forward(prompt.rows([row]), pick(images, index[[row]])).last

    @torch.no_grad()
    def logits(self, last: Tensor) -> Tensor:
        out = self.head(self.norm(last[..., : self.width])).float() * self.wiring.logit_scale
        return self.wiring.cap * torch.tanh(out / self.wiring.cap) if self.wiring.cap else out


def why_plain(wiring: Wiring, layers: torch.nn.ModuleList) -> str | None:
    """Why keys and values cannot be kept and every run is a whole one; None where they can."""
    if wiring.prefix:
        return "text sees later text, so no part of a prompt can be reused"
    inside = {type(module).__name__.lower() for layer in layers for module in layer.modules()}
    if any("indexer" in kind for kind in inside):
        return "its attention keeps an index beside keys and values"
    kinds = [*wiring.kinds, *(type(m).__name__.lower() for layer in layers for m in layer.children())]
    if any(word in kind for word in STATE_LAYERS for kind in kinds if kind != "linear"):
        return "a layer has a state instead of keys and values"
    return None


class DerivedVLM(VLM):
    """A model read by `lib.engine.derived.derive.derive`; see `VLM`.

    pixels: function from pictures to the image arguments of the model's forward pass.
    """

    def __init__(self, model, tokenizer, pixels: Callable, derived: Derived, name="model", template=None):
        self.model, self.config, self.family, self.name = model.eval(), model.config, derived.family, name
        self.tokenizer, self.processor, self.derived = tokenizer, pixels, derived
        image_id, wiring, self.grid = image_token(self.config), derived.wiring, derived.grid
        self.encoder = DerivedEncoder(model, pixels, self.family, self.grid, wiring, name)
        self.encode, self.projector = self.encoder.encode, self.encoder.projector
        self.language = DerivedLanguage(model, self.encoder, image_id)
        self.layers, self.logits = self.language.layers, self.language.logits
        longest = getattr(self.language.config, "max_position_embeddings", None)
        self.prompts = DerivedPrompts(tokenizer, template, self.family, self.grid, wiring, image_id, longest, name)
        self.tokens, self.candidates = self.prompts.tokens, self.prompts.candidates
