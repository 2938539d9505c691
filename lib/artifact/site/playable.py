"""`python -m lib.artifact.site.playable [file]`: the page on which a reader tries the nine edits (site/edits.html).

One page that needs no server: the answers are computed here, once, and stand in it as JSON. For some embedded models
and a few pairs of pictures it holds every edit at every slot. `make site` writes it; it is not kept in the repository.
"""

import argparse
import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from PIL import Image
from transformers.utils import logging

from lib import files
from lib.analysis import fingerprint, studies
from lib.engine import checkpoints, vlm
from lib.errors import cli
from lib.places import ROOT, show
from lib.stimuli.grids import Grid
from lib.stimuli.pairs import MIRRORED_ROLES, Pair, mirrored_pairs

HERE = Path(__file__).parent
FILE = ROOT / "site" / "edits.html"
MODELS = {
    "reference": "encoder trained first, with learned positions",
    "qwen_style": "encoder trained first, with rotary positions",
    "strip_code": "planted: its background carries places and its objects do not, the paper's picture read strictly",
    "vision_only": "planted: its language model cannot see where a token stands",
    "backbone_only": "planted: its encoder cannot see where a patch stands",
}
SCENES = (("squares", "left"), ("squares", "above"), ("shapes", "right"), ("objects", "left"), ("objects", "below"))


def chosen_pairs(grid: Grid, seed: int = 0) -> list[Pair]:
    """One pair for each setting and direction of `SCENES`, then two of squares whose lines are off the middle."""
    centred = [mirrored_pairs(setting, grid, 1, seed, directions=(asked,))[0] for setting, asked in SCENES]
    shifted = {pair.direction: pair for pair in fingerprint.shifted_pairs("squares", grid, 1, seed)}
    return centred + [shifted["left"], shifted["above"]]


def answers(model: vlm.VLM, pairs: Sequence[Pair]) -> list[dict]:
    """What the page has to know of each pair: pictures, question, edits, and the answers at every slot."""
    study = studies.study(model, pairs)
    table = fingerprint.sweep(study, slots=None)
    correct = study.both_correct
    return [
        scene(pair, model.grid) | probabilities(table[table["pair"] == k]) | {"correct": bool(correct[k])}
        for k, pair in enumerate(pairs)
    ]


def scene(pair: Pair, grid: Grid) -> dict:
    """The part of a pair's answers that does not depend on the model."""
    line = fingerprint.LineTokens.of(pair.clean.scene, grid, pair.orientation)
    lines = "line in the middle" if pair.clean.shift == (0, 0) else "line off the middle"
    return {
        "label": f"{pair.setting}, {pair.direction}, {lines}",
        "question": pair.clean.question,
        "words": pair.candidates,
        "side": grid.side,
        "clean": picture(pair.clean.scene.image(grid.canvas)),
        "mirror": picture(pair.counterfactual.scene.image(grid.canvas)),
        "edits": {
            number: {"targets": edit.targets.tolist(), "sources": edit.sources.tolist(), "own": edit.own}
            for number, edit in line.edits.items()
        },
    }


def picture(image: Image.Image) -> str:
    """A picture as a data URI."""
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def probabilities(table: pd.DataFrame) -> dict:
    """One pair's probabilities of the three words: without edits on both pictures, and [slot] for each edit.

    table: the pair's rows of a sweep.
    """
    wide = table.pivot_table(index=["run", "edit", "slot"], columns="role", values="probability", sort=True)
    wide = wide[list(MIRRORED_ROLES)].astype(float).round(4)
    patched = wide.loc["patched"]
    return {
        "before": wide.loc["clean"].iloc[0].tolist(),
        "other": wide.loc["counterfactual"].iloc[0].tolist(),
        "after": {edit: patched.loc[edit].sort_index().to_numpy().tolist() for edit in map(str, fingerprint.EDITS)},
    }


def content(names: Sequence[str]) -> dict:
    """Everything the page shows, as it is embedded in it."""
    models = []
    for name in names:
        model = vlm.load(name)
        scenes = answers(model, chosen_pairs(model.grid))
        models.append({"name": name, "about": MODELS.get(name, ""), "layers": len(model.layers), "scenes": scenes})
    own = {edit: rival for rival, edit in fingerprint.RIVALS.items()}
    edits = {
        number: {
            "title": title,
            "rival": own.get(number, ""),
            "predicted": {rival: fingerprint.PREDICTED[rival][number] for rival in fingerprint.RIVALS},
        }
        for number, title in fingerprint.EDITS.items()
    }
    return {"edits": edits, "rivals": fingerprint.RIVAL_NAMES, "models": models}


def write(file: Path = FILE, names: Sequence[str] | None = None) -> Path | None:
    """Write the page; None where no model of it is shipped. names: models, by default those of `MODELS`."""
    names = [name for name in MODELS if name in checkpoints.shipped()] if names is None else list(names)
    if not names:
        return None
    logging.disable_progress_bar()  # of every file of weights that is read
    data = json.dumps(content(names), separators=(",", ":")).replace("</", "<\\/")
    page = Environment(loader=FileSystemLoader(HERE)).get_template("playable.html")
    return files.write_bytes(file, page.render(data=data).encode())


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.artifact.site.playable", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=FILE, help="default: site/edits.html")
    file = write(parser.parse_args(argv).file)
    print(f"open {show(file)}" if file else "no model of this page is in data/models: nothing written")


if __name__ == "__main__":
    with cli():
        main()
