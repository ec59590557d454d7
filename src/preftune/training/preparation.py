"""Everything about a run that can be checked without weights: configuration, model name, data, prior."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainingArguments

from preftune import objectives
from preftune.data import (
    Group,
    LengthLimits,
    RowReport,
    RowRules,
    TokenizedGroup,
    fingerprint_groups,
    load_groups,
    tokenize_groups,
)
from preftune.errors import InputError
from preftune.policy import load_config, load_tokenizer, own_router_loss_weight
from preftune.rewards.calibration import Calibration, PriorReport, apply_prior, fit_calibration
from preftune.training.batches import plan_steps
from preftune.training.configuration import (
    TRAINING_DEFAULTS,
    TRAINING_OWNED,
    PriorSection,
    RunConfig,
    unknown_key,
)

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoints"


@dataclass(frozen=True)
class PreparedData:
    """One split, ready to pack, and what happened to its rows on the way."""

    groups: list[TokenizedGroup]
    rows: RowReport
    prior: PriorReport | None

    @property
    def tokens(self) -> int:
        """Tokens of an epoch, each prompt counted once."""
        return sum(group.packed_tokens for group in self.groups)

    @cached_property
    def fingerprint(self) -> str:
        """What is trained on, in short; hashing a large split takes seconds, so it is done once."""
        return fingerprint_groups(self.groups)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its response."""
        return max(len(g.prompt) + len(response) for g in self.groups for response in g.responses)

    def summary(self) -> dict[str, Any]:
        """Counts for summary.json and --dry-run."""
        return {
            "groups": len(self.groups),
            "pairs": sum(len(group.pairs) for group in self.groups),
            "tokens": self.tokens,
            "rows": {
                "read": self.rows.rows,
                "dropped": self.rows.dropped,
                **{f"{rule}/{action}": count for (rule, action), count in self.rows.counts.items()},
            },
            "prior": asdict(self.prior) if self.prior else None,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class PreparedRun:
    """A run whose configuration and data are known to be good; no weights are loaded yet."""

    config: RunConfig
    objective: objectives.Objective
    arguments: TrainingArguments
    tokenizer: PreTrainedTokenizerBase
    calibration: Calibration | None
    train: PreparedData
    evaluation: PreparedData | None

    @property
    def fingerprints(self) -> dict[str, str]:
        """What each split is trained or evaluated on, in short."""
        splits = {"train": self.train, "evaluation": self.evaluation}
        return {name: data.fingerprint for name, data in splits.items() if data}

    def summary(self) -> dict[str, Any]:
        """What would be trained, on what, for how long."""
        planned = plan_steps(self.train.groups, self.arguments, self.config.batches)
        steps_per_epoch = ceil(len(planned) / self.arguments.gradient_accumulation_steps)
        steps = self.arguments.max_steps
        if steps <= 0:
            steps = ceil(steps_per_epoch * self.arguments.num_train_epochs)
        return {
            "train": self.train.summary(),
            "evaluation": self.evaluation.summary() if self.evaluation else None,
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "steps": steps,
            "tokens_per_step": round(self.train.tokens / steps_per_epoch),
            "needs": sorted(self.objective.needs),
        }


def prepare(config: RunConfig, progress: bool = False) -> PreparedRun:
    """Check everything that can be checked without weights.

    Raises:
        InputError: something in the configuration or the data is wrong.
    """
    config = with_objective_defaults(config)
    objective = objectives.build(config.objective)
    arguments = _training_arguments(config)
    model_config = load_config(config.model)
    tokenizer = load_tokenizer(config.model)
    train, calibration = _prepare_train(config, objective, tokenizer, progress)
    evaluation = _prepare_evaluation(config, calibration, tokenizer, progress)
    prepared = PreparedRun(config, objective, arguments, tokenizer, calibration, train, evaluation)
    _check_sizes(prepared, model_config)
    return prepared


def with_objective_defaults(config: RunConfig) -> RunConfig:
    """The configuration with every option of its objective, so that a later default changes no finished run.

    Raises:
        InputError: an option or its value is wrong, or the model cannot be found or lacks what it asks for.
    """
    try:
        objective = objectives.resolve(config.objective)
    except ValueError as error:
        raise InputError(f"objective: {error}") from None
    own_weight = own_router_loss_weight(load_config(config.model))
    if own_weight:
        objective.setdefault("router_loss_weight", own_weight)
    elif own_weight is None and objective.get("router_loss_weight"):
        raise InputError(
            f"objective.router_loss_weight={objective['router_loss_weight']}: model={config.model} is no "
            "mixture of experts that reports its routers; remove the key"
        )
    return config.model_copy(update={"objective": objective})


def _training_arguments(config: RunConfig) -> TrainingArguments:
    known = [field.name for field in fields(TrainingArguments) if field.init]
    hints = get_type_hints(TrainingArguments)
    chosen = dict(TRAINING_DEFAULTS)
    _check_batches(config)
    for key, value in config.training.items():
        if key in TRAINING_OWNED:
            raise InputError(f"training.{key} is preftune's own to set: {TRAINING_OWNED[key]}")
        if key not in known:
            raise InputError(unknown_key(f"training.{key}", known))
        try:
            chosen[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            reasons = "; ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
            raise InputError(f"training.{key}={value!r}: {reasons}") from None
    if config.data.evaluation is None:
        chosen["eval_strategy"] = "no"
    # Without this, bf16 is refused on a machine that has nothing but its processor.
    chosen.setdefault("use_cpu", not torch.accelerator.is_available())
    chosen.setdefault("per_device_eval_batch_size", 2 * chosen["per_device_train_batch_size"])
    try:
        arguments = TrainingArguments(
            **chosen,
            output_dir=str(Path(config.output) / CHECKPOINT_FOLDER),
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_nan_inf_filter=False,
            disable_tqdm=True,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training: {error}") from None
    if arguments.n_gpu > 1:
        logger.warning("one of %d GPUs is used; start with torchrun to use all", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


def _check_batches(config: RunConfig) -> None:
    """Steps and rows are counted in tokens or in groups, not in both."""
    decided_by = {
        "per_device_train_batch_size": "tokens_per_step",
        "gradient_accumulation_steps": "tokens_per_step",
        "per_device_eval_batch_size": "tokens_per_row",
    }
    for field, key in decided_by.items():
        tokens = getattr(config.batches, key, None)
        if tokens and field in config.training:
            raise InputError(
                f"training.{field}={config.training[field]!r} and batches.{key}={tokens}: batches are "
                "counted in groups or in tokens, not in both; remove one of the two"
            )


def _check_sizes(prepared: PreparedRun, model_config: PretrainedConfig) -> None:
    """Rows must fit the model, and every process must have a row."""
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    splits = {"train": prepared.train, "evaluation": prepared.evaluation}
    for name, data in splits.items():
        if data is None:
            continue
        if context and data.longest > context:
            raise InputError(
                f"data.{name} has {data.longest} tokens in a row and the model's context is {context}; "
                f"set data.max_length={context}"
            )
        processes = prepared.arguments.world_size
        if len(data.groups) < processes:
            raise InputError(
                f"data.{name} has {len(data.groups)} rows for {processes} processes; "
                "give more rows, or fewer processes"
            )
    _note_long_groups(prepared)


def _note_long_groups(prepared: PreparedRun) -> None:
    most = prepared.config.batches and prepared.config.batches.tokens_per_row
    longer = [group.packed_tokens for group in prepared.train.groups if most and group.packed_tokens > most]
    if longer:
        logger.warning(
            "%d groups of data.train have more than batches.tokens_per_row=%d tokens (up to %d) and are rows "
            "of their own; where memory does not suffice, lower data.max_length",
            len(longer),
            most,
            max(longer),
        )


def _prepare_train(
    config: RunConfig, objective: objectives.Objective, tokenizer: PreTrainedTokenizerBase, progress: bool
) -> tuple[PreparedData, Calibration | None]:
    needs_prior = "prior_gap" in objective.needs
    groups, report = _load(config, config.data.train, config.data.train_split, needs_prior)
    calibration = prior = None
    if needs_prior:
        with _naming(config.data.train):
            calibration = fit_calibration(config.prior.calibration, config.prior.temperature, groups)
            groups, prior = apply_prior(groups, calibration, config.prior.negative_gap)
        logger.info(
            "prior: %d pairs, mean gap %.3f; %d had a negative gap (%s)",
            prior.pairs,
            prior.mean_gap,
            prior.negative,
            config.prior.negative_gap,
        )
        if prior.warning:
            logger.warning(prior.warning)
    elif config.prior != PriorSection():
        logger.warning("the section `prior` is not used: the objective has no prior; set objective.prior")
    return _tokenize(config, groups, report, prior, tokenizer, progress), calibration


def _prepare_evaluation(
    config: RunConfig, calibration: Calibration | None, tokenizer: PreTrainedTokenizerBase, progress: bool
) -> PreparedData | None:
    if config.data.evaluation is None:
        return None
    split = config.data.evaluation_split
    groups, report = _load(config, config.data.evaluation, split, calibration is not None)
    prior = None
    if calibration:
        # Fitted on the training data alone; held-out pairs only have it applied.
        with _naming(config.data.evaluation):
            groups, prior = apply_prior(groups, calibration, config.prior.negative_gap)
    return _tokenize(config, groups, report, prior, tokenizer, progress)


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Say which file an error about a row is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _load(config: RunConfig, source: str, split: str, needs_prior: bool) -> tuple[Sequence[Group], RowReport]:
    loaded = load_groups(
        source,
        split=split,
        pair_rule=config.data.pair_rule,
        needs_prior=needs_prior,
        rules=RowRules(config.data.rules),
    )
    if loaded.unused_columns:
        logger.info("%s: columns not used: %s", source, ", ".join(loaded.unused_columns))
    return loaded.groups, loaded.report


def _tokenize(
    config: RunConfig,
    groups: Sequence[Group],
    report: RowReport,
    prior: PriorReport | None,
    tokenizer: PreTrainedTokenizerBase,
    progress: bool,
) -> PreparedData:
    limits = LengthLimits(config.data.max_length, config.data.max_prompt_length)
    rules = RowRules(config.data.rules)
    tokenized = tokenize_groups(
        groups,
        tokenizer,
        limits,
        rules,
        report,
        progress=progress,
        chat_template_kwargs=config.data.chat_template_kwargs,
    )
    return PreparedData(tokenized, report, prior)
