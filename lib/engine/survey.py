"""Which image-text models of transformers the adapter can use: `python -m lib.engine.survey` writes docs/MODELS.md.

Every model type that transformers maps to image-text-to-text is built small with random weights from its own
configuration classes, its record is derived (`lib.engine.derive`) and its certificate written
(`lib.engine.certificate`). Random weights prove that reading and writing the residual stream is exact; what a trained
checkpoint answers is another question, and its own certificate is made when it is loaded.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.engine.derive import Derived, Refused, derive

IMAGE_ID = 90
CANVAS = 48
TEXT = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    sliding_window=17, num_experts=4, num_local_experts=4, n_routed_experts=4, moe_num_experts=4,
    num_experts_per_tok=2, moe_k=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
)  # fmt: skip
VISION = dict(
    hidden_size=32, embed_dim=32, intermediate_size=48, num_hidden_layers=3, depth=3, num_layers=3,
    num_attention_heads=4, num_heads=4, num_key_value_heads=4, head_dim=8, image_size=CANVAS, patch_size=4,
    spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=32, num_channels=3, in_channels=3, in_chans=3,
    projection_dim=32, mlp_ratio=2, output_dim=32,
)  # fmt: skip
# What these sizes do not fit, by model type and part of the configuration ("" is the whole)
MORE: dict[str, dict[str, dict]] = {
    "gemma3": {"": {"mm_tokens_per_image": 36}},
    "shieldgemma2": {"": {"mm_tokens_per_image": 36}},
}


def small_config(model_type: str):
    """The configuration of a model type at small sizes."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    default = kind()
    more = MORE.get(model_type, {})
    parts: dict = {}
    for name in default.sub_configs:
        part = getattr(default, name)
        if part is not None:
            parts[name] = _small_part(part, name) | more.get(name, {}) | {"model_type": part.model_type}
    parts |= {key: IMAGE_ID for key in ("image_token_id", "image_token_index") if hasattr(default, key)}
    parts |= {key: IMAGE_ID + 1 for key in ("video_token_id", "video_token_index") if hasattr(default, key)}
    return kind(**(parts | more.get("", {})))


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
        if isinstance(present, (list, tuple)):
            value = type(present)([value] * len(present))
        elif isinstance(present, float):
            value = float(value)
        out[key] = value
    return out


def build(model_type: str, seed: int = 0):
    """A small model of a type with random weights, large enough that every part of the model matters."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])
    torch.manual_seed(seed)
    config = small_config(model_type)
    try:
        model = kind._from_config(config, attn_implementation="sdpa")
    except ValueError:
        model = kind._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim > 1 and "norm" not in key:
                weight.normal_(std=0.4 / math.sqrt(weight.shape[-1]) if "embed" not in key else 0.5)
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
        return {"pixel_values": out, "image_grid_thw": grid, "image_grid_hw": grid[:, 1:]}

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


def formats(config) -> Iterator[Callable]:
    """Ways to hand over pictures, in the order in which they are tried."""
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", 4)
    patch = patch if isinstance(patch, int) else patch[0]
    merge = getattr(vision, "spatial_merge_size", None) or 2
    yield from (alone, whole, nested, several, twice)
    for time in dict.fromkeys((getattr(vision, "temporal_patch_size", None) or 1, 1, 2)):
        for side in dict.fromkeys((merge if isinstance(merge, int) else 2, 2, 1)):
            yield packed(time, patch, side)
            yield packed(time, patch, side, flat=False)
    yield positioned(patch)


def fitted(make: Callable, model) -> Callable:
    """Only those arguments that the model's forward pass knows."""
    from lib.engine.derive import accepts

    return lambda pictures: {k: v for k, v in make(pictures).items() if accepts(model.forward, k)}


def examine(model_type: str) -> tuple[Derived, torch.nn.Module, Callable]:
    """The derived record of a small model of a type; Refused with the reason."""
    model = build(model_type)
    reasons, first = [], None
    for make in formats(model.config):
        try:
            pixels = fitted(make, model)
            return derive(model, pixels, CANVAS), model, pixels
        except Refused as refused:
            reasons.append(str(refused))
        except Exception as error:  # a format that the model does not take fails somewhere inside transformers
            first = first or f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if reasons:
        raise Refused(max(reasons, key=reasons.count))
    raise Refused(f"no format of pictures fits ({first})")


def main(arguments: Sequence[str] | None = None) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    parser = argparse.ArgumentParser(prog="python -m lib.engine.survey", description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types (default: all)")
    for model_type in parser.parse_args(arguments).types or NAMES:
        try:
            found = examine(model_type)[0]
            w, f = found.wiring, found.family
            print(model_type, "OK", found.grid.side, w.count, w.decoder, w.norm, w.encoder, w.scale, w.logit_scale,
                  w.cap, w.added, w.own_input, set(w.kinds), f.order, f.merge, f.packed, f.positions, f.bidirectional,
                  f.projector, f.inputs, flush=True)
        except Refused as refused:
            print(model_type, "REFUSED", refused, flush=True)
        except Exception as error:
            print(model_type, "NOT BUILT", type(error).__name__, str(error).strip()[:160].replace("\n", " "), flush=True)


if __name__ == "__main__":
    sys.exit(main())
