"""Everything about a run that can be checked without weights: configuration, model name, data, prior."""

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from math import ceil
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainingArguments

from preftune import objectives
from preftune.data import (
    ChatTemplate,
    LoadedGroups,
    RowReport,
    TokenizedGroup,
    hold_out,
)
from preftune.errors import InputError
from preftune.models import has_fast_bfloat16, load_model_config, own_router_loss_weight
from preftune.models.adapters import base_config
from preftune.models.config_files import check_token_ids
from preftune.objectives import Standardization
from preftune.rewards import (
    AuxiliaryReward,
    Calibration,
    auxiliary_rewards,
    with_sum,
)
from preftune.training import trl_names
from preftune.training.adapters import check_adapters, reference_is_base, trains_adapter
from preftune.training.batches import plan_steps
from preftune.training.best import check_best, check_stop, check_strategies
from preftune.training.checking import check_arguments, check_values
from preftune.training.configuration import (
    EARLY_STOPPING,
    TRAINING_DEFAULTS,
    TRAINING_OWNED,
    ControlSection,
    DataSection,
    PriorSection,
    RunConfig,
    unknown_key,
)
from preftune.training.given import NOTHING_GIVEN, Given
from preftune.training.learning_rate import check_own_rate, with_learning_rate
from preftune.training.optimizers import check_optimizer
from preftune.training.pushing import check_repository
from preftune.training.quantizing import with_quantization
from preftune.training.splits import PreparedData, SplitReader, title_of
from preftune.training.standardizing import fit_bounds, standardize

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoints"
TRAIN, EVALUATION = "train", "evaluation"
"""Names of the training data, and of the held-out set if there is one."""
ARGUMENTS_LEFT = frozenset(
    {
        *("output_dir", "remove_unused_columns", "label_names", "dataloader_pin_memory", "disable_tqdm"),
        *("logging_nan_inf_filter", "resume_from_checkpoint", "accelerator_config"),
    }
)
"""Fields of a caller's own arguments that do no harm, or are set below."""


@dataclass(frozen=True)
class PreparedRun:
    """A run whose configuration and data are known to be good; no weights are loaded yet.

    Attributes:
        standardization: of the auxiliary reward, over the training split; None if there is none.
        label_balance: of the training split, where the objective learns from labels.
        predicted_factors: of the training split's auxiliary rewards, where the objective weighs likelihood
            by them.
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
    predicted_factors: objectives.PredictedFactors | None
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
    def trains_adapter(self) -> bool:
        """Whether an adapter is trained in place of all weights."""
        return trains_adapter(self.config, self.given)

    @property
    def reference_is_base(self) -> bool:
        """Whether the model with its adapter off is what the run starts from, whenever that is asked for."""
        return reference_is_base(self.config, self.given)

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
            "standardization": self.standardization.to_dict() if self.standardization else None,
            "label_balance": asdict(self.label_balance) if self.label_balance else None,
            "predicted_factors": asdict(self.predicted_factors) if self.predicted_factors else None,
            "steps": self.steps,
            "tokens_per_step": round(self.train.tokens / self.steps_per_epoch),
            "needs": sorted(self.objective.needs),
        }


def prepare(
    config: RunConfig,
    progress: bool = False,
    *,
    is_live: bool = False,
    given: Given = NOTHING_GIVEN,
    keeps_whole: bool = False,
) -> PreparedRun:
    """Check everything that can be checked without weights.

    Args:
        config: the run.
        progress: show bars.
        is_live: what is trained on is made later, and `data.train` is only what scales are fitted to.
        given: objects in place of what the configuration names.
        keeps_whole: keep the splits before their limits too, for a look at them.

    Raises:
        InputError: something in the configuration or the data is wrong.
    """
    config = with_defaults(config, given)
    objective = given.objective or objectives.build(config.objective)
    if given.arguments is None:
        arguments = training_arguments(config, bool(_is_evaluated(config.data, given)))
    else:
        arguments = own_arguments(given.arguments)
        check_own_rate(arguments.learning_rate, config, given)
    check_optimizer(arguments, config, given)
    check_arguments(arguments, given)
    _check_precision(config, arguments)
    check_repository(arguments)
    _note_idle_prior(config, objective, given)
    model_config = given.model_config(config.model)
    check_adapters(config, given, model_config, "SEQ_CLS" if "score" in objective.needs else "CAUSAL_LM")
    if given.model is None and "score" not in objective.needs:
        base_config(config.model)  # no reward model
    if config.reference is not None and given.reference is None:
        load_model_config(str(config.reference))
    tokenizer = given.tokenizer_of(config.model)
    config = _with_date(config, tokenizer)
    rewards = _rewards(config, objective, tokenizer)
    context = _context(model_config)
    splits = SplitReader(
        config, objective.needs, tokenizer, rewards, arguments.seed, context, progress, keeps_whole
    )
    loaded = load_splits(splits, given)
    train, calibration = splits.finish(*loaded.pop(TRAIN))
    # What is fitted, is fitted on the training data alone.
    splits = replace(splits, rewards=train.scaled)
    held_out = {name: splits.finish(*split, calibration)[0] for name, split in loaded.items()}
    standardization = standardize(train, fit_bounds(train)) if rewards else None
    objective = given.objective or objectives.build(config.objective, standardization)
    prepared = PreparedRun(
        config=config,
        objective=objective,
        arguments=arguments,
        tokenizer=tokenizer,
        calibration=calibration,
        standardization=standardization,
        label_balance=_label_balance(objective, train),
        predicted_factors=_predicted_factors(objective, train),
        train=train,
        held_out=held_out,
        reader=splits,
        given=given,
    )
    _check_sizes(prepared, model_config)
    _check_endings(prepared)
    if not is_live:
        _check_divergence(prepared)
        _note_foreign_samples(prepared)
    return prepared


def split_sources(data: DataSection, given: Given) -> dict[str, tuple[Any, str, str]]:
    """Source, split and pair rule of the training data and of every held-out set, by name."""
    rule = data.evaluation_pair_rule or data.pair_rule
    held_out = given.held_out or ({EVALUATION: data.evaluation} if data.evaluation else {})
    return {
        "train": (data.train if given.train is None else given.train, data.train_split, data.pair_rule),
        **{name: (source, data.evaluation_split, rule) for name, source in held_out.items()},
    }


def load_splits(reader: SplitReader, given: Given) -> dict[str, tuple[str, LoadedGroups]]:
    """Title and groups of the training data and of every held-out set, by name; a single one is "evaluation".

    Raises:
        InputError: a source cannot be read, or a row is wrong.
    """
    data = reader.config.data
    source = data.train if given.train is None else given.train
    train = reader.load(source, data.train_split, data.pair_rule)
    found = {TRAIN: (title_of(source), train)}
    if data.evaluation_fraction:
        kept, held = hold_out(train.groups, data.evaluation_fraction, data.pair_seed)
        note = f"groups held out by data.evaluation_fraction={data.evaluation_fraction}"
        train.report.notes[note] = len(held)
        found[TRAIN] = (title_of(source), replace(train, groups=kept))
        report = RowReport(train.report.locate, rows=len(held))
        found[EVALUATION] = ("data.evaluation_fraction", replace(train, groups=held, report=report))
    named = data.evaluation if isinstance(data.evaluation, dict) else {EVALUATION: data.evaluation}
    rule = data.evaluation_pair_rule or data.pair_rule
    for name, other in (given.held_out or named).items():
        if other is not None:
            found[name] = (title_of(other), reader.load(other, data.evaluation_split, rule))
    return found


def with_defaults(config: RunConfig, given: Given = NOTHING_GIVEN) -> RunConfig:
    """The configuration with its learning rate, quantization and every option of its objective.

    A later default then changes no finished run. An objective of the caller's own has no options.

    Raises:
        InputError: an option or its value is wrong, or the model cannot be found or lacks what it asks for.
    """
    config = with_quantization(config, given)
    if given.objective is not None:
        return with_learning_rate(config, given)
    own = objectives.options_of(*objectives.methods_of(config.objective))
    known = {*trl_names.OBJECTIVE_KEYS, *trl_names.option_names(), *own}
    for key, value in config.objective.items():
        if key not in known and (said := trl_names.answer(key)):
            raise InputError(f"objective.{key}={value!r}: {said}")
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
    config = config.model_copy(update={"objective": objective, "data": _with_control(config.data, objective)})
    return with_learning_rate(config, given)


def _with_date(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> RunConfig:
    """The configuration with today's date, if the chat template writes one: a resumed run keeps it."""
    if config.data.template_date or not ChatTemplate(tokenizer).writes_date:
        return config
    today = date.today()
    logger.info("the chat template writes today's date: data.template_date=%s for the whole run", today)
    return config.model_copy(update={"data": config.data.model_copy(update={"template_date": today})})


def _with_control(data: DataSection, objective: Mapping[str, Any]) -> DataSection:
    """The section with control texts if the method is conditioned on them."""
    if any(method.reads_control for method in objectives.methods_of(objective)):
        return data if data.control else data.model_copy(update={"control": ControlSection()})
    if data.control:
        readers = [name for name, other in objectives.METHODS.items() if other.reads_control]
        found = "objective.mix" if "mix" in objective else f"objective.method={objective['method']}"
        raise InputError(
            f"data.control is set, and {found} is not conditioned on a text: remove "
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
    known = [*(field.name for field in fields(TrainingArguments) if field.init), *EARLY_STOPPING]
    hints = get_type_hints(TrainingArguments) | EARLY_STOPPING
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
    check_values(chosen)
    check_strategies(chosen, is_evaluated)
    chosen = {key: value for key, value in chosen.items() if key not in EARLY_STOPPING}
    if not is_evaluated:
        chosen |= {"eval_strategy": "no", "eval_on_start": False}
    # The Trainer would name it as its own output folder, which is that of checkpoints.
    chosen.setdefault("hub_model_id", Path(config.output).absolute().name)
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
        keys = trl_names.TRL_KEYS
        hints = [f"{name} is {keys[name]}" for name in sorted(foreign) if name in keys]
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


def _check_endings(prepared: PreparedRun) -> None:
    """What decides the best checkpoint, or ends the run, must be there to be compared."""
    metrics: list[str] = []
    for name, data in prepared.held_out.items():
        own = objectives.metric_names(prepared.objective, has_pairs=any(group.pairs for group in data.groups))
        metrics += own if prepared.held_out.keys() <= {EVALUATION} else [f"{name}_{each}" for each in own]
    chosen: dict[str, Any] = {}
    if prepared.given.arguments is None:
        chosen = {"greater_is_better": None, **prepared.config.training}
    check_best(prepared.arguments, chosen, metrics)
    check_stop(prepared.config.stop, prepared.arguments, metrics)


def _check_sizes(prepared: PreparedRun, model_config: PretrainedConfig) -> None:
    """Rows must fit the model, and every process must have a row."""
    context = _context(model_config)
    vocabulary = model_config.get_text_config().vocab_size
    # Groups may lie in a file: they are read for this only where their tokenizer has more than the model.
    may_exceed = max(prepared.tokenizer.get_vocab().values()) >= vocabulary
    for name, data in prepared.splits.items():
        if may_exceed:
            rows = (ids for group in data.groups for ids in (group.prompt, *group.responses))
            check_token_ids(f"data.{name}", rows, vocabulary)
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


def _note_foreign_samples(prepared: PreparedRun) -> None:
    """Say that responses of the data are not what a method for the policy's own samples is defined on."""
    methods = () if prepared.given.objective else objectives.methods_of(prepared.config.objective)
    if names := [method.name for method in methods if method.on_policy]:
        logger.warning(
            "objective: %s learns from samples of the policy as it is, with one step on each, and nothing "
            "corrects for responses that were written before: the run is an approximation. `preftune "
            "iterate` with update_every=batch samples anew for every step; for responses that you have, "
            "`preftune methods` lists others",
            " and ".join(names),
        )


def _note_idle_prior(config: RunConfig, objective: objectives.Objective, given: Given) -> None:
    """Say what of the prior nothing reads: its section, its rule for negative gaps, or itself in a mix."""
    section, needs = config.prior, objective.needs
    if needs.isdisjoint({"prior_gap", "prior_reward"}):
        if section != PriorSection():
            logger.warning("the section `prior` is not used: the objective has no prior; set objective.prior")
    elif "prior_gap" not in needs and section.negative_gap != PriorSection().negative_gap:
        logger.warning(
            "prior.negative_gap=%s has no effect: the objective learns from the rewards of a prompt's "
            "responses, and no label can contradict them; remove it",
            section.negative_gap,
        )
    if plain := () if given.objective else objectives.plain_methods(config.objective):
        logger.warning(
            "objective.prior=%s is not defined for %s of the mix, which is trained without it: `preftune "
            "methods NAME` has the priors of each",
            config.objective["prior"],
            " and ".join(plain),
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


def _predicted_factors(
    objective: objectives.Objective, train: PreparedData
) -> objectives.PredictedFactors | None:
    if "auxiliary" not in objective.needs or not len(train.auxiliary):
        return None
    factors = objectives.predicted_factors(objective, torch.from_numpy(train.auxiliary))
    if factors and factors.warning:
        logger.warning(factors.warning)
    return factors


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
    rewards = with_sum(
        auxiliary_rewards(config.rewards, tokenizer), config.reward_sum.normalize, config.reward_sum.weights
    )
    if "auxiliary" not in objective.needs:
        if rewards:
            # A weight of 0 was asked for, as a point of a sweep.
            note = logger.info if config.objective.get("auxiliary") else logger.warning
            note("the section `rewards` is not trained on: objective.auxiliary.weight is not set, or 0")
        return ()
    if not rewards:
        methods = objectives.methods_of(config.objective)
        own = next((method.name for method in methods if method.learns_auxiliary), None)
        cause = f"objective.method={own} learns from auxiliary rewards"
        raise InputError(
            f"{cause if own else 'objective.auxiliary is set'}, and the section `rewards` names no reward: "
            "add one, such as rewards.reading_grade.goal=minimise (`preftune score --list` lists them), or "
            f"{'choose another method' if own else 'remove objective.auxiliary'}"
        )
    limited = next((reward.name for reward in rewards if reward.bound), None)
    if limited and not config.objective.get("auxiliary") and "bounds" not in objective.needs:
        raise InputError(
            f"rewards.{limited} has a bound, whose multiplier is learned from the factors of "
            "objective.auxiliary, which is not set: give it a weight, or set objective.auxiliary with a "
            "method that takes it"
        )
    return rewards


def _is_evaluated(data: DataSection, given: Given) -> bool:
    return bool(given.held_out or data.evaluation or data.evaluation_fraction)
