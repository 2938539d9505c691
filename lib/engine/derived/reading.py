"""The adapter for a checkpoint whose family has no written record, from the checkpoint as it was read.

The record is derived from the model (`lib.engine.derived.derive`). What the model does not contain is found here: how
its image processor is called so that nothing is resized or cut into tiles, which picture size to use, and which text a
prompt has for a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from lib.engine.derived.adapter import DerivedVLM
from lib.engine.derived.derive import Derived, derive
from lib.engine.derived.observe import Refused, accepts, image_token
from lib.engine.families import Family
from lib.engine.loading import Checkpoint
from lib.engine.prompts import chat
from lib.errors import UserError
from lib.stimuli.grids import Grid

CHANGES = ("do_resize", "do_center_crop", "do_pan_and_scan", "crop_to_patches", "do_image_splitting")  # turned off
SIDE = 12  # image tokens per side for encoders that take pictures of any size
LARGEST = 32  # image tokens per side up to which a model's own picture size is taken
# Names by which configurations give the tokens that open and close a picture
DELIMITERS = (("boi_token_id", "eoi_token_id"), ("image_start_token_id", "image_end_token_id"))
PLACEHOLDERS = ("<image>", "<|image|>", "[IMG]")  # what chat templates write where a picture goes


def derived(found: Checkpoint, grid: Grid | None = None) -> DerivedVLM:
    """The adapter for a checkpoint that no written record fits; UserError with the reason where it cannot be used."""
    sizes = [grid.canvas] if grid else canvases(found.model.config)
    forms = ((pixels, size) for size in sizes for pixels in calls(found.processor, found.model))
    try:
        facts, pixels = first_that_fits(found.model, forms, type(found.processor).__name__)
    except Refused as reason:
        kind = found.model.config.model_type
        raise UserError(
            f"{found.name}: no record is written for {kind!r} models, and none can be derived: {reason}; "
            "see 'Add your model' in lib/engine/families.py."
        ) from reason
    family = with_text(facts.family, found)
    if grid:
        facts = replace(facts, grid=replace(grid, side=facts.grid.side, pixels=facts.grid.pixels))
    facts = replace(facts, family=family)
    return DerivedVLM(found.model, found.tokenizer, pixels, facts, found.name, found.template)


def first_that_fits(model, forms: Iterable[tuple[Callable, int]], processor: str = "") -> tuple[Derived, Callable]:
    """The record by the first form of pictures that the model takes, and that form; Refused with the reason.

    forms: functions from pictures to arguments of the forward pass, each with the side of the picture in pixels.
    """
    reasons, errors = [], []
    for pixels, side in forms:
        try:
            return derive(model, pixels, side, processor=processor), pixels
        except Refused as refused:
            reasons.append(str(refused))
        except Exception as error:  # a form that the model does not take fails somewhere inside transformers
            errors.append(f"{type(error).__name__}: {(str(error) or ' ').splitlines()[0]}")
    if reasons:
        raise Refused(max(reasons, key=reasons.count))
    raise Refused(f"none of {len(errors)} forms of pictures fits, most often for {max(errors, key=errors.count)}")


def calls(processor, model) -> Iterator[Callable]:
    """The two ways to call an image processor: pictures in one list, or one list for every prompt."""
    options = {name: False for name in CHANGES if hasattr(processor, name)}

    def call(nested: bool) -> Callable:
        def pixels(pictures) -> dict:
            images = [[picture] for picture in pictures] if nested else list(pictures)
            out = processor(images=images, return_tensors="pt", **options)
            return {key: value for key, value in out.items() if accepts(model.forward, key)}

        return pixels

    yield from (call(nested=False), call(nested=True))


def canvases(config) -> list[int]:
    """Sides of square pictures to try, in pixels: the model's own where that is not too large, and 12 x 12 tokens."""
    vision = getattr(config, "vision_config", config)
    single = lambda value: value[0] if isinstance(value, (list, tuple)) else value  # noqa: E731
    patch = single(getattr(vision, "patch_size", None)) or 14
    merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "spatial_merge_size", None) or 1
    sizes = [patch * merge * SIDE, patch * merge * 2 * SIDE]
    own = single(getattr(vision, "image_size", None))
    if not isinstance(own, int):
        return sizes
    own -= own % patch
    return [own, *sizes] if own // (patch * merge) <= LARGEST else [*sizes, own]


def with_text(family: Family, found: Checkpoint) -> Family:
    """The record with the placeholder that the chat template writes for a picture, and with the configuration's
    delimiters (tokens that open and close a picture) where the template does not write them itself."""
    token = found.tokenizer.convert_ids_to_tokens(image_token(found.model.config))
    delimiters = [
        [found.tokenizer.convert_ids_to_tokens(getattr(found.model.config, key)) for key in pair]
        for pair in DELIMITERS
        if all(isinstance(getattr(found.model.config, key, None), int) for key in pair)
    ]
    for placeholder in dict.fromkeys((token, *(pair[0] for pair in delimiters), *PLACEHOLDERS)):
        try:
            text = chat(found.tokenizer, found.template, "question", None, 1, placeholder, found.name)
        except UserError:
            continue
        written = any(text.count(part) for pair in delimiters for part in pair if part != placeholder)
        before, after = ("", "") if written or not delimiters else delimiters[0]
        return replace(family, placeholder=placeholder, before=before, after=after)
    raise UserError(f"{found.name}: its chat template writes nothing for a picture that is known to stand for one.")
