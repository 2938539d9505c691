"""Which image-text models of transformers the adapter can use: `python -m lib.engine.survey` writes docs/MODELS.md.

Every model type that transformers maps to image-text-to-text is built small with random weights from its own
configuration classes, its record is derived (`lib.engine.derive`) and its certificate written
(`lib.engine.certificate`). Random weights prove that reading and writing the residual stream is exact; what a trained
checkpoint answers is another question, and its own certificate is made when it is loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch

from lib.engine.derive import Derived, Refused, derive
from lib.engine.small_models import CANVAS, build, fitted, formats


def examine(model_type: str) -> tuple[Derived, torch.nn.Module, Callable]:
    """The derived record of a small model of a type; Refused with the reason."""
    model = build(model_type)
    reasons, errors = [], []
    for make in formats(model.config):
        try:
            pixels = fitted(make, model)
            return derive(model, pixels, CANVAS), model, pixels
        except Refused as refused:
            reasons.append(str(refused))
        except Exception as error:  # a format that the model does not take fails somewhere inside transformers
            errors.append(f"{make.__name__} {type(error).__name__}: {(str(error) or ' ').splitlines()[0]}")
    if reasons:
        raise Refused(max(reasons, key=reasons.count))
    raise Refused("no format of pictures fits: " + "; ".join(dict.fromkeys(errors)))


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
            text = str(error).strip()[:160].replace("\n", " ")
            print(model_type, "NOT BUILT", type(error).__name__, text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
