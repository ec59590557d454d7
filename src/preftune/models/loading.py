"""Models and tokenizers by folder or hub name, with errors that say what is wrong with the name."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
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

if TYPE_CHECKING:
    from peft import PeftModel


def load_model_config(model: str) -> PretrainedConfig:
    """The configuration of a causal language model; a path is never looked up on the hub.

    Raises:
        InputError: the name is no folder with a causal language model, and no hub name that can be read.
    """
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith(".") or model.count("/") > 1
    if (path / "adapter_config.json").is_file():
        raise InputError(
            f"model={model} is a LoRA adapter; merge it into its base model first (peft's merge_and_unload)"
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


def load_language_model(model: str, dtype: torch.dtype | str) -> PreTrainedModel:
    """The model with its weights in `dtype` ("auto" for that of its files), on the CPU.

    Raises:
        InputError: there are no weights.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError) as error:
        raise unreadable(model, error) from None


def load_tuned_model(folder: str) -> "PreTrainedModel | PeftModel":
    """What `save_model` has written: a language model, a reward model, or an adapter on its base model.

    Raises:
        InputError: the folder holds none of them.
    """
    if (Path(folder) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftConfig

        is_reward_model = PeftConfig.from_pretrained(folder).task_type == "SEQ_CLS"
        kind = AutoPeftModelForSequenceClassification if is_reward_model else AutoPeftModelForCausalLM
        config = PeftConfig.from_pretrained(folder)
        if (Path(folder) / "base").is_dir():
            # The folder may have moved since its base model's place was written down.
            config.base_model_name_or_path = str(Path(folder) / "base")
        return kind.from_pretrained(folder, config=config)
    config = load_model_config(folder)
    if any("SequenceClassification" in name for name in config.architectures or ()):
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
    return load_language_model(folder, "auto")


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
