"""Models and tokenizers by folder or hub name, with errors that say what is wrong with the name."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preftune.errors import InputError
from preftune.models.quantization import (
    Quantization,
    check_library,
    compute_alike,
    is_quantized,
    quantized_by,
    read_quantization,
)

if TYPE_CHECKING:
    from peft import PeftModel


ADAPTER_FILE = "adapter_config.json"


def load_model_config(model: str) -> PretrainedConfig:
    """The configuration of a causal language model; a path is never looked up on the hub.

    Raises:
        InputError: the name is no folder with a causal language model, and no hub name that can be read.
    """
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith(".") or model.count("/") > 1
    if (path / ADAPTER_FILE).is_file():
        raise InputError(
            f"model={model} is a LoRA adapter; merge it into its base model first (preftune merge {model} "
            "--output FOLDER)"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"model={model} is a folder without config.json; give a folder that save_pretrained wrote"
        )
    if looks_local and not path.is_dir():
        raise InputError(f"model={model} is not a folder: give one that save_pretrained wrote, or a hub name")
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise unreadable(model, error) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"model={model} is a {config.model_type}: give a causal language model")
    if quantized_by(config) == "bitsandbytes":
        check_library(f"model={model}, whose weights are quantised by bitsandbytes,")
    return config


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        InputError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise unreadable(model, error) from None


def load_language_model(
    model: str,
    dtype: torch.dtype | str,
    quantization: Quantization | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The model with its weights in `dtype` ("auto" for that of its files), on the CPU.

    Args:
        model: folder or hub name.
        dtype: of weights that are not quantised.
        quantization: of the layers' matrices; None leaves them as they are in the files.
        device: where they are quantised, and stay.

    Raises:
        InputError: there are no weights.
    """
    how = loading_keywords(dtype, quantization, device)
    try:
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, **how)
    except (OSError, ValueError) as error:
        raise unreadable(model, error) from None
    compute_alike(loaded)
    return loaded


def loading_keywords(
    dtype: torch.dtype | str, quantization: Quantization | None, device: torch.device | str
) -> dict[str, Any]:
    """Keywords of `from_pretrained`; see `load_language_model`."""
    if quantization is None:
        return {"dtype": dtype}
    others = dtype if isinstance(dtype, torch.dtype) else torch.float32
    how = {"quantization_config": quantization.for_transformers(others), "device_map": {"": str(device)}}
    return {"dtype": others, **how}


def load_tuned_model(folder: str) -> "PreTrainedModel | PeftModel":
    """What `save_model` has written: a language model, a reward model, or an adapter on its base model.

    Raises:
        InputError: the folder holds none of them.
    """
    if (Path(folder) / ADAPTER_FILE).is_file():
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftConfig

        is_reward_model = PeftConfig.from_pretrained(folder).task_type == "SEQ_CLS"
        kind = AutoPeftModelForSequenceClassification if is_reward_model else AutoPeftModelForCausalLM
        quantization = read_quantization(folder)
        how = loading_keywords(torch.float32, quantization, "cpu") if quantization else {}
        adapted: PeftModel = kind.from_pretrained(folder, **how)
        compute_alike(adapted)
        return adapted
    config = load_model_config(folder)
    if any("SequenceClassification" in name for name in config.architectures or ()):
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
    return load_language_model(folder, "auto")


def base_of_adapter(folder: str | Path) -> str | None:
    """The name of an adapter's base model; None where the folder holds no adapter.

    Raises:
        InputError: its configuration cannot be read, or names none.
    """
    file = Path(folder) / ADAPTER_FILE
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{file} does not name a base model: write its folder or hub name as base_model_name_or_path"
        )
    return base


def load_adapted(adapter: str, base: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A base model with an adapter, to read or to sample from; quantised as while the adapter was trained.

    Args:
        adapter: its folder.
        base: folder or hub name.
        dtype: of weights that are not quantised.
        device: where the model goes.

    Raises:
        InputError: one of them cannot be loaded.
    """
    from peft import PeftModel

    loaded = load_language_model(base, dtype, read_quantization(adapter), device)
    adapted = PeftModel.from_pretrained(loaded, adapter)
    if is_quantized(adapted):
        return cast(nn.Module, adapted)
    # A sixth faster; 16 bits would round most of a small update away.
    model: nn.Module = adapted.merge_and_unload() if dtype == torch.float32 else adapted
    return model.to(device)


def generation_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 saves time: on accelerators, and on CPUs with AMX.

    A CPU without instructions for it takes up to 80 times as long as in float32, and one that has those
    of AVX512 alone took twice as long. Nothing is timed: processes and later calls on a machine must agree.
    """
    return device.type != "cpu" or torch.cpu._is_amx_tile_supported()


def generation_dtype(device: torch.device) -> torch.dtype:
    """The precision to sample in."""
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


def unreadable(model: str, error: Exception) -> InputError:
    """What to raise where transformers could not read a model."""
    reason = str(error).strip().splitlines()[0]
    return InputError(
        f"model={model} cannot be loaded: it must be a folder with a complete model, or a name on a hub that "
        f"can be reached: {reason}"
    )
