"""What a run's quantised base model must be, before anything loads."""

from typing import TYPE_CHECKING, Any

from preftune.errors import InputError
from preftune.models.quantization import ComputeType, Quantization, check_library, is_quantized, quantized_by
from preftune.training.adapters import start_of, trains_adapter
from preftune.training.configuration import RunConfig
from preftune.training.given import Given

if TYPE_CHECKING:
    from transformers import TrainingArguments

OWN_LIBRARY = "bitsandbytes"


def with_quantization(config: RunConfig, given: Given) -> RunConfig:
    """The configuration with the data type that quantised matrices compute in.

    Raises:
        InputError: the library is not installed, the base is quantised already, or what would be trained
            has no gradient.
    """
    section = config.quantization
    if section is not None:
        check_library(f"quantization={section.type}")
        if given.model is not None:
            raise InputError(
                f"quantization={section.type}: model is loaded already: load it by transformers' "
                "BitsAndBytesConfig and remove quantization, or give its name"
            )
    found = _own_method(config, given)
    if found is None and section is None:
        return config
    said = f"quantization={section.type}" if section else f"model={config.model} is quantised by {found}"
    if found is not None:
        if section is not None:
            raise InputError(
                f"{said}: model={config.model} is quantised already, by {found}: remove quantization, or "
                "name the model that it was made of"
            )
        if found != OWN_LIBRARY:
            raise InputError(
                f"{said}: training reads whole weights, or those of bitsandbytes: name the model that it was "
                "made of, with quantization=nf4"
            )
    if start_of(config, given) == "merge":
        raise InputError(
            f"{said} with lora.start=merge: merged into quantised weights, most of the start would be "
            "rounded away: set lora.start=continue, or merge it first (preftune merge)"
        )
    if not trains_adapter(config, given):
        raise InputError(
            f"{said}: quantised weights have no gradient, so an adapter is trained on them: set "
            "lora.rank=16, or train the model as it is"
        )
    if config.fully_sharded and section is not None and section.type == "int8":
        raise InputError(
            f"{said} with fully_sharded=true: the scales of 8-bit rows would stay behind as a row moves to "
            "another process: set quantization=nf4, or fully_sharded=false"
        )
    if section is None or section.type == "int8" or section.compute_dtype:
        return config
    chosen = section.model_copy(update={"compute_dtype": _training_dtype(config, given)})
    return config.model_copy(update={"quantization": chosen})


def quantization_of_run(config: RunConfig) -> Quantization | None:
    """What the run's models are loaded with."""
    return None if config.quantization is None else config.quantization.of_model()


def _own_method(config: RunConfig, given: Given) -> str | None:
    """By what the model itself is quantised: a given one as it is, a named one by its files."""
    if given.model is not None:
        return OWN_LIBRARY if is_quantized(given.model) else None
    return quantized_by(given.model_config(config.model))


def _training_dtype(config: RunConfig, given: Given) -> ComputeType:
    """The data type of the run's forward passes."""
    own: dict[str, Any] | TrainingArguments = given.arguments or config.training
    read = own.get if isinstance(own, dict) else lambda name: getattr(own, name)
    if read("bf16"):
        return "bfloat16"
    return "float16" if read("fp16") else config.model_dtype
