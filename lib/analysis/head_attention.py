"""What single heads attend to, and what is lost when one is cut off from the picture (PROTOCOL.md 9.7).

A head is named (layer, head). Attention is read, and cut, at one token of each question, counted from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.analysis import components, statistics
from lib.analysis.knockout import reading_sets
from lib.analysis.studies import Study
from lib.engine.hooks import hooks
from lib.engine.language import LanguageModel
from lib.engine.tensors import pick, put
from lib.engine.vlm import VLM
from lib.patching.edits import token_set
from lib.patching.results import Table
from lib.patching.routes import Route
from lib.patching.runs import Pairs, Run, question_positions, question_states
from lib.patching.sites import heads
from lib.patching.sweep import run_pairs
from lib.stimuli.token_sets import background_strip

Head = tuple[int, int]  # layer, head

# --- patterns -------------------------------------------------------------------------------------------------


@contextmanager
def weights_returned(language: LanguageModel):
    """Attention computed step by step within a block, so that layers hand out its weights; then as before."""
    before = language.config._attn_implementation
    language.config._attn_implementation = "eager"
    try:
        yield
    finally:
        language.config._attn_implementation = before


def _additive(dtype: torch.dtype) -> Callable[[int, dict], dict]:
    """The masks of a run as numbers to add, as step-by-step attention wants them."""

    def change(layer: int, kwargs: dict) -> dict:
        mask = kwargs["attention_mask"]
        if mask is None or mask.dtype != torch.bool:
            return kwargs
        zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return kwargs | {"attention_mask": zeros.masked_fill(~mask, torch.finfo(dtype).min)}

    return change


def attention(
    vlm: VLM, run: Run, chosen: Sequence[Head], position: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "row chosen image_token"]:
    """Attention weights of chosen heads from one token of each question to the image tokens.

    A row of weights sums to 1 with those on text; what is missing here lies on text.
    """
    language, out = vlm.language, np.zeros((len(run), len(chosen), vlm.grid.side**2))

    def work(frame, pictures, groups):
        past = language.prefill(frame, pick(run.images, pictures)).keys
        for group, part, row_of in groups:
            rows, seen = group.rows[part].numpy(), {}
            readers = [(vlm.layers[k].self_attn, "after", _reader(seen, k)) for k in {layer for layer, _ in chosen}]
            with weights_returned(language), hooks(*readers):
                language.ask(frame, group, part, past.rows(row_of), mask=_additive(vlm.dtype))
            at = question_positions(token_set(position[:, None], rows), frame, group)[:, 0]
            image = frame.image.numpy()
            each = [seen[layer][np.arange(len(rows)), head, at][:, image] for layer, head in chosen]
            yield rows, np.stack(each, axis=1)

    for rows, weights in language.each(run.prompt, run.index, work, cost=3.0):
        out[rows] = weights
    return out


def _reader(seen: dict, layer: int) -> Callable:
    def read(module, args, output):
        seen[layer] = output[1].float().cpu().numpy()

    return read


def regions(study: Study, chosen: Sequence[Head], position: Int[np.ndarray, " pair"], seed: int = 0) -> pd.DataFrame:
    """How much of each head's attention lies on parts of the picture, in the clean and in the mirrored run.

    Columns run, layer, head, region, n, attention, low, high, tokens (in the region; not known for text). Regions are
    places: asked (the object on the side that the question asks for, which is another entity in the mirrored picture),
    asked strip (the background of its strip), other (the object on the opposite side), reference, elsewhere (all other
    background); text is the rest. For mirrored pairs of centred lines.
    """
    sets, parts, grid = reading_sets(study, seed), [], study.vlm.grid
    named = {"asked": sets["target"], "other": sets["opposite"], "reference": sets["middle"]}
    places = [(pair.orientation, pair.clean.target) for pair in study.pairs]
    named["asked strip"] = np.stack([background_strip(grid, axis, place) for axis, place in places])
    for name, run in (("clean", study.clean), ("mirrored", study.counterfactual)):
        weights = attention(study.vlm, run, chosen, position)
        for k, (layer, head) in enumerate(chosen):
            own = {region: np.take_along_axis(weights[:, k], tokens, 1).sum(-1) for region, tokens in named.items()}
            own["elsewhere"] = weights[:, k].sum(-1) - sum(own.values())
            own["text"] = 1 - weights[:, k].sum(-1)
            for region, share in own.items():
                columns = {"run": name, "layer": layer, "head": head, "region": region, "attention": share}
                parts.append(study.labels[["couple"]].assign(**columns))
    keys = ["layer", "head", "run", "region"]
    table = statistics.summarise(pd.concat(parts, ignore_index=True), keys, "attention", seed=seed)
    size = {region: tokens.shape[1] for region, tokens in named.items()}
    size["elsewhere"] = grid.side**2 - sum(size.values())
    return table.assign(tokens=table["region"].map(size))


def looks_headline(looks: pd.DataFrame) -> str:
    """Where the heads of `regions` look, taken together."""
    mean, size = (looks.groupby("region")[column].mean() for column in ("attention", "tokens"))
    share = {region: f"{value:.0%}" for region, value in mean.items()}
    ratio = mean["asked"] / size["asked"] / (mean["asked strip"] / size["asked strip"])
    token = f"a token of that object {ratio:.1f} times as much as one of that background"
    return (
        f"Together these heads (n = {looks['n'].max()} pairs, both pictures) give {share['asked']} of their attention "
        f"to the object on the side asked for, {share['asked strip']} to the background of its strip, "
        f"{share['elsewhere']} to other background, {share['reference']} to the reference, {share['other']} to the "
        f"opposite object and {share['text']} to text; {token}."
    )


# --- the causal check -----------------------------------------------------------------------------------------


def blind_heads(
    cut: Sequence[Head], positions: Int[Tensor, "row 1"], image: Int[Tensor, " image_token"], count: int
) -> Callable[[int, dict], dict]:
    """A mask that hides the image tokens from one token of each row in some heads, and changes nothing else.

    positions: of that token among the tokens that are run. count: of heads in a layer.
    """

    def change(layer: int, kwargs: dict) -> dict:
        chosen = [head for number, head in cut if number == layer]
        if not chosen:
            return kwargs
        mask = kwargs["attention_mask"]
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        mask = mask.expand(len(positions), count, -1, -1).clone()
        rows = torch.arange(len(positions), device=mask.device)[:, None]
        for head in chosen:
            mask[rows, head, positions.to(mask.device), image.to(mask.device)[None]] = hidden
        return kwargs | {"attention_mask": mask}

    return change


class HeadCuts(Route):
    """Sets of heads are cut off, at one token of the question, from all image tokens."""

    def __init__(self, vlm: VLM, pairs: Pairs, sets: dict[str, Sequence[Head]], position: np.ndarray):
        super().__init__(vlm, pairs, {"edit": "none"})
        self.sets, self.position = sets, position

    def batch(self, frame, units, parts):
        past = self.language.prefill(frame, pick(self.pairs.clean.images, units)).keys
        for group, part, row_of in parts:
            rows, own = group.rows[part].numpy(), past.rows(row_of)
            at = question_positions(token_set(self.position[:, None], rows), frame, group)
            versions = [(self.baseline("clean"), self.language.ask(frame, group, part, own).last)]
            for name, cut in self.sets.items():
                mask = blind_heads(cut, at, frame.image, self.language.config.num_attention_heads)
                last = self.language.ask(frame, group, part, own, mask=mask).last
                versions.append((self.baseline("patched") | {"edit": name}, last))
            yield rows, versions


class HeadPatches(Route):
    """Sets of heads are patched together, at one token of the question, from the counterfactual run."""

    def __init__(self, vlm: VLM, pairs: Pairs, sets: dict[str, Sequence[Head]], position: np.ndarray, source):
        super().__init__(vlm, pairs, {"edit": "none"})
        self.sets, self.position, every = sets, position, heads(vlm.language)
        self.sites = {(layer, head): every[head] for cut in sets.values() for layer, head in cut}
        places = [(site, layer) for (layer, _), site in self.sites.items()]
        self.states, self.other = question_states(vlm, pairs.counterfactual, places, source[:, None])

    def batch(self, frame, units, parts):
        past = self.language.prefill(frame, pick(self.pairs.clean.images, units)).keys
        for group, part, row_of in parts:
            rows, own = group.rows[part].numpy(), past.rows(row_of)
            at = question_positions(token_set(self.position[:, None], rows), frame, group)
            versions = [(self.baseline("clean"), self.language.ask(frame, group, part, own).last)]
            versions.append((self.baseline("counterfactual"), self.other[rows].to(self.language.device)))
            for name, chosen in self.sets.items():
                with hooks(*(self._write(layer, head, rows, at) for layer, head in chosen)):
                    last = self.language.ask(frame, group, part, own).last
                versions.append((self.baseline("patched") | {"edit": name}, last))
            yield rows, versions

    def _write(self, layer: int, head: int, rows: np.ndarray, at: Tensor):
        site = self.sites[layer, head]
        state = self.states[site.name, layer][rows]
        return site.hook(self.language, layer, lambda tensor: put(tensor, at, state))


def sets_of_heads(
    ranked: Sequence[Head], counts: Sequence[int] = (1, 2, 4, 8), draws: int = 6, seed: int = 0
) -> dict[str, list[Head]]:
    """The strongest heads, as many random other ones `draws` times, and all: {"kind count draw": heads}.

    ranked: all heads that can matter at a token, the strongest first. Both causal checks take the same sets.
    """
    rng, out = np.random.default_rng(seed), {f"all {len(ranked)} 0": list(ranked)}
    for count in (count for count in counts if 2 * count <= len(ranked)):
        out[f"top {count} 0"] = list(ranked[:count])
        for k in range(draws):
            out[f"random {count} {k}"] = [ranked[count + i] for i in rng.permutation(len(ranked) - count)[:count]]
    return out


def cut_heads(study: Study, sets: dict[str, Sequence[Head]], position: Int[np.ndarray, " pair"]) -> pd.DataFrame:
    """Clean runs with sets of heads cut off from the picture at one token: the rows of a sweep, `edit` names the set
    ("none" for the unchanged run), `is_top` says whether the role's word is the most probable of all."""
    results = Table(study.vlm, study.ids, study.roles, study.labels, is_top=True)
    return run_pairs(
        results, study.clean, None, lambda pairs: HeadCuts(study.vlm, pairs, sets, position), progress=False
    )


def patch_together(study: Study, sets: dict[str, Sequence[Head]], token: str = "last") -> pd.DataFrame:
    """Clean runs with sets of heads patched together at one token: the rows of a sweep, `edit` names the set."""
    position = components.position(study, token)
    source = np.ravel(components.edit(study, token).sources) * np.ones(len(study), int)

    def route(pairs):
        return HeadPatches(study.vlm, pairs, sets, position, source)

    results = Table(study.vlm, study.ids, study.roles, study.labels)
    return run_pairs(results, study.clean, study.counterfactual, route, progress=False)


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the name of their set taken apart: columns kind, heads, draw; ("none", 0, 0) for unchanged runs."""
    parts = rows["edit"].str.extract(r"(\w+) ?(\d+)? ?(\d+)?")
    numbers = parts[[1, 2]].fillna(0).astype(int)
    return rows.assign(kind=parts[0], heads=numbers[1], draw=numbers[2])


def cut_check(study: Study, sets: dict[str, Sequence[Head]], token: str, seed: int = 0) -> pd.DataFrame:
    """Does the answer need these heads' view of the picture? Accuracy with the strongest heads cut, and random ones.

    sets: as from `sets_of_heads`. Columns token, kind (none, top, random, all), heads (how many), n, accuracy, low,
    high, probability (of the clean answer), worst (lowest accuracy of a draw).
    """
    rows = cut_heads(study, sets, components.position(study, token))
    rows = _named(rows[rows["role"] == "clean"]).assign(accuracy=lambda part: part["is_top"].astype(float))
    keys = ["kind", "heads"]
    out = statistics.summarise(rows, keys, "accuracy", seed=seed)
    out["probability"] = rows.groupby(keys)["probability"].mean().to_numpy()
    out["worst"] = rows.groupby([*keys, "draw"])["accuracy"].mean().groupby(keys).min().to_numpy()
    out.insert(0, "token", token)
    return out


def together_check(study: Study, sets: dict[str, Sequence[Head]], token: str, seed: int = 0) -> pd.DataFrame:
    """How many heads carry the answer over? The strongest heads patched together, and as many random ones.

    sets: as from `sets_of_heads`. Columns token, kind (top, random, all), heads, scale (probability, logit), n, effect,
    low, high.
    """
    rows = _named(patch_together(study, sets, token))
    keys, parts, goal = ["kind", "heads"], [], components.goals(study)[0]
    for scale in ("probability", "logit"):
        moved = components.shifts(rows, scale, goal, [*keys, "draw"])
        parts.append(components.ratios(moved, seed, keys).assign(token=token, scale=scale))
    out = pd.concat(parts, ignore_index=True)
    return out[["token", *keys, "scale", "n", "effect", "low", "high"]]


def check_headline(together: pd.DataFrame, cut: pd.DataFrame, token: str) -> str:
    """What the two causal checks say about the heads at one token."""
    where, two = components.WORDS[token], statistics.decimals
    cut = cut[cut["token"] == token].set_index(["kind", "heads"])
    moved = together[(together["token"] == token) & (together["scale"] == "probability")]
    moved = moved.set_index(["kind", "heads"])["effect"]
    (number, after), before = next(cut.xs("all").iterrows()), cut.loc[("none", 0)]
    pairs = f"(n = {int(before['n'])} fresh pairs)"
    if moved.xs("all").iloc[0] < 0.05:
        return (
            f"At the {where}, even all {number} heads patched together move P(answer) only "
            f"{two(moved.xs('all').iloc[0])} of the way, and cutting all of them off from the picture takes the "
            f"accuracy from {two(before['accuracy'])} to {two(after['accuracy'])} {pairs}."
        )
    tops = moved.xs("top")
    count = next((k for k in tops.index if tops[k] > 0.5), tops.index.max())
    top, random = cut.loc[("top", count)], cut.loc[("random", count)]
    return (
        f"At the {where}, the {count} strongest heads patched together move P(answer) {two(tops[count])} of the way, "
        f"{count} random others {two(moved['random', count])}. Cut off from the picture, they take the accuracy from "
        f"{two(before['accuracy'])} to {two(top['accuracy'])} [{two(top['low'])}, {two(top['high'])}]; {count} random "
        f"others to {two(random['accuracy'])} (worst draw {two(random['worst'])}), all {number} heads to "
        f"{two(after['accuracy'])} {pairs}."
    )
