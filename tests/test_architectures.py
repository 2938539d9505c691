"""The architectures of the embedded models: the forward pass in training is transformers' own, the planted mechanisms are
what they say, and saved folders are read by the records of the true families."""

import numpy as np
import pytest
import torch

from lib import questions, scenes
from lib.reference import architectures, curriculum, forward, train
from lib.reference.architectures import ARCHITECTURES
from lib.reference.language import GRID, IMAGE_TOKEN_ID, build_tokenizer

TINY = architectures.Size(width=64, heads=2, encoder=2, backbone=3, feed=64)
QUESTIONS = (
    "The color of the square to the left of the red square is",
    "Is the red square to the left or to the right of the blue square? Answer with one word.",
    "green square :",
)
names = pytest.mark.parametrize("name", ARCHITECTURES)


def small(name, seed=0, **options):
    """A random model whose every part matters."""
    model = architectures.build(TINY, seed, name, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim in (2, 3) and "position" not in key:
                std = 0.05 if name == "gemma_style" and "embed_tokens" in key else 0.2
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=std)
            elif weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model


def pixels(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return train.pixels([curriculum.free(rng, "squares") for _ in range(count)])


def blocks_of(texts):
    """Texts of one picture as ids and block numbers [1, text]."""
    ids = [train.encode(text) for text in texts]
    numbers = [[k] * len(one) for k, one in enumerate(ids)]
    return torch.tensor([sum(ids, ())]), torch.tensor([sum(numbers, [])])


def plain_logits(model, picture, text):
    """Logits of the tokens of a text in a prompt of its own, by transformers' forward pass alone."""
    record = architectures.of(model)
    known = forward.context_ids(record.name)
    ids = torch.cat([known, torch.tensor(train.encode(text))])[None]
    types = (ids == IMAGE_TOKEN_ID).int()
    side = GRID.side * record.merge
    match record.name:
        case "qwen_style":
            patches = forward.qwen_patches(picture, record.patch, record.merge)
            inputs = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, side, side]]), "mm_token_type_ids": types}
        case "gemma_style":
            inputs = {"pixel_values": picture, "token_type_ids": types}
        case "pixtral_style":
            inputs = {"pixel_values": picture, "image_sizes": torch.tensor([[GRID.canvas] * 2])}
        case _:
            inputs = {"pixel_values": picture}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits
    return logits[0, len(known) :]


@names
@pytest.mark.parametrize("window", [512, 40])
def test_blocks_get_the_logits_of_a_prompt_of_their_own(name, window):
    model = small(name)
    if name == "gemma_style":
        model.model.language_model.config.sliding_window = window
        for layer in model.model.language_model.layers:
            layer.self_attn.sliding_window = window if layer.self_attn.is_sliding else None
    elif window != 512:
        pytest.skip("no sliding layers")
    pictures = pixels()
    ids, blocks = blocks_of(QUESTIONS)
    with torch.no_grad():
        images = forward.image_embeddings(model, pictures)
        hidden = forward.text_hidden(model, images, ids.expand(2, -1), blocks.expand(2, -1))
        ours = model.lm_head(hidden)
    difference = 0.0
    for row in range(2):
        for k, text in enumerate(QUESTIONS):
            theirs = plain_logits(model, pictures[row : row + 1], text)
            difference = max(difference, (ours[row, blocks[0] == k] - theirs).abs().max().item())
    print(name, window, "largest difference of logits", difference, "their spread", theirs.std().item())
    assert theirs.std() > 0.1
    assert difference < 1e-5 * max(1.0, theirs.abs().max().item())
