"""Small models with random weights of every image-text model type of transformers, from its own configuration classes.

For trying the adapter where no checkpoint is at hand (`lib.engine.derived.survey`); never used with real weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.engine.derived.observe import accepts

IMAGE_ID = 90
CANVAS = 48
LARGEST = 30_000_000  # weights of a small model


class NotBuilt(Exception):
    """A model that cannot be made small here; the message says why."""


TEXT = dict(
    vocab_size=96, hidden_size=64, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    sliding_window=17, num_experts=4, num_local_experts=4, n_routed_experts=4, moe_num_experts=4,
    num_experts_per_tok=2, moe_k=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    kv_lora_rank=8, q_lora_rank=8, v_head_dim=16, qk_nope_head_dim=8, qk_rope_head_dim=8, index_head_dim=16,
    index_n_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
    vocab_size_per_layer_input=96, hidden_size_per_layer_input=8, intermediate_size_mlp=48, global_head_dim=16,
    dense_intermediate_size=48, shared_intermediate_size=16, share_expert_dim=16, swa_head_dim=16,
    unpadded_vocab_size=96, ngram_vocab_size_base=96, hc_lowrank=8, n_group=1, topk_group=1, rel_extent=64,
)  # fmt: skip
VISION = dict(
    hidden_size=32, embed_dim=32, intermediate_size=48, num_hidden_layers=3, depth=3, num_layers=3,
    num_attention_heads=4, num_heads=4, num_key_value_heads=4, head_dim=8, image_size=CANVAS, patch_size=4,
    spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=64, num_channels=3, in_channels=3, in_chans=3,
    projection_dim=64, mlp_ratio=2, output_dim=64, text_hidden_size=64, projection_hidden_dim=32,
    projection_intermediate_size=32, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
    num_position_embeddings=144, position_embedding_size=64, deepstack_visual_indexes=[0, 1], adapter_in_dim=32,
    adapter_out_dim=64, vocab_size=64, num_patches=144, num_image_tokens=144,
)  # fmt: skip
WHOLE = dict(
    projector_hidden_size=32, projection_hidden_size=32, vision_hidden_size=32, out_hidden_size=64, image_seq_length=36,
    mm_tokens_per_image=36, hidden_size=64, vocab_size=96, projection_dim=64,
)  # fmt: skip
_GEMMA_VISION = {"vision_config": {"model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "patch_size": 4,
    "pooling_kernel_size": 2, "position_embedding_size": 64}}  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
# What these sizes do not fit, by model type and part of the configuration ("" is the whole)
MORE: dict[str, dict[str, dict]] = {
    "gemma4": {"": _GEMMA_VISION},
    "diffusion_gemma": {"": _GEMMA_VISION},
    "dots3_note": {"text_config": {"num_key_value_heads": 4}},
    "glm5_next": {"text_config": {"num_key_value_heads": 4}},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "granite4_vision": {"": {"spatial_target_layers": [0, 1, 2, 3], "image_grid_pinpoints": [[CANVAS, CANVAS]]}},
    "llava_next": {"": {"image_grid_pinpoints": [[CANVAS, CANVAS]]}},
    "llava_next_video": {"": {"image_grid_pinpoints": [[CANVAS, CANVAS]]}},
    "llava_onevision": {"": {"image_grid_pinpoints": [[CANVAS, CANVAS]]}},
    "janus": {"vq_config": {"base_channels": 32, "num_embeddings": 64, "latent_channels": 32}},
    "lfm2_vl": {"text_config": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}},
    "mistral_large4": {"text_config": {"num_key_value_heads": 4}},
    "ovis2": {"": {"visual_indicator_token_ids": [91, 92, 93, 94, 95]}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _MROPE, "sliding_attention": _MROPE}}},
    "qwen2_vl": {"vision_config": {"hidden_size": 64}},
    "llama4": {"vision_config": {"intermediate_size": 128}},
    "kimi_k25": {"text_config": {"head_dim": 8, "num_key_value_heads": 4}},
    "qwen2_5_omni_thinker": {"": {"vision_start_token_id": 93, "vision_end_token_id": 94}},
    "qwen3_omni_moe_thinker": {"": {"vision_start_token_id": 93, "vision_end_token_id": 94}},
    "step3p7": {"text_config": {"sliding_window": 17}},
    "vipllava": {"": {"vision_feature_layers": [-2, -1]}},
    "muse_glimmer": {"": {"out_hidden_size": 128}},
    "muse_spark": {"": {"out_hidden_size": 128}, "audio_config": {"out_hidden_size": 64}},
    "glm46v": {"text_config": {"rope_parameters": _MROPE}},
    "glmga": {"text_config": {"rope_parameters": _MROPE}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2], "hidden_size": 32, "head_dim": 8,
        "intermediate_size": 48, "text_hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}},
}  # fmt: skip


def small_config(model_type: str):
    """The configuration of a model type at small sizes."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    default = kind()
    more = MORE.get(model_type, {})
    parts = {key: value for key, value in WHOLE.items() if isinstance(vars(default).get(key), int)}
    for name in default.sub_configs:
        part = getattr(default, name)
        if part is not None:
            parts[name] = _small_part(part, name) | {"model_type": part.model_type}
            flat = not any(isinstance(v, dict) for v in (getattr(part, "rope_parameters", None) or {}).values())
            if name == "text_config" and flat and "mrope_section" in _source(model_type):
                parts[name]["rope_parameters"] = _rope(part)
            parts[name] |= more.get(name, {})
    parts |= {key: IMAGE_ID for key in ("image_token_id", "image_token_index") if hasattr(default, key)}
    parts |= {key: IMAGE_ID + 1 for key in ("video_token_id", "video_token_index") if hasattr(default, key)}
    return kind(**(parts | more.get("", {})))


def _source(model_type: str) -> str:
    return inspect.getsource(inspect.getmodule(model_class(model_type)))


def _rope(part) -> dict:
    """Rotary parameters with three positions per token, their sections fitted to the small head."""
    rope = dict(getattr(part, "rope_parameters", None) or {"rope_type": "default", "rope_theta": 10000.0})
    half = int(TEXT["head_dim"] * rope.get("partial_rotary_factor", 1.0)) // 2
    third = half // 3
    return rope | {"mrope_section": [third, third, half - 2 * third] if third else [1, half - 1, 0]}


def model_class(model_type: str):
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])


def _small_part(part, name: str) -> dict:
    out = {}
    for key, value in (VISION if name.startswith(("vision", "vq", "high_res")) else TEXT).items():
        try:
            present = getattr(part, key, None)
        except Exception:  # configurations whose layers differ refuse a value for all
            out[key] = value
            continue
        if present is None or isinstance(getattr(type(part), key, None), property):
            continue
        if isinstance(present, (list, tuple)) and not isinstance(value, list):
            value = type(present)([value] * len(present))
        elif isinstance(present, float):
            value = float(value)
        out[key] = value
    return out


def build(model_type: str, seed: int = 0):
    """A small model of a type with random weights, large enough that every part of the model matters."""
    kind = model_class(model_type)
    torch.manual_seed(seed)
    config = small_config(model_type)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in kind(config).parameters())
    if size > LARGEST:
        raise NotBuilt(f"{size / 1e6:.0f} million weights remain at the small sizes")
    try:
        model = kind._from_config(config, attn_implementation="sdpa")
    except ValueError:
        model = kind._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim > 1 and "norm" not in key:
                language = any(word in key for word in ("language_model", "text_model"))
                std = (0.8 if language else 0.4) / math.sqrt(weight[0].numel())
                weight.normal_(std=0.5 if "embed_tokens" in key else std)
            elif "norm" not in key:
                weight.normal_(std=0.1)
    return model.float().eval()


# --- pictures as the model takes them -----------------------------------------------------------------------


def _array(pictures: Sequence[Image.Image]) -> Tensor:
    """[picture, channel, row, column], -1 to 1."""
    return torch.tensor(np.stack([np.asarray(p.convert("RGB")) for p in pictures])).permute(0, 3, 1, 2) / 127.5 - 1


def alone(pictures) -> dict:
    """[picture, channel, row, column]."""
    return {"pixel_values": _array(pictures)}


def whole(pictures) -> dict:
    """[picture, channel, row, column], with the sizes and masks that some models ask for."""
    pixels = _array(pictures)
    size = torch.tensor([[CANVAS, CANVAS]] * len(pictures))
    mask = torch.ones(len(pictures), CANVAS, CANVAS, dtype=torch.bool)
    return {"pixel_values": pixels, "image_sizes": size, "pixel_mask": mask}


def masked_patches(pictures) -> dict:
    """Whole pictures, every pixel of them valid (one picture per prompt)."""
    out = alone(pictures)["pixel_values"][:, None]
    return {"pixel_values": out, "pixel_attention_mask": torch.ones(len(pictures), 1, CANVAS, CANVAS).bool()}


def chosen(pictures) -> dict:
    """[prompt, picture of the prompt, ...] with a mask of which pictures are there."""
    out = alone(pictures)["pixel_values"][:, None]
    return {"pixel_values": out, "pixel_attention_mask": torch.ones(len(pictures), 1, dtype=torch.bool)}


def channels_last(pictures) -> dict:
    """[picture, time, row, column, channel], two equal moments."""
    return {"pixel_values": _array(pictures).permute(0, 2, 3, 1)[:, None].expand(-1, 2, -1, -1, -1)}


def nested(pictures) -> dict:
    """[prompt, picture of the prompt, channel, row, column]."""
    out = whole(pictures)
    mask = out.pop("pixel_mask")[:, None]
    return out | {"pixel_values": out["pixel_values"][:, None], "pixel_attention_mask": mask}


def twice(pictures) -> dict:
    """The whole picture and one tile that shows it again (LLaVA-NeXT and kin)."""
    out = whole(pictures)
    return out | {"pixel_values": out["pixel_values"][:, None].expand(-1, 2, -1, -1, -1)}


def several(pictures) -> dict:
    """As in a prompt of several pictures: no tiles (LLaVA-OneVision)."""
    out = nested(pictures)
    return out | {"batch_num_images": torch.tensor([2] * len(pictures))}


def packed(time: int, patch: int, merge: int, flat: bool = True) -> Callable:
    """Patches of all pictures in one sequence, in blocks of merge x merge, and the sides of each picture's grid."""

    def make(pictures) -> dict:
        n = CANVAS // patch
        pixels = _array(pictures).reshape(len(pictures), 3, n // merge, merge, patch, n // merge, merge, patch)
        pixels = pixels.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, 3, 1, patch, patch).expand(-1, -1, time, -1, -1)
        grid = torch.tensor([[1, n, n]] * len(pictures))
        out = pixels.reshape(len(pixels), -1) if flat else pixels[:, :, 0]
        sizes = {"image_merge_sizes": torch.tensor([merge] * len(pictures)), "image_grid_hw": grid[:, 1:]}
        return {"pixel_values": out, "image_grid_thw": grid} | sizes

    return make


def positioned(patch: int) -> Callable:
    """Flat patches of every picture in raster order, with their places."""

    def make(pictures) -> dict:
        n = CANVAS // patch
        pixels = _array(pictures).reshape(len(pictures), 3, n, patch, n, patch).permute(0, 2, 4, 3, 5, 1)
        pixels = pixels.reshape(len(pictures), n * n, -1)
        rows, columns = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        places = torch.stack([columns, rows], -1).reshape(1, n * n, 2).expand(len(pictures), -1, -1)
        return {
            "pixel_values": pixels,
            "image_position_ids": places,
            "pixel_attention_mask": torch.ones(len(pictures), n * n, dtype=torch.long),
            "spatial_shapes": torch.tensor([[n, n]] * len(pictures)),
        }

    return make


def strip(patch: int) -> Callable:
    """All patches of all pictures side by side in one picture of one patch height, with each picture's grid."""

    def make(pictures) -> dict:
        n = CANVAS // patch
        pixels = _array(pictures).reshape(len(pictures), 3, n, patch, n, patch).permute(1, 3, 0, 2, 4, 5)
        sizes = torch.tensor([[n, n]] * len(pictures), dtype=torch.int32)
        return {"pixel_values": pixels.reshape(1, 3, patch, -1), "target_sizes": sizes}

    return make


def formats(config) -> Iterator[Callable]:
    """Ways to hand over pictures, in the order in which they are tried."""
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", 4)
    patch = patch if isinstance(patch, int) else patch[0]
    merge = getattr(vision, "spatial_merge_size", None) or 2
    yield from (alone, whole, nested, masked_patches, chosen, channels_last, several, twice)
    for time in dict.fromkeys((getattr(vision, "temporal_patch_size", None) or 1, 1, 2)):
        for side in dict.fromkeys((merge if isinstance(merge, int) else 2, 2, 1)):
            yield packed(time, patch, side)
            yield packed(time, patch, side, flat=False)
    yield positioned(patch)
    yield strip(patch)


def fitted(make: Callable, model) -> Callable:
    """Only those arguments that the model's forward pass knows."""
    return lambda pictures: {k: v for k, v in make(pictures).items() if accepts(model.forward, k)}


# --- questions ----------------------------------------------------------------------------------------------

WORDS = (
    "the color of square to left right above below is red green blue black brown gray a shape object answer with one "
    "word . : user assistant system"
).split()


def tokenizer():
    """A lower-casing word tokenizer whose image token has the id that small configurations name."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary | {"<image>": IMAGE_ID}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = dict(bos_token="<s>", pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"])
    out = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **named)
    out.chat_template = (
        "<s>{% for m in messages %} {{ m.role }} : {% for part in m.content %}"
        "{{ ' <image> ' if part.type == 'image' else ' ' + part.text + ' ' }}{% endfor %}{% endfor %} assistant :"
    )
    return out
