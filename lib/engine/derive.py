"""The record of a model family from the model itself: any image-text model of transformers (no record written by hand).

Everything is read from one or two forward passes of transformers' own model, watched with hooks: which layers carry
the residual stream, where the image tokens stand in it, in which order they lie on the picture, which of them are the
same for every picture, what each layer is given besides the residual stream. What cannot be read that way (the text
around a picture, options of the image processor) is taken from a written record or left at its default.

A model is refused, with the reason in one sentence, where its picture does not enter as tokens of the language model
that are places of a grid: cross-attention, a separate text decoder, a resampler.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lib.engine.families import Family
from lib.engine.observe import (
    Refused,
    Watched,
    accepts,
    feature_owner,
    features,
    image_token,
    inputs,
    named_arguments,
    plain_forward,
    watch,
)
from lib.engine.runs import hooks
from lib.stimuli.scenes import Grid

MOVED = 1e-6  # relative change of a vector from which it counts as changed


@dataclass(frozen=True)
class Wiring:
    """Facts of one model that a `Family` has no field for. Module paths are relative to the model itself.

    tokens: for each image token in raster order, its number among the image tokens of the prompt. count: image tokens
    of one picture in the prompt, constant ones (line breaks) included. scale, text_scale: slot 0 is this times the
    projector's output, and times the word vectors. logit_scale, cap: logits are cap * tanh(scale * head / cap). added:
    the first `added` layers add features of the picture to the image tokens of their output. own_input: name of the
    argument by which a layer gets an input of its own for every token, made from slot 0. prefix: text
    before and after the picture sees later text, so nothing can be reused between questions. kinds: of the language
    model's layers, where the configuration tells.
    """

    decoder: str
    layers: str
    norm: str | None
    tokens: tuple[int, ...]
    count: int
    encoder: str | None = None
    scale: float = 1.0
    text_scale: float = 1.0
    logit_scale: float = 1.0
    cap: float | None = None
    added: int = 0
    own_input: str | None = None
    prefix: bool = False
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Derived:
    """What was read from a model."""

    family: Family
    grid: Grid
    wiring: Wiring


# --- where things are ---------------------------------------------------------------------------------------


def called_lists(model, batch: dict, pick) -> list[tuple[str, torch.nn.ModuleList]]:
    """Module lists of two and more members that are called one after the other, each with a tensor that `pick` takes,
    in the order in which they are first called."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)]
    calls: list[tuple[str, int]] = []

    def hook(name, number):
        def before(module, args, kwargs):
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if tensors and pick(tensors[0]):
                calls.append((name, number))

        return before

    registered = [(m, "before", hook(name, i)) for name, part in lists for i, m in enumerate(part)]
    with hooks(*registered):
        plain_forward(model, batch)
    numbers: dict[str, list[int]] = {}
    for name, number in calls:
        numbers.setdefault(name, []).append(number)
    found = dict(lists)
    whole = {name: found[name] for name, seen in numbers.items() if seen == list(range(len(found[name])))}
    return [(name, part) for name, part in whole.items() if len(part) > 1]


def _outermost(found: list[tuple[str, torch.nn.ModuleList]]) -> list[tuple[str, torch.nn.ModuleList]]:
    return [x for x in found if not any(x[0].startswith(y[0] + ".") for y in found if y is not x)]


def find_decoder(model, batch: dict) -> tuple[str, torch.nn.ModuleList]:
    """The layers of the language model: those called with one vector per token of the prompt."""
    rows, length = batch["input_ids"].shape

    def of_prompt(x):
        return x.ndim == 3 and x.is_floating_point() and x.shape[:2] == (rows, length)

    found = _outermost(called_lists(model, batch, of_prompt))
    if not found:
        raise Refused("no list of layers carries one vector per token of the prompt")
    return found[-1]


def find_encoder(model, batch: dict, decoder: str) -> tuple[str, torch.nn.ModuleList] | None:
    """The layers of the image encoder, None where it is not a plain list of layers."""
    found = _outermost(called_lists(model, batch, lambda x: x.is_floating_point() and x.ndim in (2, 3)))
    names = [x for x in found if x[0] != decoder and not x[0].startswith(decoder.rsplit(".", 1)[0] + ".")]
    return max(names, key=lambda x: len(x[1])) if names else None


def find_norm(model, decoder: str, batch: dict, last: Tensor) -> str | None:
    """The module that reads the output of the last layer (the final norm), by path; None where there is none."""
    found = []

    def hook(name):
        def before(module, args, kwargs):
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if tensors and tensors[0].shape == last.shape and torch.equal(tensors[0], last):
                found.append(name)

        return before

    head = output_head(model)
    leaves = [(n, m) for n, m in model.named_modules() if not n.startswith(decoder) and m is not head and n]
    with hooks(*((m, "before", hook(n)) for n, m in leaves)):
        plain_forward(model, batch)
    return found[0] if found else None


# --- the derivation -----------------------------------------------------------------------------------------


@dataclass
class Trial:
    """A model with what turns pictures into its arguments, and a prompt to try it with.

    pixels: function from pictures to the arguments of the forward pass by name; side: pixels of a square picture.
    """

    model: torch.nn.Module
    pixels: object
    canvas: int

    def __post_init__(self):
        self.image_id = image_token(self.model.config)
        rng = np.random.default_rng(0)
        shape = (2, self.canvas, self.canvas, 3)
        self.pictures = [Image.fromarray(x) for x in rng.integers(0, 256, shape, dtype=np.uint8)]

    def more_pictures(self, count: int = 2) -> Iterator[Image.Image]:
        """Plain grey, and more noise."""
        yield Image.new("RGB", (self.canvas,) * 2, (128, 128, 128))
        shape = (count, self.canvas, self.canvas, 3)
        yield from (Image.fromarray(x) for x in np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))

    def features(self, pictures) -> tuple[Tensor, list[Tensor]]:
        return features(self.model, self.pixels(pictures), len(pictures))

    def batch(self, count: int, pictures) -> dict:
        """A prompt of 5 words, `count` image tokens, 7 words, with one picture per row."""
        size = self.model.get_input_embeddings().weight.shape[0]
        words = [i for i in range(3, min(size, 60)) if i != self.image_id]
        row = words[:5] + [self.image_id] * count + words[5:12]
        ids = torch.tensor([row] * len(pictures))
        return inputs(self.model, ids, torch.ones_like(ids), self.image_id, self.pixels(pictures))


def refusal(model) -> str | None:
    """Why the architecture alone rules a model out, None where it does not."""
    config = model.config
    text = getattr(config, "text_config", config)
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        return "encoder-decoder: the text is written by a decoder of its own that reads the picture by cross-attention"
    names = {type(module).__name__ for module in model.modules()}
    if any("CrossAttention" in name and "QFormer" not in name for name in names) and hasattr(
        text, "cross_attention_layers"
    ):
        return "cross-attention: the language model reads the picture in layers of its own, not as tokens"
    return None


def derive(model, pixels, canvas: int, name: str | None = None, processor: str | None = None) -> Derived:
    """Family, grid and wiring of a loaded model.

    pixels: function from square pictures of `canvas` pixels to the image arguments of the model's forward pass.
    Raises `Refused` with the reason.
    """
    model.eval()
    reason = refusal(model)
    if reason:
        raise Refused(reason)
    trial = Trial(model, pixels, canvas)
    tokens, added = trial.features(trial.pictures)
    count = tokens.shape[1]
    order, side = token_order(trial, tokens)
    batch = trial.batch(count, trial.pictures)
    decoder, layers = find_decoder(model, batch)
    seen = watch(model, layers, batch)
    image = batch["input_ids"][0] == trial.image_id
    scale = slot_scale(seen.hidden[0][:, image], tokens, "the projector's output")
    words = model.get_input_embeddings()(batch["input_ids"][:, ~image])
    text_scale = slot_scale(seen.hidden[0][:, ~image], words, "the word vectors")
    norm = find_norm(model, decoder, batch, seen.output[-1])
    logit_scale, cap = head_facts(model, norm, seen)
    roads = other_roads(trial, layers, seen, added, image)
    encoder = find_encoder(model, batch, decoder)
    kinds = tuple(getattr(getattr(model.config, "text_config", model.config), "layer_types", None) or ())
    wiring = Wiring(
        decoder=decoder.rsplit(".", 1)[0],
        layers=decoder,
        norm=norm,
        tokens=order,
        count=count,
        encoder=encoder[0] if encoder else None,
        scale=scale,
        text_scale=text_scale,
        logit_scale=logit_scale,
        cap=cap,
        prefix=sees_ahead(trial, layers, count, -2, -3),
        kinds=kinds,
        **roads,
    )
    grid = square_grid(name or model.config.model_type, side, canvas)
    return Derived(family_record(trial, wiring, grid, name, processor, seen), grid, wiring)


def square_grid(name: str, side: int, canvas: int) -> Grid:
    """A grid with room for a line of three entities."""
    entity = max(1, side // 6)
    gap = min(entity, (side - 3 * entity) // 2)
    return Grid(name, side, canvas // side, entity, gap, (side // 3, side - 2 * (side // 3), side // 3))


def token_order(trial: Trial, tokens: Tensor) -> tuple[tuple[int, ...], int]:
    """(number of the image token at each place of the picture in raster order, places per side).

    Tokens that are equal for two pictures are constants. Of the others, the one that moves most when the pixels of
    one place change stands for that place.
    """
    moving = ((tokens[0] - tokens[1]).abs().amax(-1) > MOVED * tokens.abs().max()).nonzero()[:, 0]
    side = math.isqrt(len(moving))
    if len(moving) > 8 and len(moving) == 2 * math.isqrt(len(moving) // 2) ** 2:
        raise Refused("tiles: the picture is shown twice (whole and as a tile), a place has two image tokens")
    if side < 3 or side * side != len(moving):
        raise Refused(f"resampler or tiles: {len(moving)} image tokens of a square picture are not a square grid")
    if trial.canvas % side:
        raise Refused(f"sizes: {side} x {side} image tokens do not divide a picture of {trial.canvas} pixels")
    evidence = torch.zeros(side * side, side * side)
    for base in (*trial.pictures, *trial.more_pictures()):  # one picture tells, as a rule
        start, changed = trial.features([base])[0][0], list(changes(base, side))
        chunks = [trial.features(changed[i : i + 24])[0] for i in range(0, len(changed), 24)]
        moved = (torch.cat(chunks) - start)[:, moving].norm(dim=-1)
        evidence += (moved / moved.mean(0, keepdim=True).clamp(min=1e-12)).clamp(min=1e-12).log()
        found, clear = assignment(evidence)
        if clear:
            return tuple(moving[found].tolist()), side
    raise Refused("resampler: image tokens do not stand for places, a change in one place moves all of them alike")


def changes(base: Image.Image, side: int) -> Iterator[Image.Image]:
    """A picture with the pixels of one place inverted, for each of side x side places in raster order."""
    step = base.size[0] // side
    for place in range(side * side):
        row, column = divmod(place, side)
        pixels = np.asarray(base).copy()
        where = pixels[row * step : (row + 1) * step, column * step : (column + 1) * step]
        where[:] = 255 - where
        yield Image.fromarray(pixels)


def assignment(evidence: Tensor) -> tuple[Tensor, bool]:
    """Which token stands for which place, and whether that is clear: at almost every place the token assigned to it
    moves most. evidence [place, token]: logarithm of how far the token moves with the place, relative to its mean."""
    _, chosen = linear_sum_assignment(-evidence.double().numpy())
    chosen = torch.tensor(chosen)
    return chosen, bool((evidence.argmax(1) == chosen).float().mean() > 0.9)


def slot_scale(slot: Tensor, tokens: Tensor, what: str) -> float:
    """The factor between what goes into the language model and slot 0."""
    if slot.shape != tokens.shape:
        raise Refused(f"sizes: slot 0 holds {tuple(slot.shape)}, {what} {tuple(tokens.shape)}")
    slot, tokens = slot.detach(), tokens.detach()
    scale = float((slot * tokens).sum() / (tokens * tokens).sum())
    if (slot - scale * tokens).abs().max() > 1e-4 * slot.abs().max():
        raise Refused(f"slot 0 is not {what}: something is added or normalised before the first layer")
    return 1.0 if abs(scale - 1) < 1e-6 else scale


def output_head(model) -> torch.nn.Module:
    """The output embedding."""
    head = model.get_output_embeddings()
    named = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] == "lm_head"]
    if head is None and not named:
        raise Refused("no output embedding turns the last layer into logits")
    return head if head is not None else named[0]


def head_facts(model, norm: str | None, seen: Watched) -> tuple[float, float | None]:
    """Scale and soft cap of the logits, from the configuration and checked against the forward pass."""
    head = output_head(model)
    last = model.get_submodule(norm)(seen.output[-1]) if norm else seen.output[-1]
    raw = head(last)
    text = getattr(model.config, "text_config", model.config)
    cap = getattr(text, "final_logit_softcapping", None)
    scaled = torch.atanh((seen.logits / cap).double().clamp(-1 + 1e-12, 1 - 1e-12)) * cap if cap else seen.logits
    scale = float((scaled * raw).sum() / (raw * raw).sum())
    again = scale * raw
    again = cap * torch.tanh(again / cap) if cap else again
    if again.shape != seen.logits.shape or (again - seen.logits).abs().max() > 1e-3 * seen.logits.abs().max():
        raise Refused("the logits are not final norm and output embedding of the last layer's output")
    return (1.0 if abs(scale - 1) < 1e-5 else scale), cap


def other_roads(trial: Trial, layers, seen: Watched, added: list[Tensor], image: Tensor) -> dict:
    """Ways besides slot 0 by which the picture reaches the language model.

    Features added between layers must be those that get_image_features hands out; an input of each layer's own must be
    one that the decoder makes from slot 0.
    """
    gaps = [seen.hidden[i + 1] - seen.output[i] for i in range(len(layers) - 1)]
    used = [i for i, gap in enumerate(gaps) if gap.abs().max() > 1e-5 * seen.output[i].abs().max()]
    if used:
        usable = used == list(range(len(used))) and len(used) <= len(added)
        if not usable or any((gaps[i][:, image] - added[i]).abs().max() > 1e-3 * added[i].abs().max() for i in used):
            raise Refused(
                f"the picture enters again after layers {used}: a patch of slot 0 is not the whole picture, and "
                "get_image_features does not hand out what is added"
            )
    own = sorted(
        key
        for key, value in seen.given[0].items()
        if isinstance(value, Tensor) and value.ndim >= 3 and value.shape[0] == 2 and value.is_floating_point()
        and "mask" not in key and (value[0] - value[1]).abs().max() > 0
    )  # fmt: skip
    if own and own != ["per_layer_input"]:
        raise Refused(f"every layer is given more that depends on the picture ({', '.join(own)})")
    return {"added": len(used), "own_input": own[0] if own else None}


def family_record(trial: Trial, wiring: Wiring, grid: Grid, name, processor, seen: Watched) -> Family:
    """The facts that written records state, as far as they can be read from the model."""
    model, config = trial.model, trial.model.config
    base = getattr(model, "model", model)
    prefix = "model." if base is not model else ""
    vision = getattr(getattr(config, "vision_config", None), "model_type", None)
    merge, order, packed = encoder_facts(trial, wiring, grid)
    function = feature_owner(model).get_image_features
    taken = [key for key in trial.pixels(trial.pictures) if accepts(function, key)]
    positions = seen.given[0].get("position_ids")
    mrope = hasattr(base, "get_rope_index") or (positions is not None and positions.ndim == 3)
    layers = model.get_submodule(wiring.layers)
    image = [5 + wiring.tokens[0], 5 + wiring.tokens[-1]]  # after the 5 words of the trial prompt
    trailing = wiring.count - 1 - max(wiring.tokens)
    return Family(
        name or config.model_type,
        config.model_type,
        grid,
        vision=vision,
        language=wiring.decoder.removeprefix(prefix),
        encoder=(wiring.encoder or "").removeprefix(prefix),
        projector=projector_path(trial, wiring.tokens, prefix),
        merge=merge,
        order=order,
        packed=packed,
        extra=trailing,
        positions="mrope" if mrope else "1d",
        bidirectional=not wiring.prefix and sees_ahead(trial, layers, wiring.count, image[-1], image[0]),
        processor=processor or "",
        inputs=tuple(taken),
    )


def sees_ahead(trial: Trial, layers: torch.nn.ModuleList, count: int, changed: int, read: int) -> bool:
    """Whether the output of token `read` depends on token `changed`, by number in the trial prompt (measured)."""
    batch = trial.batch(count, trial.pictures[:1])

    def change(module, args, kwargs):
        hidden, given = named_arguments(module, args, kwargs)
        hidden = hidden.clone()
        hidden[:, changed] = hidden[:, changed].flip(-1)
        return (hidden,), given

    plain = watch(trial.model, layers, batch).output[-1]
    with hooks((layers[0], "before", change)):
        other = watch(trial.model, layers, batch).output[-1]
    return bool((plain - other)[0, read].abs().max() > MOVED * plain.abs().max())


def projector_path(trial: Trial, order: tuple[int, ...], prefix: str) -> str:
    """The module whose output is the projector's output, in whatever order; empty where no module gives it."""
    found: list[str] = []
    tokens = trial.features(trial.pictures)[0][:, list(order)]
    width, wanted = tokens.shape[-1], tokens.reshape(-1, tokens.shape[-1]).double().sum(-1)  # a sum tells a vector

    def hook(name):
        def after(module, args, output):
            if isinstance(output, Tensor) and output.shape[-1] == width:
                if torch.isin(wanted, output.reshape(-1, width).double().sum(-1)).all():
                    found.append(name)

        return after

    owner = feature_owner(trial.model)
    with hooks(*((m, "after", hook(n)) for n, m in owner.named_modules() if n)):
        trial.features(trial.pictures)
    return min(found, key=lambda n: n.count(".")) if found else ""


def encoder_facts(trial: Trial, wiring: Wiring, grid: Grid) -> tuple[int, str, bool]:
    """(patches per image token and side, order of the encoder's patches, whether pictures form one sequence)."""
    if wiring.encoder is None:
        return 1, "raster", False
    layers = trial.model.get_submodule(wiring.encoder)

    def first(pictures):
        seen: list[Tensor] = []

        def before(module, args, kwargs):
            seen.append(named_arguments(module, args, kwargs)[0])

        with hooks((layers[0], "before", before)):
            trial.features(pictures)
        return seen[0]

    one, two = first(trial.pictures[:1]), first(trial.pictures)
    packed = one.shape[:-1].numel() * 2 == two.shape[:-1].numel() and (one.ndim == 2 or two.shape[0] == 1)
    one = one.reshape(-1, one.shape[-1])
    extra = len(one) % (grid.side**2)
    merge = math.isqrt(len(one) // grid.side**2)
    if merge * merge * grid.side**2 + extra != len(one) or merge == 0:
        return 1, "unknown", packed
    return merge, _named_order(trial, first, one, grid, merge, extra), packed


def _named_order(trial: Trial, first, one: Tensor, grid: Grid, merge: int, extra: int) -> str:
    """The order in which the encoder holds its patches, by the name `Family.order` uses for it."""
    from lib.engine.vlm import _patch_order

    side = grid.side * merge
    places = changes(trial.pictures[0], side)
    moved = torch.stack([first([changed]).reshape(one.shape) - one for changed in places])
    raster = moved.norm(dim=-1).argmax(1)
    if extra == 1 and torch.equal(raster, torch.arange(side * side) + 1):
        return "class"
    if extra:
        return "unknown"
    for name in ("raster", "blocks"):
        if torch.equal(torch.argsort(_patch_order(name, grid.side, merge, None)), raster):
            return name
    window = getattr(trial.model.config.vision_config, "window_size", None)
    if window:
        patch = trial.model.config.vision_config.patch_size
        order = _patch_order("windows", grid.side, merge, window // patch // merge)
        if torch.equal(torch.argsort(order), raster):
            return "windows"
    return "unknown"
