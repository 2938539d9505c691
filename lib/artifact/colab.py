"""On Google Colab: what this package needs and the machine lacks, what it has left alone; which model fits its GPU.

The first cell of every notebook installs this package without its requirements and calls `prepare`. Imports nothing
that Colab may lack.
"""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from lib.errors import UserError

PACKAGE = "dual-mechanisms"
KEPT = ("torch", "numpy")  # never changed: Colab's own go with its driver and with one another
HEADLESS = {"jupyterlab", "ipykernel", "papermill", "nbformat", "nbclient", "nbconvert"}  # Colab shows notebooks itself

# Parameters in thousand millions, as the checkpoints' cards state them, vision tower included.
SIZES = {
    "smolvlm": 2.2,
    "internvl3-1b": 0.9,
    "llava-onevision-0.5b": 0.9,
    "internvl3-2b": 2.1,
    "qwen2-vl-2b": 2.2,
    "qwen2.5-vl-3b": 3.8,
    "gemma-3-4b": 4.3,
    "llava-1.5-7b": 7.1,
    "llava-onevision-7b": 8.0,
    "qwen2-vl-7b": 8.3,
    "qwen2.5-vl-7b": 8.3,
    "pixtral-12b": 12.7,
}
ROOM = 1.25  # weights and what a small batch needs, as a multiple of the weights; batches adapt to what is free
GATED = {"gemma-3-4b": "https://huggingface.co/google/gemma-3-4b-it"}


def prepare() -> None:
    """Install what is missing, then say what the machine can run."""
    missing, old = unmet()
    for line in old:
        print(f"left as it is, though this project asks for more: {line}")
    if missing:
        install(missing)
    print(advice(*gpu()))


def unmet() -> tuple[list[str], list[str]]:
    """Requirements of this package that the machine does not meet: those to install; of KEPT, a line for each."""
    from packaging.requirements import Requirement

    missing, old = [], []
    for requirement in map(Requirement, importlib.metadata.requires(PACKAGE)):
        if requirement.name in HEADLESS or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            continue
        if requirement.name in KEPT:
            old.append(f"{requirement.name} {found or 'not there'} ({requirement.specifier})")
        else:
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing, old


def install(missing: list[str]) -> None:
    """pip, held to the present versions of KEPT; UserError when these requirements would not go with them."""
    loaded = [name for name in map(module_of, missing) if name in sys.modules]
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "constraints.txt"
        held.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in KEPT if find_spec(name)))
        command = [sys.executable, "-m", "pip", "install", "--quiet", *missing, "--constraint", str(held)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise UserError(
            f"Colab's {' and '.join(KEPT)} do not go with {', '.join(missing)} ({why[0]}): "
            "take a newer runtime version (Runtime > Change runtime type)"
        )
    print(f"installed {', '.join(missing)}")
    if loaded:
        print(f"{', '.join(loaded)} was in use already: Runtime > Restart session, then run this page from the top")


def module_of(requirement: str) -> str:
    """What is imported, where that is the package's own name."""
    return re.match(r"[\w-]+", requirement)[0].replace("-", "_")


def gpu() -> tuple[str | None, float, bool]:
    """Name of the GPU (None without one), its memory in 10^9 bytes, and whether it computes in bfloat16 itself."""
    import torch

    if not torch.cuda.is_available():
        return None, 0.0, False
    found = torch.cuda.get_device_properties(0)
    return found.name, found.total_memory / 1e9, torch.cuda.is_bf16_supported(including_emulation=False)


def advice(name: str | None, memory: float, bfloat16: bool) -> str:
    """Which models fit into so many 10^9 bytes at the precision lib.engine.vlm.load chooses there."""
    if name is None:
        return "no GPU: the embedded models run as they are; for others choose Runtime > Change runtime type"
    each = 2 if bfloat16 else 4  # bytes a number
    fits = [model for model, size in SIZES.items() if size * each * ROOM <= memory]
    kind = "bfloat16" if bfloat16 else "float32 (it emulates bfloat16, slowly; float16 overflows in these models)"
    gated = "".join(
        f"\n{model} is gated: accept its licence at {page}, then store your token as the secret HF_TOKEN (key symbol)"
        for model, page in GATED.items()
        if model in fits
    )
    return f'{name}, {memory:.0f} GB, {kind}; model = "..." may be {", ".join(fits) or "an embedded one"}{gated}'
