"""Measure the snapshots of a training: `python -m lib.reference.dynamics redundant`.

Snapshots are those that `python -m lib.reference.train redundant --snapshots 12` leaves in
checkpoints/<name>/snapshots. Each is measured as a shipped model is: written as half-precision files, read by the
adapter, run in float32. Two states without a snapshot are measured, too: what the training began from (random numbers,
or the model that its recipe starts from), and the model as it was when the first stage with snapshots began (from
data/training/<name>). Rows go to data/dynamics/<name>.csv as they come; a second call measures only what is not there
yet. lib/analysis/dynamics.py says what the rows are and reads them.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from lib.analysis import battery, dynamics, fingerprint, ladder, statistics, studies
from lib.analysis.ablation import answers
from lib.analysis.fingerprint import RIVALS
from lib.analysis.studies import Study
from lib.artifact.storage import write_csv
from lib.engine import vlm
from lib.engine.checkpoints import seeded
from lib.engine.vlm import VLM
from lib.errors import UserError, cli
from lib.places import show
from lib.reference import train
from lib.reference.recipes import RECIPES, Recipe
from lib.stimuli import layouts
from lib.stimuli.grids import Grid
from lib.stimuli.pairs import mirrored_pairs
from lib.stimuli.scenes import Scene
from lib.stimuli.token_sets import box_tokens

PAIRS, PER_CELL, SCENES = 16, 8, 300  # pairs per direction, questions per cell of the battery, scenes of the readout
MEASURED = ["metric", "part", "axis", "value", "low", "high", "n"]
LADDER = ("named", "correct", "names_neither")

# --- what is measured -----------------------------------------------------------------------------------------


def row(metric: str, part: str, axis: str, found: statistics.Estimate) -> tuple:
    return metric, part, axis, found.value, found.low, found.high, found.n


def signs(study: Study, seed: int) -> list[tuple]:
    """The share of runs in which the target is more probable than its opposite; a tie counts 1/2."""
    table = answers(study)
    table = table.assign(sign=(np.sign(table["order"]) + 1) / 2)
    return [
        row("sign", "", axis, statistics.mean(cell["sign"], units=cell["couple"], seed=seed))
        for axis, cell in table.groupby("orientation", sort=False)
    ]


def effects(study: Study, seed: int) -> list[tuple]:
    """Effects of the rivals' own edits at slot 0, where the mirror picture makes a difference to the answer."""
    rows = []
    for axis, cell in fingerprint.sweep(study, RIVALS.values()).groupby("orientation", sort=False):
        wide = fingerprint.moved_at_start(cell)
        if statistics.mean(wide["between"], wide["couple"], seed=seed).low > 0:
            rows += [row("effect", rival, axis, fingerprint.rival(cell, rival, seed=seed)) for rival in RIVALS]
    return rows


def rungs(study: Study, seed: int) -> list[tuple]:
    """What each step of the ladder leaves; without values that are not defined."""
    table = ladder.summary(ladder.left(ladder.steps(study)), seed).dropna(subset="value")
    table = table[table["measure"].isin(LADDER)]
    return [(each.measure, each.step, each.orientation, *each[-3:], each.n) for each in table.itertuples(index=False)]


def cells(table: pd.DataFrame) -> list[tuple]:
    """The battery's accuracies; table: `battery.battery`."""
    return [("accuracy", x.row, x.direction, x.accuracy, x.low, x.high, x.n) for x in table.itertuples()]


def free_scenes(grid: Grid, n: int) -> list[Scene]:
    """The same for every snapshot of every training."""
    rng = np.random.default_rng(2)
    return [layouts.free(rng, "squares", grid) for _ in range(n)]


def readout(vlm: VLM, scenes: list[Scene], seed: int) -> list[tuple]:
    """R2 of an object's row and column, read from its top-left token by ridge regression.

    Fitted on the first half of the scenes, scored on the others; intervals over scenes, of which n is the number.
    """
    tokens = vlm.encode([scene.image(vlm.grid.canvas) for scene in scenes]).float().cpu()
    spots = [(k, int(box_tokens(p.box, vlm.grid)[0])) for k, scene in enumerate(scenes) for p in scene.placements]
    scene, flat = np.array(spots).T
    x, places = tokens[scene, flat].double(), np.stack(np.divmod(flat, vlm.grid.side), axis=1).astype(float)
    fitted = scene < len(scenes) // 2
    rest = places[~fitted]
    missed = (ridge(x, places, fitted)[~fitted] - rest) ** 2
    spread = (rest - rest.mean(0)) ** 2
    rows = []
    for k, axis in enumerate(("vertical", "horizontal")):
        left = statistics.ratio(missed[:, k], spread[:, k], units=scene[~fitted], seed=seed)  # 1 - R2
        rows.append(("place", "", axis, 1 - left.value, 1 - left.high, 1 - left.low, left.n))
    return rows


def ridge(x: Tensor, y: np.ndarray, fitted: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """Predictions [row, column] for all rows of x [row, hidden], from a fit to those of the mask `fitted`."""
    mask = torch.from_numpy(fitted)
    x = (x - x[mask].mean(0)) / (x[mask].std(0) + 1e-9)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    gram = x[mask].mT @ x[mask] + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    return (x @ torch.linalg.solve(gram, x[mask].mT @ torch.from_numpy(y)[mask])).numpy()


@torch.no_grad()
def measured(vlm: VLM, pairs: int = PAIRS, per_cell: int = PER_CELL, scenes: int = SCENES, seed: int = 0):
    """Everything about one snapshot: a DataFrame with the columns `MEASURED`.

    pairs: mirrored pairs of centred Squares per direction; per_cell: questions per layout and direction of the battery;
    scenes: half of them fit the readout of place, half score it.
    """
    plain = studies.study(vlm, mirrored_pairs("squares", vlm.grid, n=pairs, seed=seed))
    rows = [*signs(plain, seed), *effects(plain, seed), *rungs(plain, seed)]
    rows += cells(battery.battery(vlm, per_cell, seed)) + readout(vlm, free_scenes(vlm.grid, scenes), seed)
    return pd.DataFrame(rows, columns=MEASURED)


# --- snapshots ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """A state of a training: so many steps into a stage (0, 1, ...). path: its weights; None: the stage's start."""

    number: int
    step: int
    path: Path | None = None


def found(folder: Path) -> list[Snapshot]:
    """The snapshots of a folder in order, before them the start of the training and of the first one's stage."""
    named = [(re.fullmatch(r"stage(\d+)-step(\d+)", path.stem), path) for path in folder.glob("*.safetensors")]
    kept = sorted((int(name[1]), int(name[2]), path) for name, path in named if name)
    if not kept:
        raise UserError(
            f"{show(folder)} holds no snapshots: `python -m lib.reference.train NAME --snapshots 12` leaves them there"
        )
    starts = [Snapshot(number, 0) for number in sorted({0, kept[0][0]})]
    return [*starts, *(Snapshot(*each) for each in kept)]


def lessons(recipe: Recipe, snapshot: Snapshot) -> int:
    """How many lessons the training has shown, over all stages; those of a model that it started from do not count."""
    before = sum(stage.steps * stage.batch for stage in recipe.stages[: snapshot.number])
    return before + snapshot.step * recipe.stages[snapshot.number].batch


def state(recipe: Recipe, seed: int, snapshot: Snapshot, where: train.Files):
    """The model of a snapshot; the start of the first stage is what training began from. A UserError where its files
    are missing, damaged or of another recipe."""
    learning, path = train.learner(recipe, seed, torch.device("cpu")), snapshot.path
    model = learning.model
    try:
        if path is not None:
            model.load_state_dict(load_file(path))
            return model
        for number, stage in enumerate(recipe.stages[: snapshot.number]):
            path = where.stage(number)
            train.load_stage(number, stage, learning, where)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{show(path)} is missing, damaged or of another recipe: train again") from error
    return model


def as_shipped(model, folder: Path) -> VLM:
    """The model through the files that would be shipped: half precision there, float32 here."""
    train.export(model, folder, train.Files(folder, folder))
    return vlm.load(folder, device="cpu", dtype="float32")


def run(name: str, seed: int, fresh: bool, **sizes) -> pd.DataFrame:
    """Measure what is not measured yet and write it down after each snapshot; the whole table.

    sizes: arguments of `measured`.
    """
    recipe, full = RECIPES[name], seeded(name, seed)
    where = train.Files(train.CHECKPOINTS / full, train.TRAINING / full)
    file = dynamics.FOLDER / f"{full}.csv"
    waiting = found(where.snapshot(0, 0).parent)
    table = dynamics.read(full) if file.is_file() and not fresh else pd.DataFrame(columns=list(dynamics.COLUMNS))
    done = set(zip(table["stage"], table["step"], strict=True))
    waiting = [each for each in waiting if (recipe.stages[each.number].name, each.step) not in done]
    for snapshot in tqdm(waiting, desc=f"snapshots of {full}"):
        with tempfile.TemporaryDirectory() as folder:
            rows = measured(as_shipped(state(recipe, seed, snapshot, where), Path(folder)), **sizes)
        stage = recipe.stages[snapshot.number].name
        own = {"model": name, "seed": seed, "stage": stage, "step": snapshot.step, "lessons": lessons(recipe, snapshot)}
        rows = rows.assign(**own)[list(dynamics.COLUMNS)]
        table = rows if table.empty else pd.concat([table, rows], ignore_index=True)
        write_csv(table.sort_values("lessons", kind="stable"), file)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="mirrored pairs per direction")
    parser.add_argument("--per-cell", type=int, default=PER_CELL, help="questions per layout and direction")
    parser.add_argument("--scenes", type=int, default=SCENES, help="scenes of the readout of place")
    parser.add_argument("--fresh", action="store_true", help="measure all snapshots again")
    parser.add_argument("--threads", type=int, default=None, help="of torch")
    arguments = parser.parse_args()
    with cli():
        if min(arguments.pairs, arguments.per_cell, arguments.scenes // 4) < 1:
            raise UserError("at least one pair, one question per cell and four scenes are needed")
        logging.disable_progress_bar()  # of every file that is read
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        sizes = {"pairs": arguments.pairs, "per_cell": arguments.per_cell, "scenes": arguments.scenes}
        table = run(arguments.name, arguments.seed, arguments.fresh, **sizes)
        print(*dynamics.in_words(table), sep="\n")


if __name__ == "__main__":
    main()
