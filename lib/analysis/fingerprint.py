"""Fingerprint: which of four rival codes the answer follows, from the effects of nine edits (PROTOCOL.md 9.2).

A pair is a clean picture (a, b, c) and its mirror picture (c, b, a), the counterfactual; both are asked the same
question. Every edit changes image tokens of the clean picture; its effect is 0 where the answer stays that of the clean
picture and 1 where it becomes that of the mirror picture. Each edit makes the rival explanations predict different
answers, so that it says which of them the answer follows, not what each could do alone (that is `ladder`). The rivals:
O, the objects' own tokens carry their place; S, the background around an object carries a place that the object takes
over; B, the background carries who stands where, at no particular place; P, the language model makes the order from the
places of tokens in its input.

S is our strict reading of the paper: an ordering code without content, spread over the background in strips. Its
abstract (arXiv 2603.22278v1) says only that the encoder represents the layout of objects and that this signal extends
into the background, which B fits as well. S + B is that loose reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lib.analysis import effects, statistics
from lib.analysis.studies import Study, pictures
from lib.errors import UserError
from lib.patching.edits import Interchange, swap
from lib.patching.sweep import encoder_sweep, token_sweep
from lib.stimuli.grids import ORIENTATIONS, Grid
from lib.stimuli.pairs import Pair, mirrored_pairs
from lib.stimuli.scenes import Scene
from lib.stimuli.token_sets import Tokens, block, box_tokens

# "crossed with mirror": the first region takes the mirror picture's last one and the other way round, so that what is
# in the region stays and any code of its place changes; "change places": within the clean picture.
EDITS = {
    1: "objects crossed with mirror",
    2: "strips crossed with mirror",
    3: "strips' background crossed with mirror",
    4: "middle strip from mirror, in place",
    5: "all background from mirror, in place",
    6: "all objects from mirror, in place",
    7: "outer objects change places",
    8: "outer strips change places",
    9: "strips' background changes places",
}
RIVALS = {"O": 1, "S": 9, "B": 5, "P": 8}  # each rival's own edit
RIVAL_NAMES = {
    "O": "object-local code",
    "S": "strip code (the paper, read strictly)",
    "B": "scene code in the background",
    "P": "token place, backbone",
}
# Inside the encoder an edit moves patches, and P is what the encoder (or the backbone) makes of where patches stand.
NAMES_INSIDE = RIVAL_NAMES | {"P": "place of the patches"}
AXIS = {"horizontal": "left-right", "vertical": "above-below"}
LOOSE = "S + B"  # the paper read loosely: order in the background, whatever its form
CHECKS = {"6 - (O + S + P)": (6, "OSP"), "7 - (S + P)": (7, "SP")}  # 0 where effects add up

# What each rival predicts for each edit if it alone decides; None: somewhere between 0 and 1, more with more tokens.
PREDICTED = {
    "O": {1: 1, 2: 1, 3: 0, 4: 0, 5: 0, 6: 1, 7: 0, 8: 0, 9: 0},
    "S": {1: 0, 2: 1, 3: 1, 4: 0, 5: 0, 6: 1, 7: 1, 8: 0, 9: 1},
    "B": {1: 0, 2: None, 3: None, 4: None, 5: 1, 6: 0, 7: 0, 8: 0, 9: 0},
    "P": {1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 1, 7: 1, 8: 1, 9: 0},
}

# --- pairs and their token sets -------------------------------------------------------------------------------


def shifted_pairs(setting: str, grid: Grid, n: int, seed: int = 0, **options) -> list[Pair]:
    """Mirrored pairs whose lines stand at either end of the canvas along their own axis, ends taking turns.

    Entities stand one token closer than in centred lines, or there would be no room: so the first of the line can
    stand in the middle of the canvas. n pairs per direction; options: see `mirrored_pairs`.
    """
    narrow = replace(grid, gap=max(grid.gap - 1, 0))
    before, behind = narrow.starts[0], grid.side - narrow.starts[2] - grid.entity
    out: list[Pair] = []
    for orientation, directions in zip(ORIENTATIONS, (("left", "right"), ("above", "below")), strict=True):
        ends = [(0, by) if orientation == "horizontal" else (by, 0) for by in (behind, -before)]
        drawn = [mirrored_pairs(setting, narrow, n, seed, shift=end, directions=directions, **options) for end in ends]
        out += [two[k % 2] for k, two in enumerate(zip(*drawn, strict=True))]
    return out


@dataclass(frozen=True)
class LineTokens:
    """Image tokens of a line of three, where the line stands: objects and strips by place (first, middle, last).

    A strip is the family's own (PROTOCOL.md 1), moved with its object and cut at the canvas; where the canvas cuts an
    outer strip, both keep the columns (rows) that they have in common, so that they can change places.
    """

    objects: tuple[Tokens, Tokens, Tokens]
    strips: tuple[Tokens, Tokens, Tokens]
    background: Tokens

    @classmethod
    def of(cls, scene: Scene, grid: Grid, orientation: str) -> LineTokens:
        objects = tuple(box_tokens(placement.box, grid) for placement in scene.placements)
        if len(objects) != 3:
            raise UserError(f"The fingerprint needs pictures of three entities in a line, not of {len(objects)}.")
        starts = [int(np.divmod(tokens[0], grid.side)[orientation == "horizontal"]) for tokens in objects]
        own = [
            {t - grid.starts[k] for t in grid.strip_range(k) if 0 <= t - grid.starts[k] + starts[k] < grid.side}
            for k in range(3)
        ]
        if own[0] != own[2]:
            own[0] = own[2] = own[0] & own[2]
        everywhere, strips = np.arange(grid.side), []
        for start, offsets in zip(starts, own, strict=True):
            band = start + np.sort(list(offsets))
            strips.append(
                block(grid, everywhere, band) if orientation == "horizontal" else block(grid, band, everywhere)
            )
        return cls(objects, tuple(strips), np.setdiff1d(np.arange(grid.side**2), np.concatenate(objects)))

    @property
    def strip_backgrounds(self) -> tuple[Tokens, ...]:
        """Each strip without the line's objects, raster order."""
        return tuple(np.intersect1d(strip, self.background) for strip in self.strips)

    @property
    def edits(self) -> dict[int, Interchange]:
        """The nine edits of this line."""
        first, _, last = self.objects
        rest = self.strip_backgrounds
        whole = [np.concatenate([self.objects[k], rest[k]]) for k in (0, 2)]  # object stays on object
        objects = np.concatenate(self.objects)
        in_place = {4: self.strips[1], 5: self.background, 6: objects}
        return {
            1: swap(first, last),
            2: swap(*whole),
            3: swap(rest[0], rest[2]),
            **{number: Interchange(tokens, tokens) for number, tokens in in_place.items()},
            7: swap(first, last, own=True),
            8: swap(*whole, own=True),
            9: swap(rest[0], rest[2], own=True),
        }


def by_line_position(study: Study) -> Iterable[tuple[np.ndarray, LineTokens]]:
    """The study's pairs in groups whose lines stand at the same place: (rows, their token sets)."""
    places = [(p.orientation, tuple(x.box for x in p.clean.scene.placements)) for p in study.pairs]
    for place in dict.fromkeys(places):
        rows = np.array([k for k, other in enumerate(places) if other == place])
        pair = study.pairs[rows[0]]
        yield rows, LineTokens.of(pair.clean.scene, study.vlm.grid, pair.orientation)


# --- sweeps ---------------------------------------------------------------------------------------------------


def sweep(
    study: Study,
    numbers: Iterable[int] = tuple(EDITS),
    slots: Iterable[int] | None = (0,),
    extra=None,
    progress: bool = False,
) -> pd.DataFrame:
    """Edits at slots of the language model (None: every slot): the rows of `token_sweep`, `edit` as text.

    extra: a function of a group's `LineTokens` that gives further edits {name: Interchange} (the dose).
    """
    parts = []
    for rows, line in by_line_position(study):
        part = study.rows(rows)
        edits = {str(number): line.edits[number] for number in numbers} | (extra(line) if extra else {})
        table = token_sweep(
            study.vlm, part.clean, edits, part.ids, part.roles, part.other, part.labels, slots, progress
        )
        parts.append(table.assign(pair=rows[table["pair"]], centred=is_centred(part)))
    return pd.concat(parts, ignore_index=True)


def encoder_edits(
    study: Study, numbers: Iterable[int] = tuple(RIVALS.values()), slots=None, progress: bool = False
) -> pd.DataFrame:
    """The same edits of the patches inside the image encoder, at encoder slots (None: every slot)."""
    images, parts = pictures(study), []
    for rows, line in by_line_position(study):
        part = study.rows(rows)
        edits = {str(number): line.edits[number] for number in numbers}
        table = encoder_sweep(
            study.vlm, images, part.clean, part.other, edits, part.ids, part.roles, part.labels, slots, progress
        )
        parts.append(table.assign(pair=rows[table["pair"]], centred=is_centred(part)))
    return pd.concat(parts, ignore_index=True)


def is_centred(study: Study) -> bool:
    return all(pair.clean.shift == (0, 0) for pair in study.pairs)


# --- what a sweep shows ---------------------------------------------------------------------------------------

GROUP = ["setting", "orientation", "centred"]


def effect_table(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The published form: setting, orientation, centred, edit (number), slot, n, effect, low, high, on_the_two.

    Effects are ratios of means over pairs, intervals bootstraps over couples (`effects.summarise`). on_the_two: the
    probability that the edited runs leave on the two candidates, a mean over pairs; what is missing to 1 went to other
    words, and counts as half an effect.
    """
    by = [*GROUP, "edit", "slot"]
    own = table[(table["run"] == "patched") & table["role"].isin(("clean", "counterfactual"))]
    left = own.groupby([*by, "pair"])["probability"].sum().groupby(by).mean().rename("on_the_two")
    out = effects.summarise(table, by, seed).join(left, on=by)
    return out.assign(edit=out["edit"].astype(int)).sort_values([*GROUP, "slot", "edit"], ignore_index=True)


def moved_at_start(table: pd.DataFrame) -> pd.DataFrame:
    """How far each edit moved each pair's swing at slot 0: a row per pair, a column per edit, `between`, `couple`."""
    cells = effects.moved(table[table["slot"].isin((-1, 0))])
    wide = cells.pivot(index="pair", columns="edit", values="moved")
    wide.columns = [int(edit) for edit in wide.columns]
    return wide.join(cells.drop_duplicates("pair").set_index("pair")[["between", "couple"]])


def rival_table(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The published form: setting, orientation, centred, rival (O, S, B, P, S + B, sum, the checks), n, value, low,
    high.

    sum: O + S + B + P, an average over pairs. 1 where each pair's answer follows exactly one source; what is missing to
    1 is the part of the swing that no single edit moves, so that sources must be moved together; what is above 1 moves
    under more than one edit. The checks are 0 where effects add up: edit 6 moves what O, S and P follow, edit 7 what S
    and P follow.
    """
    rows = []
    for key, cell in table.groupby(GROUP, sort=False):
        wide = moved_at_start(cell)
        own = {rival: wide[edit] for rival, edit in RIVALS.items()}
        found = own | {LOOSE: own["S"] + own["B"], "sum": sum(own.values())}
        for name, (edit, parts) in CHECKS.items():
            if edit in wide:
                found[name] = wide[edit] - sum(own[rival] for rival in parts)
        for rival, moved in found.items():
            x = statistics.ratio(moved, wide["between"], wide["couple"], seed=seed)
            rows.append((*key, rival, x.n, x.value, x.low, x.high))
    return pd.DataFrame(rows, columns=[*GROUP, "rival", "n", "value", "low", "high"])


def rival(table: pd.DataFrame, name: str, seed: int = 0) -> statistics.Estimate:
    """The effect of a rival's own edit; table: the sweep of one setting, orientation and kind of line."""
    wide = moved_at_start(table)
    return statistics.ratio(wide[RIVALS[name]], wide["between"], wide["couple"], seed=seed)


def lead(table: pd.DataFrame, rival: str = "S", seed: int = 0) -> statistics.Estimate:
    """A rival's effect minus the largest of the others; every resample of pairs finds its own largest one.

    table: the sweep of one setting, orientation and kind of line.
    """
    wide = moved_at_start(table)
    own = wide[RIVALS[rival]].to_numpy()
    others = wide[[edit for name, edit in RIVALS.items() if name != rival]].to_numpy()

    def ahead(own, others, between):
        return (own.mean() - others.mean(0).max()) / between.mean()

    return statistics.bootstrap(ahead, own, others, wide["between"].to_numpy(), units=wide["couple"], seed=seed)


def winner(values: dict[str, tuple[float, float]]) -> str:
    """Which source the answer follows: a rival, a rival `in part`, or `several`, or `none`.

    values: rival -> (low, high). A rival decides where its interval lies above 1/2 and above those of all others;
    else, those whose interval reaches above 1/4 count: several of them, one (in part), or none.
    """
    for rival, (low, _) in values.items():
        if low > 0.5 and all(low > high for other, (_, high) in values.items() if other != rival):
            return rival
    reach = [rival for rival, (_, high) in values.items() if high > 0.25]
    return "several" if len(reach) > 1 else f"{reach[0]} in part" if reach else "none"


def source_in_words(said: str, names: dict[str, str] = RIVAL_NAMES) -> str:
    """What `winner` says, for a sentence."""
    rival, _, part = said.partition(" ")
    if rival in RIVALS:
        return f"{names[rival]} ({rival})" + (", in part" if part else "")
    return {"several": "several sources", "none": "none of the four sources"}[said]


def in_words(rivals: pd.DataFrame) -> list[str]:
    """One line per axis and kind of line: which source the answer follows, with the four values and the loose reading.

    rivals: rows of `rival_table` of one setting.
    """
    lines = []
    for (orientation, centred), cell in rivals.groupby(["orientation", "centred"], sort=False):
        own = cell[cell["rival"].isin([*RIVALS, LOOSE])].set_index("rival")
        source = source_in_words(winner({rival: (x.low, x.high) for rival, x in own.loc[list(RIVALS)].iterrows()}))
        values = ", ".join(
            f"{rival} {statistics.in_figures(row.value, row.low, row.high)}" for rival, row in own.iterrows()
        )
        where = f"{AXIS[orientation]}, {'centred' if centred else 'shifted'} lines, n = {int(own['n'].iloc[0])} pairs"
        lines.append(f"{where}: the answer follows {source}: {values}")
    return lines


def slots_in_words(table: pd.DataFrame, names: dict[str, str] = RIVAL_NAMES) -> list[str]:
    """One line per axis: which source decides at which slots (see `winner`).

    table: `effect_table` over slots; names: `NAMES_INSIDE` for slots of the encoder.
    """
    rivals, lines = {edit: rival for rival, edit in RIVALS.items()}, []
    for orientation, cell in table.groupby("orientation", sort=False):
        said: list[tuple[str, list[int]]] = []
        for slot, own in cell[cell["edit"].isin(rivals)].groupby("slot"):
            here = winner({rivals[row.edit]: (row.low, row.high) for row in own.itertuples()})
            if said and said[-1][0] == here:
                said[-1][1].append(int(slot))
            else:
                said.append((here, [int(slot)]))
        parts = [f"{source_in_words(name, names)} at {_span(slots)}" for name, slots in said]
        lines.append(f"{AXIS[orientation]}, n = {int(cell['n'].iloc[0])} pairs: {'; '.join(parts)}")
    return lines


def _span(slots: Sequence[int]) -> str:
    return f"slot {slots[0]}" if len(slots) == 1 else f"slots {slots[0]} to {slots[-1]}"


# --- dose -----------------------------------------------------------------------------------------------------


def doses(line: LineTokens, parts: Sequence[float] = (0.125, 0.25, 1 / 3, 0.5, 2 / 3, 0.8), seed: int = 0) -> dict:
    """Background tokens that take the mirror picture's vectors, in place: random ones, and whole strips of as many.

    Edits "random k" with k tokens (parts of the background), "strips k": background of the middle strip, and of the two
    outer ones. All background is edit 5.
    """
    rng, count = np.random.default_rng(seed), len(line.background)
    order = rng.permutation(line.background)
    middle, outer = line.strip_backgrounds[1], np.concatenate(line.strip_backgrounds[::2])
    sizes = sorted({round(part * count) for part in parts} | {len(middle), len(outer)})
    random = {f"random {k}": np.sort(order[:k]) for k in sizes if 0 < k < count}
    strips = {f"strips {len(tokens)}": tokens for tokens in (middle, outer)}
    return {name: Interchange(tokens, tokens) for name, tokens in (random | strips).items()}


def dose_table(table: pd.DataFrame, line: LineTokens, seed: int = 0) -> pd.DataFrame:
    """Effects by number of background tokens: setting, orientation, centred, region (random, strips), tokens, n,
    effect, low, high. table: a sweep with edit 5 and `doses` as extra edits; all background belongs to both curves."""
    found = effects.summarise(
        table.query("edit == 'none' or edit == '5' or edit.str.contains(' ')"), [*GROUP, "edit"], seed
    )
    whole = found[found["edit"] == "5"].assign(tokens=len(line.background))
    named = found[found["edit"] != "5"]
    named = named.assign(region=named["edit"].str.split().str[0], tokens=named["edit"].str.split().str[1].astype(int))
    out = pd.concat([named, whole.assign(region="random"), whole.assign(region="strips")])
    return out.drop(columns="edit").sort_values([*GROUP, "region", "tokens"], ignore_index=True)


NOTHING = 0.05  # two effects below it are not compared


def dose_in_words(table: pd.DataFrame) -> list[str]:
    """One line per axis: whole strips beside random background tokens of the same number; table: `dose_table`."""
    lines = []
    for orientation, cell in table.groupby("orientation", sort=False):
        own = cell.set_index(["region", "tokens"])
        parts = []
        for tokens in own.loc["strips"].index[:-1]:  # the last one is all background, in both curves
            strips, random = own.loc[("strips", tokens)], own.loc[("random", tokens)]
            apart = strips["low"] > random["high"] or random["low"] > strips["high"]
            said = "intervals apart" if apart else "intervals overlap"
            if max(strips["high"], random["high"]) < NOTHING:
                said = "neither moves the answer"
            values = " against ".join(statistics.in_figures(x["effect"], x["low"], x["high"]) for x in (strips, random))
            parts.append(f"{tokens} tokens {values} ({said})")
        lines.append(f"{AXIS[orientation]}, strips against random tokens: {'; '.join(parts)}")
    return lines


# --- the number of the first round ----------------------------------------------------------------------------

OLD_SHARE = {"objects": (1, 7), "strips": (2, 8)}  # a region crossed with the mirror picture, moved within its own
SMALL, LARGE = 0.25, 0.75  # together below SMALL, or each above LARGE, two effects are not divided


def share_reading(crossed: float, within: float) -> str:
    """`divided` where the share means something; `neither` where the two effects are small together, `both` where
    either of them turns the answer."""
    if not crossed + within >= SMALL:
        return "neither"
    return "both" if min(crossed, within) > LARGE else "divided"


def old_shares(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The headline of the first round, kept for comparison: setting, orientation, centred, region, n, crossed, within,
    reading, value, low, high.

    value: the "embeddings' share", effect of crossing a region over that plus the effect of moving it within the
    picture; NaN unless `share_reading` says divided. docs/HISTORY.md says what it cannot tell apart. table: a sweep
    with edits 1, 2, 7 and 8.
    """
    rows = []
    for key, cell in table.groupby(GROUP, sort=False):
        wide = moved_at_start(cell)
        for region, edits in OLD_SHARE.items():
            crossed, within = (wide[edit] for edit in edits)
            effect = [x.mean() / wide["between"].mean() for x in (crossed, within)]
            reading = share_reading(*effect)
            x = statistics.Estimate(np.nan, np.nan, np.nan, wide["couple"].nunique())
            if reading == "divided":
                x = statistics.ratio(crossed, crossed + within, wide["couple"], seed=seed)
            rows.append((*key, region, x.n, *effect, reading, x.value, x.low, x.high))
    columns = [*GROUP, "region", "n", "crossed", "within", "reading", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def predicted_shares() -> dict[str, dict[str, str]]:
    """Rival -> region -> what the share of the first round is if that rival alone decides: a number or a reading."""
    out: dict[str, dict[str, str]] = {}
    for rival, row in PREDICTED.items():
        for region, (crossed, within) in OLD_SHARE.items():
            if row[crossed] is None:
                said = "1 or neither"  # grows with tokens, against 0
            else:
                reading = share_reading(row[crossed], row[within])
                said = f"{row[crossed] / (row[crossed] + row[within]):.0f}" if reading == "divided" else reading
            out.setdefault(rival, {})[region] = said
    return out
