"""Which models there are and where they lie: shipped ones, the user's own folders, known checkpoints.

Free of torch, so that a misspelt name or a truncated file is refused in a second.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lib.engine.families import CHECKPOINTS
from lib.errors import UserError, unknown
from lib.files import files_digest
from lib.places import MODELS, model_name, show

SOURCES = {".json", ".safetensors", ".txt", ".model", ".jinja"}  # the files a model's answers depend on
LONGEST = 1000  # characters of a name or path
RESTORE = "restore them (git checkout, or copy them again)"
EDGE = 1 << 20  # bytes; of files larger than 64 of these, digests see the size and the two ends


@dataclass(frozen=True)
class Model:
    """One model: the `name` its results go by, and the `argument` notebooks and loaders take for it."""

    name: str
    argument: str  # a shipped name, an absolute folder or a known short name
    source: str  # the folder or hub id to load from
    digest: str  # changes when the model does


def shipped(folder: Path = MODELS) -> dict[str, Path]:
    return {config.parent.name: config.parent for config in sorted(folder.glob("*/config.json"))}


def seeded(recipe: str, seed: int) -> str:
    """The name of the model that a training seed of a recipe gave; seed 0 goes by the recipe's own name."""
    return recipe if seed == 0 else f"{recipe}-seed{seed}"


def seeds(recipe: str, folder: Path = MODELS) -> dict[int, str]:
    """The shipped models of a recipe by their training seed."""
    found = {}
    for name in shipped(folder):
        own = re.fullmatch(rf"{re.escape(recipe)}(?:-seed(\d+))?", name)
        if own:
            found[int(own[1] or 0)] = name
    return dict(sorted(found.items()))


def recipes(folder: Path = MODELS) -> list[str]:
    """The shipped recipes for a sentence, their other seeds behind each: joint[-seed1, -seed2]."""
    more: dict[str, list[str]] = {}
    for name in shipped(folder):
        recipe, *seed = re.split(r"(?=-seed\d+$)", name)
        more.setdefault(recipe, []).extend(seed)
    return [f"{recipe}[{', '.join(seeds)}]" if seeds else recipe for recipe, seeds in more.items()]


def known_models(folder: Path = MODELS) -> dict[str, str]:
    """Every name `find_model` knows, with where it comes from."""
    return {name: show(path) for name, path in shipped(folder).items()} | CHECKPOINTS


def locate(spec: str | Path, folder: Path = MODELS) -> str:
    """The folder or hub id of a model given by shipped name, short name, folder or hub id (owner/name)."""
    if not isinstance(spec, (str, Path)) or not str(spec).strip() or len(str(spec)) > LONGEST:
        shown = repr(spec) if len(str(spec)) <= LONGEST else f"a text of {len(str(spec))} characters"
        raise UserError(f"a model is given by name, folder or hub id (owner/name), not by {shown}")
    try:
        own, path = shipped(folder), Path(spec).expanduser()
    except RuntimeError as error:
        raise UserError(f"{spec}: there is no such user's folder") from error
    if str(spec) in own:
        return str(own[str(spec)])
    if str(spec) in CHECKPOINTS:
        return CHECKPOINTS[str(spec)]
    if path.is_dir():
        if (path / "config.json").is_file():
            return str(path.resolve())
        raise UserError(f"{spec} is not a model folder: one saved by save_pretrained, with config.json, is needed")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(spec)):
        return str(spec)
    besides = ", a folder with config.json or a hub id owner/name"
    raise unknown("model", str(spec), {**own, **CHECKPOINTS}, besides, shown=[*recipes(folder), *CHECKPOINTS])


def find_model(spec: str, folder: Path = MODELS) -> Model:
    """The model meant by a name, a path or a hub id, weights in folders checked; UserError if absent or damaged."""
    source, own = locate(spec, folder), shipped(folder)
    name = spec if spec in CHECKPOINTS else model_name(source)
    if not Path(source).is_dir():
        return Model(name, spec, source, hub_digest(source))
    if name in CHECKPOINTS or (name in own and str(own[name].resolve()) != str(Path(source).resolve())):
        raise UserError(f"the folder {spec} has the name of a known model: rename it, results go by that name")
    return Model(name, name if name in own else source, source, folder_digest(Path(source)))


def folder_digest(folder: Path) -> str:
    """Digest of a model folder, after a check that its weights are there and whole."""
    check_weights(folder)
    files = {path.name: path for path in folder.iterdir() if path.suffix in SOURCES}
    large = {name: path for name, path in files.items() if path.stat().st_size > 64 * EDGE}
    small = {name: path for name, path in files.items() if name not in large}
    digest = hashlib.sha256(files_digest(small).encode())
    for name, path in sorted(large.items()):
        with open(path, "rb") as file:
            digest.update(f"{name} {path.stat().st_size}".encode() + file.read(EDGE))
            file.seek(-EDGE, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


def hub_digest(hub_id: str, revision: str | None = None) -> str:
    """Hub id and, once downloaded, the revision in the local cache (the loader checks those files itself)."""
    config = cached(hub_id, revision)
    return f"{hub_id}@{Path(config).parent.name}" if config else hub_id


def cached(hub_id: str, revision: str | None = None) -> str:
    """The configuration of a hub model in the local cache; empty where it was never downloaded."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return config if isinstance(config, str) else ""


def check_reachable(source: str, revision: str | None = None) -> None:
    """A UserError where a model has to be downloaded and its hub does not answer; without it the download is tried for
    half a minute and more, with a warning for each try. Nothing is asked about folders and models in the cache."""
    from huggingface_hub import constants, get_session

    if Path(source).is_dir() or cached(source, revision):
        return
    advice = "connect to the internet, or give a folder with the model"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{source} is not in the cache, and HF_HUB_OFFLINE forbids to download it: {advice}")
    try:
        get_session().head(constants.ENDPOINT, timeout=5)  # by the hub's own client, which knows proxies
    except Exception as error:  # of httpx or requests, by version
        raise UserError(f"{source} is not in the cache, and {constants.ENDPOINT} does not answer: {advice}") from error


def check_weights(folder: Path) -> None:
    """Compare every safetensors file's size with what its header promises; cheap, reads headers only."""
    index = folder / "model.safetensors.index.json"
    try:
        names = {"model.safetensors"}
        if index.is_file():
            names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{show(index)} is corrupt: fetch it again") from error
    for name in sorted(names):
        path = folder / name
        if not path.is_file():
            raise UserError(f"the weights {show(path)} are missing: {RESTORE}")
        if path.stat().st_size != promised_size(path):
            raise UserError(f"the weights {show(path)} are truncated or corrupt: {RESTORE}")


def promised_size(path: Path) -> int:
    """Size of a safetensors file according to its header; -1 where that is no header."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return -1
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return -1
    return 8 + length + max(ends, default=0)
