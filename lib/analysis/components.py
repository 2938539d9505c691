"""Through which components order reaches the answer: attention and MLP outputs and single heads (PROTOCOL.md 9.7).

A component is one site of `lib.patching.sites` in one layer. It is patched at one token of the question, the last one
or the reference's word, with what it gives in the pair's counterfactual run. The null is the same patch from another
picture with the same question and the same answer, as it is and stretched to the length of the real patch: what it
moves is the size that means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.analysis import effects, statistics, studies
from lib.analysis.studies import Study
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.edits import LAST_TOKEN, Interchange
from lib.patching.results import Table
from lib.patching.routes import Patch, QuestionTokens
from lib.patching.runs import Pairs, Run, question_states
from lib.patching.sites import ATTENTION, MLP, RESIDUAL, Site, heads
from lib.patching.sweep import run_pairs, sweep
from lib.stimuli.pairs import Pair
from lib.stimuli.scenes import entities, line_scene

TOKENS = ("last", "reference")  # the last token of the prompt, and the word that names the reference
KEYS = ["token", "site", "layer"]  # a component at a token
WORDS = {"last": "last token", "reference": "word that names the reference"}
SMALLEST = 0.01  # effects below it are not called effects, however narrow the null

# --- where ----------------------------------------------------------------------------------------------------


def sites(vlm: VLM) -> tuple[Site, ...]:
    """Attention output, MLP output, and every head."""
    return (ATTENTION, MLP, *heads(vlm.language))


def reference_positions(vlm: VLM, run: Run, words: Sequence[str]) -> Int[np.ndarray, " row"]:
    """Where each question names its reference, counted from the end of the prompt (-1 is the last token)."""
    spellings, out = vlm.candidates([[word] for word in words])[:, 0], []
    for row, word in enumerate(words):
        ids = run.prompt.ids[row]
        found = torch.isin(ids, spellings[row]) & (torch.arange(len(ids)) > run.prompt.image[row].max())
        if not found.any():
            raise UserError(f"{vlm.name} does not read {word!r} as one token of the question: choose other entities.")
        out.append(int(found.nonzero()[-1]) - len(ids))
    return np.array(out)


def position(study: Study, token: str) -> Int[np.ndarray, " pair"]:
    """Where a token of TOKENS stands in the clean question of each pair, counted from the end."""
    if token == "last":
        return np.full(len(study), -1)
    return reference_positions(study.vlm, study.clean, [pair.clean.candidates[-1] for pair in study.pairs])


def edit(study: Study, token: str) -> Interchange:
    """One token of the clean question takes the vector of the same word in the counterfactual question."""
    if token == "last":
        return LAST_TOKEN
    words = [pair.counterfactual.candidates[-1] for pair in study.pairs]
    source = reference_positions(study.vlm, study.counterfactual, words)
    return Interchange(position(study, token)[:, None], source[:, None])


# --- patched effects ------------------------------------------------------------------------------------------


def patched(study: Study, tokens: Sequence[str] = TOKENS) -> pd.DataFrame:
    """Every component at every layer and token, patched one at a time from the counterfactual run.

    The rows of a sweep, with columns token and layer.
    """
    vlm, edits = study.vlm, {token: edit(study, token) for token in tokens}
    table = sweep(
        vlm, study.clean, study.counterfactual, edits, study.ids, study.roles, sites(vlm), study.labels, progress=False
    )
    return table.assign(token=table["edit"], layer=table["slot"])


def with_same_answer(study: Study, draws: int = 2, seed: int = 0) -> list[Study]:
    """The null: studies whose counterfactual asks the clean question of another picture that has the same answer.

    The entity at the end that is not asked for becomes one that the clean picture does not show, another one in every
    draw. Pictures differ as much as one object, the answer not at all. Other entities are drawn from the built-in ones
    of the setting, also where a pair shows pictures from a folder.
    """
    rng, drawn = np.random.default_rng(seed), [[] for _ in range(draws)]
    for pair in study.pairs:
        others = [e for e in entities(pair.setting, study.vlm.grid) if e not in pair.clean.entities]
        for k, choice in enumerate(rng.permutation(len(others))[:draws]):
            drawn[k].append(_other_end(pair, others[choice], study.vlm.grid))
    nulls = [studies.study(study.vlm, pairs) for pairs in drawn]
    return [replace(null, clean=study.clean, ids=study.ids) for null in nulls]


def _other_end(pair: Pair, entity, grid) -> Pair:
    """The pair whose counterfactual is the clean item with another entity at the end that is not asked for."""
    item, line = pair.clean, list(pair.clean.entities)
    line[2 - item.target] = entity
    scene = line_scene(tuple(line), grid, item.orientation, item.shift, item.scene.backdrop)
    other = replace(item, scene=scene, entities=tuple(line), candidates=(item.answer, entity.name, item.candidates[-1]))
    return replace(pair, counterfactual=other)


def shifts(table: pd.DataFrame, scale: str, toward: str, keys: Sequence[str] = KEYS) -> pd.DataFrame:
    """What each patch moves, per pair: columns keys, pair, couple, moved, between.

    scale: "probability" or "logit". moved: the change of scale(toward) - scale(clean answer). between: how far the
    counterfactual run lies from the clean one; towards "order", which is nobody's answer, as far as turns the clean
    run's difference round.
    """
    named = table[table["role"].isin(("clean", toward))]
    named = named.assign(probability=named[scale], role=named["role"].replace(toward, "counterfactual"))
    found = effects.moved(named)
    if toward == "order":
        found["between"] = -2 * found["clean"]
    return found[[*keys, "pair", "couple", "moved", "between"]]


def ratios(table: pd.DataFrame, seed: int = 0, by: Sequence[str] = KEYS) -> pd.DataFrame:
    """Effect of each component: mean of `moved` over mean of `between` with its interval; columns by, n, effect, low,
    high."""
    rows = []
    for key, cell in table.groupby(list(by), sort=True):
        found = statistics.ratio(cell["moved"], cell["between"], units=cell["couple"], seed=seed)
        rows.append((*key, found.n, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=[*by, "n", "effect", "low", "high"])


def null_band(null: pd.DataFrame, layers: int, seed: int = 0) -> pd.DataFrame:
    """The 95 % band of the null for each component: columns KEYS, null, null_low, null_high.

    The wider of two bands: the interval of the null at the component itself, and the middle 95 % of the effects of all
    components of its kind (heads, or whole outputs) at its token, one per draw. The reference's word in the last layer
    reaches no answer and is left out of the second.
    """
    own = ratios(null, seed).rename(columns={"effect": "null", "low": "null_low", "high": "null_high"})
    sums = null.groupby([*KEYS, "draw"])[["moved", "between"]].sum()
    every = (sums["moved"] / sums["between"]).rename("effect").reset_index()
    for frame in (own, every):
        frame["kind"] = frame["site"].str.startswith("head")
    every = every[(every["token"] == "last") | (every["layer"] < layers - 1)]
    pooled = every.groupby(["token", "kind"])["effect"].quantile([0.025, 0.975]).unstack()
    pooled = own[["token", "kind"]].merge(pooled, left_on=["token", "kind"], right_index=True)
    own["null_low"] = np.minimum(own["null_low"], pooled[0.025].reindex(own.index))
    own["null_high"] = np.maximum(own["null_high"], pooled[0.975].reindex(own.index))
    return own[[*KEYS, "null", "null_low", "null_high"]]


def states(study: Study) -> tuple[dict, dict]:
    """What every component gives at the tokens of TOKENS in the clean and in the counterfactual run.

    Each {(site name, layer): [pair, token, width]}.
    """
    vlm = study.vlm
    places = [(site, layer) for site in sites(vlm) for layer in range(len(vlm.layers))]
    edits = [edit(study, token) for token in TOKENS]
    own, other = (
        np.stack([np.ravel(tokens) * np.ones(len(study), int) for tokens in both], axis=1)
        for both in ([each.targets for each in edits], [each.sources for each in edits])
    )
    clean, _ = question_states(vlm, study.clean, places, own)
    return clean, question_states(vlm, study.counterfactual, places, other)[0]


def patch_sizes(clean: dict, source: dict, name: str) -> pd.DataFrame:
    """How long a patch is: mean over pairs of the length of its change over that of the clean vector; states as from
    `states`. Columns KEYS and `name`."""
    rows = []
    for (site, layer), state in clean.items():
        change = (source[site, layer] - state).norm(dim=-1) / state.norm(dim=-1)
        rows += [(token, site, layer, float(size)) for token, size in zip(TOKENS, change.mean(0), strict=True)]
    return pd.DataFrame(rows, columns=[*KEYS, name])


def stretched(clean: dict, source: dict, donor: dict, seed: int = 0) -> dict:
    """The null's states, their change from the clean run stretched to the length of the real patch's change.

    A hundredth of a random direction is added to every change, which decides where the null changes nothing.
    """
    generator, out = torch.Generator().manual_seed(seed), {}
    for key, state in clean.items():
        noise = torch.nn.functional.normalize(torch.randn(state.shape, generator=generator), dim=-1).to(state)
        length = (source[key] - state).norm(dim=-1, keepdim=True)
        change = donor[key] - state + 0.01 * length * noise
        out[key] = state + length * torch.nn.functional.normalize(change, dim=-1)
    return out


class GivenStates(QuestionTokens):
    """Patches that write given states, as `stretched` makes them, in place of those of a run.

    given: {(site name, slot): [pair, token, width]}. columns: which of these tokens each edit writes, by its name.
    """

    def __init__(
        self, vlm: VLM, pairs: Pairs, patches: Sequence[Patch], baseline: dict, given: dict, columns: dict[str, list]
    ):
        super().__init__(vlm, pairs, patches, baseline, progress=False)
        for patch in patches:
            chosen = columns[patch.columns["edit"]]
            own = {(patch.site.name, slot): given[patch.site.name, slot][:, chosen] for slot in patch.slots}
            self.states[patch.name] = own


def given_sweep(study: Study, edits: dict[str, Interchange], sites: Sequence[Site], given: dict, columns: dict):
    """The rows of `sweep` at every layer, with given states (see `GivenStates`) in place of the counterfactual run's.

    Both unpatched runs are the study's.
    """
    vlm, layers = study.vlm, tuple(range(len(study.vlm.layers)))
    patches = [
        Patch(f"{name} {site.name}", edit, site, layers, {"site": site.name, "edit": name})
        for name, edit in edits.items()
        for site in sites
    ]

    def route(pairs):
        return GivenStates(vlm, pairs, patches, {"site": "none", "edit": "none"}, given, columns)

    results = Table(vlm, study.ids, study.roles, study.labels)
    return run_pairs(results, study.clean, study.counterfactual, route, progress=False)


def patched_with(study: Study, given: dict) -> pd.DataFrame:
    """`patched` with given states in place of the counterfactual run's; both unpatched runs are the study's."""
    edits, columns = {token: edit(study, token) for token in TOKENS}, {token: [k] for k, token in enumerate(TOKENS)}
    rows = given_sweep(study, edits, sites(study.vlm), given, columns)
    return rows.assign(token=rows["edit"], layer=rows["slot"])


# --- direct effects -------------------------------------------------------------------------------------------


def scale_held(norm: torch.nn.Module, state: Float[Tensor, "row hidden"]) -> Float[Tensor, "row hidden"]:
    """The factor by which an RMS norm multiplies these vectors, element by element: norm(x) = x * factor."""
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
    weight = norm(torch.ones_like(state[:1])) * (1 + eps) ** 0.5
    factor = weight * torch.rsqrt(state.float().pow(2).mean(-1, keepdim=True) + eps)
    if not torch.allclose((state * factor).float(), norm(state).float(), rtol=0.05, atol=1e-2):
        raise UserError("Direct effects need a language model whose norms are RMS norms.")
    return factor.float()


def _added_attention(vlm: VLM) -> Site:
    """What attention adds to the residual stream: its output, after the norm that Gemma 3 puts behind it."""
    if hasattr(vlm.layers[0], "pre_feedforward_layernorm"):
        return Site("added", "post_attention_layernorm")
    return replace(ATTENTION, name="added")


@torch.no_grad()
def contributions(study: Study, run: Run, held: dict | None = None) -> tuple[dict, dict]:
    """What every component adds to the last token's residual stream: ({(site name, layer): [pair, hidden]}, held).

    ("embedding", -1) is slot 0. held: the scales of the norms behind heads (Gemma 3) and of the final norm, by layer
    and "final"; those of this run when not given, so that a second run can be read with the scales of the first.
    """
    vlm, layers, out = study.vlm, range(len(study.vlm.layers)), {}
    if not vlm.language.additive:
        raise UserError(f"How components of {vlm.name} add up is known for families with a written record only.")
    added, mixed = _added_attention(vlm), Site("mixed", "self_attn.o_proj", "before")
    places = [(site, layer) for site in (added, mixed, ATTENTION) for layer in layers]
    places += [(RESIDUAL, slot) for slot in vlm.slots]
    seen, _ = question_states(vlm, run, places, np.array([-1]))
    seen = {key: state[:, 0].to(vlm.device) for key, state in seen.items()}
    if held is None:
        held = {"final": scale_held(vlm.language.norm, seen["residual", len(layers)])}
        if added.module != ATTENTION.module:
            norms = [layer.post_attention_layernorm for layer in vlm.layers]
            held |= {k: scale_held(norm, seen["attention", k]) for k, norm in enumerate(norms)}
    out["embedding", -1] = seen["residual", 0].float()
    for layer in layers:
        attention = seen["added", layer].float()
        out["attention", layer] = attention
        out["mlp", layer] = seen["residual", layer + 1].float() - seen["residual", layer].float() - attention
        weight = vlm.layers[layer].self_attn.o_proj.weight.float()
        parts = zip(heads(vlm.language), weight.chunk(vlm.language.config.num_attention_heads, dim=1), strict=True)
        shares = seen["mixed", layer].float().chunk(vlm.language.config.num_attention_heads, dim=1)
        for (site, own), share in zip(parts, shares, strict=True):
            out[site.name, layer] = share @ own.T * held.get(layer, 1.0)
    return out, held


@torch.no_grad()
def answer_minus_foil(study: Study) -> Float[Tensor, "pair hidden"]:
    """Row of the unembedding of each clean answer minus that of the counterfactual's answer.

    Of several spellings of a word the one that the clean run finds most likely.
    """
    vlm, foil = study.vlm, study.roles.index("attribute" if "attribute" in study.roles else "counterfactual")
    ids, chosen = study.ids.to(vlm.device), torch.zeros(len(study), 2, dtype=torch.long, device=vlm.device)
    for rows, last in vlm.language.last_states(study.clean.prompt, study.clean.images, study.clean.index):
        both = ids[rows][:, [0, foil]]
        logits = vlm.logits(last).gather(1, both.clamp(min=0).flatten(1)).reshape(both.shape)
        best = logits.masked_fill(both < 0, -torch.inf).argmax(-1, keepdim=True)
        chosen[rows] = both.gather(-1, best)[..., 0]
    weight = vlm.model.lm_head.weight.float()
    return weight[chosen[:, 0]] - weight[chosen[:, 1]]


def direct(study: Study) -> pd.DataFrame:
    """Direct effects at the last token: each component's output through final norm and unembedding, in logits.

    The norm's scale is that of the clean run, so that the contributions sum to the logit of the answer minus that of
    the foil. Columns pair, couple, token, site, layer, contribution (clean run), moved (what the counterfactual's
    output would take away from it).
    """
    clean, held = contributions(study, study.clean)
    other, _ = contributions(study, study.counterfactual, held)
    read, parts = held["final"] * answer_minus_foil(study), []
    pairs = study.labels[["couple"]].rename_axis("pair").reset_index()
    for (site, layer), vector in clean.items():
        own, source = ((x * read).sum(-1).cpu().numpy() for x in (vector, other[site, layer]))
        columns = {"token": "last", "site": site, "layer": layer, "contribution": own, "moved": own - source}
        parts.append(pairs.assign(**columns))
    return pd.concat(parts, ignore_index=True)


def direct_effects(study: Study, between: pd.Series, seed: int = 0) -> pd.DataFrame:
    """Direct effects summarised: columns KEYS, direct_logits (mean contribution in the clean run), and direct,
    direct_low, direct_high (the part of the patch's change of the logits that takes the direct path).

    between: of each pair (index), how far the two runs' logit differences lie apart.
    """
    found = direct(study)
    found = found[found["site"] != "embedding"].assign(between=lambda rows: rows["pair"].map(between))
    size = found.groupby(KEYS)["contribution"].mean().rename("direct_logits").reset_index()
    names = {"effect": "direct", "low": "direct_low", "high": "direct_high"}
    return ratios(found, seed).rename(columns=names).drop(columns="n").merge(size, on=KEYS)


# --- all of it ------------------------------------------------------------------------------------------------


def goals(study: Study) -> tuple[str, ...]:
    """The answers towards which a patch can move: the counterfactual run's; for five entities also the order's."""
    return ("attribute", "order") if "attribute" in study.roles else ("counterfactual",)


def table(study: Study, draws: int = 2, seed: int = 0) -> pd.DataFrame:
    """Every component of a model at both tokens: one row per goal, scale, token, site and layer.

    Columns toward (the role a patch moves to), scale (probability or logit), token, site, layer, head (-1 for whole
    outputs), n, effect, low, high (clean run 0, counterfactual run 1), null and stretched (mean effect of the null, and
    of the null stretched to the patch's length), null_low, null_high (the wider of their bands), beyond_null,
    patch_size, null_size (length of the change over that of the clean vector); where the scale is logit and the token
    the last one, also direct_logits, direct, direct_low, direct_high.
    """
    nulls, (clean, source) = with_same_answer(study, draws, seed), states(study)
    donors = [states(null)[1] for null in nulls]
    long = [stretched(clean, source, donor, seed + k) for k, donor in enumerate(donors)]
    swept = patched(study)
    controls = {"null": [patched(null) for null in nulls], "stretched": [patched_with(study, each) for each in long]}
    parts = [
        _summary(study, swept, controls, toward, scale, seed)
        for toward in goals(study)
        for scale in ("probability", "logit")
    ]
    out = pd.concat(parts, ignore_index=True)
    outside = (out["effect"] < out["null_low"]) | (out["effect"] > out["null_high"])
    out["beyond_null"] = outside & (out["effect"].abs() >= SMALLEST)
    out = out.merge(patch_sizes(clean, source, "patch_size"), on=KEYS)
    out = out.merge(patch_sizes(clean, donors[0], "null_size"), on=KEYS)
    out["head"] = out["site"].str.extract(r"head (\d+)")[0].fillna(-1).astype(int)
    first = ["toward", "scale", "token", "site", "layer", "head"]
    out = out[[*first, *(name for name in out if name not in first)]]
    return out.sort_values(["toward", "scale", "token", "head", "site", "layer"], ignore_index=True)


def _summary(study: Study, swept: pd.DataFrame, controls: dict, toward: str, scale: str, seed: int) -> pd.DataFrame:
    """The rows of `table` for one goal and scale. controls: sweeps of the null, one per draw, by kind of null."""
    moved = shifts(swept, scale, toward)
    between = moved.groupby("pair")["between"].first()
    out, bands = ratios(moved, seed).assign(toward=toward, scale=scale), []
    for kind, sweeps in controls.items():
        null = [shifts(rows, scale, toward).assign(draw=k) for k, rows in enumerate(sweeps)]
        null = pd.concat(null).assign(
            between=lambda rows: rows["pair"].map(between),
            couple=lambda rows: rows["pair"].map(study.labels["couple"]),  # all draws of a pair are one unit
        )
        bands.append(null_band(null, len(study.vlm.layers), seed))
        out = out.merge(bands[-1][[*KEYS, "null"]].rename(columns={"null": kind}), on=KEYS)
    band = pd.concat(bands).groupby(KEYS, as_index=False).agg({"null_low": "min", "null_high": "max"})
    out = out.merge(band, on=KEYS)
    if scale == "logit" and toward != "order":
        out = out.merge(direct_effects(study, between, seed), on=KEYS, how="left")
    return out


def of_heads(found: pd.DataFrame, token: str, toward: str = "counterfactual", scale: str = "logit") -> pd.DataFrame:
    """The rows of a table about heads at one token, the largest effect first."""
    rows = found[(found["token"] == token) & (found["toward"] == toward) & (found["scale"] == scale)]
    return rows[rows["head"] >= 0].sort_values("effect", ascending=False, kind="stable")


def ranked_heads(found: pd.DataFrame, token: str, **which) -> list[tuple[int, int]]:
    """(layer, head) of all heads that can matter at a token, the largest patched effect first.

    What the last layer writes on the reference's word reaches no answer, so that its heads are left out there.
    """
    rows = of_heads(found, token, **which)
    rows = rows[(token == "last") | (rows["layer"] < rows["layer"].max())]
    return list(zip(rows["layer"].tolist(), rows["head"].tolist(), strict=True))


def headline(found: pd.DataFrame, token: str) -> str:
    """What the table of mirrored pairs says about the heads at one token."""
    rows, where = of_heads(found, token), WORDS[token]
    beyond, top = rows[rows["beyond_null"] & (rows["effect"] > 0)], rows.iloc[0]
    two, interval = statistics.decimals, statistics.in_figures(top["effect"], top["low"], top["high"])
    if beyond.empty:
        return (
            f"At the {where} no single head moves the answer by more than the null does: of {len(rows)} heads the "
            f"largest effect on the logits is {interval}."
        )
    positive = rows["effect"].clip(lower=0)
    half = int((positive.cumsum() < positive.sum() / 2).sum()) + 1
    same = found[(found["scale"] == "probability") & (found["toward"] == "counterfactual")]
    same = same.set_index(KEYS).loc[(token, top["site"], top["layer"])]
    return (
        f"At the {where} {len(beyond)} of {len(rows)} heads move the answer's logits beyond the null's band. Most does "
        f"head {top['head']} of layer {top['layer']}: {interval} of the way to the mirrored picture's answer (null: "
        f"{two(top['null_low'])} to {two(top['null_high'])}), in probability {two(same['effect'])}. The strongest "
        f"{half} hold half of what all heads do one by one."
    )


def named(site: str, layer: int) -> str:
    """A component in words."""
    return (
        f"{site} of layer {layer}"
        if site.startswith("head")
        else f"the {site} output of layer {layer}".replace("mlp", "MLP")
    )


def order_headline(found: pd.DataFrame) -> str:
    """What the table of five-entity pairs says about the component that moves the answer to the line's other end."""
    rows = found[(found["token"] == "last") & (found["toward"] == "order") & (found["scale"] == "logit")]
    top, two = rows.loc[rows["effect"].idxmax()], statistics.decimals
    said = (
        f"With five entities, where question and picture both change, {named(top['site'], top['layer'])} moves the "
        f"last token {statistics.in_figures(top['effect'], top['low'], top['high'])} of the way to the other end of "
        f"the clean line (null: {two(top['null_low'])} to {two(top['null_high'])})."
    )
    if not top["beyond_null"]:
        return f"{said} That is inside the null's band."
    if top["null_size"] < 0.1 * top["patch_size"]:
        return (
            f"{said} Another picture under the same question changes this output by only "
            f"{top['null_size'] / top['patch_size']:.0%} as much, so what it carries comes from the question's words."
        )
    return f"{said} Another picture changes this output too, so it may carry what was seen."
