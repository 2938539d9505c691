"""Tiny random models of every family, built from transformers' own configuration classes; no files, no
downloads.

`tiny(name)` gives a `VLM` with 6 x 6 image tokens, 3 language-model layers and a word tokenizer that has the
family's special tokens. Weights are drawn with a fixed seed and made large enough that every part of the
model matters.
"""

from __future__ import annotations

import torch
import transformers as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from lib.engine.families import family
from lib.engine.vlm import VLM
from lib.stimuli.grids import Grid

SIDE = 6
WORDS = (
    "the color of square to left right above below is red green blue black brown gray a shape object "
    "answer with one word . : ? user assistant system"
).split()
SPECIAL = {
    "qwen2-vl": ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"],
    "gemma-3": ["<start_of_image>", "<image_soft_token>", "<end_of_image>"],
    "pixtral": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
    "llava-1.5": ["<image>"],
    "reference": ["<image>"],
    "llava-onevision": ["<image>", "<video>"],
    "internvl3": ["<IMG_CONTEXT>", "<img>", "</img>"],
    "smolvlm": ["<image>", "<fake_token_around_image>", "<global-img>"],
}
SPECIAL["qwen2.5-vl"] = SPECIAL["qwen2-vl"]
SPECIAL["idefics3"] = SPECIAL["smolvlm"]
IMAGE_TEXT = {  # what the family's chat template writes for a picture
    "qwen2-vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2.5-vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma-3": "<start_of_image>",
    "pixtral": "[IMG]",
    "internvl3": "<IMG_CONTEXT>\n",
}
IMAGE_TOKEN = {"qwen2-vl": 1, "qwen2.5-vl": 1, "gemma-3": 1}  # place of the image token in SPECIAL, default 0
NAMES = tuple(SPECIAL)


def tokenizer(name: str) -> tf.PreTrainedTokenizerFast:
    """A lower-casing word tokenizer with the special tokens of a family."""
    special = ["<s>", "<pad>", "<unk>", *SPECIAL[name]]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    out = tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[name],
    )
    picture = IMAGE_TEXT.get(name, "<image>")
    out.chat_template = (
        "<s>{% for m in messages %} {{ m['role'] }} : "
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + picture
        + "{% else %} {{ c['text'] }} {% endif %}{% endfor %}{% endfor %} assistant :"
    )
    return out


def _text(vocabulary: int, **more) -> dict:
    return dict(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=1,
        rms_norm_eps=1e-5,
        **more,
    )


def _vit(patch: int, size: int, **more) -> dict:
    return dict(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=size,
        patch_size=patch,
        num_channels=3,
        **more,
    )


def _model(name: str, n: int, image: int, attn: str):
    """The model of a family; n: size of the vocabulary, image: id of the image token."""
    ids = dict(image_token_id=image)
    if name in ("qwen2-vl", "qwen2.5-vl"):
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        text = _text(n, rope_parameters=rope)
        ids |= dict(video_token_id=n - 1, vision_start_token_id=3, vision_end_token_id=5)
        if name == "qwen2-vl":
            vision = dict(
                depth=3,
                embed_dim=16,
                hidden_size=32,
                num_heads=2,
                patch_size=4,
                spatial_merge_size=2,
                temporal_patch_size=2,
                mlp_ratio=2,
            )
            config = tf.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
            model_class = tf.Qwen2VLForConditionalGeneration
        else:
            vision = dict(
                depth=3,
                hidden_size=16,
                intermediate_size=24,
                out_hidden_size=32,
                num_heads=2,
                patch_size=4,
                spatial_merge_size=2,
                temporal_patch_size=2,
                window_size=32,
                fullatt_block_indexes=[1],
            )
            config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
            model_class = tf.Qwen2_5_VLForConditionalGeneration
    elif name == "gemma-3":
        text = _text(
            n,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            sliding_window=17,
            query_pre_attn_scalar=8,
        )
        config = tf.Gemma3Config(
            text_config=text,
            vision_config=_vit(4, SIDE * 16, vision_use_head=False),
            mm_tokens_per_image=SIDE**2,
            **ids,
        )
        model_class = tf.Gemma3ForConditionalGeneration
    elif name == "pixtral":
        vision = tf.PixtralVisionConfig(**_vit(4, 64))
        config = tf.LlavaConfig(
            text_config=tf.MistralConfig(**_text(n)),
            vision_config=vision,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            **ids,
        )
        model_class = tf.LlavaForConditionalGeneration
    elif name == "llava-1.5":
        config = tf.LlavaConfig(
            text_config=tf.LlamaConfig(**_text(n)),
            vision_feature_layer=-2,
            vision_config=tf.CLIPVisionConfig(**_vit(4, SIDE * 4)),
            **ids,
        )
        model_class = tf.LlavaForConditionalGeneration
    elif name == "reference":
        config = tf.LlavaConfig(
            text_config=tf.LlamaConfig(**_text(n)),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            vision_config=tf.SiglipVisionConfig(**_vit(4, SIDE * 4, vision_use_head=False)),
            **ids,
        )
        model_class = tf.LlavaForConditionalGeneration
    elif name == "llava-onevision":
        size = SIDE * 4 + 2
        config = tf.LlavaOnevisionConfig(
            text_config=tf.Qwen2Config(**_text(n)),
            video_token_id=n - 1,
            image_grid_pinpoints=[[size, size]],
            vision_config=tf.SiglipVisionConfig(**_vit(4, size, vision_use_head=False)),
            **ids,
        )
        model_class = tf.LlavaOnevisionForConditionalGeneration
    elif name == "internvl3":
        config = tf.InternVLConfig(
            text_config=tf.Qwen2Config(**_text(n)),
            image_seq_length=SIDE**2,
            vision_config=tf.InternVLVisionConfig(**_vit(4, SIDE * 8)),
            **ids,
        )
        model_class = tf.InternVLForConditionalGeneration
    elif name in ("smolvlm", "idefics3"):
        kind = "SmolVLM" if name == "smolvlm" else "Idefics3"
        vision = _vit(4, SIDE * 12 + 2)
        config = getattr(tf, f"{kind}Config")(
            text_config=tf.LlamaConfig(**_text(n)),
            vision_config=vision,
            scale_factor=3,
            pad_token_id=1,
            **ids,
        )
        model_class = getattr(tf, f"{kind}ForConditionalGeneration")
    else:
        raise ValueError(name)
    return model_class._from_config(config, attn_implementation=attn)


def _processor(name: str):
    record = family(name)
    kind = getattr(tf, record.processor)
    plain = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    if name in ("qwen2-vl", "qwen2.5-vl"):
        size = {"shortest_edge": 64, "longest_edge": 4096}
        return kind(patch_size=4, merge_size=2, temporal_patch_size=2, size=size, **plain)
    if name == "pixtral":
        return kind(patch_size={"height": 4, "width": 4}, **plain)
    if name in ("smolvlm", "idefics3"):
        return kind(max_image_size={"longest_edge": SIDE * 12}, **plain)
    return kind(**plain)


PIXELS = {"qwen2-vl": 8, "qwen2.5-vl": 8, "gemma-3": 16, "internvl3": 8, "smolvlm": 12, "idefics3": 12}


# what a model carries whose backbone is blind to where image tokens stand (`vision_only`)
BLIND = {"image_positions": "shared", "image_attention": "self"}


def tiny(name: str, attn: str = "sdpa", seed: int = 0, dual: dict | None = None) -> VLM:
    """A tiny random model of a family; `dual` is what a calibration model carries as `dual_mechanisms`."""
    words = tokenizer(name)
    image = words.convert_tokens_to_ids(SPECIAL[name][IMAGE_TOKEN.get(name, 0)])
    torch.manual_seed(seed)
    model = _model(name, len(words), image, attn).float()
    with torch.no_grad():  # initial weights are so small that a model hardly depends on its input
        for key, weight in model.named_parameters():
            if weight.ndim > 1:  # Gemma multiplies its word vectors by the root of their length
                weight.normal_(std=0.1 if name == "gemma-3" and "embed_tokens" in key else 0.3)
            elif "norm" not in key and weight.ndim == 1:
                weight.normal_(std=0.2)
    if dual:
        model.config.dual_mechanisms = dual
    pixels = PIXELS.get(name, 4)
    return VLM(model, words, _processor(name), family(name), Grid(name, SIDE, pixels, 1, 1, (2, 2, 2)), name)
