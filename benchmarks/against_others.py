"""The last-token sweep with another library and with the engine: the same model, pairs and slots, one process.

    python -m benchmarks.against_others nnsight --pairs 5            pip install nnsight
    python -m benchmarks.against_others transformer_lens --pairs 1   pip install transformer-lens

For this comparison only: neither library is needed otherwise. Each is used as its users would, on the embedded model
`reference`: the counterfactual's last token is saved at every slot in one run, and written into the clean run slot by
slot. Writes runs/by-hand/benchmarks/<library>.csv.
"""

from __future__ import annotations

import argparse
import copy
import importlib
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import LlavaProcessor

from benchmarks import models
from benchmarks.sweeps import LastToken, timed
from lib import places
from lib.artifact import storage
from lib.engine import oracle
from lib.engine.vlm import VLM
from lib.errors import UserError, cli
from lib.stimuli.pairs import last_token_pairs

# inputs of both runs -> logits of the last token [1, vocabulary], slot by slot
Patched = Callable[[dict, dict], list[Tensor]]


def with_nnsight(vlm: VLM) -> Patched:
    """By its class for vision models (`TransformersModel`, task image-text-to-text): one trace, then one per slot.

    Its pipeline asks for a processor; the traces are given ready inputs.
    """
    import nnsight

    image = vlm.tokenizer.convert_ids_to_tokens(vlm.language.image_id)
    words, patch = vlm.tokenizer, vlm.config.vision_config.patch_size
    processor = LlavaProcessor(image_processor=vlm.processor, tokenizer=words, patch_size=patch, image_token=image)
    wrapped = nnsight.TransformersModel(vlm.model, task="image-text-to-text", processor=processor)
    layers = wrapped.model
    for name in vlm.family.language.split("."):
        layers = getattr(layers, name)
    layers = layers.layers

    def patched(clean: dict, other: dict) -> list[Tensor]:
        states, out = [], []
        with torch.no_grad(), wrapped.trace(**other, use_cache=False):
            for layer in layers:
                states.append(layer.input[:, -1].save())
            states.append(layers[-1].output[:, -1].save())
        for slot, source in enumerate(states):
            with torch.no_grad(), wrapped.trace(**clean, use_cache=False):
                if slot < len(vlm.layers):
                    layers[slot].input[:, -1] = source
                else:
                    layers[-1].output[:, -1] = source
                out.append(wrapped.output.logits[:, -1].save())
        return out

    return patched


def with_transformer_lens(vlm: VLM) -> Patched:
    """By its bridge for LLaVA, around a copy of the model, which it changes in place: one cached run, then one with a
    hook per slot.

    Built from the module and not by `boot_transformers`, which loads a processor and installs packages for it.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model, last = copy.deepcopy(vlm.model), len(vlm.layers) - 1
    words = copy.deepcopy(vlm.tokenizer)
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config, tokenizer=words)
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(last + 1)), f"blocks.{last}.hook_resid_post"]

    def patched(clean: dict, other: dict) -> list[Tensor]:
        def run(inputs: dict, call: Callable, **options):
            rest = {name: value for name, value in inputs.items() if name != "input_ids"}
            return call(inputs["input_ids"], **options, **rest)

        def put(source: Tensor) -> Callable:
            def hook(stream: Tensor, hook) -> Tensor:
                stream[:, -1] = source
                return stream

            return hook

        with torch.no_grad():
            _, cache = run(other, bridge.run_with_cache, names_filter=names)
            sources = [cache[name][:, -1] for name in names]
            hooks = [[(name, put(source))] for name, source in zip(names, sources, strict=True)]
            return [run(clean, bridge.run_with_hooks, fwd_hooks=each)[:, -1] for each in hooks]

    return patched


LIBRARIES = {"nnsight": with_nnsight, "transformer_lens": with_transformer_lens}


def pair_by_pair(sweep: LastToken, patched: Patched) -> np.ndarray:
    """Probabilities [pair, slot, role] by another library."""
    out = []
    for pair in range(len(sweep.pairs)):
        logits = torch.cat(patched(*(sweep.inputs(pair, side) for side in ("clean", "counterfactual")))).float()
        ids = sweep.ids[[pair]].expand(len(logits), -1, -1).to(logits.device)
        out.append(oracle.probabilities(logits, ids).cpu())
    return torch.stack(out).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--pairs", type=int, default=5, help="pairs per direction")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    name = options.library
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed: pip install {name.replace('_', '-')}") from error
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    vlm = models.build("reference", None, None, options.device, dtype)
    patched = LIBRARIES[name](vlm)
    warm = LastToken(vlm, last_token_pairs("squares", vlm.grid, 1))
    pair_by_pair(warm, patched), warm.fast()
    sweep = LastToken(vlm, last_token_pairs("squares", vlm.grid, options.pairs))
    other_seconds, other = timed(lambda: pair_by_pair(sweep, patched), options.device)
    fast_seconds, fast = timed(sweep.fast, options.device)
    row = {
        "model": "reference",
        "pairs": len(sweep.pairs),
        "slots": len(vlm.slots),
        "version": version(name),
        "other_seconds": other_seconds,
        "fast_seconds": fast_seconds,
        "ratio": other_seconds / fast_seconds,
        "max_abs_difference": float(np.abs(fast - other).max()),
    }
    print(pd.DataFrame([row]).to_string(index=False))
    path = places.outputs("benchmarks") / f"{name}.csv"
    storage.write_csv(pd.DataFrame([row]), path, storage.provenance("reference", 0, pairs=options.pairs))


if __name__ == "__main__":
    with cli():
        main()
