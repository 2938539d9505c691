"""What is known about each model family, as data (floor 2, see lib/__init__.py; no torch, no transformers, because the
runner imports this, too).

A *family* is the set of checkpoints that transformers runs with one class and one way of placing image
tokens. The record says where the parts of the model are, how a picture becomes image tokens, and what stands
around them in the text. Token ids are never written here: they are read from the checkpoint's configuration
and tokenizer.

Add your model
--------------
A checkpoint without a record is tried with one that is derived from the model (lib/engine/derived), and proves itself
when it is first loaded; docs/CHECKPOINTS.md says for which model types that works. Where it does not, or where the
processor's text and options matter:

1. Write one `Family` record below: `architecture` is `model_type` in the checkpoint's config.json, `vision`
   that of its `vision_config`, needed only where several families share an architecture. Add its grid to `GRIDS`
   in lib/stimuli/grids.py: `side` tokens of `pixels` pixels. A picture must have exactly side * pixels pixels per
   side, so that no resizing shifts objects across the borders of tokens.
2. Add a tiny random model of it to `tests/tiny.py`, a branch in `lib/engine/oracle.py` if its forward pass wants
   inputs of its own, and run `pytest tests/test_contracts.py -k <name>`. When all its contracts hold,
   everything else works with the new family.
3. Give the checkpoint a short name in `CHECKPOINTS`, or load it by its hub id or its folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType

from lib.errors import UserError
from lib.stimuli.grids import GRIDS, Grid


@dataclass(frozen=True)
class Family:
    """The facts of one family. Module paths are relative to `model.model` of the transformers class."""

    name: str
    architecture: str
    grid: Grid
    vision: str | None = None
    language: str = "language_model"  # the text model: has .layers and .norm
    encoder: str = "vision_tower.encoder.layers"  # the list of image-encoder layers
    projector: str = "multi_modal_projector"
    merge: int = 1  # encoder patches per image token, along one side
    patch_order: str = (
        "raster"  # order of the encoder's patches: raster, class (a class token first), blocks or windows
    )
    packed: bool = False  # True: the encoder sees all pictures as one long sequence
    pictures_per_call: int = (
        64  # pictures per call of the encoder (Pixtral's mask grows with the square of the sequence)
    )
    placeholder: str | None = None  # what the chat template writes for a picture; None: the image token itself
    before: str = ""  # text between placeholder and image tokens, as the family's processor writes it
    after: str = ""
    row_break: str = ""  # written after every row of image tokens but the last ...
    last_break: str = ""  # ... and after the last
    tokens_after_grid: int = 0  # image tokens after the grid (LLaVA-OneVision: one line break)
    positions: str = "1d"  # "mrope": three rotary positions per token, from the model's get_rope_index
    bidirectional: bool = False  # image tokens of one picture see each other (needs token_type_ids)
    processor: str = "SiglipImageProcessorPil"  # image-processor class that its checkpoints name
    options: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))  # call options of the processor
    inputs: tuple[str, ...] = ("pixel_values",)  # what get_image_features takes from the processor's output
    side_form: str = "reference_point"  # the form in which the paper asks it COCO-spatial questions


def _options(**options) -> MappingProxyType:
    return MappingProxyType({"do_resize": False, **options})


_QWEN = dict(
    grid=GRIDS["qwen2-vl"],
    encoder="visual.blocks",
    projector="visual.merger",
    merge=2,
    packed=True,
    positions="mrope",
    processor="Qwen2VLImageProcessorPil",
    options=_options(),
    inputs=("pixel_values", "image_grid_thw"),
)
_SMOLVLM = dict(
    grid=GRIDS["smolvlm"],
    language="text_model",
    encoder="vision_model.encoder.layers",
    projector="connector",
    merge=3,
    before="<fake_token_around_image><global-img>",
    after="<fake_token_around_image>",
    inputs=("pixel_values", "pixel_attention_mask"),
)

FAMILIES: tuple[Family, ...] = (
    Family("qwen2-vl", "qwen2_vl", patch_order="blocks", **_QWEN),
    Family("qwen2.5-vl", "qwen2_5_vl", patch_order="windows", **_QWEN),
    Family(
        "gemma-3",
        "gemma3",
        GRIDS["gemma-3"],
        merge=4,
        placeholder="<start_of_image>",
        before="\n\n<start_of_image>",
        after="<end_of_image>\n\n",
        bidirectional=True,
        processor="Gemma3ImageProcessorPil",
        side_form="is_the",
        options=_options(do_pan_and_scan=False),
    ),
    Family(
        "pixtral",
        "llava",
        GRIDS["pixtral"],
        vision="pixtral",
        encoder="vision_tower.transformer.layers",
        packed=True,
        pictures_per_call=4,
        row_break="[IMG_BREAK]",
        last_break="[IMG_END]",
        processor="PixtralImageProcessorPil",
        options=_options(),
        inputs=("pixel_values", "image_sizes"),
    ),
    Family(
        "llava-1.5",
        "llava",
        GRIDS["llava-1.5"],
        vision="clip_vision_model",
        patch_order="class",
        processor="CLIPImageProcessorPil",
        options=_options(do_center_crop=False),
    ),
    Family(
        "reference",
        "llava",
        GRIDS["reference"],
        vision="siglip_vision_model",
        processor="SiglipImageProcessorPil",
        options=_options(),
    ),
    Family(
        "llava-onevision",
        "llava_onevision",
        GRIDS["llava-onevision"],
        tokens_after_grid=1,
        processor="LlavaOnevisionImageProcessorPil",
        options=_options(),
        inputs=("pixel_values", "image_sizes"),
    ),
    Family(
        "internvl3",
        "internvl",
        GRIDS["internvl3"],
        encoder="vision_tower.encoder.layer",
        merge=2,
        patch_order="class",
        before="<img>",
        after="</img>",
        processor="GotOcr2ImageProcessorPil",
        options=_options(crop_to_patches=False),
    ),
    Family(
        "smolvlm",
        "smolvlm",
        processor="SmolVLMImageProcessorPil",
        options=_options(do_image_splitting=False),
        **_SMOLVLM,
    ),
    Family(
        "idefics3",
        "idefics3",
        processor="Idefics3ImageProcessorPil",
        options=_options(do_image_splitting=False),
        **_SMOLVLM,
    ),
)

# Short names of checkpoints on the hub; the embedded models (reference, joint, ...) are found in data/models.
CHECKPOINTS = {
    "qwen2-vl-2b": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2-vl-7b": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "gemma-3-4b": "google/gemma-3-4b-it",
    "pixtral-12b": "mistral-community/pixtral-12b",
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-onevision-0.5b": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "llava-onevision-7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "internvl3-1b": "OpenGVLab/InternVL3-1B-hf",
    "internvl3-2b": "OpenGVLab/InternVL3-2B-hf",
    "smolvlm": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
}


def family(name: str) -> Family:
    """The record of a family by its name."""
    for record in FAMILIES:
        if record.name == name:
            return record
    raise UserError(f"Unknown family {name!r}; known are {', '.join(record.name for record in FAMILIES)}.")


def written(architecture: str, vision: str | None) -> Family | None:
    """The record for a configuration, its `model_type` and that of its `vision_config`; None where there is none."""
    for record in FAMILIES:
        if record.architecture == architecture and record.vision in (None, vision):
            return record
    return None
