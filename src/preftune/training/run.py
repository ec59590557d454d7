"""One training run: everything that can fail is checked first, then weights load, then it trains."""

import json
import logging
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
import yaml
from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments, set_seed

from preftune.data import TokenizedGroup
from preftune.errors import InputError
from preftune.models import (
    PackedReader,
    Policy,
    ReferenceCache,
    RewardModel,
    ValueHead,
    load_config,
    load_language_model,
    load_reward_model,
    load_tokenizer,
    padding_token,
    reference_identity,
)
from preftune.models.allocator import keep_freed_memory
from preftune.models.value_head import VALUE_HEAD_FILE
from preftune.report import write_report
from preftune.storage.cache import cache_dir
from preftune.storage.files import write_json
from preftune.training.configuration import LoraSection, RunConfig, dump_yaml
from preftune.training.preparation import (
    CHECKPOINT_FOLDER,
    PreparedData,
    PreparedRun,
    prepare,
    with_objective_defaults,
)
from preftune.training.recording import ConsoleProgress, Recorder, environment
from preftune.training.trainer import PreferenceTrainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

MODEL_FOLDER = "model"
REWARDS_FILE = "rewards.json"
CALIBRATION_FILE = "calibration.json"


@runtime_checkable
class LiveData(Protocol):
    """Groups that are made while the policy trains, in place of those of `data.train`.

    What is fitted to training data, such as a calibration, is fitted to `data.train` all the same.
    """

    def trainer(
        self,
        prepared: PreparedRun,
        policy: PackedReader,
        evaluation_groups: list[TokenizedGroup] | None,
        callbacks: list[TrainerCallback],
    ) -> PreferenceTrainer:
        """What trains on them."""
        ...

    def trained_on(self, prepared: PreparedRun) -> PreparedData:
        """All of them, once training has come to its end."""
        ...


def train(
    config: RunConfig,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    live: LiveData | None = None,
) -> dict[str, Any]:
    """Train, and leave a run folder with config, metrics, summary, environment and the model.

    Args:
        config: the run.
        resume: continue from the last checkpoint of the same run.
        overwrite: replace a run that is already in the output folder.
        progress: show bars.
        live: what makes the groups that are trained on; None trains on those of `data.train`.

    Returns:
        What summary.json holds.

    Raises:
        InputError: something is wrong with the configuration or the data, before any weights load.
    """
    config = with_objective_defaults(config)
    folder = Path(config.output)
    _check_folder(config, folder, resume, overwrite)
    state = PartialState()
    # No process may find what another has just written.
    state.wait_for_everyone()
    if resume and (folder / "summary.json").exists():
        logger.info("%s is finished; there is nothing to resume", folder)
        finished: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return finished
    prepared = prepare(config, progress, is_live=live is not None)
    record = environment(prepared.arguments, prepared.fingerprints)
    if resume:
        _check_environment(folder, record)

    if prepared.arguments.device.type == "cpu":
        keep_freed_memory()
    show = progress and state.is_main_process
    # Before the policy loads, so that one model is in memory at a time.
    scored = _by_other_reference(prepared, show) if config.reference else None
    # Adapters start at random numbers, which the seed decides too.
    set_seed(prepared.arguments.seed)
    policy = _reward_model(prepared) if "score" in prepared.objective.needs else _policy(prepared)
    # Only now is it certain that the new run starts, and an old one may go.
    if state.is_main_process:
        _start_folder(prepared, folder, record, keep=resume)
    state.wait_for_everyone()
    train_groups = prepared.train.groups
    evaluation_groups = prepared.evaluation.groups if prepared.evaluation else None
    if "reference" in prepared.objective.needs and isinstance(policy, Policy):
        train_groups, evaluation_groups = scored or _with_reference(prepared, policy, show)

    checkpoint = last_checkpoint(folder / CHECKPOINT_FOLDER) if resume else None
    if not evaluation_groups or checkpoint:
        prepared.arguments.eval_on_start = False
    recorder = Recorder(folder / "metrics.jsonl")
    bar = ConsoleProgress(enabled=progress)
    if live:
        trainer = live.trainer(prepared, policy, evaluation_groups, [recorder, bar])
    else:
        trainer = PreferenceTrainer(
            policy,
            prepared.objective,
            prepared.arguments,
            train_groups,
            evaluation_groups,
            prepared.tokenizer,
            callbacks=[recorder, bar],
            batches=config.batches,
            value_head=config.value_head,
            fully_sharded=_is_divided(config, state.num_processes),
        )
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        bar.close()
    if evaluation_groups and not trainer.has_evaluated():
        trainer.evaluate()
    policy.restore_attention()
    trainer.save_model(str(folder / MODEL_FOLDER))
    if live:
        prepared = replace(prepared, train=live.trained_on(prepared))
    summary = prepared.summary() | recorder.summary() | {"shares_prompts": policy.shares_prompts}
    if live:
        steps = trainer.state.global_step
        summary |= {"steps": steps, "tokens_per_step": round(prepared.train.tokens / steps)}
    summary["value_explained_variance"] = _explained_variance(prepared, summary["evaluation_end"])
    trainer.save_value_head(folder)
    if state.is_main_process:
        write_json(folder / "summary.json", summary)
        write_report(folder / "report.html", f"Run {folder.name}", {folder.name: folder})
    return summary


def _is_divided(config: RunConfig, processes: int) -> bool:
    if config.fully_sharded and processes == 1:
        logger.warning("fully_sharded=true: one process has nothing to divide; start more by torchrun")
    return config.fully_sharded and processes > 1


def _check_folder(config: RunConfig, folder: Path, resume: bool, overwrite: bool) -> None:
    stored = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output={folder} is a file; give a folder")
    if stored.exists() and resume:
        before = yaml.safe_load(stored.read_text(encoding="utf-8")) or {}
        now = config.model_dump(mode="json")
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
    elif not stored.exists() and folder.exists() and any(folder.iterdir()):
        raise InputError(f"output={folder} is not empty and holds no run; give a folder of its own")
    if overwrite and folder.resolve() in Path(config.model).resolve().parents:
        raise InputError(f"model={config.model} lies in output={folder}, which --overwrite replaces; move it")
    for place in (folder, _cache(config)):
        existing = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            key = "output" if place == folder else "cache"
            raise InputError(f"{key}={place} cannot be written; give another {key}=FOLDER")


def _check_environment(folder: Path, record: dict[str, Any]) -> None:
    """A resumed run goes on with the same data, split over as many processes."""
    stored = folder / "environment.json"
    if not stored.exists():
        return
    before = json.loads(stored.read_text(encoding="utf-8"))
    for key, what in {"data": "the data", "processes": "the number of processes"}.items():
        if before[key] != record[key]:
            raise InputError(
                f"--resume: {what} changed since {stored} ({before[key]} there, {record[key]} now); "
                "restore it, or start another run with another output"
            )


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; transformers writes trainer_state.json last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in whole}
    return str(steps[max(steps)]) if steps else None


def _start_folder(prepared: PreparedRun, folder: Path, record: dict[str, Any], keep: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not keep:
        written = ("metrics.jsonl", "summary.json", "report.html")
        for name in (*written, VALUE_HEAD_FILE, REWARDS_FILE, CALIBRATION_FILE):
            (folder / name).unlink(missing_ok=True)
        for name in (CHECKPOINT_FOLDER, MODEL_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
    resolved = prepared.config.model_dump(mode="json")
    (folder / "config.yaml").write_text(dump_yaml(resolved), encoding="utf-8")
    write_json(folder / "environment.json", record)
    if prepared.calibration:
        # Scores of other data are placed on this scale by Calibration.from_dict.
        fitted_on = {"data": prepared.train.fingerprint}
        write_json(folder / CALIBRATION_FILE, prepared.calibration.to_dict() | fitted_on)
    if prepared.standardization:
        # What it takes to read the value head: which reward it expects, and on what scale.
        rewards = {"rewards": prepared.config.rewards, **asdict(prepared.standardization)}
        write_json(folder / REWARDS_FILE, rewards)


def _policy(prepared: PreparedRun) -> Policy:
    # On its device from the start: what is tried there at construction decides how prompts are shared.
    model = _load_model(prepared.config).to(prepared.arguments.device)
    return Policy(
        model,
        router_loss="router_loss" in prepared.objective.needs,
        value_head=_value_head(prepared, model),
    )


def _reward_model(prepared: PreparedRun) -> RewardModel:
    if "router_loss" in prepared.objective.needs:
        raise InputError(
            "objective.router_loss_weight: a reward model's forward pass gives no load-balancing loss; set "
            "objective.router_loss_weight=0"
        )
    config, tokenizer = prepared.config, prepared.tokenizer
    groups = [group for data in prepared.splits.values() for group in data.groups]
    used = np.unique(np.concatenate([ids for group in groups for ids in (group.prompt, *group.responses)]))
    vocabulary = load_config(config.model).get_text_config().vocab_size
    tokenizer.pad_token = padding_token(tokenizer, used.tolist(), vocabulary)
    dtype = getattr(torch, config.model_dtype)
    model = load_reward_model(config.model, dtype, tokenizer.pad_token_id)
    if config.data.chat_template_kwargs:
        # Whoever scores with the model writes conversations as they were trained on.
        model.config.preftune_chat_template_kwargs = config.data.chat_template_kwargs
    # On its device from the start, as a policy.
    return RewardModel(_as_trained(model, config, "SEQ_CLS").to(prepared.arguments.device))


def _value_head(prepared: PreparedRun, model: "PreTrainedModel | PeftModel") -> ValueHead | None:
    if "value" not in prepared.objective.needs:
        return None
    config, arguments = prepared.config, prepared.arguments
    # What the vocabulary head reads: some models narrow their last hidden state before it.
    hidden_size = model.get_output_embeddings().weight.shape[1]
    return ValueHead(hidden_size, config.value_head.width, arguments.seed).to(arguments.device)


def _explained_variance(prepared: PreparedRun, evaluation: dict[str, Any]) -> float | None:
    """Share of the held-out auxiliary reward's variance that V explains, 1 - Var(R - V) / Var(R)."""
    # Only the process that records has the figures.
    if "eval_auxiliary/squared_error" not in evaluation or prepared.evaluation is None:
        return None
    variance = float(prepared.evaluation.auxiliary.var())
    residual = evaluation["eval_auxiliary/squared_error"] - evaluation["eval_auxiliary/advantage"] ** 2
    return 1 - residual / variance if variance else None


def _load_model(config: RunConfig) -> "PreTrainedModel | PeftModel":
    model = load_language_model(config.model, getattr(torch, config.model_dtype))
    return _as_trained(model, config, "CAUSAL_LM")


def _as_trained(model: torch.nn.Module, config: RunConfig, task: str) -> "torch.nn.Module | PeftModel":
    """The model itself, or with the adapter that is trained; `task` is peft's name of its form."""
    if config.lora:
        return _with_lora(model, config.lora, task)
    if config.model_dtype == "bfloat16":
        logger.warning(
            "all weights are trained in bfloat16, which rounds small updates away; prefer "
            "model_dtype=float32 with training.bf16=true, or lora.rank=16"
        )
    return model


def _with_lora(model: torch.nn.Module, lora: LoraSection, task: str) -> "PeftModel":
    from peft import LoraConfig, get_peft_model

    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                target_modules=lora.target_modules,
                task_type=task,
            ),
        )
    except ValueError as error:
        raise InputError(f"lora.target_modules={lora.target_modules!r}: {error}") from None


def _by_other_reference(
    prepared: PreparedRun, progress: bool
) -> tuple[list[TokenizedGroup], list[TokenizedGroup] | None] | None:
    """The groups with log-probabilities of `reference`, which is loaded for that and let go."""
    config = prepared.config
    if "reference" not in prepared.objective.needs:
        logger.warning("reference=%s is not used: the objective compares with none", config.reference)
        return None
    name = str(config.reference)
    load_config(name)
    if load_tokenizer(name).get_vocab() != prepared.tokenizer.get_vocab():
        raise InputError(
            f"reference={name} and model={config.model} have different vocabularies: the two are compared "
            "token by token; give the model that the tuning started from"
        )
    model = load_language_model(name, getattr(torch, config.model_dtype)).to(prepared.arguments.device)
    return _with_reference(prepared, Policy(model), progress)


def _with_reference(
    prepared: PreparedRun, policy: Policy, progress: bool
) -> tuple[list[TokenizedGroup], list[TokenizedGroup] | None]:
    arguments = prepared.arguments
    policy.to(arguments.device)
    policy.eval()
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "full"
    identity = reference_identity(policy.causal_lm(), precision)
    cache = ReferenceCache(_cache(prepared.config), identity)
    train = cache.fill(policy, prepared.train.groups, training_precision(arguments), progress)
    evaluation = None
    if prepared.evaluation:
        evaluation = cache.fill(policy, prepared.evaluation.groups, training_precision(arguments), progress)
    return train, evaluation


def _cache(config: RunConfig) -> Path:
    return Path(config.cache) if config.cache else cache_dir()


def training_precision(arguments: TrainingArguments) -> AbstractContextManager[object]:
    """The context in which a run's forward passes are computed."""
    if not (arguments.bf16 or arguments.fp16):
        return nullcontext()
    return torch.autocast(arguments.device.type, torch.bfloat16 if arguments.bf16 else torch.float16)
