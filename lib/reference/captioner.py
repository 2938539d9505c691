"""The text side of the first stage: a decoder that sees image tokens as a set, and texts that see themselves only."""

from __future__ import annotations

import torch
from torch import nn

from lib.reference.architectures import Size
from lib.reference.forward import additive, layout, text_context
from lib.reference.language import vocabulary


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
        """[batch, patches, width], [batch, text], [batch, text] -> hidden states [batch, text, width]."""
        positions, seen = layout(text_context(1, blocks.device), blocks)
        hidden = self.words(ids) + self.places(positions[0, :, 1:] - 1)
        mask = additive(seen)[:, :, 1:, 1:].expand(-1, self.heads, -1, -1).flatten(0, 1)
        return self.decoder(hidden, self.memory_norm(image_tokens), tgt_mask=mask, tgt_is_causal=False)
