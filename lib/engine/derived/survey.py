"""Which image-text models of transformers the adapter can use: `python -m lib.engine.derived.survey` makes a table.

Every model type that transformers maps to image-text-to-text is built small with random weights from its own
configuration classes, its record is derived (`lib.engine.derived.derive`) and its certificate written
(`lib.engine.certificate`). Random weights prove that reading and writing the residual stream is exact; what a trained
checkpoint answers is another question, and its own certificate is made when it is loaded.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from lib.engine.certificate import certificate
from lib.engine.derived.adapter import DerivedVLM
from lib.engine.derived.derive import Derived
from lib.engine.derived.observe import Refused
from lib.engine.derived.reading import first_that_fits
from lib.engine.derived.small_models import CANVAS, NotBuilt, build, fitted, formats, tokenizer
from lib.files import write_bytes
from lib.places import ROOT

PAGE = ROOT / "docs" / "CHECKPOINTS.md"
SECONDS = 90  # of processor time for one model type
HEAD = """# Model types of transformers

Made by `python -m lib.engine.derived.survey` with transformers {version}; not edited by hand. Every model type that
transformers maps to image-text-to-text ({total}) is tried: built small, with random weights, from its own configuration
classes, where that can be done ({built}). Its record is derived from the model (`lib/engine/derived/derive.py`), and
the six contracts of `lib/engine/certificate.py` are tried: 1 logits equal transformers', 2 slot 0 holds the projector's
output, 3 a run's own activations change nothing and the other picture's give the other run, 4 continued runs equal
whole ones, 5 batches and padding, 6 hooks are removed. A contract holds when the largest difference is at most 2e-5 of
the largest logit, in float32.

**{passing} of the {built} types that can be built pass all six contracts without a record written by hand.**

Random weights show that reading and writing the residual stream is exact, not what a trained checkpoint answers.
Whether image tokens stand for places is measured, and may turn out differently with a trained encoder. So a checkpoint
whose family has no written record (`lib/engine/families.py` has ten) is tried by the same contracts when it is first
loaded (`python -m lib.run --plan MODEL`, `make run MODEL=...`, or `vlm.load` in your own code). Its certificate is kept
in `runs/by-hand/<model>/certificate.json`; a broken contract is an error, but for the fourth, without which questions
can be asked and no sweep can be run. What surrounds a picture in the text is taken from the chat template and the
configuration; options of the image processor that would resize or tile a picture are switched off. Compare both with
the checkpoint's own processor before you trust accuracies.

Columns: *image tokens*, constant ones are the same for every picture (line breaks). *Route of the picture*: where it
has more than one into the language model, patches take all of them together: the vector of a token is the residual
stream followed by what later layers add to it or are given for it. *Runs*: continued runs keep keys and values; plain
ones compute every token again, which is exact and saves nothing. *Difference*: the largest of all
contracts. *Not possible*: what cannot be done with this type; other image positions (`with_positions`) and components
(`lib/analysis/components.py`), which need a written record, cannot be had with any and are not listed.
"""
COLUMNS = "| type | image tokens | route of the picture | positions | runs | contracts | difference | not possible |"
NAMED = {
    "Qwen3-VL": "qwen3_vl",
    "Gemma 4": "gemma4",
    "InternVL": "internvl",
    "GLM-4V": "glm4v",
    "Mistral 3": "mistral3",
    "PaliGemma": "paligemma",
}


@dataclass(frozen=True)
class Row:
    """What was found about one model type. state: passes, fails, refused or not built."""

    model_type: str
    state: str
    cells: tuple[str, ...] = ("",) * 6
    note: str = ""

    def line(self) -> str:
        return "| " + " | ".join((f"`{self.model_type}`", *self.cells, self.note)) + " |"


def examine(model_type: str) -> tuple[Derived, torch.nn.Module, Callable]:
    """The derived record of a small model of a type; Refused with the reason."""
    model = build(model_type)
    forms = ((fitted(make, model), CANVAS) for make in formats(model.config))
    found, pixels = first_that_fits(model, forms)
    return found, model, pixels


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
    return describe(vlm, certificate(vlm))


def describe(vlm: DerivedVLM, table: pd.DataFrame) -> Row:
    """The row of a model with its certificate."""
    wiring, family, plain = vlm.derived.wiring, vlm.family, vlm.language.plain_because
    route = "slot 0"
    if wiring.added:
        route += f", and added after layers 1 to {wiring.added}"
    if wiring.own_input:
        route += ", and an input of every layer's own"
    constant = wiring.count - len(wiring.tokens)
    holding = "".join(name[0] for name in table.loc[table["holds"], "contract"])
    cells = (
        f"{vlm.grid.side} x {vlm.grid.side}" + (f" and {constant} constant" if constant else ""),
        route + (" (image tokens see each other)" if family.bidirectional else ""),
        "three per token" if family.positions == "mrope" else "one per token",
        f"plain: {plain}" if plain else "continued",
        "all" if table["holds"].all() else holding,
        f"{table['difference'].max():.0e}",
    )
    notes = [] if vlm.encoder.closed is None else [f"patches inside the encoder: {vlm.encoder.closed}"]
    notes += ["sites inside layers, attention knockout and scaling"] if plain else []
    notes += ["amplification"] if vlm.language.wide_because else []
    for row in table[~table["holds"]].itertuples():
        notes.append(f"contract {row.contract[0]} ({row.reason or format(row.difference, '.0e')})")
    return Row(vlm.name, "passes" if table["holds"].all() else "fails", cells, "; ".join(notes))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).replace("|", "/")
    return text if len(text) < 200 else text[:200] + " ..."


def page(rows: Sequence[Row]) -> str:
    """docs/CHECKPOINTS.md."""
    import transformers

    states = ("passes", "fails", "refused", "not built")
    of = {state: [row for row in rows if row.state == state] for state in states}
    built = len(rows) - len(of["not built"])
    out = [HEAD.format(version=transformers.__version__, total=len(rows), passing=len(of["passes"]), built=built)]
    out += ["## By name\n", *_named(rows), ""]
    for state, title in (("passes", "Pass"), ("fails", "Pass only in part")):
        out += [f"## {title} ({len(of[state])})\n", COLUMNS, "|" + "---|" * 8, *(row.line() for row in of[state]), ""]
    for state, title in (("refused", "Refused, with the reason"), ("not built", "Not built at small sizes")):
        out += [f"## {title} ({len(of[state])})\n", *(f"- `{row.model_type}`: {row.note}" for row in of[state]), ""]
    return "\n".join(out)


def _named(rows: Sequence[Row]) -> list[str]:
    """One line for each of the families that are asked about most."""
    known = {row.model_type: row for row in rows}
    words = {"passes": "passes all six contracts", "fails": "passes contracts {}", "refused": "refused"}
    out = []
    for name, model_type in NAMED.items():
        if model_type in known:
            row = known[model_type]
            result = words.get(row.state, row.state).format(row.cells[4])
            out.append(f"- {name} (`{model_type}`): {result}{f'. Not possible: {row.note}' if row.note else ''}.")
    return out


def _too_long(*_):
    raise NotBuilt(f"took more than {SECONDS} seconds of processor time")


def main(arguments: Sequence[str] | None = None) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES
    from transformers.utils import logging

    parser = argparse.ArgumentParser(prog="python -m lib.engine.derived.survey", description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types (default: all, and docs/CHECKPOINTS.md is written)")
    parser.add_argument("--rows", type=Path, help="file to which rows are added; types that it has are not tried again")
    given = parser.parse_args(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _too_long)
    rows = _kept(given.rows)
    known = {row.model_type for row in rows}
    for model_type in [name for name in given.types or NAMES if name not in known]:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            rows.append(survey(model_type))
        except NotBuilt as error:
            rows.append(Row(model_type, "not built", note=_one_line(error)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(rows[-1].state, rows[-1].line(), flush=True)
        if given.rows:
            with given.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(rows[-1])) + "\n")
    if not given.types:
        order = list(NAMES)
        write_bytes(PAGE, page(sorted(rows, key=lambda row: order.index(row.model_type))).encode())


def _kept(path: Path | None) -> list[Row]:
    """The rows of an earlier, interrupted survey."""
    lines = path.read_text("utf-8").splitlines() if path and path.is_file() else []
    return [Row(**(row | {"cells": tuple(row["cells"])})) for row in map(json.loads, lines)]


if __name__ == "__main__":
    sys.exit(main())
