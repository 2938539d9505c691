"""Which image-text models of transformers the adapter can use: `python -m lib.engine.derived.survey` makes a table.

Every model type that transformers maps to image-text-to-text is built small with random weights from its own
configuration classes, its record is derived (`lib.engine.derived.derive`) and its certificate written
(`lib.engine.certificate`). Random weights prove that reading and writing the residual stream is exact; what a trained
checkpoint answers is another question, and its own certificate is made when it is loaded.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lib.engine.certificate import certificate
from lib.engine.derived.adapter import DerivedVLM
from lib.engine.derived.derive import Derived, derive
from lib.engine.derived.observe import Refused
from lib.engine.derived.small_models import CANVAS, NotBuilt, build, fitted, formats, tokenizer
from lib.files import write_bytes
from lib.places import ROOT

PAGE = ROOT / "docs" / "CHECKPOINTS.md"
SECONDS = 120  # for one model type
HEAD = """# Models of transformers

Made by `python -m lib.engine.derived.survey` with transformers {version}; not edited by hand. Every model type that
transformers maps to image-text-to-text ({total}) is built small, with random weights, from its own configuration
classes. Its record is derived from the model (`lib/engine/derived/derive.py`), and the six contracts of
`lib/engine/certificate.py` are tried: 1 logits equal transformers', 2 slot 0 holds the projector's output, 3 patching
identities, 4 fast runs equal plain ones, 5 batches and padding, 6 hooks.

**{passing} of the {built} types that can be built pass all six contracts without a record written by hand.** The
difference is the largest of the contracts, relative to the largest logit, in float32. *plain*: layers of this model
have a state instead of keys and values, or text sees later text, so every run is a whole forward pass. *patched
together*: the picture reaches the language model by more roads than slot 0, and the adapter's patches take all of
them.

Random weights show that reading and writing is exact, not what a trained checkpoint answers; whether image tokens
stand for places is measured, and may turn out differently on a trained encoder. A checkpoint gets a certificate of
its own (`certificate(vlm)`). What surrounds a picture in the text (`<vision_start>`, line breaks as ordinary tokens)
belongs to a processor, not to the model, and is not covered here.
"""
COLUMNS = "| type | image tokens | picture enters | positions | runs | largest difference | note |"


@dataclass(frozen=True)
class Row:
    """What was found about one model type. state: passes, fails, refused or not built."""

    model_type: str
    state: str
    cells: tuple[str, ...] = ("",) * 5
    note: str = ""

    def line(self) -> str:
        return "| " + " | ".join((f"`{self.model_type}`", *self.cells, self.note)) + " |"


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


def survey(model_type: str) -> Row:
    """Build, derive and certify one type."""
    try:
        found, model, pixels = examine(model_type)
    except Refused as refused:
        return Row(model_type, "refused", note=_one_line(refused))
    except (NotBuilt, ImportError) as error:
        return Row(model_type, "not built", note=_one_line(error))
    except Exception as error:  # its default configuration does not fit together at small sizes
        return Row(model_type, "not built", note=f"{type(error).__name__}: {_one_line(error)}")
    vlm = DerivedVLM(model, tokenizer(), pixels, found, model_type)
    table = certificate(vlm)
    wiring, family = found.wiring, found.family
    enters = "slot 0"
    if wiring.added:
        enters += f" and after layers 1 to {wiring.added}, patched together"
    if wiring.own_input:
        enters += " and an input of every layer's own, patched together"
    more = wiring.count - len(wiring.tokens)
    cells = (
        f"{found.grid.side} x {found.grid.side}" + (f" and {more} constant" if more else ""),
        enters,
        "three per token" if family.positions == "mrope" else "one per token",
        "fast" if vlm.language.plain_because is None else "plain",
        f"{table['difference'].max(skipna=False):.0e}",
    )
    notes = [] if wiring.encoder else ["the image encoder is no list of layers: no sweep inside it"]
    notes += ["image tokens see each other"] * family.bidirectional
    for _, row in table[~table["holds"]].iterrows():
        notes.append(f"contract {row['contract'][0]} fails ({row['reason'] or format(row['difference'], '.0e')})")
    notes += [vlm.language.plain_because] if vlm.language.plain_because else []
    return Row(model_type, "passes" if table["holds"].all() else "fails", cells, "; ".join(notes))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).replace("|", "/")
    return text if len(text) < 200 else text[:200] + " ..."


def page(rows: Sequence[Row]) -> str:
    """docs/CHECKPOINTS.md."""
    import transformers

    states = {
        state: [row for row in rows if row.state == state] for state in ("passes", "fails", "refused", "not built")
    }
    head = HEAD.format(
        version=transformers.__version__,
        total=len(rows),
        passing=len(states["passes"]),
        built=len(rows) - len(states["not built"]),
    )
    out = [head]
    titles = {"passes": "Pass", "fails": "Pass only in part", "refused": "Refused, with the reason"}
    for state, title in titles.items():
        out.append(f"## {title} ({len(states[state])})\n")
        if state == "refused":
            out += [f"- `{row.model_type}`: {row.note}" for row in states[state]] + [""]
        else:
            out += [COLUMNS, "|" + "---|" * 7, *(row.line() for row in states[state]), ""]
    out.append(f"## Not built at small sizes ({len(states['not built'])})\n")
    out += [f"- `{row.model_type}`: {row.note}" for row in states["not built"]]
    return "\n".join(out) + "\n"


def _too_long(*_):
    raise NotBuilt(f"took more than {SECONDS} seconds")


def main(arguments: Sequence[str] | None = None) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES
    from transformers.utils import logging

    parser = argparse.ArgumentParser(prog="python -m lib.engine.derived.survey", description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types (default: all, and docs/CHECKPOINTS.md is written)")
    chosen = parser.parse_args(arguments).types
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    rows = []
    for model_type in chosen or NAMES:
        signal.alarm(SECONDS)
        try:
            rows.append(survey(model_type))
        except NotBuilt as error:
            rows.append(Row(model_type, "not built", note=_one_line(error)))
        signal.alarm(0)
        print(rows[-1].state, rows[-1].line(), flush=True)
    if not chosen:
        write_bytes(PAGE, page(rows).encode())


if __name__ == "__main__":
    sys.exit(main())
