"""Models and tokenizers by folder or hub name: the right ones, or one message that says what is wrong.

Every model that a name stands for is read here: policy, reference, reward model, classifier and judge.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preftune.errors import InputError
from preftune.models.config_files import (
    ADAPTER_FILE,
    BASE_FOLDER,
    CONFIG_FILE,
    SPECIAL_IDS,
    check_config_file,
    check_generation_file,
    check_special_ids,
    vocabulary_of,
)
from preftune.models.quantization import Quantization, compute_alike, is_quantized, read_quantization
from preftune.models.weights import (
    check_weights,
    foreign,
    quiet_loading,
    refuse_incomplete,
    refuse_not_finite,
)
from preftune.storage.files import MODEL_FOLDER

if TYPE_CHECKING:
    from peft import PeftModel

SCORE_HEAD = ("score.weight",)
"""The tensor that a language model lacks to score."""


def load_model_config(model: str, *, scores: bool = False) -> PretrainedConfig:
    """The configuration of a language model whose files are complete; a path is never looked up on the hub.

    Names and shapes in its files are compared with the model's; no weights are loaded.

    Args:
        model: folder or hub name.
        scores: take a reward model too.

    Raises:
        InputError: the name is no folder with a causal language model, and no hub name that can be read, or
            files are missing, damaged or another model's.
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
            f"{_model_within(path)}"
        )
    if looks_local and not path.is_dir():
        raise InputError(f"model={model} is not a folder: give one that save_pretrained wrote, or a hub name")
    config = read_config(model)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"model={model} is a {config.model_type}: give a causal language model")
    if is_reward_model(config) and not scores:
        raise InputError(
            f"model={model} is a reward model ({_architectures(config)[0]}): give a causal language model"
        )
    check_generation_file(model)
    kind = AutoModelForSequenceClassification if is_reward_model(config) else AutoModelForCausalLM
    check_weights(f"model={model}", model, config, _class_of(kind, config))
    return config


def _model_within(run: Path) -> str:
    """Where a run's folder has its model, for messages."""
    has_model = any((run / MODEL_FOLDER / name).is_file() for name in (CONFIG_FILE, ADAPTER_FILE))
    return f": {run / MODEL_FOLDER} is one" if has_model else ""


def read_config(model: str, *, said: str = "", trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of any model, once its values are of the right kind.

    Args:
        model: folder or hub name.
        said: how the user named the model, unless by `model=`.
        trust_remote_code: run the model's own code.

    Raises:
        InputError: it cannot be read, or a value in it is wrong.
    """
    said = said or f"model={model}"
    check_config_file(said, Path(model), trust_remote_code)
    with foreign(_unreadable(said)):
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    vocabulary = getattr(text, "vocab_size", None)
    if vocabulary is not None:
        if not isinstance(vocabulary, int) or vocabulary < 1:
            raise InputError(f"{said}: vocab_size={vocabulary!r} of its {CONFIG_FILE} must be at least 1")
        ids = {name: getattr(text, name, None) for name in SPECIAL_IDS}
        check_special_ids(said, CONFIG_FILE, ids, vocabulary)
    return config


def is_reward_model(config: PretrainedConfig) -> bool:
    """Whether a configuration is that of a sequence classification model."""
    return any("SequenceClassification" in name for name in _architectures(config))


def load_tokenizer(model: str, *, said: str = "", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Args:
        model: folder or hub name.
        said: how the user named the model, unless by `model=`.
        trust_remote_code: run the model's own code.

    Raises:
        InputError: there is none, it is damaged, or one of its special tokens has no embedding.
    """
    said = said or f"model={model}"
    with foreign(_unreadable(said, "its tokenizer")), quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        # What is asked of it later must work at all.
        tokenizer("a")
        special = ("pad_token_id", "eos_token_id", "bos_token_id")
        ids = {name: getattr(tokenizer, name) for name in special}
        _ = tokenizer.added_tokens_decoder
    if not tokenizer.get_vocab():
        raise InputError(f"{said}: its tokenizer has no tokens: copy its tokenizer.json again")
    length = tokenizer.model_max_length
    if not isinstance(length, int | float) or not length >= 1:
        raise InputError(
            f"{said}: model_max_length={length!r} of its tokenizer_config.json must be a number of at least 1"
        )
    if not isinstance(tokenizer.chat_template, str | dict | None):
        raise InputError(f"{said}: its tokenizer's chat_template must be text: mend tokenizer_config.json")
    if vocabulary := vocabulary_of(Path(model)):
        check_special_ids(said, "tokenizer", ids, vocabulary)
    return tokenizer


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
        InputError: there are no weights, or they are not all of the model's own, finite ones.
    """
    how = loading_keywords(dtype, quantization, device)
    loaded = load_weights(AutoModelForCausalLM, model, load_model_config(model), **how)
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


def load_classifier_config(
    model: str, *, what: str, said: str = "", trust_remote_code: bool = False
) -> PretrainedConfig:
    """The configuration of a sequence classification model whose files are complete; no weights are loaded.

    Args:
        model: folder or hub name.
        what: the user is asked for, where it is another model.
        said: how the user named the model, unless by `model=`.
        trust_remote_code: run the model's own code; then the files are compared with it once it loads.

    Raises:
        InputError: it cannot be read, is another kind of model, or has not got all of its weights.
    """
    said = said or f"model={model}"
    config = read_config(model, said=said, trust_remote_code=trust_remote_code)
    if not trust_remote_code:
        if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise InputError(f"{said} is a {config.model_type}: give {what}")
        check_weights(said, model, config, _class_of(AutoModelForSequenceClassification, config))
    return config


def load_classifier(
    model: str, dtype: torch.dtype, *, said: str = "", trust_remote_code: bool = False
) -> PreTrainedModel:
    """A sequence classification model with its trained head, on the CPU.

    Args:
        model: folder or hub name.
        dtype: data type of the weights.
        said: how the user named the model, unless by `model=`.
        trust_remote_code: run the model's own code.

    Raises:
        InputError: as `load_weights`.
    """
    config = read_config(model, said=said, trust_remote_code=trust_remote_code)
    return load_weights(
        AutoModelForSequenceClassification,
        model,
        config,
        said=said,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        use_safetensors=True,
    )


def load_weights(
    kind: Any,
    model: str,
    config: PretrainedConfig,
    *,
    said: str = "",
    fresh: Collection[str] = (),
    trust_remote_code: bool = False,
    **how: Any,
) -> PreTrainedModel:
    """A model with its own weights, all of them and finite.

    Args:
        kind: an auto class of transformers.
        model: folder or hub name.
        config: its configuration.
        said: how the user named the model, unless by `model=`.
        fresh: names of tensors that may be missing, because they are trained from new ones.
        trust_remote_code: run the model's own code.
        how: more keywords of `from_pretrained`.

    Raises:
        InputError: it cannot be loaded, or would have other weights.
    """
    said = said or f"model={model}"
    if not trust_remote_code:
        check_weights(said, model, config, _class_of(kind, config), fresh)
    with foreign(_unreadable(said)), quiet_loading():
        loaded, report = kind.from_pretrained(
            model, config=config, output_loading_info=True, trust_remote_code=trust_remote_code, **how
        )
    refuse_incomplete(said, config, report, fresh)
    refuse_not_finite(said, loaded)
    return loaded


def load_tuned_model(folder: str) -> "PreTrainedModel | PeftModel":
    """What `save_model` has written: a language model, a reward model, or an adapter on its base model.

    Raises:
        InputError: the folder holds none of them.
    """
    if (Path(folder) / ADAPTER_FILE).is_file():
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftConfig

        config = PeftConfig.from_pretrained(folder)
        if (Path(folder) / BASE_FOLDER).is_dir():
            # The folder may have moved since its base model's place was written down.
            config.base_model_name_or_path = str(Path(folder) / BASE_FOLDER)
        is_scoring = config.task_type == "SEQ_CLS"
        kind = AutoPeftModelForSequenceClassification if is_scoring else AutoPeftModelForCausalLM
        quantization = read_quantization(folder)
        how = loading_keywords(torch.float32, quantization, "cpu") if quantization else {}
        adapted: PeftModel = kind.from_pretrained(folder, config=config, **how)
        compute_alike(adapted)
        return adapted
    model_config = load_model_config(folder, scores=True)
    if is_reward_model(model_config):
        return load_weights(AutoModelForSequenceClassification, folder, model_config, dtype="auto")
    return load_language_model(folder, "auto")


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


def _class_of(kind: Any, config: PretrainedConfig) -> Any:
    """The model's class, as an auto class of transformers chooses it."""
    is_language_model = kind is AutoModelForCausalLM
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if is_language_model else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    kinds = mapping[type(config)]
    if not isinstance(kinds, list | tuple):
        return kinds
    by_name = {kind.__name__: kind for kind in kinds}
    return next((by_name[name] for name in _architectures(config) if name in by_name), kinds[0])


def _architectures(config: PretrainedConfig) -> list[str]:
    return list(config.architectures or ())


def _unreadable(said: str, part: str = "a complete model") -> str:
    return f"{said} cannot be loaded: it must be a folder with {part}, or a name on a hub that can be reached"
