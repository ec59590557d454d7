"""Merging: an adapter added to its base model's weights, checked, and saved as a whole model."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preftune.errors import InputError
from preftune.models.allocator import free_memory
from preftune.models.config_files import GENERATION_FILE
from preftune.models.loading import load_language_model
from preftune.models.quantization import Quantization, dequantize, is_quantized, read_quantization
from preftune.models.reward_model import load_reward_model
from preftune.models.weights import without_bars

logger = logging.getLogger(__name__)

PROBE_ROWS, PROBE_TOKENS = 2, 24
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference of an output of the saved model, as a share of the largest output, by its data type."""


@dataclass(frozen=True)
class Merged:
    """What a merged model is.

    Attributes:
        folder: where it is.
        base: folder or hub name of the model that the adapter was trained on.
        quantization: of the base while the adapter was trained; its rounded values are in the merged model.
        dtype: data type of the weights.
        parameters: how many there are.
        difference: largest difference between an output of the saved model and of the adapted one, as a share
            of the largest output.
        tolerance: what the difference may be.
        files: names of the files in the folder.
    """

    folder: Path
    base: str
    quantization: Quantization | None
    dtype: str
    parameters: int
    difference: float
    tolerance: float
    files: tuple[str, ...]


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, whose base is known to exist.

    Attributes:
        folder: of `adapter_config.json`.
        base: folder or hub name of its base model.
        tokenizer: what it was trained with.
        scores: whether it is a reward model's.
        chat_template_kwargs: what a reward model's conversations were rendered with.
    """

    folder: Path
    base: str
    tokenizer: PreTrainedTokenizerBase
    scores: bool
    chat_template_kwargs: dict[str, Any]


def merged_weights(adapter: Path, base: PreTrainedModel) -> PreTrainedModel:
    """A base model with an adapter merged into it, in place; a quantised base is dequantised to float32.

    Args:
        adapter: its folder.
        base: loaded in the precision to merge in; quantised where the adapter's was.

    Raises:
        ValueError: a merged weight is not finite.
    """
    from peft import PeftModel

    if is_quantized(base):
        base = dequantize(base)
    adapted: PeftModel = PeftModel.from_pretrained(base, str(adapter))
    whole: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    return whole


def merge_into(adapter: Adapter, folder: Path, dtype: str, max_shard_size: str | int) -> tuple[int, float]:
    """Merge, save, load what was saved by transformers alone, and compare it with the adapted model.

    One model is in memory at a time, in float32.

    Args:
        adapter: what is merged.
        folder: an empty one for model and tokenizer.
        dtype: of the saved weights, in `TOLERANCES`.
        max_shard_size: of a file of weights, as `save_pretrained` takes it.

    Returns:
        Number of weights, and the largest difference of an output, as a share of the largest.

    Raises:
        InputError: the two models differ by more than rounding, or a weight is not finite.
    """
    probe = _probe(adapter)
    expected = _outputs(_adapted(adapter), probe)
    free_memory()
    try:
        whole = merged_weights(adapter.folder, _base(adapter))
    except ValueError as error:
        raise InputError(f"the adapter {adapter.folder} cannot be merged: {error}") from None
    parameters = sum(weight.numel() for weight in whole.parameters())
    _save(adapter, whole.to(getattr(torch, dtype)), folder, max_shard_size)
    del whole
    free_memory()
    form = AutoModelForSequenceClassification if adapter.scores else AutoModelForCausalLM
    with without_bars():
        saved = form.from_pretrained(folder, dtype="auto")
    found = _outputs(saved, probe)
    difference = float((found - expected).abs().max() / expected.abs().max())
    # Written so that NaN is a disagreement too.
    if not difference <= TOLERANCES[dtype]:
        raise InputError(
            "the merged model differs from the base with its adapter: an output of a probe by "
            f"{difference:.2g} of the largest output, and rounding to {dtype} explains "
            f"{TOLERANCES[dtype]:g}. Nothing was written. An adapter on tied embeddings, or one of another "
            f"base model, cannot be merged: use {adapter.folder} with its base"
        )
    return parameters, difference


def _base(adapter: Adapter) -> PreTrainedModel:
    """The base in float32; its quantised matrices compute in float32 too, whatever they did in training."""
    quantization = read_quantization(adapter.folder)
    if quantization is not None and quantization.type == "nf4":
        quantization = replace(quantization, compute_dtype="float32")
    if not adapter.scores:
        return load_language_model(adapter.base, torch.float32, quantization)
    padding: Any = adapter.tokenizer.pad_token_id
    model = load_reward_model(adapter.base, torch.float32, padding, quantization)
    if adapter.chat_template_kwargs:
        model.config.preftune_chat_template_kwargs = adapter.chat_template_kwargs
    return model


def _adapted(adapter: Adapter) -> nn.Module:
    from peft import PeftModel

    try:
        adapted: nn.Module = PeftModel.from_pretrained(_base(adapter), str(adapter.folder))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(
            f"the adapter {adapter.folder} does not fit its base model {adapter.base}: {reason}; name the "
            "model that it was trained on as base_model_name_or_path in its adapter_config.json"
        ) from None
    return adapted


def _save(adapter: Adapter, whole: Any, folder: Path, max_shard_size: str | int) -> None:
    if (adapter.folder / GENERATION_FILE).is_file() and not adapter.scores:
        whole.generation_config = GenerationConfig.from_pretrained(adapter.folder)
    with without_bars():
        whole.save_pretrained(folder, max_shard_size=max_shard_size)
    adapter.tokenizer.save_pretrained(folder)


def _probe(adapter: Adapter) -> Int64[Tensor, "rows tokens"]:
    """Rows of random tokens, none of which is padding, where a reward model would end."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(adapter.tokenizer), (PROBE_ROWS, PROBE_TOKENS), generator=generator)
    padding = adapter.tokenizer.pad_token_id
    return ids if padding is None else ids.masked_fill(ids == padding, (padding + 1) % len(adapter.tokenizer))


@torch.no_grad()
def _outputs(model: Any, probe: Int64[Tensor, "rows tokens"]) -> Float32[Tensor, "..."]:
    """Logits, or scores, on the CPU."""
    logits: Tensor = model.eval()(input_ids=probe.to(model.device), use_cache=False).logits
    return logits.float().cpu()
