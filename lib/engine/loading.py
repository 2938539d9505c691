"""Reading checkpoints (floor 2): names to folders, files to a model, its tokenizer, image processor and chat
template.

Everything works without torchvision: image processors are taken in their Pillow version, and the processors that would
want torchvision (Pixtral's) or a video processor (Qwen's) are not needed.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lib.engine.checkpoints import check_reachable, locate
from lib.engine.families import Family, written
from lib.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """What was read. family: the written record, None where there is none; source: folder or hub id."""

    model: torch.nn.Module
    tokenizer: object
    processor: object
    family: Family | None
    name: str
    template: str | None
    source: str


def read(
    name: str | Path,
    device: str,
    dtype: torch.dtype | str | None,
    attn: str,
    revision: str | None,
    device_map,
) -> Checkpoint:
    """A checkpoint by name, folder or hub id; arguments as for `lib.engine.vlm.load`."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    path = locate(name)
    check_reachable(path, revision)
    if attn not in ("sdpa", "eager"):
        raise UserError(f"attn must be 'sdpa' or 'eager' (masks are edited), not {attn!r}.")
    device, dtype = _checked(device, dtype, device_map)
    with _explained(name):
        safe = {"revision": revision, "trust_remote_code": False}  # no code from a checkpoint is ever run
        config = AutoConfig.from_pretrained(path, **safe)
        record = written(config.model_type, getattr(getattr(config, "vision_config", None), "model_type", None))
        tokenizer = _tokenizer(AutoTokenizer, path, name, safe)
        model, info = AutoModelForImageTextToText.from_pretrained(
            path,
            **safe,
            use_safetensors=True,  # nor a pickle read
            dtype=dtype,
            attn_implementation=attn,
            device_map=device_map,
            output_loading_info=True,
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise UserError(f"{name}: weights are missing, {missing[0]} and {len(missing) - 1} more; get a whole copy.")
        _check_finite(model, name)
        processor = AutoImageProcessor.from_pretrained(path, backend="pil", **safe)  # the same numbers everywhere
        template = _template(path, revision)
    if device_map is None:
        model = model.to(device)
    template = template or tokenizer.chat_template
    return Checkpoint(model, tokenizer, processor, record, Path(name).name, template, path)


def _checked(device: str, dtype, device_map) -> tuple[str, torch.dtype]:
    """Device and precision to load with; a UserError where there is no such thing."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:<number>', not {device!r}.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device!r}: no GPU is seen here; use device='auto' or 'cpu'.")
    maps = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda")
    if isinstance(device_map, str) and device_map not in maps:
        raise UserError(f"device_map must be one of {', '.join(maps)} or a dictionary, not {device_map!r}.")
    if dtype is None:
        return device, default_dtype(device, device_map)
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    return device, found


def _tokenizer(kind, path: str, name, safe: dict):
    try:
        return kind.from_pretrained(path, **safe)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError) as error:
        if Path(path).is_dir() and not any(Path(path).glob("*token*")):
            raise UserError(f"{name}: the folder has no tokenizer; save it there with save_pretrained.") from error
        raise


def _check_finite(model: torch.nn.Module, name) -> None:
    """A UserError where a weight is NaN or infinite."""
    for key, weight in model.named_parameters():
        if weight.device.type != "meta" and not torch.isfinite(weight.detach().sum(dtype=torch.float32)):
            raise UserError(f"{name}: the weights of {key} are not all finite numbers; the checkpoint is damaged.")


def default_dtype(device: str, device_map=None) -> torch.dtype:
    """float32 on a CPU; on a CUDA GPU bfloat16, but float32 where that is only emulated (before Ampere, such as a T4).

    Never float16: its range ends at 65504, which activations of Qwen2-VL and Gemma 3 exceed.
    """
    if not torch.cuda.is_available() or (str(device) == "cpu" and device_map is None):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


@contextmanager
def _explained(name):
    """Failures of reading a model, put as one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"{name}: a weight file is damaged or cut short ({error}); copy or download it again."
        ) from error
    except (OSError, json.JSONDecodeError) as error:
        if "gated" in str(error).lower():
            raise UserError(
                f"{name}: its weights are gated; accept the licence on its page at huggingface.co, make a token "
                "there (Settings > Access Tokens) and give it as HF_TOKEN in the environment, by `hf auth login`, "
                "or on Colab as the secret HF_TOKEN."
            ) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}: cannot be read ({first}); check the name, the folder, and the connection if it is on the hub."
        ) from error
    except ValueError as error:
        if any(words in str(error) for words in ("model type", "Unrecognized", "not recognize", "custom code")):
            raise UserError(
                f"{name}: transformers does not know this architecture; see 'Add your model' in lib/engine/families.py."
            ) from error
        raise
    except RuntimeError as error:
        if "size mismatch" in str(error) or "mismatched" in str(error):
            raise UserError(
                f"{name}: the weights do not have the sizes that config.json gives; copy both again."
            ) from error
        raise


def _template(path: str, revision: str | None) -> str | None:
    """The chat template that goes with the processor, where there is one beside the tokenizer's own."""
    text = _file(path, "chat_template.jinja", revision)
    if text:
        return text
    text = _file(path, "chat_template.json", revision)
    return json.loads(text)["chat_template"] if text else None


def _file(path: str, file: str, revision: str | None) -> str | None:
    from transformers.utils import cached_file

    found = cached_file(
        path,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found).read_text(encoding="utf-8") if found else None
