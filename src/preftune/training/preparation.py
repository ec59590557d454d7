"""Everything about a run that can be checked without weights: configuration, model name, data, prior."""

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import date
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import TypeAdapter, ValidationError
from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainingArguments
from transformers.training_args import OptimizerNames

from preftune import objectives
from preftune.data import (
    Asked,
    ChatTemplate,
    Group,
    LengthLimits,
    LoadedGroups,
    Pairing,
    RowReport,
    RowRules,
    TokenizedGroup,
    fingerprint_groups,
    load_groups,
    mismatched,
    set_control,
    tokenize_groups,
    whole_groups,
)
from preftune.data.sources import GIVEN_ROWS
from preftune.errors import InputError
from preftune.models import has_fast_bfloat16, own_router_loss_weight
from preftune.objectives import Standardization
from preftune.rewards import (
    AuxiliaryReward,
    Calibration,
    PriorReport,
    RewardReport,
    apply_prior,
    auxiliary_rewards,
    fit_calibration,
    measure_groups,
    with_margins,
)
from preftune.training.batches import plan_steps
from preftune.training.configuration import (
    TRAINING_DEFAULTS,
    TRAINING_OWNED,
    TRL_KEYS,
    ControlSection,
    DataSection,
    PriorSection,
    RunConfig,
    unknown_key,
)
from preftune.training.given import NOTHING_GIVEN, Given

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoints"
EVALUATION = "evaluation"
"""Name of the held-out set where there is one."""
ARGUMENTS_LEFT = frozenset(
    {
        *("output_dir", "remove_unused_columns", "label_names", "dataloader_pin_memory", "disable_tqdm"),
        *("logging_nan_inf_filter", "resume_from_checkpoint", "accelerator_config"),
    }
)
"""Fields of a caller's own arguments that do no harm, or are set below."""
DIVISIBLE = frozenset({"adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad"})
"""Optimizers that update a part of a weight as they update the whole."""
RESOLVED = 1e-5
"""Least standard deviation of a reward, relative to its mean, of which float32 keeps two digits."""
LARGEST_SHARE = 0.25
"""Of a reward's variance, in one response."""
FEWEST_RESPONSES = 50
"""From which on that is much: of 50 normal numbers the most extreme has a tenth."""


@dataclass(frozen=True)
class PreparedData:
    """One split, ready to pack, and what happened to its rows on the way.

    Attributes:
        groups: what is trained or evaluated on.
        rows: what became of the source's rows.
        prior: of the pairs, where the objective has one.
        rewards: what the auxiliary rewards measured, where the objective has some.
    """

    groups: list[TokenizedGroup]
    rows: RowReport
    prior: PriorReport | None = None
    rewards: RewardReport | None = None

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

    @cached_property
    def auxiliary(self) -> Float64[np.ndarray, "responses"]:
        """Auxiliary reward R of every response; empty if the objective uses none."""
        found = [
            group.per_response["auxiliary"] for group in self.groups if "auxiliary" in group.per_response
        ]
        return np.concatenate(found).astype(np.float64) if found else np.empty(0)

    @property
    def labels(self) -> dict[str, int] | None:
        """Number of responses by label, where the objective learns from labels."""
        found = [group.per_response["labels"] for group in self.groups if "labels" in group.per_response]
        if not found:
            return None
        labels = np.concatenate(found)
        return {"desirable": int(labels.sum()), "undesirable": int((~labels).sum())}

    def summary(self) -> dict[str, Any]:
        """Counts for summary.json and --dry-run."""
        return {
            "groups": len(self.groups),
            "pairs": sum(len(group.pairs) for group in self.groups),
            "responses": sum(len(group.packed) for group in self.groups),
            "tokens": self.tokens,
            "rows": {
                "read": self.rows.rows,
                "dropped": self.rows.dropped,
                **{f"{rule}/{action}": count for (rule, action), count in self.rows.counts.items()},
                **({"notes": dict(self.rows.notes)} if self.rows.notes else {}),
            },
            "prior": asdict(self.prior) if self.prior else None,
            "labels": self.labels,
            "rewards": asdict(self.rewards) if self.rewards else None,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class PreparedRun:
    """A run whose configuration and data are known to be good; no weights are loaded yet.

    Attributes:
        standardization: of the auxiliary reward, over the training split; None if there is none.
        label_balance: of the training split, where the objective learns from labels.
        held_out: what is evaluated on, by name; a single set is named "evaluation".
        reader: what read the splits.
        given: the caller's own objects.
    """

    config: RunConfig
    objective: objectives.Objective
    arguments: TrainingArguments
    tokenizer: PreTrainedTokenizerBase
    calibration: Calibration | None
    standardization: Standardization | None
    label_balance: objectives.LabelBalance | None
    train: PreparedData
    held_out: Mapping[str, PreparedData]
    reader: "SplitReader"
    given: Given

    def read(self, source: Any) -> PreparedData:
        """Another source or other rows, read as the training split was; what was fitted to that stays.

        Raises:
            NothingLeftError: every row was dropped.
            InputError: a row is wrong.
        """
        data, _ = self.reader.read(source, "train", self.config.data.pair_rule, self.calibration)
        return data

    @property
    def splits(self) -> dict[str, PreparedData]:
        """What there is, by name."""
        return {"train": self.train, **self.held_out}

    def held_out_groups(
        self, groups: Mapping[str, Sequence[TokenizedGroup]]
    ) -> Sequence[TokenizedGroup] | Mapping[str, Sequence[TokenizedGroup]] | None:
        """What the trainer evaluates on: the single set, several by name, or None.

        Args:
            groups: of every split, with what was added to them since.
        """
        if self.held_out.keys() <= {EVALUATION}:
            return groups.get(EVALUATION)
        return {name: groups[name] for name in self.held_out}

    @property
    def has_new_adapter(self) -> bool:
        """Whether the run puts an adapter on the model; without it the model is the reference."""
        return self.config.lora is not None or self.given.adapter is not None

    @property
    def fingerprints(self) -> dict[str, str]:
        """What each split is trained or evaluated on, in short."""
        return {name: data.fingerprint for name, data in self.splits.items()}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        accumulated: int = self.arguments.gradient_accumulation_steps
        return ceil(len(plan_steps(self.train.groups, self.arguments, self.config.batches)) / accumulated)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        most: int = self.arguments.max_steps
        return most if most > 0 else ceil(self.steps_per_epoch * self.arguments.num_train_epochs)

    def summary(self) -> dict[str, Any]:
        """What would be trained, on what, for how long."""
        held_out = {name: data.summary() for name, data in self.held_out.items()}
        return {
            "train": self.train.summary(),
            "evaluation": (held_out if held_out.keys() - {EVALUATION} else held_out.get(EVALUATION)) or None,
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "standardization": asdict(self.standardization) if self.standardization else None,
            "label_balance": asdict(self.label_balance) if self.label_balance else None,
            "steps": self.steps,
            "tokens_per_step": round(self.train.tokens / self.steps_per_epoch),
            "needs": sorted(self.objective.needs),
        }


def prepare(
    config: RunConfig, progress: bool = False, *, is_live: bool = False, given: Given = NOTHING_GIVEN
) -> PreparedRun:
    """Check everything that can be checked without weights.

    Args:
        config: the run.
        progress: show bars.
        is_live: what is trained on is made later, and `data.train` is only what scales are fitted to.
        given: objects in place of what the configuration names.

    Raises:
        InputError: something in the configuration or the data is wrong.
    """
    config = with_objective_defaults(config, given)
    objective = given.objective or objectives.build(config.objective)
    if given.arguments is None:
        arguments = training_arguments(config, bool(config.data.evaluation or given.held_out))
    else:
        arguments = own_arguments(given.arguments)
    _check_precision(config, arguments)
    model_config = given.model_config(config.model)
    tokenizer = given.tokenizer_of(config.model)
    config = _with_date(config, tokenizer)
    rewards = _rewards(config, objective, tokenizer)
    context = _context(model_config)
    splits = SplitReader(config, objective.needs, tokenizer, rewards, arguments.seed, context, progress)
    sources = split_sources(config.data, given)
    train, calibration = splits.read(*sources.pop("train"))
    # What is fitted, is fitted on the training data alone.
    held_out = {name: splits.read(*source, calibration)[0] for name, source in sources.items()}
    standardization = _standardization(train) if rewards else None
    objective = given.objective or objectives.build(config.objective, standardization)
    prepared = PreparedRun(
        config=config,
        objective=objective,
        arguments=arguments,
        tokenizer=tokenizer,
        calibration=calibration,
        standardization=standardization,
        label_balance=_label_balance(objective, train),
        train=train,
        held_out=held_out,
        reader=splits,
        given=given,
    )
    _check_sizes(prepared, model_config)
    if not is_live:
        _check_divergence(prepared)
    return prepared


def split_sources(data: DataSection, given: Given) -> dict[str, tuple[Any, str, str]]:
    """Source, split and pair rule of the training data and of every held-out set, by name."""
    rule = data.evaluation_pair_rule or data.pair_rule
    held_out = given.held_out or ({EVALUATION: data.evaluation} if data.evaluation else {})
    return {
        "train": (data.train if given.train is None else given.train, data.train_split, data.pair_rule),
        **{name: (source, data.evaluation_split, rule) for name, source in held_out.items()},
    }


def with_objective_defaults(config: RunConfig, given: Given = NOTHING_GIVEN) -> RunConfig:
    """The configuration with every option of its objective, so that a later default changes no finished run.

    An objective of the caller's own has no options.

    Raises:
        InputError: an option or its value is wrong, or the model cannot be found or lacks what it asks for.
    """
    if given.objective is not None:
        return config
    try:
        objective = objectives.resolve(config.objective)
    except ValueError as error:
        raise InputError(f"objective: {error}") from None
    own_weight = own_router_loss_weight(given.model_config(config.model))
    if own_weight:
        objective.setdefault("router_loss_weight", own_weight)
    elif own_weight is None and objective.get("router_loss_weight"):
        raise InputError(
            f"objective.router_loss_weight={objective['router_loss_weight']}: model={config.model} is not a "
            "mixture of experts that reports its routers; remove the key"
        )
    return config.model_copy(
        update={"objective": objective, "data": _with_control(config.data, str(objective["method"]))}
    )


def _with_date(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> RunConfig:
    """The configuration with today's date, if the chat template writes one: a resumed run keeps it."""
    if config.data.template_date or not ChatTemplate(tokenizer).writes_date:
        return config
    today = date.today()
    logger.info("the chat template writes today's date: data.template_date=%s for the whole run", today)
    return config.model_copy(update={"data": config.data.model_copy(update={"template_date": today})})


def _with_control(data: DataSection, method: str) -> DataSection:
    """The section with control texts if the method is conditioned on them."""
    readers = [name for name, other in objectives.METHODS.items() if other.reads_control]
    if method in readers:
        return data if data.control else data.model_copy(update={"control": ControlSection()})
    if data.control:
        raise InputError(
            f"data.control is set, and objective.method={method} is not conditioned on a text: remove "
            f"data.control, or set objective.method={' or '.join(readers)}"
        )
    return data


def _check_launcher() -> None:
    """Refuse what `accelerate launch` was told to do and training would silently leave out."""
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise InputError(
                f"accelerate was started with {name}: choose a configuration without it, and shard the "
                "model over the processes by fully_sharded=true (FSDP2)"
            )


def training_arguments(config: RunConfig, is_evaluated: bool) -> TrainingArguments:
    """The Trainer's arguments of a configuration.

    Args:
        config: the run.
        is_evaluated: whether there are held-out data.

    Raises:
        InputError: a field is unknown, has a wrong value, or is preftune's to set.
    """
    known = [field.name for field in fields(TrainingArguments) if field.init]
    hints = get_type_hints(TrainingArguments)
    chosen = dict(TRAINING_DEFAULTS)
    _check_launcher()
    _check_batches(config)
    for key, value in config.training.items():
        if key in TRAINING_OWNED:
            raise InputError(f"training.{key} is set by preftune: {TRAINING_OWNED[key]}")
        if key not in known:
            raise InputError(unknown_key(f"training.{key}", known))
        try:
            chosen[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            reasons = "; ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
            raise InputError(f"training.{key}={value!r}: {reasons}") from None
    if not is_evaluated:
        chosen["eval_strategy"] = "no"
    # Without this, bf16 is refused on a machine that has nothing but its CPU.
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
    return arguments


def own_arguments(given: TrainingArguments) -> TrainingArguments:
    """A copy of a caller's own arguments, with what packed batches need.

    Raises:
        InputError: a field is set that preftune decides, or the arguments are another trainer's.
    """
    foreign = {field.name for field in fields(given)} - {field.name for field in fields(TrainingArguments)}
    if foreign:
        hints = [f"{name} is {TRL_KEYS[name]}" for name in sorted(foreign) if name in TRL_KEYS]
        raise InputError(
            f"args is a {type(given).__name__}: give transformers' TrainingArguments, and the rest by "
            f"preftune's own keywords ({'; '.join(hints) or 'see PreferenceTrainer'})"
        )
    plain = TrainingArguments(output_dir=given.output_dir)
    for name, reason in TRAINING_OWNED.items():
        if name in ARGUMENTS_LEFT or not hasattr(plain, name):
            continue
        if getattr(given, name) != getattr(plain, name):
            raise InputError(f"args.{name}={getattr(given, name)!r} is set by preftune: {reason}")
    arguments = copy.copy(given)
    arguments.remove_unused_columns = False
    arguments.dataloader_pin_memory = torch.cuda.is_available()
    arguments.logging_nan_inf_filter = False
    return arguments


def _check_precision(config: RunConfig, arguments: TrainingArguments) -> None:
    if arguments.bf16 and not has_fast_bfloat16(arguments.device):
        logger.warning(
            "training.bf16=true: on a CPU without AMX, bfloat16 can be up to 80 times slower than float32; "
            "set training.bf16=false unless you have measured that it is faster"
        )
    if config.fully_sharded and arguments.optim not in DIVISIBLE:
        raise InputError(
            f"training.optim={OptimizerNames(arguments.optim).value} with fully_sharded=true: it is not "
            f"tested on sharded weights; set one of {', '.join(sorted(DIVISIBLE))}"
        )
    if arguments.n_gpu > 1:
        logger.warning("one of %d GPUs is used; start with torchrun to use all", arguments.n_gpu)
        arguments._n_gpu = 1


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


def _context(model_config: PretrainedConfig) -> int | None:
    """Positions that the model has, where it says so."""
    return getattr(model_config.get_text_config(), "max_position_embeddings", None)


def _check_sizes(prepared: PreparedRun, model_config: PretrainedConfig) -> None:
    """Rows must fit the model, and every process must have a row."""
    context = _context(model_config)
    for name, data in prepared.splits.items():
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


def _check_divergence(prepared: PreparedRun) -> None:
    """A step must give an estimate of the divergence from the reference."""
    if "divergence" in prepared.objective.needs:
        groups = len(prepared.train.groups) // prepared.steps_per_epoch
        if groups < 2:
            raise InputError(
                f"a step has {groups} prompt on average, and the estimate of the divergence from the "
                "reference is a mean over the mismatched responses of a step's prompts, 2 at least: set "
                "training.per_device_train_batch_size=2 (better 8 or more), or batches.tokens_per_step higher"
            )


def _label_balance(objective: objectives.Objective, train: PreparedData) -> objectives.LabelBalance | None:
    if train.labels is None:
        return None
    try:
        balance = objectives.label_balance(objective, **train.labels)
    except ValueError as error:
        raise InputError(f"data.train: {error}") from None
    if balance and balance.advice:
        logger.warning(balance.advice)
    return balance


def _note_long_groups(prepared: PreparedRun) -> None:
    most = prepared.config.batches and prepared.config.batches.tokens_per_row
    longer = [group.row_tokens for group in prepared.train.groups if most and group.row_tokens > most]
    if longer:
        logger.warning(
            "%d groups of data.train have more than batches.tokens_per_row=%d tokens (up to %d) and get "
            "their own rows; if memory is not enough, lower data.max_length",
            len(longer),
            most,
            max(longer),
        )


def _rewards(
    config: RunConfig, objective: objectives.Objective, tokenizer: PreTrainedTokenizerBase
) -> tuple[AuxiliaryReward, ...]:
    """The auxiliary rewards, checked even where the objective does not use them; then there are none."""
    rewards = auxiliary_rewards(config.rewards, tokenizer)
    if "auxiliary" not in objective.needs:
        if rewards:
            logger.info(
                "the section `rewards` is not trained on: objective.auxiliary.weight is not set, or 0"
            )
        return ()
    if not rewards:
        method = config.objective["method"]
        own = objectives.METHODS[method].learns_auxiliary
        cause = f"objective.method={method} learns from auxiliary rewards"
        raise InputError(
            f"{cause if own else 'objective.auxiliary is set'}, and the section `rewards` names no reward: "
            "add one, such as rewards.reading_grade.goal=minimise (`preftune score --list` lists them), or "
            f"{'choose another method' if own else 'remove objective.auxiliary'}"
        )
    return rewards


def _standardization(train: PreparedData) -> Standardization:
    mean, scale = float(train.auxiliary.mean()), float(train.auxiliary.std())
    spread = train.rewards.combined.sd if train.rewards else scale
    if 0 < spread < RESOLVED * abs(mean):
        raise InputError(
            f"the auxiliary reward has mean {mean:.6g} and standard deviation {spread:.3g}, which float32 "
            "cannot distinguish: use a target instead of a goal, or subtract a constant from the measurement"
        )
    if scale > 0:
        _check_tail(train.auxiliary, mean)
        return Standardization(mean, scale)
    logger.warning(
        "all %d responses have the auxiliary reward %.4g, so all advantages are equal, and what "
        "objective.auxiliary adds is plain likelihood; choose rewards that differ between responses",
        len(train.auxiliary),
        mean,
    )
    return Standardization(mean)


def _check_tail(rewards: Float64[np.ndarray, "responses"], mean: float) -> None:
    """Say so where one response sets the scale of all advantages."""
    if len(rewards) < FEWEST_RESPONSES:
        return
    squares = (rewards - mean) ** 2
    most = int(squares.argmax())
    share = float(squares[most] / squares.sum())
    if share > LARGEST_SHARE:
        logger.warning(
            "one response of %d has the auxiliary reward %.4g and the mean is %.4g: it makes %.0f%% of the "
            "variance, and so sets the scale of the advantages; if this measurement is too large, limit it "
            "by rewards.NAME.clip=[low, high]",
            *(len(rewards), rewards[most], mean, 100 * share),
        )


@dataclass(frozen=True)
class SplitReader:
    """Reads splits the same way: rows, prior, auxiliary rewards, tokens."""

    config: RunConfig
    needs: frozenset[objectives.Need]
    tokenizer: PreTrainedTokenizerBase
    rewards: tuple[AuxiliaryReward, ...]
    seed: int
    context: int | None
    progress: bool

    def read(
        self, source: Any, split: str, pair_rule: str, calibration: Calibration | None = None
    ) -> tuple[PreparedData, Calibration | None]:
        """A split, and the calibration of its scores: the one given, or else one fitted here."""
        config = self.config
        loaded = self.load(source, split, pair_rule)
        logger.info("read %s", loaded.read_as)
        if loaded.unused_columns:
            logger.info("%s: columns not used: %s", _title(source), ", ".join(loaded.unused_columns))
        groups: Sequence[Group] = loaded.groups
        report = loaded.report
        prior = measured = None
        with _naming(source):
            if "prior_gap" in self.needs:
                calibration = calibration or fit_calibration(
                    config.prior.calibration, config.prior.temperature, groups
                )
                groups, prior = apply_prior(groups, calibration, config.prior.negative_gap)
            if "margin" in self.needs:
                groups = with_margins(groups)
        if prior:
            self._describe(prior)
        elif config.prior != PriorSection():
            logger.warning("the section `prior` is not used: the objective has no prior; set objective.prior")
        if self.rewards:
            missing = RowRules(config.data.rules)["missing_reward"]
            found = measure_groups(groups, self.rewards, report.locate, missing, progress=self.progress)
            groups, measured = found.groups, found.report
            report.drop("missing_reward", measured.dropped)
        tokenized = self._tokenized(groups, report)
        (logger.warning if report.dropped else logger.info)("%s: %s", _title(source), report.summary())
        self._note_unlabelled(groups, tokenized)
        if "divergence" in self.needs:
            with _naming(source):
                tokenized = mismatched(tokenized, self.seed, self._most_tokens(tokenized))
        return PreparedData(tokenized, report, prior, measured), calibration

    def _tokenized(self, groups: Sequence[Group], report: RowReport) -> list[TokenizedGroup]:
        data = self.config.data
        with self._uncontrolled():
            return tokenize_groups(
                groups,
                self.tokenizer,
                LengthLimits(data.max_length, data.max_prompt_length),
                RowRules(data.rules),
                report,
                needs_pairs="pairs" in self.needs,
                **self._rendering(),
            )

    def whole(self, loaded: LoadedGroups) -> list[list[TokenizedGroup]]:
        """The token ids of every row before limits, prior and rewards: what a look at the data compares."""
        with self._uncontrolled():
            return list(
                whole_groups(
                    loaded.groups,
                    self.tokenizer,
                    RowRules(self.config.data.rules),
                    loaded.report,
                    **self._rendering(),
                )
            )

    def _rendering(self) -> dict[str, Any]:
        """How groups become text."""
        data, control = self.config.data, self.config.data.control
        return {
            "progress": self.progress,
            "chat_template_kwargs": data.chat_template_kwargs,
            "today": data.template_date,
            "control": {True: control.good, False: control.bad} if control else None,
        }

    @contextmanager
    def _uncontrolled(self) -> Iterator[None]:
        """The tokenizer without a control text in its template; afterwards it asks for good responses."""
        control = self.config.data.control
        if control:
            # A model that was trained so before brings its text along.
            set_control(self.tokenizer, "")
        try:
            yield
        finally:
            if control:
                # Whoever asks the saved model through its template asks for good responses.
                set_control(self.tokenizer, control.good)

    def load(self, source: Any, split: str, pair_rule: str) -> LoadedGroups:
        """The groups of a source, as text.

        Raises:
            InputError: the source cannot be read, or a row is wrong.
        """
        data = self.config.data
        return load_groups(
            source,
            split=split,
            asked=Asked(
                needs_prior=not self.needs.isdisjoint({"prior_gap", "margin"}),
                needs_pairs="pairs" in self.needs,
                needs_labels="labels" in self.needs,
                label_methods=objectives.methods_without_pairs(),
                mapping=data.columns,
            ),
            pairing=Pairing(pair_rule, data.pairs_per_prompt, data.pair_seed, data.length_penalty),
            keep_columns=bool(self.rewards),
            rules=RowRules(data.rules),
        )

    def _note_unlabelled(self, groups: Sequence[Group], tokenized: Sequence[TokenizedGroup]) -> None:
        """A method of labels leaves out responses without one, from the auxiliary terms too."""
        if self.rewards and "labels" in self.needs:
            before = sum(len(group.responses) for group in groups)
            after = sum(len(group.responses) for group in tokenized)
            if after < before:
                logger.warning(
                    "%d of %d responses are not trained on: they have no label, and the objective learns "
                    "from labels",
                    before - after,
                    before,
                )

    def _most_tokens(self, groups: Sequence[TokenizedGroup]) -> int:
        """Tokens that a prompt and a foreign response may have: what the model reads and the run allows."""
        longest = max(len(group.prompt) + len(response) for group in groups for response in group.responses)
        context = self.context or self.config.data.max_length
        # Own rows that are longer than the context are refused later, by their own message.
        return min(self.config.data.max_length, max(context, longest))

    def _describe(self, prior: PriorReport) -> None:
        logger.info(
            "prior: %d pairs, mean gap %.3f; %d had a negative gap (%s)",
            prior.pairs,
            prior.mean_gap,
            prior.negative,
            prior.negative_gap,
        )
        if prior.warning:
            logger.warning(prior.warning)


@contextmanager
def _naming(source: Any) -> Iterator[None]:
    """Say which file an error about a row is about."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{_title(source)}: {error}") from None


def _title(source: Any) -> str:
    """A source by its name, where it has one."""
    return str(source) if isinstance(source, str | Path) else GIVEN_ROWS
