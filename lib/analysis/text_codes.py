"""Spatial codes on the words of the question and on the last token (PROTOCOL.md 9.7; floor 3).

Two codes are looked for, token by token and slot by slot of the residual stream. *Place*: where the reference stands,
written on a token of the question when the picture is read. *Direction*: which side is asked for, a code of words that
needs no picture.

A token *carries* a code where the lower end of the 95 % interval of the patch lies above the largest effect of any null
on the same token, over slots and draws, and the effect is at least `SMALLEST`; this rule was written before the
first run. A code is *readable* where the agreement of pairs lies above the 95 % point of what random signs give, the
largest of all tokens and slots; this one was added after a first run had shown agreements without a null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.analysis import components, statistics, studies
from lib.analysis.last_token import on_empty_picture
from lib.analysis.studies import Study
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.edits import Interchange
from lib.patching.runs import Run, question_states
from lib.patching.sites import RESIDUAL
from lib.patching.sweep import sweep
from lib.stimuli.grids import Grid
from lib.stimuli.pairs import LAST_TOKEN_ROLES, MIRRORED_ROLES, Pair, last_token_pairs
from lib.stimuli.questions import OPPOSITE, line_item, split
from lib.stimuli.scenes import entities, line_scene

WORDS = {  # tokens of "... to the left of the red square is", and how figures name them
    "direction": '"left", "above" ...',
    "reference": 'reference: "red"',
    "noun": '"square"',
    "last": "last token",
    "all words": "all words together",
}
SAID = {"direction": "its own word", "reference": "the reference's word", "noun": "the noun", "last": "the last token"}
KINDS = {  # what is different for the reference in the two pictures of a pair
    "both": "its place in line and on the canvas",
    "order": "its place in line alone",
    "canvas": "its place on the canvas alone",
}
KEYS = ["token", "slot"]
SMALLEST = 0.05  # smaller effects are not called a code
FEWEST = 10  # pairs with both runs right, below which a design is left out

# --- where ----------------------------------------------------------------------------------------------------


def positions(study: Study) -> dict[str, Int[np.ndarray, "pair token"]]:
    """Where the tokens of WORDS stand in the questions of each pair, counted from the end.

    Both questions of a pair must name the same reference and have as many tokens behind the direction. All words: from
    the direction to the token before the last one; where a question has fewer of them, the last of them is repeated.
    """
    named = [pair.clean.candidates[-1] for pair in study.pairs]
    reference = components.reference_positions(study.vlm, study.clean, named)
    direction = components.reference_positions(study.vlm, study.clean, [pair.direction for pair in study.pairs])
    last = np.full(len(study), -1)
    count = -1 - direction.min()
    words = np.minimum(direction[:, None] + np.arange(count), -2)
    noun = np.minimum(reference + 1, -1)
    single = {"direction": direction, "reference": reference, "noun": noun, "last": last}
    return {name: place[:, None] for name, place in single.items()} | {"all words": words}


def _edits(places: dict, names: Sequence[str] = tuple(WORDS)) -> dict[str, Interchange]:
    return {name: Interchange(places[name], places[name]) for name in names}


def _states(study: Study, run: Run) -> tuple[Float[Tensor, "slot pair token hidden"], dict[str, list[int]]]:
    """The residual stream at the tokens of WORDS and slots 0..L-1, and the columns of each name."""
    places, layers = positions(study), range(len(study.vlm.layers))
    ends = np.cumsum([tokens.shape[1] for tokens in places.values()])
    columns = {n: list(range(e - t.shape[1], e)) for (n, t), e in zip(places.items(), ends, strict=True)}
    both = np.concatenate(list(places.values()), axis=1)
    states, _ = question_states(study.vlm, run, [(RESIDUAL, slot) for slot in layers], both)
    return torch.stack([states[RESIDUAL.name, slot] for slot in layers]), columns


# --- pairs ----------------------------------------------------------------------------------------------------


def place_pairs(grid: Grid, n: int, seed: int = 0, kind: str = "both") -> list[Pair]:
    """One question about two pictures in which its reference stands at different places; n pairs per direction.

    Clean: (t0, t2, t1), left of t1, answer t2. Counterfactual: (t4, t1, t3), left of t1, answer t4. A token that
    carries the reference's place sends the clean run to t0: roles clean t2, order t0, attribute t4. Kinds: "both",
    centred lines; "order", lines shifted so that the reference stands at one place of the canvas in both pictures;
    "canvas", the reference is last in both lines, which are shifted against each other by one place.
    """
    own = grid if kind == "both" else _narrow(grid)
    return [_place_pair(pair, own, kind) for pair in last_token_pairs("squares", grid, n=n, seed=seed)]


def _narrow(grid: Grid) -> Grid:
    """The grid with the widest gap that leaves room for a shift of a line by one place."""
    gap = (grid.side - 4 * grid.entity) // 3
    if gap < 0:
        raise UserError(f"A {grid.side} x {grid.side} grid has no room to shift a line by one place.")
    return replace(grid, gap=min(gap, grid.gap))


def _shifts(grid: Grid, kind: str, near: int) -> tuple[int, int]:
    """Displacement of the clean and of the counterfactual line along their axis."""
    step = grid.entity + grid.gap
    found = {"both": (0, 0), "order": (-(step // 2), step - step // 2), "canvas": (step - step // 2, -(step // 2))}[
        kind
    ]
    return found if near == 0 else (-found[0], -found[1])


def _place_pair(pair: Pair, grid: Grid, kind: str) -> Pair:
    near = pair.clean.target
    t0, t1, t2 = (pair.clean.entities[k] for k in (near, 1, 2 - near))
    t4, t3 = (pair.counterfactual.entities[k] for k in (near, 2 - near))
    first, second = _shifts(grid, kind, near)
    clean = _asked(pair, (t0, t2, t1), grid, first)
    other = _asked(pair, (t3, t4, t1) if kind == "canvas" else (t4, t1, t3), grid, second)
    return Pair(clean, other, LAST_TOKEN_ROLES, (t2.name, t0.name, t4.name))


def _asked(pair: Pair, line: tuple, grid: Grid, along: int):
    """The clean question of a pair about another line, given in the order for "left" with the reference 2nd or 3rd."""
    asked, reference = pair.clean, line.index(pair.clean.entities[1])
    mirror = asked.target == 2
    shift = (0, along) if asked.orientation == "horizontal" else (along, 0)
    shown = line[::-1] if mirror else line
    words = (line[reference - 1].name, line[4 - 2 * reference].name, line[reference].name)
    return replace(
        asked, scene=line_scene(shown, grid, asked.orientation, shift), entities=shown, shift=shift, candidates=words,
        split=split(asked.setting, shown, grid), target=3 - reference if mirror else reference - 1,
        reference=2 - reference if mirror else reference,
    )  # fmt: skip


def same_place(pairs: Sequence[Pair], grid: Grid, kind: str, seed: int = 0) -> list[Pair]:
    """The null: counterfactuals in which the reference stands where it stands in the clean picture.

    Both its neighbours are entities that the clean picture does not show.
    """
    own, rng, out = grid if kind == "both" else _narrow(grid), np.random.default_rng(seed), []
    for pair in pairs:
        clean, reference = pair.clean, pair.clean.reference
        others = [e for e in entities("squares", grid) if e not in clean.entities]
        far, answer = (others[k] for k in rng.permutation(len(others))[:2])
        shown = tuple({reference: clean.entities[reference], 1: answer}.get(k, far) for k in range(3))
        words = (answer.name, far.name, clean.candidates[-1])
        scene = line_scene(shown, own, clean.orientation, clean.shift)
        other = replace(clean, scene=scene, entities=shown, candidates=words)
        out.append(replace(pair, counterfactual=other, candidates=(*pair.candidates[:2], answer.name)))
    return out


def direction_pairs(grid: Grid, n: int, seed: int = 0) -> list[Pair]:
    """Two opposite questions about one picture (t0, t1, t2) of a centred line; n pairs per direction."""
    out = []
    for pair in last_token_pairs("squares", grid, n=n, seed=seed):
        clean = pair.clean
        other = line_item(clean.setting, grid, clean.entities, OPPOSITE[clean.direction])
        words = (clean.answer, other.answer, clean.candidates[-1])
        out.append(Pair(clean, other, MIRRORED_ROLES, words))
    return out


# --- place ----------------------------------------------------------------------------------------------------


def place(vlm: VLM, kind: str, n: int = 6, draws: int = 2, seed: int = 0) -> pd.DataFrame | None:
    """Tokens patched from a picture in which the reference stands elsewhere, at every slot.

    All tokens of WORDS where both places change, the reference's word and the last token where one does. Columns of
    `_summary` and of `consistency`. The null: other pictures with the reference at the same place. None where the model
    answers fewer than FEWEST pairs correctly.
    """
    drawn = place_pairs(vlm.grid, n, seed, kind)
    study = studies.study(vlm, drawn)
    if study.both_correct.sum() < FEWEST:
        return None
    study = study.kept()
    nulls = [studies.study(vlm, same_place(study.pairs, vlm.grid, kind, seed + k)) for k in range(draws)]
    words = tuple(WORDS) if kind == "both" else ("reference", "last")
    tables = {"picture": [_sweep(study, words)], "empty canvas": [_sweep(on_empty_picture(study), words)]}
    tables["null"] = [_sweep(each, words) for each in nulls]
    found = _summary({name: [_nearest(rows) for rows in each] for name, each in tables.items()}, "order", seed)
    return found.merge(consistency(study, seed), on=["axis", *KEYS], how="left").assign(code="place", kind=kind)


def _sweep(study: Study, words: Sequence[str]) -> pd.DataFrame:
    edits, layers = _edits(positions(study), words), range(len(study.vlm.layers))
    return sweep(
        study.vlm, study.clean, study.counterfactual, edits, study.ids, study.roles, (RESIDUAL,), study.labels, layers,
        progress=False,
    )  # fmt: skip


def _nearest(table: pd.DataFrame) -> pd.DataFrame:
    """Rows whose "clean" is the more likely of the clean and the counterfactual's answer, by logit.

    A patch that hands over the answer itself lowers the clean one and thereby brings order and clean closer to each
    other; measured against the likeliest rival it moves nothing towards order.
    """
    rows = table[table["role"] != "attribute"].reset_index(drop=True)
    keys = ["edit", "run", "slot", "pair"]
    rivals = table[table["role"] != "order"].groupby(keys)["logit"].max().rename("rival").reset_index()
    rows = rows.merge(rivals, on=keys)
    return rows.assign(logit=rows["rival"].where(rows["role"] == "clean", rows["logit"]))


def consistency(study: Study, seed: int = 0, flips: int = 500) -> pd.DataFrame:
    """Is the reference's place readable? How often a pair's change of a token points along that of the other pairs.

    Counterfactual minus clean state, against the sum of this difference over the other pairs of the same direction: the
    share with a positive inner product (chance 1/2). Columns axis, token, slot, readable, readable_null (see the rules
    on top; random signs make every pair's change point forwards or backwards).
    """
    (clean, columns), (other, _) = (_states(study, run) for run in (study.clean, study.counterfactual))
    names = [name for name in WORDS if name != "all words"]
    change = (other - clean).double()[:, :, [columns[name][0] for name in names]]
    rng, axes, parts = np.random.default_rng(seed), study.labels["orientation"].to_numpy(), []
    signs = np.vstack([np.ones(len(study)), rng.choice([-1, 1], (flips, len(study)))])
    agrees = np.stack([_agrees(change, study.labels["direction"].to_numpy(), sign) for sign in signs])
    for axis in (*np.unique(axes), "all"):
        share = agrees[:, :, (axes == axis) | (axis == "all")].mean(2)  # [flip, slot, token]
        null = np.quantile(share[1:].max((1, 2)), 0.95)
        parts += [(axis, names[token], slot, value, null) for (slot, token), value in np.ndenumerate(share[0])]
    return pd.DataFrame(parts, columns=["axis", *KEYS, "readable", "readable_null"])


def _agrees(change: Tensor, asked: np.ndarray, sign: np.ndarray) -> Float[np.ndarray, "slot pair token"]:
    """Whether each change points along the others of its direction, 1/2 where a token does not change."""
    signed = change * torch.as_tensor(sign)[:, None, None]
    same = torch.as_tensor((asked[:, None] == asked) & ~np.eye(len(asked), dtype=bool)).double()
    product = (signed * torch.einsum("pq,sqth->spth", same, signed)).sum(-1)
    return torch.where(product.abs() > 1e-12, (product > 0).double(), 0.5).numpy()


# --- direction ------------------------------------------------------------------------------------------------


def direction(vlm: VLM, n: int = 6, draws: int = 2, seed: int = 0) -> pd.DataFrame | None:
    """The mean difference of two opposite questions' states, added to every token of WORDS, at every slot.

    The differences are those of other pairs (seed + 1), asked about their own pictures ("picture") or about an empty
    canvas. The null: the difference between two random halves of these pairs that ask in the same direction, stretched
    to the same length. Columns of `_summary`. None where the model answers too few pairs correctly.
    """
    both = [studies.study(vlm, direction_pairs(vlm.grid, n, seed + k)) for k in range(2)]
    if min(each.both_correct.sum() for each in both) < FEWEST:
        return None
    study, fresh = (each.kept() for each in both)
    shared = set(study.labels["direction"]) & set(fresh.labels["direction"])  # "left of the" is longer than "above the"
    if not shared:
        return None
    study, fresh = (each.rows(each.labels["direction"].isin(shared).to_numpy()) for each in (study, fresh))
    state, columns = _states(study, study.clean)
    clean, other = (_states(fresh, run)[0] for run in (fresh.clean, fresh.counterfactual))
    blank = on_empty_picture(fresh)
    blank = replace(blank, clean=replace(blank.clean, index=blank.counterfactual.index))
    words = [_states(blank, run)[0] for run in (blank.clean, blank.counterfactual)]
    asked, of = (each.labels["direction"].to_numpy() for each in (study, fresh))
    steps = {"picture": [_step(other - clean, of, asked)], "empty canvas": [_step(words[1] - words[0], of, asked)]}
    steps["null"] = [_stretched(_halves(clean, of, asked, seed + k), steps["picture"][0], k) for k in range(draws)]
    edits, tables = _edits(positions(study)), {}
    for name, each in steps.items():
        given = [{(RESIDUAL.name, slot): s for slot, s in enumerate(state + step)} for step in each]
        tables[name] = [components.given_sweep(study, edits, [RESIDUAL], one, columns) for one in given]
    return _summary(tables, "counterfactual", seed).assign(code="direction", kind="question")


def _step(change: Tensor, of: np.ndarray, asked: np.ndarray) -> Tensor:
    """For every asked direction the mean change [slot, pair, token, hidden] of the pairs that ask in it."""
    return torch.stack([change[:, torch.as_tensor(of == d)].mean(1) for d in asked], dim=1)


def _halves(state: Tensor, of: np.ndarray, asked: np.ndarray, seed: int) -> Tensor:
    """The difference between two random halves of the pairs of each direction, for every asked direction."""
    rng, sign = np.random.default_rng(seed), np.zeros(len(of))
    for d in np.unique(of):
        rows = rng.permutation(np.flatnonzero(of == d))
        sign[rows] = np.where(np.arange(len(rows)) < len(rows) // 2, 1, -1)
    return _step(state * torch.as_tensor(sign, dtype=state.dtype)[:, None, None], of, asked)


def _stretched(change: Tensor, real: Tensor, seed: int) -> Tensor:
    """A change stretched to the length of the real one; a random direction where there is none."""
    generator, length = torch.Generator().manual_seed(seed), real.norm(dim=-1, keepdim=True)
    noise = torch.randn(change.shape, generator=generator).to(change)
    unit = torch.nn.functional.normalize(change + 1e-6 * noise, dim=-1)
    return length * unit


# --- both -----------------------------------------------------------------------------------------------------


def _summary(tables: dict[str, list[pd.DataFrame]], toward: str, seed: int) -> pd.DataFrame:
    """Effects of sweeps, by source, of both axes and of all pairs.

    Columns axis, source, token, slot, n, effect, low, high (logits: clean run 0; 1 is the counterfactual's answer, or
    as far on the other side), probability (of the role `toward`, after the patch), null (the largest effect of the null
    on this token), carries (see the rules on top).
    """
    keys, parts, nulls = ["axis", *KEYS], [], []
    for source, sweeps in tables.items():
        for draw, rows in enumerate(sweeps):
            moved = components.shifts(rows, "logit", toward, ["edit", "slot", "orientation"])
            moved = moved.rename(columns={"edit": "token", "orientation": "axis"})
            moved = pd.concat([moved, moved.assign(axis="all")])
            if source == "null":
                nulls.append(components.ratios(moved, seed, keys).assign(draw=draw))
                continue
            hit = rows[(rows["role"] == toward) & (rows["run"] == "patched")].rename(columns={"edit": "token"})
            hit = pd.concat([hit.assign(axis=hit["orientation"]), hit.assign(axis="all")])
            probability = hit.groupby(keys, as_index=False)["probability"].mean()
            parts.append(components.ratios(moved, seed, keys).merge(probability, on=keys).assign(source=source))
    highest = pd.concat(nulls).groupby(["axis", "token"], as_index=False)["effect"].max()
    out = pd.concat(parts).merge(highest.rename(columns={"effect": "null"}), on=["axis", "token"])
    out["carries"] = (out["low"] > out["null"]) & (out["effect"] >= SMALLEST)
    return out


def table(vlm: VLM, n: int = 6, draws: int = 2, seed: int = 0) -> pd.DataFrame:
    """Both codes of a model: the rows of `place` of every kind and of `direction`, as far as it answers the pairs.

    No rows where it answers too few of all of them.
    """
    parts = [place(vlm, kind, n, draws, seed) for kind in KINDS] + [direction(vlm, n, draws, seed)]
    parts = [part for part in parts if part is not None]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["axis", "code", "source"])


def headline(found: pd.DataFrame) -> list[str]:
    """What the table says, a sentence each about the reference's word, the last token and the direction."""
    if not len(found):
        return [f"Fewer than {FEWEST} pairs of each design are answered correctly: nothing is shown here."]
    rows, two = found[found["axis"] == "all"], statistics.decimals
    place = rows[(rows["code"] == "place") & (rows["source"] == "picture")]
    out = []
    if "both" in set(place["kind"]):
        out += [_read_or_used(place[place["kind"] == "both"])]
    for kind, said in KINDS.items():
        last = rows[(rows["code"] == "place") & (rows["kind"] == kind) & (rows["token"] == "last")]
        if len(last):
            top = {name: part.loc[part["effect"].idxmax()] for name, part in last.groupby("source")}
            shown, blank = top["picture"], top["empty canvas"]
            out.append(
                f"Last token, from a picture in which the reference differs in {said}: at most {two(shown['effect'])} "
                f"[{two(shown['low'])}, {two(shown['high'])}] of the way, at slot {shown['slot']} (null: "
                f"{two(shown['null'])}); from an empty canvas: {two(blank['effect'])} (n = {shown['n']})."
            )
    asked = rows[rows["code"] == "direction"]
    for source, part in asked.groupby("source", sort=False):
        named = [f"{SAID[token]} at {_spans(own)}" for token, own in _carrying(part)]
        said = f"is carried by {' and by '.join(named)}" if named else "is carried by no token"
        about = "an empty canvas" if source == "empty canvas" else "pictures"
        out.append(f"The direction asked for, as questions about {about} give it, {said}.")
    return out


def _read_or_used(place: pd.DataFrame) -> str:
    """Is the reference's place readable on words behind it, and does it move the answer when patched?"""
    words = place[place["token"].isin(("reference", "noun"))]
    best, used = words.loc[words["readable"].idxmax()], place[place["token"] != "last"]
    top = used.loc[used["effect"].idxmax()]
    readable = "is readable" if best["readable"] > best["readable_null"] else "is not readable"
    moves = "moves" if used["carries"].any() else "does not move"
    return (
        f"The reference's place {readable} on its word or the noun behind it: at best {best['readable']:.0%} of pairs "
        f"agree, at {SAID[best['token']]}, slot {best['slot']} (random signs: {best['readable_null']:.0%}). Patching "
        f"words of the question {moves} the answer: at most {statistics.decimals(top['effect'])} of the way (null: "
        f"{statistics.decimals(top['null'])}; n = {top['n']})."
    )


def _carrying(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The single tokens that carry a code, each with its rows."""
    chosen = rows[rows["carries"]]
    return [(name, chosen[chosen["token"] == name]) for name in SAID if (chosen["token"] == name).any()]


def _spans(rows: pd.DataFrame) -> str:
    slots = sorted(rows["slot"])
    return f"slot {slots[0]}" if len(slots) == 1 else f"slots {slots[0]} to {slots[-1]}"
