"""The first code cell on Colab, on a stand-in for Colab: an environment with an older torch and numpy of its own."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import torch

from lib import places
from lib.artifact import colab
from lib.engine import loading
from lib.engine.families import CHECKPOINTS
from lib.errors import UserError

ADDRESS = tomllib.loads((places.ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
CELL = f"""import sys

if "google.colab" in sys.modules:  # Colab only: this package, then what Colab lacks; torch and numpy stay as they are
    %pip install --quiet --no-deps "dual-mechanisms @ git+{ADDRESS}"
    from lib.artifact import colab

    colab.prepare()"""
NOTEBOOKS = sorted(places.NOTEBOOKS.glob("[0-9]*.ipynb"))
T4 = """
class cuda:
    is_available = staticmethod(lambda: True)
    is_bf16_supported = staticmethod(lambda including_emulation: including_emulation)
    class get_device_properties:
        name, total_memory = "Tesla T4", 15_828_320_256
        def __init__(self, number): pass
"""
HAS = {  # what the machine comes with: some of it older than this project asks for
    "torch": ("2.5.1+cu121", []),
    "numpy": ("1.26.4", []),
    "transformers": ("4.50.0", ["numpy>=1.17"]),
    **{name: ("99", []) for name in (
        "accelerate tokenizers safetensors huggingface_hub pandas scipy scikit-learn scikit-image pillow matplotlib "
        "seaborn tabulate tqdm filelock packaging jinja2".split())},
}  # fmt: skip
OFFERED = {  # what pip finds; newest torch and numpy are there to tempt it
    "torch": ("9.9", []),
    "numpy": ("9.9", []),
    "transformers": ("5.9.0", ["numpy>=1.17", "torch"]),
    "jaxtyping": ("0.3.9", ["numpy>=1.20"]),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_this_cell(path):
    cell = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert cell.source == CELL


def wheel(folder: Path, name: str, version: str, needs: list[str], code: str = "") -> Path:
    """A wheel of one empty module."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{module}/__init__.py": code,
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """This project as a wheel, made without the internet."""
    folder = tmp_path_factory.mktemp("package")
    for part in ("lib", "data"):
        shutil.copytree(places.ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(places.ROOT / file, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder)], check=True)
    (made,) = folder.glob("dual_mechanisms-*.whl")
    return made


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A clean environment with the packages of HAS; returns its folder and a function that runs code in it."""
    folder = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    for name in ("pip", "packaging"):  # real ones: they do the work
        (site / name).symlink_to(Path(find_spec(name).origin).parent)
    python = folder / "env/bin/python"
    for part, wanted in (("has", HAS), ("offered", OFFERED)):
        (folder / part).mkdir()
        for name, (version, needs) in wanted.items():
            code = T4 if name == "torch" else ""
            wheel(folder / part, name if name != "packaging" else "stand-in", version, needs, code)
    stub = site / "google/colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    # as wheels of `packaging` must not overwrite the real one, only its metadata is put there
    (site / "packaging-99.dist-info").mkdir()
    (site / "packaging-99.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: packaging\nVersion: 99\n")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "offered"), "PIP_CONFIG_FILE": os.devnull}
    settings |= {"PATH": os.environ["PATH"], "HOME": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(code: str):
        return subprocess.run(
            [str(python), "-c", code], cwd=folder, env=settings, capture_output=True, text=True, timeout=300
        )

    wheels = [str(path) for path in (folder / "has").iterdir()]
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *wheels], env=settings, check=True)
    return site, run


def digest(site: Path) -> dict[str, str]:
    """Every file of torch and numpy."""
    files = [path for name in colab.KEPT for path in site.glob(f"{name}*/**/*") if path.suffix != ".pyc"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


def as_python(cell: str, package: Path) -> str:
    """The cell as IPython runs it: %pip is pip of this interpreter; the repository is the wheel here."""
    address = re.search(r'"(dual-mechanisms @ git\+\S+)"', cell)[1]
    pip = "import subprocess; subprocess.run([sys.executable, '-m', 'pip', {}], check=True)"
    words = re.search(r"%pip (.*)", cell)[1].replace(f'"{address}"', str(package)).split()
    plain = re.sub(r"%pip .*", lambda _: pip.format(", ".join(map(repr, words))), cell)
    return f"import google.colab\n{plain}\n"


def test_colab_keeps_its_torch_and_numpy(machine, package):
    site, run = machine
    before = digest(site)
    assert len(before) >= 8
    done = run(as_python(CELL, package))
    assert done.returncode == 0, done.stderr
    assert digest(site) == before
    assert "installed transformers<6,>=5.4, jaxtyping>=0.3" in done.stdout
    assert "left as it is, though this project asks for more: torch 2.5.1+cu121 (>=2.6)" in done.stdout
    assert "Tesla T4, 16 GB, float32" in done.stdout and "qwen2-vl-2b" in done.stdout
    assert (site / "lib/data/models/reference/model.safetensors").is_file()  # the embedded model came along
    again = run(as_python(CELL, package))
    assert "installed" not in again.stdout and digest(site) == before


def test_what_does_not_go_with_colabs_numpy_is_told(machine, package, tmp_path):
    site, run = machine
    run(as_python(CELL, package))
    before = digest(site)
    demanding = wheel(tmp_path, "newcomer", "1.0", ["numpy>=2.0"])
    done = run(f"from lib.artifact import colab; colab.install(['newcomer @ file://{demanding}'])")
    assert "UserError: Colab's torch and numpy do not go with" in done.stderr and digest(site) == before


def test_elsewhere_the_cell_does_nothing():
    plain = re.sub(r"%pip .*", "1 / 0", CELL)
    exec(compile(plain, "cell", "exec"), {})


def test_every_known_checkpoint_has_a_size():
    assert set(colab.SIZES) == set(CHECKPOINTS) and set(colab.GATED) <= set(CHECKPOINTS)


def test_which_model_fits_which_gpu():
    t4 = colab.advice("Tesla T4", 15.8, bfloat16=False)
    assert "qwen2-vl-2b" in t4 and "7b" not in t4 and "gemma" not in t4 and "float32" in t4
    l4 = colab.advice("NVIDIA L4", 23.6, bfloat16=True)
    assert "qwen2-vl-7b" in l4 and "gemma-3-4b is gated" in l4 and "HF_TOKEN" in l4 and "pixtral" not in l4
    assert "pixtral-12b" in colab.advice("NVIDIA A100", 42.3, bfloat16=True)
    assert "embedded models" in colab.advice(None, 0, False)


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_follows_the_gpu(native, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert loading.default_dtype("cuda") == loading.default_dtype("cpu", "auto") == dtype
    assert loading.default_dtype("cpu") == torch.float32


def test_gated_weights_get_a_sentence_about_the_token(monkeypatch):
    import transformers

    def refuse(*args, **options):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at ...")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(loading, "check_reachable", lambda *source: None)
    with pytest.raises(UserError, match="gemma-3-4b: its weights are gated.*HF_TOKEN"):
        loading.read("gemma-3-4b", "cpu", None, "sdpa", None, None)
