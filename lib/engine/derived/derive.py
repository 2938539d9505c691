"""The record of a model family from the model itself: any image-text model of transformers (no record written by hand).

Everything is read from one or two forward passes of transformers' own model, watched with hooks: which layers carry
the residual stream, where the image tokens stand in it, in which order they lie on the picture, which of them are the
same for every picture, what each layer is given besides the residual stream. What cannot be read that way (the text
around a picture, options of the image processor) is taken from a written record or left at its default.

A model is refused, with the reason in one sentence, where its picture does not enter as tokens of the language model
that are places of a grid: cross-attention, a separate text decoder, a resampler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.engine.derived.evidence import Trial, encoder_facts, projector_path, sees_ahead, token_order
from lib.engine.derived.observe import Refused, Watched, accepts, feature_owner, plain_forward, watch
from lib.engine.families import Family
from lib.engine.hooks import hooks
from lib.stimuli.grids import Grid, square_grid


@dataclass(frozen=True)
class Wiring:
    """Facts of one model that a `Family` has no field for. Module paths are relative to the model itself.

    tokens: for each image token in raster order, its number among the image tokens of the prompt. count: image tokens
    of one picture in the prompt, constant ones (line breaks) included. scale, text_scale: slot 0 is this times the
    projector's output, and times the word vectors. logit_scale, cap: logits are cap * tanh(scale * head / cap). added:
    the first `added` layers add features of the picture to the image tokens of their output. own_input: name of the
    argument by which a layer gets an input of its own for every token, made from slot 0. prefix: text
    before and after the picture sees later text, so nothing can be reused between questions. kinds: of the language
    model's layers, where the configuration names them.
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


def derive(model, pixels, canvas: int, processor: str = "") -> Derived:
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
    later = later_inputs(trial, layers, seen, added, image)
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
        **later,
    )
    grid = square_grid(model.config.model_type, side, canvas // side)
    return Derived(family_record(trial, wiring, grid, processor, seen), grid, wiring)


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


@torch.no_grad()
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


def later_inputs(trial: Trial, layers, seen: Watched, added: list[Tensor], image: Tensor) -> dict:
    """How the picture enters the language model in later layers, besides slot 0.

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


def family_record(trial: Trial, wiring: Wiring, grid: Grid, processor: str, seen: Watched) -> Family:
    """The facts that written records state, as far as they can be read from the model."""
    model, config = trial.model, trial.model.config
    base = getattr(model, "model", model)
    prefix = "model." if base is not model else ""
    vision = getattr(getattr(config, "vision_config", None), "model_type", None)
    merge, order, packed = encoder_facts(trial, wiring.encoder, grid.side)
    function = feature_owner(model).get_image_features
    taken = [key for key in trial.pixels(trial.pictures) if accepts(function, key)]
    positions = seen.given[0].get("position_ids")
    mrope = hasattr(base, "get_rope_index") or (positions is not None and positions.ndim == 3)
    layers = model.get_submodule(wiring.layers)
    image = [5 + wiring.tokens[0], 5 + wiring.tokens[-1]]  # after the 5 words of the trial prompt
    trailing = wiring.count - 1 - max(wiring.tokens)
    return Family(
        config.model_type,
        config.model_type,
        grid,
        vision=vision,
        language=wiring.decoder.removeprefix(prefix),
        encoder=(wiring.encoder or "").removeprefix(prefix),
        projector=projector_path(trial, wiring.tokens, prefix),
        merge=merge,
        patch_order=order,
        packed=packed,
        tokens_after_grid=trailing,
        positions="mrope" if mrope else "1d",
        bidirectional=not wiring.prefix and sees_ahead(trial, layers, wiring.count, image[-1], image[0]),
        processor=processor,
        inputs=tuple(taken),
    )
