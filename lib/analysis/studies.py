"""Pairs made ready for sweeps, and what a sweep says on one scale (floor 3: no files, no plots).

The designs of PROTOCOL.md 2, 4, 5 and 6 differ in their pairs and in their edits only: `Study` holds pairs as runs of
one model, `exchanged` and `exchanged_in_encoder` are the interchange of PROTOCOL.md 4, `effects` reads a patched run
between its two baselines, and `shares` says where the order came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from lib.analysis import statistics
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.interventions import Interchange, Run, Table, encoder_sweep, ordering_ablation, swap, token_sweep
from lib.stimuli.pairs import AblatedPair, Pair
from lib.stimuli.token_sets import exchange, object_tokens


@dataclass(frozen=True)
class Study:
    """Pairs as runs of one model: row k of both runs is pairs[k], and both runs share their image tokens.

    ids: candidates [pair, role, spelling]. labels: setting, direction, orientation, split of each pair.
    """

    vlm: VLM
    pairs: tuple[Pair, ...]
    clean: Run
    counterfactual: Run
    ids: Tensor

    @property
    def roles(self) -> tuple[str, ...]:
        return self.pairs[0].roles

    @property
    def other(self) -> np.ndarray:
        """The counterfactual picture of each pair, as token sweeps take it."""
        return self.counterfactual.index

    @property
    def labels(self) -> pd.DataFrame:
        rows = [(p.setting, p.direction, p.orientation, p.split) for p in self.pairs]
        return pd.DataFrame(rows, columns=["setting", "direction", "orientation", "split"])

    def __len__(self) -> int:
        return len(self.pairs)

    def rows(self, mask) -> Study:
        """The study of chosen pairs; a UserError when none is left."""
        chosen = np.flatnonzero(np.asarray(mask)) if np.asarray(mask).dtype == bool else np.asarray(mask)
        if not len(chosen):
            raise UserError(f"{self.vlm.name} is right on both runs of no pair: nothing can be patched here.")
        pairs = tuple(self.pairs[k] for k in chosen)
        return replace(
            self, pairs=pairs, clean=self.clean.rows(chosen), counterfactual=self.counterfactual.rows(chosen),
            ids=self.ids[chosen],
        )  # fmt: skip

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """Both unpatched runs, one row per pair, run and role: pair, run, role, probability, logit, and first (the most
        probable token of the whole vocabulary is a spelling of the role)."""
        table = Table(self.vlm, self.ids, self.roles, first=True)
        parts = [
            table.part(rows, last, run=name)
            for name, run in (("clean", self.clean), ("counterfactual", self.counterfactual))
            for rows, last in self.vlm.last_states(run.prompt, run.images, run.index)
        ]
        return table.finish(parts, None)

    @cached_property
    def right(self) -> pd.DataFrame:
        """Whether the most probable token of the whole vocabulary is right: columns clean, counterfactual."""
        first = self.baselines.pivot(index="pair", columns=["run", "role"], values="first")
        wanted = "attribute" if "attribute" in self.roles else "counterfactual"
        columns = {"clean": self.roles[0], "counterfactual": wanted}
        return pd.DataFrame({run: first[run, role].to_numpy(bool) for run, role in columns.items()})

    @property
    def both_right(self) -> np.ndarray:
        """Whether both runs of each pair are right (PROTOCOL.md 2 and 6), a mask [pair]."""
        return self.right.all(axis=1).to_numpy()

    def kept(self) -> Study:
        """The pairs with both runs right; a UserError when there is none."""
        return self.rows(self.both_right)


def study(vlm: VLM, pairs: Sequence[Pair], progress: bool = False) -> Study:
    """Encode every distinct picture of the pairs once and tokenise their questions."""
    items = [pair.clean for pair in pairs] + [pair.counterfactual for pair in pairs]
    images, index = vlm.distinct([item.scene.image(vlm.grid.canvas) for item in items], progress)
    count = len(pairs)
    clean = Run.of(vlm, [item.question for item in items[:count]], images, index[:count])
    other = Run.of(vlm, [item.question for item in items[count:]], images, index[count:])
    return Study(vlm, tuple(pairs), clean, other, vlm.candidates([pair.candidates for pair in pairs]))


def centred(pairs: Sequence[Pair]) -> None:
    """A UserError where a pair's lines are shifted: sets of image tokens are those of lines in the middle."""
    if any(pair.clean.shift != (0, 0) for pair in pairs):
        raise UserError("Token sets are those of lines in the middle of the canvas: draw these pairs without shift.")


def ablated(vlm: VLM, pairs: Sequence[AblatedPair], progress: bool = False) -> Study:
    """The study of the same pairs with order removed from every picture's image tokens (PROTOCOL.md 5).

    Pairs may mix directions; each picture is ablated along its own axis. They must stand in the middle (`centred`).
    """
    centred(pairs)
    plain = [scene for pair in pairs for scene in (*pair.alone, pair.empty)]
    images, index = vlm.distinct([scene.image(vlm.grid.canvas) for scene in plain], progress)
    index = index.reshape(-1, 4)
    both, known = [], {}
    places = np.zeros((2, len(pairs)), dtype=int)
    for k, (pair, (*alone, empty)) in enumerate(zip(pairs, index, strict=True)):
        for run, entities in enumerate((alone, alone[::-1])):
            key = (pair.orientation, *entities, empty)
            if key not in known:
                known[key] = len(both)
                sets = [object_tokens(vlm.grid, pair.orientation, slot) for slot in range(3)]
                both.append(ordering_ablation(images, images[empty], np.array([entities]), sets, sets[1])[0])
            places[run, k] = known[key]
    stacked = torch.stack(both)
    questions = [pair.clean.question for pair in pairs]
    clean, other = (Run.of(vlm, questions, stacked, row) for row in places)
    return Study(vlm, tuple(pairs), clean, other, vlm.candidates([pair.candidates for pair in pairs]))


# --- interchange (PROTOCOL.md 4) ------------------------------------------------------------------------------

MOVES = ("code", "entity")  # what an exchange moves: the order code, or the entity with its tokens


def regions(
    study: Study, names: Sequence[str], own: bool = False, width: int | None = None, seed: int = 0
) -> dict[str, Interchange]:
    """The exchange of the two outer regions of each name (`tokens.exchange`), along each pair's own axis.

    own=False: each region takes the *other* region's vectors of the counterfactual, its mirror: the entity stays, its
    order code moves. own=True: the regions change places within the clean run: entities move, each with its code.
    Random regions are drawn anew for every pair. Lines must stand in the middle (`centred`).
    """
    centred(study.pairs)
    rng = np.random.default_rng(seed)
    out = {}
    for name in names:
        sets = [exchange(study.vlm.grid, pair.orientation, name, width, rng) for pair in study.pairs]
        first, last = (np.stack(side) for side in zip(*sets, strict=True))
        out[name] = swap(first, last, own)
    return out


def exchanged(
    study: Study,
    code: Sequence[str] = (),
    entity: Sequence[str] = (),
    slots=None,
    width: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Regions exchanged at language-model slots: the rows of `token_sweep` with columns region and moves.

    code: regions whose order code moves; entity: regions whose entity moves (see `regions`).
    """
    edits = {("code", name): edit for name, edit in regions(study, code, False, width, seed).items()}
    edits |= {("entity", name): edit for name, edit in regions(study, entity, True, width, seed).items()}
    named = {"-".join(key): edit for key, edit in edits.items()}
    table = token_sweep(
        study.vlm, study.clean, named, study.ids, study.roles, study.other, study.labels, slots, progress
    )
    split = {"none": ("none", "none")} | {"-".join(key): key for key in edits}
    moves, region = zip(*table.pop("edit").map(split), strict=True)
    return table.assign(region=region, moves=moves)


def exchanged_in_encoder(
    study: Study, code: Sequence[str], slots=None, seed: int = 0, progress: bool = False
) -> pd.DataFrame:
    """The same exchange on the patches inside the image encoder, at encoder slots (random regions: one per axis)."""
    centred(study.pairs)
    images, orientations = pictures(study), study.labels["orientation"].to_numpy()
    parts = []
    for orientation in dict.fromkeys(orientations):
        rows = np.flatnonzero(orientations == orientation)
        part, rng = study.rows(rows), np.random.default_rng(seed)
        edits = {name: swap(*exchange(study.vlm.grid, orientation, name, rng=rng)) for name in code}
        table = encoder_sweep(
            study.vlm, images, part.clean, part.other, edits, part.ids, part.roles, part.labels, slots, progress
        )
        parts.append(table.assign(pair=rows[table["pair"]]))
    table = pd.concat(parts, ignore_index=True).rename(columns={"edit": "region"})
    return table.assign(moves=np.where(table["region"] == "none", "none", "code"))


def pictures(study: Study) -> list[Image.Image | None]:
    """The pictures behind the study's image tokens, in their order; None for those that no pair uses."""
    out: list = [None] * len(study.clean.images)
    for k, pair in enumerate(study.pairs):
        for run, item in ((study.clean, pair.clean), (study.counterfactual, pair.counterfactual)):
            if out[run.index[k]] is None:
                out[run.index[k]] = item.scene.image(study.vlm.grid.canvas)
    return out


def same_content(study: Study, edit: Interchange) -> float:
    """Share of exchanged tokens whose patch of the picture looks the same before and after (1: only the code moves).

    On white scenes an exchange with the mirrored counterfactual must give 1; one that forgets to mirror, or to cross
    the regions, does not.
    """
    grid, images = study.vlm.grid, pictures(study)
    blocks = (grid.side, grid.pixels, grid.side, grid.pixels, -1)
    patches = [x if x is None else np.asarray(x.convert("RGB")).reshape(blocks).swapaxes(1, 2) for x in images]
    patches = [x if x is None else x.reshape(grid.side**2, -1) for x in patches]
    same = []
    for k in range(len(study)):
        target, source = (np.broadcast_to(x, (len(study), np.shape(x)[-1]))[k] for x in (edit.targets, edit.sources))
        origin = patches[study.clean.index[k] if edit.own else study.other[k]]
        same.append((patches[study.clean.index[k]][target] == origin[source]).all(-1))
    return float(np.mean(same))


# --- effects --------------------------------------------------------------------------------------------------


def swing(table: pd.DataFrame, low: str = "clean", high: str = "counterfactual") -> pd.DataFrame:
    """P(high) - P(low) of every pair and run: the table without roles, column `swing`."""
    keys = [c for c in table.columns if c not in ("role", "probability", "logit")]
    wide = table[table["role"].isin((low, high))].pivot_table(index=keys, columns="role", values="probability")
    return (wide[high] - wide[low]).rename("swing").reset_index()


def moved(table: pd.DataFrame) -> pd.DataFrame:
    """Patched runs of a sweep against their pair's baselines.

    Columns of `swing` and moved (its change from the clean run), between (counterfactual minus clean run). The pairs
    of one table are numbered through: tables of several studies are read one by one.
    """
    swings = swing(table)
    base = swings[swings["run"] != "patched"].pivot_table(index="pair", columns="run", values="swing")
    base = base.reindex(columns=["clean", "counterfactual"])
    out = swings[swings["run"] == "patched"].join(base, on="pair")
    return out.assign(moved=out["swing"] - out["clean"], between=out["counterfactual"] - out["clean"])


def effects(table: pd.DataFrame, by: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Where patched runs lie between the clean run (0) and the counterfactual run (1), in each cell of `by`.

    Columns by, n (pairs), effect, low, high. The effect is a ratio of means over pairs of P(counterfactual) -
    P(clean), its interval a bootstrap over whole pairs. NaN where the two baselines do not differ.
    """
    rows = []
    for key, cell in moved(table).groupby(list(by), sort=True):
        found = statistics.ratio(cell["moved"], cell["between"], units=cell["pair"], seed=seed)
        rows.append((*key, found.n, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=[*by, "n", "effect", "low", "high"])


def contrast(table: pd.DataFrame, first: str, second: str, slot: int = 0, seed: int = 0) -> statistics.Estimate:
    """Effect of exchanging region `first` minus that of `second`, over the same pairs at one slot (code moves)."""
    cells = moved(table).query("slot == @slot and moves == 'code'").set_index(["region", "pair"])
    one, two = cells.loc[first], cells.loc[second]
    return statistics.ratio(one["moved"] - two["moved"].reindex(one.index), one["between"], units=one.index, seed=seed)


def interchange_rows(table: pd.DataFrame, stage: str, ablated: bool = False, seed: int = 0) -> pd.DataFrame:
    """The published form of an interchange (code moves): one row per setting, direction, region, slot and role.

    Columns setting, direction, region, stage, slot, ablated, role, n, probability, low, high, run. Baselines have
    region none and slot -1, and say in `run` which one they are.
    """
    kept = table[table["moves"].isin(("none", "code")) & table["role"].isin(("clean", "counterfactual"))]
    by = ["setting", "direction", "region", "run", "slot", "role"]
    out = statistics.summarise(kept, by, seed=seed).assign(stage=stage, ablated=ablated)
    columns = ["setting", "direction", "region", "stage", "slot", "ablated", "role", "n", "probability", "low", "high"]
    return out[[*columns, "run"]]


# --- answers of unpatched runs (PROTOCOL.md 5) ----------------------------------------------------------------


def answers(study: Study) -> pd.DataFrame:
    """Both runs of every pair as questions of their own: labels, pair, run, target, opposite, reference, right.

    target, opposite, reference: probabilities; right: the most probable token of the vocabulary is the target. The two
    runs ask the same question about mirrored pictures, so that a liking for some words cancels within a pair: without
    any order in the picture the mean of target - opposite is 0 exactly.
    """
    wide = study.baselines.pivot(index=["pair", "run"], columns="role", values="probability").reset_index()
    mirrored = (wide["run"] == "counterfactual").to_numpy()
    target = np.where(mirrored, wide["counterfactual"], wide["clean"])
    opposite = np.where(mirrored, wide["clean"], wide["counterfactual"])
    right = study.right.stack().rename_axis(["pair", "run"]).rename("right").reset_index()
    out = wide[["pair", "run"]].assign(target=target, opposite=opposite, reference=wide["reference"])
    return out.merge(right, on=["pair", "run"]).join(study.labels, on="pair").assign(order=target - opposite)


def order_kept(intact: pd.DataFrame, without: pd.DataFrame, seed: int = 0) -> dict[str, statistics.Estimate]:
    """What an ablation leaves of P(target) - P(opposite), from `answers` of the same pairs before and after.

    order_lost: the share of it that is gone; order_left: what is left of it.
    """
    before, after = (table.groupby("pair")["order"].mean() for table in (intact, without))
    lost = statistics.ratio(before - after, before, seed=seed)
    return {"order_lost": lost, "order_left": statistics.mean(after, seed=seed)}


# --- where the order came from --------------------------------------------------------------------------------

SMALL, LARGE = 0.25, 0.75  # below SMALL together, or above LARGE each, two effects are not divided


def conflict(code: float, entity: float) -> str:
    """What the two effects say together: `divided` (their share is meaningful), `neither` or `both`.

    neither: together below SMALL - what was exchanged is not what the answer hangs on. both: each above LARGE - either
    exchange flips the answer, so that the two sources do not stand against each other.
    """
    if not np.isfinite(code + entity) or code + entity < SMALL:
        return "neither"
    return "both" if min(code, entity) > LARGE else "divided"


def shares(table: pd.DataFrame, by: Sequence[str] = ("region", "slot"), seed: int = 0) -> pd.DataFrame:
    """The embeddings' share of the order: code / (code + entity), from `exchanged` with both kinds of exchange.

    Columns by, n, code, code_low, code_high, entity, entity_low, entity_high, says (see `conflict`), share, low, high
    (NaN unless says is `divided`; a share leaves 0..1 only by an effect below 0).

    code: effect of moving the order code while the entity stays. Who reads order from the embeddings then gives the
    opposite answer (effect 1), who makes it from token places stays with the target (0). entity: effect of moving the
    entity with its code. Who reads the embeddings still finds the target's code with the target (0); who goes by token
    places sees the mirrored picture and gives the opposite answer (1). So both are read on one scale, the clean run 0
    and the counterfactual run 1 of P(opposite) - P(target), and each exchange sets the two sources against each other.
    """
    rows = []
    for key, cell in moved(table).groupby(list(by), sort=True):
        wide = cell.pivot(index="pair", columns="moves", values="moved").reindex(columns=list(MOVES)).dropna()
        if wide.empty:  # exchanged in one way only
            continue
        between = cell.drop_duplicates("pair").set_index("pair")["between"].reindex(wide.index)
        code, entity = (statistics.ratio(wide[move], between, seed=seed) for move in MOVES)
        says = conflict(code.value, entity.value)
        share = statistics.Estimate(np.nan, np.nan, np.nan, len(wide))
        if says == "divided":
            share = statistics.ratio(wide["code"], wide["code"] + wide["entity"], seed=seed)
        effect = (x for each in (code, entity) for x in (each.value, each.low, each.high))
        rows.append((*key, len(wide), *effect, says, share.value, share.low, share.high))
    numbers = [f"{move}{end}" for move in MOVES for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*by, "n", *numbers, "says", "share", "low", "high"])


# --- calibration (PROTOCOL.md 8.9) ----------------------------------------------------------------------------

EXPECTED = {"vision_only": (0.9, np.inf), "backbone_only": (-np.inf, 0.1)}  # the share's interval must lie within


def calibrated(table: pd.DataFrame) -> str:
    """Is the analysis right about the models in which the mechanism is known? One sentence.

    table: columns model, region, says (see `conflict`), low, high of the embeddings' share. Every share that was
    divided must be right, and strips, which hold objects and background, must give a share. Objects may say
    `neither`: a code that lies in the background is not moved with them, which is an answer and no share.
    """
    missing = [name for name in EXPECTED if name not in set(table["model"])]
    wrong = []
    for name in (name for name in EXPECTED if name not in missing):
        rows, (least, most) = table[table["model"] == name], EXPECTED[name]
        inside = (rows["low"] > least) & (rows["high"] < most)
        silent = (rows["region"] == "object") & (rows["says"] == "neither")
        if not (inside | silent).all() or not (rows["region"] == "strip").any():
            wrong.append(name)
    if wrong:
        return f"The analysis fails on {' and '.join(wrong)}: its shares mean nothing until that is repaired."
    if missing:
        return f"Not calibrated in full: {' and '.join(missing)} not available."
    return "The analysis is right about both calibration models."
