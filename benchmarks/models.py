"""Models to measure speed on: trained weights make no difference to it, so all but the embedded one are
random.

Sizes are public facts of the checkpoints' configurations; words are those of the tests' small tokenizer, unless a
tokenizer is given.
"""

from __future__ import annotations

import torch
import transformers as tf

from lib.engine.checkpoints import shipped
from lib.engine.families import family
from lib.engine.vlm import VLM, load
from lib.errors import UserError
from tests import tiny

QWEN2_VL = {  # text model of each size
    "qwen2-vl-2b": dict(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "qwen2-vl-7b": dict(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ),
}
GEMMA_3_4B = dict(
    hidden_size=2560,
    intermediate_size=10240,
    num_hidden_layers=34,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    sliding_window=1024,
    vocab_size=262208,
)
SIGLIP_SO400M = dict(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=896,
    patch_size=14,
    vision_use_head=False,
)
NAMES = ("reference", *QWEN2_VL, "gemma-3-4b")


def build(name: str, layers: int | None, encoder: int | None, device: str, dtype: torch.dtype, words=None) -> VLM:
    """A model by name; layers, encoder: fewer layers than the real one. words: a tokenizer with a chat template."""
    if name == "reference" and layers is None and "reference" in shipped():
        return load("reference", device, dtype)
    if name not in NAMES:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(NAMES)}")
    kind = {"reference": "reference", "gemma-3-4b": "gemma-3"}.get(name, "qwen2-vl")
    words = words or tiny.tokenizer(kind)
    image = words.convert_tokens_to_ids(tiny.SPECIAL[kind][tiny.IMAGE_TOKEN.get(kind, 0)])
    video = words.convert_tokens_to_ids("<|video_pad|>")  # Qwen's configurations name it
    model_class, config, processor = _parts(name, kind, image, video, layers, encoder)
    torch.manual_seed(0)
    with torch.device(device):
        model = model_class._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return VLM(model, words, processor, family(kind), None, name)


def _parts(name: str, kind: str, image: int, video: int, layers: int | None, encoder: int | None):
    """Class, configuration and image processor of a model; image, video: ids of the placeholder tokens."""
    if kind == "qwen2-vl":
        rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
        text = QWEN2_VL[name] | {"rope_parameters": rope, "max_position_embeddings": 4096}
        text |= {"num_hidden_layers": layers or 28, "pad_token_id": 1}
        tied = text.get("tie_word_embeddings", False)
        vision = dict(depth=encoder or 32, embed_dim=1280, hidden_size=text["hidden_size"], num_heads=16)
        ids = dict(image_token_id=image, video_token_id=video)
        config = tf.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **ids)
        return tf.Qwen2VLForConditionalGeneration, config, tf.Qwen2VLImageProcessorPil()
    if kind == "gemma-3":
        text = GEMMA_3_4B | {"num_hidden_layers": layers or 34, "pad_token_id": 1}
        vision = SIGLIP_SO400M | {"num_hidden_layers": encoder or 27}
        config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=256, image_token_id=image)
        return tf.Gemma3ForConditionalGeneration, config, tf.Gemma3ImageProcessorPil()
    from lib.reference.architectures import ARCHITECTURES, SIZES

    record = ARCHITECTURES["siglip_llama"]
    config = record.configuration(SIZES["cpu"], len(record.tokens))
    config.image_token_index = config.image_token_id = image
    config.text_config.num_hidden_layers = layers or config.text_config.num_hidden_layers
    config.vision_config.num_hidden_layers = encoder or config.vision_config.num_hidden_layers
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return tf.LlavaForConditionalGeneration, config, tf.SiglipImageProcessorPil(**half)
