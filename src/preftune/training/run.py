"""One training run: everything that can fail is checked first, then weights load, then it trains."""

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import torch
import yaml
from accelerate import PartialState
from pydantic import TypeAdapter, ValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from preftune import objectives
from preftune.cache import cache_dir
from preftune.data import (
    Group,
    LengthLimits,
    RowReport,
    RowRules,
    TokenizedGroup,
    fingerprint_tokens,
    load_groups,
    tokenize_groups,
)
from preftune.errors import InputError
from preftune.policy import Policy, ReferenceCache, reference_identity
from preftune.report import write_report
from preftune.rewards.calibration import Calibration, PriorReport, apply_prior, fit_calibration
from preftune.training.configuration import (
    TRAINING_DEFAULTS,
    TRAINING_OWNED,
    LoraSection,
    RunConfig,
    unknown_key,
)
from preftune.training.recording import ConsoleProgress, Recorder, environment, write_json
from preftune.training.trainer import PreferenceTrainer

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

MODEL_FOLDER = "model"
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
            "fingerprint": fingerprint_tokens(self.groups),
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

    def summary(self) -> dict[str, Any]:
        """What would be trained, on what, for how long."""
        per_step = (
            self.arguments.per_device_train_batch_size
            * self.arguments.gradient_accumulation_steps
            * self.arguments.world_size
        )
        epochs = self.arguments.num_train_epochs
        steps = self.arguments.max_steps
        if steps <= 0:
            steps = int(np.ceil(np.ceil(len(self.train.groups) / per_step) * epochs))
        return {
            "train": self.train.summary(),
            "evaluation": self.evaluation.summary() if self.evaluation else None,
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "steps": steps,
            "tokens_per_step": round(self.train.tokens * per_step / len(self.train.groups)),
            "needs": sorted(self.objective.needs),
        }


def prepare(config: RunConfig, progress: bool = False) -> PreparedRun:
    """Check everything that can be checked without weights.

    Raises:
        InputError: something in the configuration or the data is wrong.
    """
    config = _with_objective_defaults(config)
    objective = objectives.build(config.objective)
    arguments = _training_arguments(config)
    tokenizer = _load_tokenizer(config.model)
    train, calibration = _prepare_train(config, objective, tokenizer, progress)
    evaluation = _prepare_evaluation(config, calibration, tokenizer, progress)
    return PreparedRun(config, objective, arguments, tokenizer, calibration, train, evaluation)


def train(
    config: RunConfig, resume: bool = False, overwrite: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Train, and leave a run folder with config, metrics, summary, environment and the model.

    Args:
        config: the run.
        resume: continue from the last checkpoint of the same run.
        overwrite: replace a run that is already in the output folder.
        progress: show bars.

    Returns:
        What summary.json holds.

    Raises:
        InputError: something is wrong with the configuration or the data, before any weights load.
    """
    config = _with_objective_defaults(config)
    folder = Path(config.output)
    _check_folder(config, folder, resume, overwrite)
    if resume and (folder / "summary.json").exists():
        logger.info("%s is finished; there is nothing to resume", folder)
        finished: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return finished
    prepared = prepare(config, progress)
    state = PartialState()
    if state.is_main_process:
        _start_folder(prepared, folder, keep=resume)
    state.wait_for_everyone()

    policy = Policy(_load_model(config))
    train_groups = prepared.train.groups
    evaluation_groups = prepared.evaluation.groups if prepared.evaluation else None
    if "reference" in prepared.objective.needs:
        train_groups, evaluation_groups = _with_reference(
            prepared, policy, progress and state.is_main_process
        )

    checkpoint = get_last_checkpoint(str(folder / CHECKPOINT_FOLDER)) if resume else None
    if not evaluation_groups or checkpoint:
        prepared.arguments.eval_on_start = False
    recorder = Recorder(folder / "metrics.jsonl")
    trainer = PreferenceTrainer(
        policy,
        prepared.objective,
        prepared.arguments,
        train_groups,
        evaluation_groups,
        prepared.tokenizer,
        callbacks=[recorder, ConsoleProgress(enabled=progress)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    policy.restore_attention()
    trainer.save_model(str(folder / MODEL_FOLDER))
    summary = prepared.summary() | recorder.summary(trainer) | {"shares_prompts": policy.shares_prompts}
    if state.is_main_process:
        write_json(folder / "summary.json", summary)
        write_report(folder / "report.html", f"Run {folder.name}", {folder.name: folder})
    return summary


def _with_objective_defaults(config: RunConfig) -> RunConfig:
    """What is written down names every option, so that a later default changes no finished run."""
    try:
        return config.model_copy(update={"objective": objectives.resolve(config.objective)})
    except ValueError as error:
        raise InputError(f"objective: {error}") from None


def _training_arguments(config: RunConfig) -> TrainingArguments:
    known = [field.name for field in fields(TrainingArguments) if field.init]
    hints = get_type_hints(TrainingArguments)
    for key, value in config.training.items():
        if key in TRAINING_OWNED:
            raise InputError(f"training.{key} is preftune's own to set: {TRAINING_OWNED[key]}")
        if key not in known:
            raise InputError(unknown_key(f"training.{key}", known))
        try:
            TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            reasons = "; ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
            raise InputError(f"training.{key}={value!r}: {reasons}") from None
    chosen = TRAINING_DEFAULTS | config.training
    if config.data.evaluation is None:
        chosen["eval_strategy"] = "no"
    # Without this, bf16 is refused on a machine that has nothing but its processor.
    chosen.setdefault("use_cpu", not torch.accelerator.is_available())
    chosen.setdefault("per_device_eval_batch_size", 2 * chosen["per_device_train_batch_size"])
    try:
        return TrainingArguments(
            **chosen,
            output_dir=str(Path(config.output) / CHECKPOINT_FOLDER),
            remove_unused_columns=False,
            # One warning per worker where there is no accelerator to pin for.
            dataloader_pin_memory=torch.cuda.is_available(),
            # The filter reads the loss back from the device after every micro-batch.
            logging_nan_inf_filter=False,
            disable_tqdm=True,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training: {error}") from None


def _load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    path = Path(model).expanduser()
    looks_local = path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"model={model} is a folder without config.json; give a folder that save_pretrained wrote"
        )
    if looks_local and not path.is_dir():
        raise InputError(f"model={model} is no folder; give one that save_pretrained wrote, or a hub name")
    try:
        AutoConfig.from_pretrained(model)
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model={model} is neither a folder with a model nor a name the hub knows, or the hub "
            f"cannot be reached: {reason}"
        ) from None


def _prepare_train(
    config: RunConfig, objective: objectives.Objective, tokenizer: PreTrainedTokenizerBase, progress: bool
) -> tuple[PreparedData, Calibration | None]:
    needs_prior = "prior_gap" in objective.needs
    groups, report = _load(config, config.data.train, config.data.train_split, needs_prior)
    calibration = prior = None
    if needs_prior:
        calibration = fit_calibration(config.prior.calibration, config.prior.temperature, groups)
        groups, prior = apply_prior(groups, calibration, config.prior.negative_gap)
        if prior.warning:
            logger.warning(prior.warning)
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
        groups, prior = apply_prior(groups, calibration, config.prior.negative_gap)
    return _tokenize(config, groups, report, prior, tokenizer, progress)


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


def _check_folder(config: RunConfig, folder: Path, resume: bool, overwrite: bool) -> None:
    stored = folder / "config.yaml"
    if resume and stored.exists():
        before = yaml.safe_load(stored.read_text(encoding="utf-8"))
        now = json.loads(config.model_dump_json())
        changed = [key for key in now if now[key] != before.get(key)]
        if changed:
            raise InputError(
                f"--resume: {', '.join(changed)} differ from {stored}; resume with the same configuration, "
                "or start another run with another output"
            )
    elif stored.exists() and not overwrite:
        raise InputError(
            f"output={folder} already holds a run; pass --resume to continue it, --overwrite to replace it, "
            "or another output"
        )


def _start_folder(prepared: PreparedRun, folder: Path, keep: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not keep:
        for name in ("metrics.jsonl", "summary.json", "report.html"):
            (folder / name).unlink(missing_ok=True)
        for name in (CHECKPOINT_FOLDER, MODEL_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
    resolved = json.loads(prepared.config.model_dump_json())
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    data = {"train": fingerprint_tokens(prepared.train.groups)}
    if prepared.evaluation:
        data["evaluation"] = fingerprint_tokens(prepared.evaluation.groups)
    write_json(folder / "environment.json", environment(prepared.arguments, data))


def _load_model(config: RunConfig) -> "torch.nn.Module | PeftModel":
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=getattr(torch, config.model_dtype))
    return _with_lora(model, config.lora) if config.lora else model


def _with_lora(model: torch.nn.Module, lora: LoraSection) -> "PeftModel":
    from peft import LoraConfig, get_peft_model

    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                target_modules=lora.target_modules,
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise InputError(f"lora.target_modules={lora.target_modules!r}: {error}") from None


def _with_reference(
    prepared: PreparedRun, policy: Policy, progress: bool
) -> tuple[list[TokenizedGroup], list[TokenizedGroup] | None]:
    arguments = prepared.arguments
    policy.to(arguments.device)
    policy.eval()
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "full"
    identity = reference_identity(policy.causal_lm(), precision)
    folder = Path(prepared.config.cache).expanduser() if prepared.config.cache else cache_dir()
    # The first process computes what is missing, the others then find it.
    with PartialState().main_process_first():
        cache = ReferenceCache(folder, identity)
        train = cache.fill(policy, prepared.train.groups, _autocast(arguments), progress)
        evaluation = None
        if prepared.evaluation:
            evaluation = cache.fill(policy, prepared.evaluation.groups, _autocast(arguments), progress)
    return train, evaluation


def _autocast(arguments: TrainingArguments) -> AbstractContextManager[object]:
    if not (arguments.bf16 or arguments.fp16):
        return nullcontext()
    return torch.autocast(arguments.device.type, torch.bfloat16 if arguments.bf16 else torch.float16)
