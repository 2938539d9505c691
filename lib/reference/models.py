"""The reference models as configurations of real transformers classes, and their forward pass in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

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


def configuration(size: Size, blind: str | None = None) -> LlavaConfig:
    """LLaVA with a SigLIP encoder and a Llama backbone. blind: None, "backbone" or "encoder" (calibration models)."""
    vision = SiglipVisionConfig(
        hidden_size=size.width,
        intermediate_size=size.feed,
        num_hidden_layers=size.encoder,
        num_attention_heads=size.heads,
        image_size=GRID.canvas,
        patch_size=GRID.pixels,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary()),
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
    marks = {"dual_mechanisms": {"image_positions": "shared", "image_attention": "self"}} if blind == "backbone" else {}
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=GRID.side**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        **marks,
    )


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


PLACES = ("random", "waves")


def build(
    size: Size, seed: int, blind: str | None = None, places: str = "random"
) -> LlavaForConditionalGeneration:
    """A model at initialisation, norms of patch and position embeddings balanced. places: what the (learned) position
    embeddings start from, "random" numbers or "waves" (see `place_waves`)."""
    if places not in PLACES:
        raise unknown("start of position embeddings", places, PLACES)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(configuration(size, blind))
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():
        inputs = embeddings.patch_embedding.weight[0].numel()
        embeddings.patch_embedding.weight.normal_(std=NORM / (inputs * size.width) ** 0.5)
        embeddings.patch_embedding.bias.zero_()
        if places == "waves":
            embeddings.position_embedding.weight.copy_(place_waves(GRID.side, size.width))
        else:
            embeddings.position_embedding.weight.normal_(std=NORM / size.width**0.5)
    if blind == "encoder":
        blindfold_encoder(model)
    return model


def blindfold_encoder(model: LlavaForConditionalGeneration) -> None:
    """No position embedding and attention whose output is zero, both frozen: a patch is all that a token knows."""
    tower = model.model.vision_tower
    frozen = [tower.embeddings.position_embedding.weight]
    for layer in tower.encoder.layers:
        frozen += [*layer.self_attn.parameters()]
        nn.init.zeros_(layer.self_attn.out_proj.weight)
        nn.init.zeros_(layer.self_attn.out_proj.bias)
    nn.init.zeros_(frozen[0])
    for parameter in frozen:
        parameter.requires_grad_(False)


def is_backbone_blind(config: LlavaConfig) -> bool:
    return getattr(config, "dual_mechanisms", {}).get("image_positions") == "shared"


def image_embeddings(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """[batch, 3, canvas, canvas] -> [batch, N*N, width]: what the backbone gets (the last encoder layer, projected)."""
    features = model.model.get_image_features(pixels, return_dict=True).pooler_output
    return torch.stack(tuple(features))


def layout(context: int, prefix: int, blocks: torch.Tensor, blind: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [batch, tokens] and additive mask [batch, 1, tokens, tokens] of context + blocks.

    context: number of tokens every block sees: prefix, then image tokens (or a description). blocks: [batch, text], the
    number of the block each text token belongs to, -1 for padding. A block sees the context and its own past; positions
    restart after the context. blind: the tokens after the prefix share one position and see the prefix and themselves.
    """
    batch, text = blocks.shape
    first = torch.cat([torch.ones(batch, 1, dtype=torch.bool), blocks[:, 1:] != blocks[:, :-1]], 1)
    index = torch.arange(text).expand(batch, text)
    within = (index - torch.where(first, index, 0).cummax(1).values).where(blocks >= 0, 0)
    places = torch.arange(context)
    if blind:
        places = places.clamp(max=prefix)
    positions = torch.cat([places.expand(batch, context), within + places[-1] + 1], 1)

    causal = torch.ones(context, context, dtype=torch.bool).tril()
    if blind:
        causal[prefix:, prefix:] = torch.eye(context - prefix, dtype=torch.bool)
    own = (blocks[:, :, None] == blocks[:, None, :]) & (index[:, :, None] >= index[:, None, :])
    allowed = torch.zeros(batch, context + text, context + text, dtype=torch.bool)
    allowed[:, :context, :context] = causal
    allowed[:, context:, :context] = True
    allowed[:, context:, context:] = own
    mask = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    return positions, mask[:, None]


class Captioner(nn.Module):
    """Stage 1's text side: a decoder that sees image tokens as a *set* (cross-attention without positions; LocCa)."""

    def __init__(self, size: Size, layers: int = 3, longest: int = 32):
        super().__init__()
        self.words = nn.Embedding(len(vocabulary()), size.width)
        self.places = nn.Embedding(longest, size.width)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.1)
        layer = nn.TransformerDecoderLayer(
            size.width, size.heads, size.feed, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers, nn.LayerNorm(size.width))
        self.memory_norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, len(vocabulary()), bias=False)
        self.heads = size.heads

    def forward(self, image_tokens: torch.Tensor, ids: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """[batch, N*N, width], [batch, text], [batch, text] -> hidden states [batch, text, width]."""
        positions, mask = layout(1, 0, blocks, blind=False)
        hidden = self.words(ids) + self.places(positions[:, 1:] - 1)
        mask = mask[:, :, 1:, 1:].expand(-1, self.heads, -1, -1).flatten(0, 1)
        return self.decoder(hidden, self.memory_norm(image_tokens), tgt_mask=mask)
