"""The last-token sweep with nnsight and with the engine: the same model, pairs and slots, one process.

    pip install nnsight    (for this comparison only)
    python -m benchmarks.against_nnsight --pairs 5    on the embedded model `reference`

nnsight is used as its users would, by its class for vision models (`TransformersModel` with the task
image-text-to-text): one trace saves the counterfactual's last token at every slot, one trace per slot writes it into
the clean run. Writes runs/by-hand/benchmarks/nnsight.csv.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from transformers import LlavaProcessor

from benchmarks import models
from benchmarks.sweeps import LastToken, timed
from lib import places
from lib.artifact import storage
from lib.engine import oracle
from lib.engine.vlm import VLM
from lib.errors import UserError, cli
from lib.stimuli.pairs import last_token_pairs


def wrapped_model(vlm: VLM):
    """nnsight's model around the same weights; its pipeline asks for a processor, the traces are given ready inputs."""
    import nnsight

    image = vlm.tokenizer.convert_ids_to_tokens(vlm.language.image_id)
    words, patch = vlm.tokenizer, vlm.config.vision_config.patch_size
    processor = LlavaProcessor(image_processor=vlm.processor, tokenizer=words, patch_size=patch, image_token=image)
    return nnsight.TransformersModel(vlm.model, task="image-text-to-text", processor=processor)


def nnsight_sweep(wrapped, sweep: LastToken, k: int) -> np.ndarray:
    """[slot, role] for pair k."""
    vlm = sweep.vlm
    clean, other = (sweep.inputs(k, side) for side in ("clean", "counterfactual"))
    layers = wrapped.model
    for name in vlm.family.language.split("."):
        layers = getattr(layers, name)
    layers = layers.layers
    states = []
    with torch.no_grad(), wrapped.trace(**other, use_cache=False):
        for layer in layers:
            states.append(layer.input[:, -1].save())
        states.append(layers[-1].output[:, -1].save())
    out = []
    for slot in vlm.slots:
        source = states[slot]
        with torch.no_grad(), wrapped.trace(**clean, use_cache=False):
            if slot < len(vlm.layers):
                layers[slot].input[:, -1] = source
            else:
                layers[-1].output[:, -1] = source
            logits = wrapped.output.logits[:, -1].save()
        out.append(oracle.probabilities(logits.float(), sweep.ids[[k]].to(logits.device))[0])
    return torch.stack(out).cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs per direction")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    try:
        import nnsight
    except ImportError as error:
        raise UserError("nnsight is not installed: pip install nnsight") from error
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    vlm = models.build("reference", None, None, options.device, dtype)
    sweep = LastToken(vlm, last_token_pairs("squares", vlm.grid, options.pairs))
    wrapped = wrapped_model(vlm)
    nnsight_sweep(wrapped, sweep, 0), sweep.fast()  # warm up
    theirs_seconds, theirs = timed(
        lambda: [nnsight_sweep(wrapped, sweep, k) for k in range(len(sweep.pairs))], options.device
    )
    ours_seconds, ours = timed(sweep.fast, options.device)
    row = {
        "model": "reference",
        "pairs": len(sweep.pairs),
        "slots": len(vlm.slots),
        "nnsight_version": nnsight.__version__,
        "nnsight_seconds": theirs_seconds,
        "fast_seconds": ours_seconds,
        "ratio": theirs_seconds / ours_seconds,
        "max_abs_difference": float(np.abs(ours - np.stack(theirs)).max()),
    }
    print(pd.DataFrame([row]).to_string(index=False))
    path = places.outputs("benchmarks") / "nnsight.csv"
    storage.write_csv(pd.DataFrame([row]), path, storage.provenance("reference", 0, pairs=options.pairs))


if __name__ == "__main__":
    with cli():
        main()
