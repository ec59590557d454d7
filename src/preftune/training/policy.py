"""What a run trains: the model with its adapter and value head, and what it is compared with."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from preftune.data import TokenizedGroup, end_tokens
from preftune.errors import InputError
from preftune.models import (
    PackedReader,
    Policy,
    ReferenceCache,
    RewardModel,
    ValueHead,
    load_language_model,
    load_model_config,
    load_reward_model,
    load_tokenizer,
    padding_token,
    reference_identity,
)
from preftune.models.adapters import base_of
from preftune.models.quantization import compute_alike, is_quantized
from preftune.storage.cache import cache_dir
from preftune.training.adapters import with_adapter
from preftune.training.batches import plan_steps
from preftune.training.configuration import RunConfig, ValueHeadSection
from preftune.training.given import NOTHING_GIVEN, Given
from preftune.training.preparation import TRAIN, PreparedRun
from preftune.training.quantizing import quantization_of_run
from preftune.training.splits import PreparedData

logger = logging.getLogger(__name__)

GroupsByName = dict[str, Sequence[TokenizedGroup]]
"""The groups of every split."""
MOST_ENDS = 3
"""Tokens at a response's end among which the one is that stops it: a template may close a turn with more."""


def build_policy(prepared: PreparedRun) -> PackedReader:
    """What is trained, on its device: a policy, or a reward model where the objective learns from scores.

    What is tried at construction decides how prompts are shared, so it must be there already.

    Raises:
        InputError: the model has no weights, or lacks what the objective needs.
    """
    device = prepared.arguments.device
    if "score" in prepared.objective.needs:
        return RewardModel(_on(device, _reward_model(prepared)))
    model = _on(device, language_model(prepared.config, prepared.given, device))
    _stop_at_trained_ends(model, prepared)
    return Policy(
        model,
        router_loss="router_loss" in prepared.objective.needs,
        value_head=_value_head(prepared, model),
        collisions="collisions" in prepared.objective.needs,
    )


def _stop_at_trained_ends(model: Any, prepared: PreparedRun) -> None:
    """Let the saved model stop where its trained responses end, such as at the template's end of turn."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    configured = generation.eos_token_id
    known = set(configured if isinstance(configured, list) else [configured]) - {None}
    ends = {
        int(end) for group in prepared.train.groups for ids in group.responses for end in ids[-MOST_ENDS:]
    }
    new = (end_tokens(prepared.tokenizer, is_chat=True) & ends) - known
    if new:
        generation.eos_token_id = sorted(known | new)
        names = prepared.tokenizer.convert_ids_to_tokens(sorted(new))
        logger.info("the model's generation stops at %s too, which ends what is trained", ", ".join(names))


def _on(device: torch.device, model: Any) -> Any:
    """The model on a device; one that is quantised was loaded there, or is where its owner wants it."""
    return model if is_quantized(model) and model.device == device else model.to(device)


def language_model(
    config: RunConfig, given: Given = NOTHING_GIVEN, device: torch.device | str = "cpu"
) -> Any:
    """The language model that is trained, with its adapter where there is one.

    Args:
        config: the run.
        given: objects in place of what it names.
        device: where a quantised base is loaded; any other is on the CPU.

    Raises:
        InputError: it cannot be loaded, or the adapter does not fit it.
    """
    model = given.model
    if model is None:
        dtype, quantization = getattr(torch, config.model_dtype), quantization_of_run(config)
        model = load_language_model(base_of(config.model), dtype, quantization, device)
    return with_adapter(config, given, model, "CAUSAL_LM")


def _reward_model(prepared: PreparedRun) -> Any:
    if "router_loss" in prepared.objective.needs:
        raise InputError(
            "objective.router_loss_weight: a reward model's forward pass gives no load-balancing loss; set "
            "objective.router_loss_weight=0"
        )
    config, tokenizer, given = prepared.config, prepared.tokenizer, prepared.given
    groups = [group for data in prepared.splits.values() for group in data.groups]
    used = np.unique(np.concatenate([ids for group in groups for ids in (group.prompt, *group.responses)]))
    vocabulary = given.model_config(config.model).get_text_config().vocab_size
    tokenizer.pad_token = padding_token(tokenizer, used.tolist(), vocabulary)
    model: Any = given.model
    if model is None:
        dtype = getattr(torch, config.model_dtype)
        quantization, device = quantization_of_run(config), prepared.arguments.device
        model = load_reward_model(base_of(config.model), dtype, tokenizer.pad_token_id, quantization, device)
    elif getattr(model, "score", None) is None or model.config.num_labels != 1:
        raise InputError(
            f"model is a {type(model).__name__}, and the objective trains a reward model: give the name of a "
            "language model, or an AutoModelForSequenceClassification with num_labels=1"
        )
    else:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if config.data.chat_template_kwargs:
        # Whoever scores with the model writes conversations as they were trained on.
        model.config.preftune_chat_template_kwargs = config.data.chat_template_kwargs
    return with_adapter(config, given, model, "SEQ_CLS")


def _value_head(prepared: PreparedRun, model: Any) -> ValueHead | None:
    if "value" not in prepared.objective.needs:
        return None
    config, arguments = prepared.config, prepared.arguments
    # What the vocabulary head reads: some models narrow their last hidden state before it.
    hidden_size = model.get_output_embeddings().weight.shape[1]
    return new_value_head(hidden_size, config.value_head, arguments.seed).to(arguments.device)


def new_value_head(hidden_size: int, section: ValueHeadSection, seed: int) -> ValueHead:
    """The untrained value head of a configuration, on hidden states of a size."""
    return ValueHead(hidden_size, section.width, seed, section.architecture, section.dropout)


# --- the reference ---


def visited_groups(prepared: PreparedRun, *, is_live: bool = False) -> dict[str, set[int]]:
    """Places of the training groups that the run's steps visit; of other splits, and of whole epochs, all.

    Args:
        prepared: the run.
        is_live: what is trained on is made later, and nothing of `data.train` is.

    Returns:
        By the split's name; a split that is not named is visited whole.
    """
    if is_live:
        return {TRAIN: set()}
    arguments, batches = prepared.arguments, prepared.config.batches
    if prepared.steps >= prepared.steps_per_epoch:
        return {}
    rows = prepared.steps * arguments.gradient_accumulation_steps
    visited: set[int] = set()
    for process in range(arguments.world_size):
        for step in islice(plan_steps(prepared.train.groups, arguments, batches, process), rows):
            visited.update(*step)
    return {TRAIN: visited}


def has_other_reference(prepared: PreparedRun) -> bool:
    """Whether the policy is compared with another model than the one that it starts from."""
    return prepared.config.reference is not None or prepared.given.reference is not None


def by_other_reference(
    prepared: PreparedRun,
    progress: bool = False,
    splits: Mapping[str, PreparedData] | None = None,
    only: Mapping[str, set[int]] | None = None,
) -> GroupsByName | None:
    """The groups with log-probabilities of `reference`; a named one is loaded for that and let go.

    Args:
        prepared: the run.
        progress: show a bar.
        splits: other data than the run's own.
        only: see `with_reference_logps`.

    Returns:
        None if the objective compares with no reference.

    Raises:
        InputError: it cannot be loaded, or reads other tokens than the policy.
    """
    config, given = prepared.config, prepared.given.reference
    if "reference" not in prepared.objective.needs:
        logger.warning("reference=%s is not used: the objective has no reference", config.reference)
        return None
    if given is not None:
        own, other = prepared.given.model_config(config.model), given.config
        if own.get_text_config().vocab_size != other.get_text_config().vocab_size:
            raise InputError(
                f"reference has a vocabulary of {other.get_text_config().vocab_size} tokens and model one of "
                f"{own.get_text_config().vocab_size}: the two are compared token by token; give the model "
                "that the tuning started from"
            )
        compute_alike(given)
        policy = Policy(_on(prepared.arguments.device, given))
        try:
            return with_reference_logps(prepared, policy, progress, splits, only)
        finally:
            policy.restore()
    name = str(config.reference)
    load_model_config(name)
    if load_tokenizer(name).get_vocab() != prepared.tokenizer.get_vocab():
        raise InputError(
            f"reference={name} and model={config.model} have different vocabularies: the two are compared "
            "token by token; give the model that the tuning started from"
        )
    device = prepared.arguments.device
    model = load_language_model(name, getattr(torch, config.model_dtype), quantization_of_run(config), device)
    return with_reference_logps(prepared, Policy(_on(device, model)), progress, splits, only)


def with_reference_logps(
    prepared: PreparedRun,
    policy: Policy,
    progress: bool = False,
    splits: Mapping[str, PreparedData] | None = None,
    only: Mapping[str, set[int]] | None = None,
) -> GroupsByName:
    """The groups of every split with the log-probabilities of a policy as it is now.

    A new adapter is off, unless it has changed the model beneath it; one that the run started from is on.

    Args:
        prepared: the run.
        policy: what is compared with.
        progress: show a bar.
        splits: other data than the run's own.
        only: by the split's name, places of the groups that are wanted, see `ReferenceCache.fill`; a split
            that is not named is wanted whole.
    """
    arguments = prepared.arguments
    policy.to(arguments.device)
    policy.eval()
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "full"
    adapters = not prepared.reference_is_base
    identity = reference_identity(policy.causal_lm(), precision, adapters)
    folder = Path(prepared.config.cache) if prepared.config.cache else cache_dir()
    cache = ReferenceCache(folder, identity, tokens="reference_tokens" in prepared.objective.needs)
    return {
        name: cache.fill(
            policy, data.groups, training_precision(arguments), progress, adapters, (only or {}).get(name)
        )
        for name, data in (prepared.splits if splits is None else splits).items()
    }


def training_precision(arguments: TrainingArguments) -> AbstractContextManager[object]:
    """The context in which a run's forward passes are computed."""
    if not (arguments.bf16 or arguments.fp16):
        return nullcontext()
    return torch.autocast(arguments.device.type, torch.bfloat16 if arguments.bf16 else torch.float16)
