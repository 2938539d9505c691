"""The forward pass in training: pictures to image tokens, and many short texts that see the picture and themselves.

A training sequence is context + blocks: the context is what stands before every question (system text, picture with
whatever tokens the architecture puts around it), each block one text. A block sees the context and its own past, and
its positions start where the context ends, so that it gets the same logits as in a prompt of its own
(tests/test_architectures.py compares them with transformers' forward pass).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from lib.engine.hooks import hooks
from lib.engine.planted import no_places_under_objects, sees_rows
from lib.engine.positions import placed
from lib.reference import architectures
from lib.reference.architectures import BOS, PAD
from lib.reference.language import GRID, IMAGE_TOKEN_ID, build_tokenizer
from lib.stimuli import questions

PREFIX = f"<s> {questions.SYSTEM_TEXT}"
SIDE = GRID.side
CPU = torch.device("cpu")

Pixels = Float[Tensor, "batch 3 canvas canvas"]  # -1..1
ImageTokens = Float[Tensor, "batch image_token width"]  # in raster order: row * SIDE + column
Texts = Int[Tensor, "batch text"]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; on the way to a GPU nobody waits for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


# --- pictures --------------------------------------------------------------------------------------------------------


def qwen_patches(pixels: Pixels, patch: int, merge: int) -> Float[Tensor, "batch_patch inputs"]:
    """Patches as Qwen2-VL's image processor lays them out: token by token, the patches of a token one after another,
    every patch twice (a picture is two equal frames)."""
    batch, channels, canvas, _ = pixels.shape
    side = canvas // patch // merge
    cut = pixels.reshape(batch, channels, side, merge, patch, side, merge, patch)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, channels, 1, patch, patch)
    return cut.expand(-1, -1, 2, -1, -1).reshape(len(cut), -1)


def _pixtral_features(tower, pixels: Pixels) -> Float[Tensor, "batch patch width"]:
    """Pixtral's encoder picture by picture: its own forward packs a batch into one sequence, whose mask grows with the
    square of the batch."""
    patches = tower.patch_conv(pixels)
    side = patches.shape[-1]
    places = torch.cartesian_prod(*[torch.arange(side, device=pixels.device)] * 2)
    hidden = tower.ln_pre(patches.flatten(2).mT)
    cos_sin = tower.patch_positional_embedding(hidden, places)
    return tower.transformer(hidden, attention_mask=None, position_embeddings=cos_sin).last_hidden_state


@lru_cache(maxsize=4)
def _qwen_places(side: int, merge: int, device: torch.device) -> Int[Tensor, "patch axis"]:
    return get_vision_position_ids(torch.tensor([[1, side, side]]), merge).to(device)


def _qwen_features(visual, pixels: Pixels, patch: int, merge: int) -> Float[Tensor, "batch patch width"]:
    """Qwen2-VL's encoder picture by picture: its own forward packs a batch into one sequence and cuts it up again in
    every layer, on the processor."""
    batch, side = len(pixels), pixels.shape[-1] // patch
    hidden = visual.patch_embed(qwen_patches(pixels, patch, merge)).reshape(batch, side**2, -1)
    cos_sin = visual.rotary_pos_emb(hidden[0], _qwen_places(side, merge, pixels.device))
    for block in visual.blocks:
        heads = block.attn.qkv(block.norm1(hidden)).reshape(batch, side**2, 3, block.attn.num_heads, -1)
        query, key, value = heads.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, *cos_sin)
        seen = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        hidden = hidden + block.attn.proj(seen.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return hidden


def encoder_features(model, pixels: Pixels) -> Float[Tensor, "batch patch width"]:
    """What the projector gets. Order of patches: raster, or token by token (qwen_style)."""
    record = architectures.of(model)
    if record.name == "qwen_style":
        return _qwen_features(model.model.visual, pixels, record.patch, record.merge)
    tower = model.model.vision_tower
    if record.name == "pixtral_style":
        return _pixtral_features(tower, pixels)
    if record.name == "gemma_style":
        return tower(pixels).last_hidden_state
    with hooks(*no_places_under_objects(architectures.marks(model), model.model, pixels)):
        return tower(pixels, output_hidden_states=True).hidden_states[-1]


def project(model, features: Float[Tensor, "batch patch width"]) -> ImageTokens:
    """What the backbone gets of the encoder's features."""
    projector = architectures.parts(model)["projector"]
    out = projector(features.flatten(0, 1) if architectures.of(model).name == "qwen_style" else features)
    return out.reshape(len(features), SIDE**2, -1)


def image_embeddings(model, pixels: Pixels) -> ImageTokens:
    """[batch, 3, canvas, canvas] -> [batch, N*N, width]: what the backbone gets."""
    return project(model, encoder_features(model, pixels))


# --- scrambling that plants a mechanism ------------------------------------------------------------------------------


def training_embeddings(model, pixels: Pixels, rng: np.random.Generator) -> ImageTokens:
    """`image_embeddings` as a planted model meets them in training (for all others the same).

    strip_code: row blocks and column blocks of tokens, objects and all, in random order, so that where a token stands
    tells the backbone nothing. redundant: of every third picture the encoder's positions are scrambled, of every third
    the backbone's, so that either must suffice.
    """
    planted = architectures.marks(model).get("planted")
    if planted == "strip_code":
        return shuffled_blocks(image_embeddings(model, pixels), rng)
    if planted == "redundant":
        scrambled = rng.integers(3, size=len(pixels))  # 0: nothing, 1: the encoder's positions, 2: the backbone's
        images = scrambled_encoder(model, pixels, scrambled == 1, rng)
        return scrambled_tokens(images, scrambled == 2, rng)
    return image_embeddings(model, pixels)


def shuffled_blocks(images: ImageTokens, rng: np.random.Generator, blocks: int = 3) -> ImageTokens:
    """The three row blocks and the three column blocks of image tokens in an order drawn for every picture."""
    wide = SIDE // blocks
    rows, columns = (np.stack([rng.permutation(blocks) for _ in images]) for _ in range(2))
    rows, columns = ((b[:, :, None] * wide + np.arange(wide)).reshape(len(images), SIDE) for b in (rows, columns))
    order = sent(torch.from_numpy(rows[:, :, None] * SIDE + columns[:, None, :]).flatten(1), images.device)
    return images.gather(1, order[..., None].expand(images.shape))


def _permutations(count: int, which: np.ndarray, rng: np.random.Generator) -> Int[Tensor, "batch token"]:
    """A random permutation for the pictures in `which` (True or False each), the identity for the others."""
    return torch.from_numpy(np.stack([rng.permutation(count) if yes else np.arange(count) for yes in which]))


def scrambled_encoder(model, pixels: Pixels, which: np.ndarray, rng: np.random.Generator) -> ImageTokens:
    """Image tokens with the encoder's position embeddings in random order in some pictures."""
    order = sent(_permutations(SIDE**2, which, rng), pixels.device)

    def permute(module, args, output):
        return module.weight[order]

    with hooks((architectures.position_embedding(model), "after", permute)):
        return image_embeddings(model, pixels)


def scrambled_tokens(images: ImageTokens, which: np.ndarray, rng: np.random.Generator) -> ImageTokens:
    """Image tokens in random order in some pictures: what the backbone sees of where they stand is scrambled."""
    order = sent(_permutations(SIDE**2, which, rng), images.device)
    return images.gather(1, order[..., None].expand(images.shape))


# --- context ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Context:
    """What stands before every block. positions: one row, or three with M-RoPE."""

    positions: Int[Tensor, "axis token"]
    seen: Bool[Tensor, "query key"]
    following: int  # position of the first text token

    @property
    def length(self) -> int:
        return self.seen.shape[0]

    def on(self, device: torch.device) -> Context:
        return Context(self.positions.to(device), self.seen.to(device), self.following)


@lru_cache(maxsize=1)
def _prefix() -> tuple[int, ...]:
    return tuple(build_tokenizer()(PREFIX).input_ids)


@lru_cache(maxsize=8)
def context_ids(name: str, device: torch.device = CPU) -> Int[Tensor, " token"]:
    """Token ids of system text and picture as the architecture writes them."""
    record = architectures.ARCHITECTURES[name]
    row = [IMAGE_TOKEN_ID] * SIDE
    between = [record.token(record.row_break)] if record.row_break else []
    last = [record.token(record.last_break)] if record.last_break else []
    picture = (row + between) * (SIDE - 1) + row + last
    before, after = ([record.token(text) for text in texts] for texts in (record.before, record.after))
    return torch.tensor([*_prefix(), *before, *picture, *after], device=device)


_contexts: WeakKeyDictionary = WeakKeyDictionary()  # of each model on each device: made once


def context_of(model, device: torch.device) -> Context:
    """`picture_context` on a device."""
    known = _contexts.setdefault(model, {})
    if device not in known:
        known[device] = picture_context(model).on(device)
    return known[device]


def picture_context(model) -> Context:
    """Positions and masks of system text and picture."""
    record, marks = architectures.of(model), architectures.marks(model)
    ids = context_ids(record.name)
    image, length = ids == IMAGE_TOKEN_ID, len(ids)
    positions, following = torch.arange(length)[None], length
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if record.name == "qwen_style":
        positions, following = _mrope(model, ids)
    elif record.name == "gemma_style":
        seen = seen | (image[:, None] & image[None, :])
    if "image_positions" in marks:
        positions = placed(torch.ones_like(ids)[None], image.nonzero().T, SIDE, marks["image_positions"])
        following = int(positions[0, -1]) + 1
    if marks.get("image_attention") == "self":
        seen = seen & ~(image[:, None] & image[None, :]) | torch.eye(length, dtype=torch.bool)
    elif marks.get("image_attention") == "rows":
        seen = sees_rows(seen[None], image.nonzero().T, SIDE)[0]
    return Context(positions, seen, following)


def _mrope(model, ids: Int[Tensor, " token"]) -> tuple[Int[Tensor, "3 token"], int]:
    """Positions of the context by transformers' own rule, and that of the text token after it."""
    side = SIDE * architectures.of(model).merge
    row = torch.cat([ids, torch.tensor([BOS])])[None]
    positions, _ = model.model.get_rope_index(
        row, mm_token_type_ids=(row == IMAGE_TOKEN_ID).int(), image_grid_thw=torch.tensor([[1, side, side]])
    )
    return positions[:, 0, :-1], int(positions[0, 0, -1])


def text_context(length: int, device: torch.device = CPU) -> Context:
    """Positions and masks of a context that is text."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return Context(torch.arange(length, device=device)[None], seen, length)


# --- context + blocks ------------------------------------------------------------------------------------------------


def within(blocks: Texts) -> Texts:
    """The place of every text token in its block, 0 for padding (block -1)."""
    batch, text = blocks.shape
    start = torch.ones_like(blocks[:, :1], dtype=torch.bool)
    first = torch.cat([start, blocks[:, 1:] != blocks[:, :-1]], 1)
    index = torch.arange(text, device=blocks.device).expand(batch, text)
    return (index - torch.where(first, index, 0).cummax(1).values).where(blocks >= 0, 0)


def layout(context: Context, blocks: Texts, window: int | None = None) -> tuple[Tensor, Bool[Tensor, "batch q k"]]:
    """Positions [axis, batch, token] and who sees whom, for context + blocks.

    blocks: [batch, text], the number of the block each text token belongs to, -1 for padding. window: how many tokens
    back a sliding layer sees, as if the block came right after the context.
    """
    batch, text = blocks.shape
    length, place, index = context.length, within(blocks), torch.arange(text, device=blocks.device)
    axes = len(context.positions)
    positions = torch.cat(
        [
            context.positions[:, None].expand(axes, batch, length),
            (place + context.following).expand(axes, batch, text),
        ],
        2,
    )
    own = (blocks[:, :, None] == blocks[:, None, :]) & (index[:, None] >= index[None, :])
    seen = torch.zeros(batch, length + text, length + text, dtype=torch.bool, device=blocks.device)
    seen[:, :length, :length] = context.seen
    seen[:, length:, :length] = True
    seen[:, length:, length:] = own
    if window is not None:
        order = torch.cat([torch.arange(length, device=blocks.device).expand(batch, length), place + length], 1)
        seen &= order[:, :, None] - order[:, None, :] < window
    return positions, seen


def additive(seen: Bool[Tensor, "batch q k"]) -> Float[Tensor, "batch 1 q k"]:
    return torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]


def run_backbone(
    model, context: Context, hidden: Tensor, ids: Texts, blocks: Texts, hide: Callable | None = None
) -> Float[Tensor, "batch text width"]:
    """Hidden states of text tokens after context embeddings [batch, context, width]; hide: changes masks in place."""
    language = model.model.language_model
    hidden = torch.cat([hidden, language.embed_tokens(ids)], 1)
    config = language.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    masks = {}
    for kind in kinds:
        window = config.sliding_window if kind == "sliding_attention" else None
        positions, seen = layout(context, blocks, window)
        masks[kind] = additive(hide(seen) if hide else seen)
    mask = masks if "sliding_attention" in masks else masks["full_attention"]
    positions = positions if len(positions) > 1 else positions[0]
    out = language(inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False)
    return out.last_hidden_state[:, context.length :]


def text_hidden(model, images: ImageTokens, ids: Texts, blocks: Texts) -> Float[Tensor, "batch text width"]:
    """Hidden states of the tokens of texts about pictures."""
    known = context_ids(architectures.of(model).name, images.device)
    hidden = model.model.language_model.embed_tokens(known).expand(len(images), -1, -1)
    hidden = hidden.masked_scatter((known == IMAGE_TOKEN_ID)[None, :, None], images.to(hidden.dtype))
    return run_backbone(model, context_of(model, images.device), hidden, ids, blocks)


def text_hidden_after_text(
    model, context: Int[Tensor, "batch token"], ids: Texts, blocks: Texts
) -> Float[Tensor, "batch text width"]:
    """Hidden states of the tokens of texts about a text, which is padded in front."""
    padding = (context == PAD)[:, None, :]

    def hide(seen):
        seen[..., : context.shape[1]] &= ~padding
        return seen

    hidden = model.model.language_model.embed_tokens(context)
    return run_backbone(model, text_context(context.shape[1], context.device), hidden, ids, blocks, hide)
