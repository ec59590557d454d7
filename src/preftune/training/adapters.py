"""Which adapter a run trains, and what it starts from: a base model, or somebody's adapter."""

import copy
import logging
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from preftune.errors import InputError
from preftune.models.adapters import (
    CHANGES_NOTHING,
    UNTRAINED_INITS,
    AdapterFolder,
    adapted_without_content,
    changes_base,
    check_adapter_config,
    check_adapter_weights,
    check_peft_model,
    is_adapter,
    keep_first_weights,
    let_train,
    merged,
    put_on,
    read_adapter,
    shapes_of,
)
from preftune.models.config_files import BASE_FOLDER
from preftune.models.quantization import compute_alike
from preftune.training.configuration import LoraSection, RunConfig
from preftune.training.given import Given

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.getLogger(__name__)

Start = Literal["continue", "merge"]
"""What becomes of an adapter that a run starts from."""
FORMS: dict[str, Any] = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}
"""What a model is loaded as, by peft's name of its form."""


def start_of(config: RunConfig, given: Given) -> Start | None:
    """What becomes of the adapter that the run starts from; None where it starts from a whole model."""
    if _peft_model(given):
        return (config.lora and config.lora.start) or "continue"
    return config.lora.start if config.lora and is_adapter(config.model) else None


def puts_adapter(config: RunConfig, given: Given) -> bool:
    """Whether a new adapter is put on the model that the run starts from."""
    lora = config.lora
    return given.adapter is not None or bool(lora and lora.start != "continue" and lora.rank)


def trains_adapter(config: RunConfig, given: Given) -> bool:
    """Whether an adapter is trained, a new one or that of the start, in place of all weights."""
    return puts_adapter(config, given) or start_of(config, given) == "continue"


def reference_is_base(config: RunConfig, given: Given) -> bool:
    """Whether the model with its adapter off is the model that the run starts from, at any time."""
    if not puts_adapter(config, given):
        return False
    if given.adapter is not None:
        return str(given.adapter.peft_type) == "PeftType.LORA" and not changes_base(given.adapter)
    more = config.lora.more if config.lora else {}
    return more.get("init_lora_weights", True) in CHANGES_NOTHING


def check_adapters(config: RunConfig, given: Given, model_config: PretrainedConfig, task: str) -> None:
    """Check the start and the adapter on shapes, before weights load.

    Args:
        config: the run.
        given: objects in place of what it names.
        model_config: of the model, or of the start's base model.
        task: peft's name of the model's form.

    Raises:
        InputError: one of them cannot be used, or it could mean two things.
    """
    _check_start(config, given)
    if given.model is not None and _peft_model(given):
        check_peft_model(given.model)
    if (is_adapter(config.model) and given.model is None) or puts_adapter(config, given):
        adapter_shapes(config, given, model_config, getattr(torch, config.model_dtype), task)


def _check_start(config: RunConfig, given: Given) -> None:
    start = config.lora.start if config.lora else None
    is_start = _peft_model(given) or (given.model is None and is_adapter(config.model))
    if start and not is_start:
        raise InputError(
            f"lora.start={start}: model={config.model} is a whole model and no adapter: remove "
            "lora.start, or give an adapter's folder"
        )
    if not is_start:
        return
    if start is None and not (_peft_model(given) and given.adapter is None and config.lora is None):
        raise InputError(
            f"model={config.model} is an adapter, and lora.start does not say what becomes of it: set "
            "lora.start=continue to train this adapter further, or lora.start=merge to merge it into its "
            "base model, on which lora.rank=16 puts a new adapter and lora.rank=null trains all weights"
        )
    if start == "continue" and given.adapter is not None:
        raise InputError(
            "lora.start=continue trains the start's adapter, and peft_config asks for another: remove "
            "peft_config, or set lora.start=merge to merge the start's adapter and train the other"
        )


def adapter_shapes(
    config: RunConfig, given: Given, model_config: PretrainedConfig, dtype: torch.dtype, task: str
) -> nn.Module:
    """The model as it is trained, without content, with its adapter where it has one.

    Args:
        config: the run.
        given: objects in place of what it names.
        model_config: of the model, or of the start's base model.
        dtype: of its weights.
        task: peft's name of the model's form.

    Raises:
        InputError: an adapter does not fit the model.
    """
    if task == "SEQ_CLS":
        model_config = copy.deepcopy(model_config)
        model_config.num_labels = 1
    model = shapes_of(model_config, dtype, FORMS[task])
    if given.model is None and is_adapter(config.model):
        adapter = _read_start(config.model, task)
        stored = copy.deepcopy(adapter.config)
        stored.task_type = task
        adapted = adapted_without_content(model, stored, f"model={config.model}")
        check_adapter_weights(adapter, adapted, adds_head=adapter.config.task_type != task)
        if start_of(config, given) != "merge":
            return cast(nn.Module, adapted)
        model = shapes_of(model_config, dtype, FORMS[task])
    new = new_adapter(config, given, task)
    return model if new is None else adapted_without_content(model, new, _key(given))


def _read_start(model: str, task: str) -> AdapterFolder:
    adapter = read_adapter(model)
    if adapter.config.task_type == "SEQ_CLS" and task != "SEQ_CLS":
        raise InputError(f"model={model} is a reward model's adapter: give an adapter of a language model")
    init = getattr(adapter.config, "init_lora_weights", True)
    if changes_base(adapter.config) and init != "eva":
        raise InputError(
            f"model={model} is an adapter with init_lora_weights={init}, of a base model that was changed by "
            "it: save it by peft's save_pretrained with path_initial_model_for_weight_conversion"
        )
    return adapter


def new_adapter(config: RunConfig, given: Given, task: str) -> "PeftConfig | None":
    """The adapter that is put on the model; None where none is.

    Raises:
        InputError: its fields contradict each other, or it cannot be trained here.
    """
    if not puts_adapter(config, given):
        return None
    key = _key(given)
    # peft writes into it; and the form follows from the objective.
    adapter = copy.deepcopy(given.adapter) if given.adapter else _lora(cast(LoraSection, config.lora))
    adapter.task_type = task
    check_adapter_config(adapter, key)
    if changes_base(adapter):
        _check_changing(config, adapter, key)
    return adapter


def _key(given: Given) -> str:
    return "lora" if given.adapter is None else "peft_config"


def _lora(lora: LoraSection) -> "PeftConfig":
    from peft import LoraConfig

    named = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": lora.target_modules}
    try:
        return LoraConfig(**cast(Any, named), **lora.more)
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"lora: {error}") from None


def _check_changing(config: RunConfig, adapter: "PeftConfig", key: str) -> None:
    """What starts from a part of the base model's weights must be saved as an adapter of the whole ones."""
    init = getattr(adapter, "init_lora_weights")  # noqa: B009
    cause = f"{key}: init_lora_weights={init}"
    if init in UNTRAINED_INITS:
        raise InputError(
            f"{cause} reads data or quantises before training: prepare the model by peft and give the "
            "PeftModel, or set init_lora_weights=pissa, olora or gaussian"
        )
    if config.lora and config.lora.start == "merge":
        raise InputError(
            f"{cause} changes the merged model, which is saved with the adapter: merge the start first "
            "(peft's merge_and_unload) and train from the result, or set init_lora_weights=true"
        )
    if config.fully_sharded:
        raise InputError(f"{cause} is not offered with fully_sharded=true: set init_lora_weights=true")
    if config.model_dtype != "float32":
        raise InputError(
            f"{cause} takes the adapter out of the weights, and 16 bits would round both: set "
            "model_dtype=float32"
        )
    patterns = getattr(adapter, "rank_pattern", None) or getattr(adapter, "alpha_pattern", None)
    if getattr(adapter, "use_dora", False) or (getattr(adapter, "use_rslora", False) and patterns):
        raise InputError(
            f"{cause} is saved as a plain adapter of twice the rank, which there is not with use_dora, nor "
            "with use_rslora and a pattern of ranks or alphas: remove one"
        )


# --- on the model ---


def with_adapter(config: RunConfig, given: Given, model: nn.Module, task: str) -> "nn.Module | PeftModel":
    """The model as it is trained: itself, with the start's adapter, or with a new one.

    Args:
        config: the run, checked by `check_adapters`.
        given: objects in place of what it names.
        model: the given model, or the loaded one, which is the base of an adapter's folder.
        task: peft's name of the model's form.

    Raises:
        InputError: the adapter does not fit it.
    """
    compute_alike(model)
    start = start_of(config, given)
    is_named = given.model is None and is_adapter(config.model)
    if is_named:
        model = put_on(_read_start(config.model, task), model, task)
    if start == "continue":
        logger.info("the adapter of model=%s is trained further, and with it is the reference", config.model)
        let_train(cast("PeftModel", model))
        return model
    if start == "merge":
        model = _merged_start(config, cast("PeftModel", model))
    new = new_adapter(config, given, task)
    if new is None:
        if start == "merge":
            # Beneath the adapter they were frozen.
            model.requires_grad_(True)
        return model
    return _with_new(model, new, _key(given), is_merged=start == "merge")


def _merged_start(config: RunConfig, model: "PeftModel") -> nn.Module:
    whole: Any = merged(model)
    logger.info("the adapter of model=%s is merged into its base model, which is the reference", config.model)
    if whole.dtype != torch.float32:
        logger.warning(
            "the adapter is merged in %s, which rounds a part of it away; prefer model_dtype=float32",
            str(whole.dtype).removeprefix("torch."),
        )
    return cast(nn.Module, whole)


def _with_new(model: nn.Module, new: "PeftConfig", key: str, is_merged: bool) -> "PeftModel":
    from peft import get_peft_model

    try:
        adapted = cast("PeftModel", get_peft_model(cast(Any, model), new))
    except ValueError as error:
        modules = getattr(new, "target_modules", None)
        raise InputError(f"{key}.target_modules={modules!r}: {error}") from None
    if changes_base(new):
        keep_first_weights(adapted)
    if is_merged:
        # The merged model has no name to load it by: it is saved beside the adapter.
        next(iter(adapted.peft_config.values())).base_model_name_or_path = BASE_FOLDER
        logger.info("the new adapter's base model is saved with it, in model/%s", BASE_FOLDER)
    return adapted


def _peft_model(given: Given) -> bool:
    if given.model is None:
        return False
    from peft import PeftModel

    return isinstance(given.model, PeftModel)
