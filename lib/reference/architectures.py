"""The embedded models as configurations of real transformers classes: four position schemes, five planted mechanisms.

`siglip_llama` is the scheme of `reference` and `joint`: learned positions in the encoder, 1-D rotary positions in the
backbone. The other three follow the model families of the paper, in their own classes. Planted models are
`siglip_llama` models in which it is known by construction who knows where things stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as tf
from torch import nn

from lib.engine.planted import marks as planted_marks
from lib.errors import unknown
from lib.reference.language import GRID, IMAGE_TOKEN_ID, vocabulary

PAD, BOS, EOS = 0, 1, 2
NORM = 3.0  # of patch and of position embeddings at initialisation: equal, or place never gets into the embeddings


@dataclass(frozen=True)
class Size:
    """width: of every residual stream. encoder, backbone: layers. feed: inner width of the feed-forward blocks."""

    width: int = 128
    heads: int = 4
    encoder: int = 3
    backbone: int = 6
    feed: int = 384


SIZES = {"cpu": Size(), "gpu": Size(width=192, heads=6, encoder=4, backbone=8, feed=512)}


@dataclass(frozen=True)
class Architecture:
    """One class of transformers, as small as the others.

    configuration: from a size and the number of tokens. special: tokens of its own, behind the shared vocabulary.
    before, after: token texts around the picture; row_break, last_break: after each row of image tokens but the last,
    and after the last. processor: class of the image processor; patch: pixels of an encoder patch, merge: patches per
    image token and side.
    """

    name: str
    model_class: type
    configuration: Callable[[Size, int], tf.PreTrainedConfig]
    description: str
    special: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    row_break: str | None = None
    last_break: str | None = None
    patch: int = GRID.pixels
    merge: int = 1

    @property
    def tokens(self) -> tuple[str, ...]:
        """The whole vocabulary: the words that all architectures share, then the special tokens of this one."""
        return (*vocabulary(), *self.special)

    def token(self, text: str) -> int:
        return self.tokens.index(text)


# --- configurations --------------------------------------------------------------------------------------------------

# Pictures and questions are those of the grid `reference` (lib.stimuli.grids.GRIDS) everywhere; the adapter reads it.
MARKS = {"grid": "reference"}
# Of rotary encoders: with 10000, the base of encoders made for pictures of hundreds of patches a side, most frequencies
# would hardly turn within 12 or 24. Backbones keep the base of their class.
VISION_ROPE = {"rope_type": "axial", "rope_theta": 100.0}


def _text(size: Size, tokens: int) -> dict:
    return dict(
        vocab_size=tokens,
        hidden_size=size.width,
        intermediate_size=size.feed,
        num_hidden_layers=size.backbone,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=512,
        initializer_range=0.05,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )


def _vision(size: Size, patch: int) -> dict:
    return dict(
        hidden_size=size.width,
        intermediate_size=size.feed,
        num_hidden_layers=size.encoder,
        num_attention_heads=size.heads,
        image_size=GRID.canvas,
        patch_size=patch,
    )


def _llava(vision: tf.PreTrainedConfig, text: tf.PreTrainedConfig, **more) -> tf.LlavaConfig:
    return tf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=GRID.side**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        **more,
    )


def siglip_llama(size: Size, tokens: int) -> tf.LlavaConfig:
    """Learned positions in a SigLIP encoder, 1-D rotary positions in a Llama backbone."""
    vision = tf.SiglipVisionConfig(**_vision(size, GRID.pixels), vision_use_head=False)
    return _llava(vision, tf.LlamaConfig(**_text(size, tokens)))


def pixtral_style(size: Size, tokens: int) -> tf.LlavaConfig:
    """2-D rotary positions in a Pixtral encoder, 1-D rotary positions and row breaks in a Mistral backbone."""
    vision = tf.PixtralVisionConfig(
        **_vision(size, GRID.pixels), initializer_range=0.05, rope_parameters=dict(VISION_ROPE)
    )
    text = tf.MistralConfig(**_text(size, tokens), sliding_window=None)
    return _llava(vision, text, dual_mechanisms=dict(MARKS))


def qwen_style(size: Size, tokens: int) -> tf.Qwen2VLConfig:
    """2-D rotary positions in the encoder, patches merged 2 x 2, M-RoPE in the backbone (time, row, column)."""
    half = size.width // size.heads // 2  # rotary frequencies of a head: a quarter to time, the rest shared
    sections = [half // 4, 3 * half // 8, 3 * half // 8]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    architecture = ARCHITECTURES["qwen_style"]
    vision = dict(
        depth=size.encoder,
        embed_dim=size.width,
        hidden_size=size.width,
        num_heads=size.heads,
        mlp_ratio=size.feed // size.width,
        patch_size=architecture.patch,
        spatial_merge_size=architecture.merge,
        temporal_patch_size=2,
        initializer_range=0.05,
        rope_parameters=dict(VISION_ROPE),
    )
    return tf.Qwen2VLConfig(
        text_config=dict(_text(size, tokens), rope_parameters=rope),
        vision_config=vision,
        image_token_id=IMAGE_TOKEN_ID,
        video_token_id=architecture.token("<|video_pad|>"),
        vision_start_token_id=architecture.token("<|vision_start|>"),
        vision_end_token_id=architecture.token("<|vision_end|>"),
        tie_word_embeddings=False,
        dual_mechanisms=dict(MARKS),
    )


def gemma_style(size: Size, tokens: int) -> tf.Gemma3Config:
    """Learned positions in a SigLIP encoder, patches pooled 2 x 2, image tokens that see each other, 1-D positions.

    Two sliding layers (local rotary base) to one full layer; the window is as wide as the prompt, as in the published
    checkpoints, whose 1024 tokens hold the 256 of a picture and the question.
    """
    architecture = ARCHITECTURES["gemma_style"]
    kinds = ["full_attention" if (k + 1) % 3 == 0 else "sliding_attention" for k in range(size.backbone)]
    head = size.width // size.heads
    text = dict(_text(size, tokens), head_dim=head, query_pre_attn_scalar=head, sliding_window=512, layer_types=kinds)
    return tf.Gemma3Config(
        text_config=text,
        vision_config=tf.SiglipVisionConfig(**_vision(size, architecture.patch), vision_use_head=False).to_dict(),
        mm_tokens_per_image=GRID.side**2,
        image_token_index=IMAGE_TOKEN_ID,
        boi_token_index=architecture.token("<start_of_image>"),
        eoi_token_index=architecture.token("<end_of_image>"),
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
        dual_mechanisms=dict(MARKS),
    )


ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture(
            "siglip_llama",
            tf.LlavaForConditionalGeneration,
            siglip_llama,
            "`LlavaForConditionalGeneration`: SigLIP encoder with learned positions, Llama backbone with 1-D rotary "
            "positions",
        ),
        Architecture(
            "qwen_style",
            tf.Qwen2VLForConditionalGeneration,
            qwen_style,
            "`Qwen2VLForConditionalGeneration`: encoder with 2-D rotary positions, patches merged 2 x 2, backbone with "
            "M-RoPE (time, row and column of an image token)",
            special=("<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
            before=("<|vision_start|>",),
            after=("<|vision_end|>",),
            patch=GRID.pixels // 2,
            merge=2,
        ),
        Architecture(
            "gemma_style",
            tf.Gemma3ForConditionalGeneration,
            gemma_style,
            "`Gemma3ForConditionalGeneration`: SigLIP encoder with learned positions, patches pooled 2 x 2, backbone "
            "with 1-D rotary positions in which image tokens see each other, sliding and full layers",
            special=("<start_of_image>", "<end_of_image>"),
            before=("<start_of_image>",),
            after=("<end_of_image>",),
            patch=GRID.pixels // 2,
            merge=2,
        ),
        Architecture(
            "pixtral_style",
            tf.LlavaForConditionalGeneration,
            pixtral_style,
            "`LlavaForConditionalGeneration`: Pixtral encoder with 2-D rotary positions, Mistral backbone with 1-D "
            "rotary positions and a break token after every row of image tokens",
            special=("[IMG_BREAK]", "[IMG_END]"),
            row_break="[IMG_BREAK]",
            last_break="[IMG_END]",
        ),
    )
}

# Planted mechanisms (of siglip_llama): what the adapter has to set when the model runs, written into its configuration.
PLANTED = {
    "vision_only": {"image_positions": "shared", "image_attention": "self"},
    "backbone_only": {},
    "split": {"planted": "split", "image_positions": "rows", "image_attention": "rows"},
    "redundant": {"planted": "redundant"},
    "strip_code": {"planted": "strip_code", "image_places": "background"},
}


# --- building --------------------------------------------------------------------------------------------------------


def architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]


def of(model) -> Architecture:
    """The architecture of a model, read from its configuration."""
    config = model.config
    if config.model_type == "llava":
        return ARCHITECTURES["pixtral_style" if config.vision_config.model_type == "pixtral" else "siglip_llama"]
    return ARCHITECTURES[{"qwen2_vl": "qwen_style", "gemma3": "gemma_style"}[config.model_type]]


def marks(model) -> dict:
    """What is written into the configuration for the adapter, see PLANTED."""
    return planted_marks(model.config)


PLACES = ("random", "waves")


def build(
    size: Size, seed: int, name: str = "siglip_llama", planted: str | None = None, places: str = "random"
) -> nn.Module:
    """A model at initialisation, norms of patch and position embeddings balanced.

    places: what learned position embeddings of the encoder start from, "random" numbers or "waves" (`place_waves`).
    """
    record = architecture(name)
    if places not in PLACES:
        raise unknown("start of position embeddings", places, PLACES)
    if planted is not None and (planted not in PLANTED or name != "siglip_llama"):
        raise unknown("planted mechanism of siglip_llama", planted, PLANTED)
    config = record.configuration(size, len(record.tokens))
    if planted and PLANTED[planted]:
        config.dual_mechanisms = dict(PLANTED[planted])
    torch.manual_seed(seed)
    model = record.model_class(config)
    with torch.no_grad():
        balance(model, places)
    if planted:
        plant(model, planted)
    return model


def balance(model, places: str) -> None:
    """Patch embeddings, and position embeddings where there are such, of mean norm NORM; projectors not zero."""
    patches = patch_embedding(model)
    width = model.config.get_text_config().hidden_size
    patches.weight.normal_(std=NORM / (patches.weight[0].numel() * width) ** 0.5)
    if patches.bias is not None:
        patches.bias.zero_()
    positions = position_embedding(model)
    if positions is not None and places == "waves":
        positions.weight.copy_(place_waves(int(positions.weight.shape[0] ** 0.5), width))
    elif positions is not None:
        positions.weight.normal_(std=NORM / width**0.5)
    if of(model).name == "gemma_style":  # transformers leaves this matrix at zero
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=width**-0.5)


def place_waves(side: int, width: int) -> torch.Tensor:
    """[side * side, width], mean norm NORM: sines and cosines of the row (first half) and of the column (second half).

    The 2-D position embeddings of MAE (He et al. 2022) as a start for learned ones, their wave lengths chosen for a
    grid of this size, and without the part that all places share.
    """
    rates = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    table = torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], 1)
    table = table - table.mean(0)
    return table * (NORM / table.norm(dim=1).mean())


# --- planted mechanisms ----------------------------------------------------------------------------------------------


def plant(model, planted: str) -> None:
    """Prepare the encoder for a planted mechanism. To be called again whenever all parameters were set trainable."""
    if planted == "backbone_only":
        blindfold_encoder(model)
    elif planted == "strip_code":
        isolate_patches(model)
    elif planted == "split":
        columns_only(model)


def isolate_patches(model) -> None:
    """Attention in the encoder whose output is zero, frozen: no patch learns of another."""
    for layer in model.model.vision_tower.encoder.layers:
        nn.init.zeros_(layer.self_attn.out_proj.weight)
        nn.init.zeros_(layer.self_attn.out_proj.bias)
        layer.self_attn.requires_grad_(False)


def blindfold_encoder(model) -> None:
    """No position embedding and no mixing between patches, both frozen: a patch is all that a token knows."""
    isolate_patches(model)
    positions = position_embedding(model).weight
    nn.init.zeros_(positions)
    positions.requires_grad_(False)


def columns_only(model) -> None:
    """The patches of a column share one position embedding: its gradient is averaged over rows, so they stay equal."""
    positions = position_embedding(model).weight

    def over_rows(table: torch.Tensor) -> torch.Tensor:
        side = int(len(table) ** 0.5)
        return table.reshape(side, side, -1).mean(0, keepdim=True).expand(side, -1, -1).reshape(table.shape)

    with torch.no_grad():
        side = int(len(positions) ** 0.5)
        positions.copy_(positions.reshape(side, side, -1)[:1].expand(side, -1, -1).reshape(positions.shape))
    if not getattr(positions, "columns_only", False):
        positions.register_hook(over_rows)
        positions.columns_only = True


# --- parts -----------------------------------------------------------------------------------------------------------


def patch_embedding(model) -> nn.Module:
    """The convolution that turns patches of pixels into vectors."""
    match of(model).name:
        case "qwen_style":
            return model.model.visual.patch_embed.proj
        case "pixtral_style":
            return model.model.vision_tower.patch_conv
        case _:
            return model.model.vision_tower.embeddings.patch_embedding


def position_embedding(model) -> nn.Embedding | None:
    """Learned positions of the encoder; None where positions are rotary."""
    rotary = of(model).name in ("qwen_style", "pixtral_style")
    return None if rotary else model.model.vision_tower.embeddings.position_embedding


def encoder_layers(model) -> nn.ModuleList:
    match of(model).name:
        case "qwen_style":
            return model.model.visual.blocks
        case "pixtral_style":
            return model.model.vision_tower.transformer.layers
        case _:
            return model.model.vision_tower.encoder.layers


def parts(model) -> dict[str, nn.Module]:
    """Encoder, projector and backbone; together they hold every parameter once."""
    backbone = nn.ModuleList([model.model.language_model, model.lm_head])
    if of(model).name == "qwen_style":
        visual = model.model.visual
        encoder = nn.ModuleDict({"patch_embed": visual.patch_embed, "blocks": visual.blocks})
        return {"encoder": encoder, "projector": visual.merger, "backbone": backbone}
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    return {"encoder": tower, "projector": projector, "backbone": backbone}


TABLES = ("embed_tokens", "position_embedding", "words", "places")


def kind(name: str, parameter: nn.Parameter, tokens: int) -> str:
    """How a parameter is trained: "patch" embedding, "matrix", or "other" (tables, head, norms, biases).

    name: as in named_parameters() of a part (or of a captioner); tokens: size of the vocabulary.
    """
    if parameter.ndim >= 4:
        return "patch"
    is_table = any(key in name for key in TABLES) or parameter.shape[0] == tokens
    return "matrix" if parameter.ndim >= 2 and not is_table else "other"
