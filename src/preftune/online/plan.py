"""The plan of the rounds, checked before any weights load."""

import json
import logging
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from preftune import objectives
from preftune.data.pairing import Pairing
from preftune.data.sources import GIVEN_ROWS
from preftune.errors import InputError
from preftune.models import generation_device, has_fast_bfloat16, load_model_config, load_tokenizer
from preftune.models.content import model_content
from preftune.online.configuration import IterateConfig
from preftune.online.prompts import Prompts, read_prompts
from preftune.online.quiet import quiet
from preftune.online.stages import PAIRS_FILE, PairSettings
from preftune.online.training import RUN_FOLDER
from preftune.rewards.policy_reward import PolicyReward
from preftune.rewards.sources import Specification, rewards_content
from preftune.sampling.engines import build_engine
from preftune.storage.hashing import hash_json
from preftune.storage.locks import LOCK_FILE
from preftune.training.configuration import RunConfig
from preftune.training.given import Given
from preftune.training.preparation import prepare

logger = logging.getLogger(__name__)

START_FOLDER = "start"
CONFIG_FILE, SOURCES_FILE = "config.yaml", "sources.json"
ROUND_SEEDS = 1000
"""Seeds of a round are `seed * ROUND_SEEDS + round`, so that no two rounds of two seeds share one."""
FREE = {"guards", "launch", "output", "cache"}
"""Keys that may change between two calls: they decide when to stop, and where to compute and write."""
ROWS_TRIED = 64


@dataclass(frozen=True)
class Model:
    """A policy: where it is, and a hash of what it is."""

    path: str
    content: str


@dataclass(frozen=True)
class Plan:
    """Rounds whose configuration, prompts and reward are known to be good; no weights are loaded yet.

    Attributes:
        config: what was asked for, with its defaults.
        tokenizer: the policy's.
        prompts: what is asked.
        reward: what scores the answers.
        start: the starting policy.
        needs: what the objective learns from.
    """

    config: IterateConfig
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    reward: PolicyReward
    start: Model
    needs: frozenset[str]

    @property
    def output(self) -> Path:
        """Folder of the rounds."""
        return Path(self.config.output)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are trained and measured."""
        dtype: torch.dtype = getattr(torch, self.config.train.get("model_dtype", "float32"))
        return dtype

    @property
    def pair_settings(self) -> PairSettings:
        """Which responses are trained on."""
        run = self.run_config(1, self.start, Path("-"))
        data, methods = run.data, objectives.methods_of(run.objective)
        pairing = Pairing(self.config.pair_rule, data.pairs_per_prompt, data.pair_seed, data.length_penalty)
        return PairSettings(
            pairing,
            keeps_all=not self.needs.isdisjoint({"auxiliary", "groups"}),
            keeps_equal=any(method.on_policy for method in methods),
        )

    def folder(self, number: int) -> Path:
        """Folder of a round; 0 is the start."""
        return self.output / (f"round-{number}" if number else START_FOLDER)

    def seed(self, number: int) -> int:
        """Of a round; 0 is of all evaluations."""
        return self.config.seed * ROUND_SEEDS + number

    def run_config(self, number: int, before: Model, data: Path) -> RunConfig:
        """The training run of a round, which starts after the policy `before` and reads `data`.

        It is evaluated on pairs of the starting model's held-out answers, where there are some.
        """
        config, held_out = self.config, self.folder(0) / PAIRS_FILE
        begins = before if config.start_from == "previous" else self.start
        compared = before if config.reference == "previous" else self.start
        has_other = compared != begins and "reference" in self.needs
        return config.run_config(
            model=begins.path,
            reference=compared.path if has_other else None,
            data=str(data),
            held_out=str(held_out) if held_out.exists() and held_out.stat().st_size else None,
            seed=self.seed(number),
            output=self.folder(number) / RUN_FOLDER,
        )

    def described(self) -> str:
        """What will be done, in a sentence or two."""
        prompts, config = self.prompts, self.config
        left_out = f" ({prompts.left_out} prompts are left out)" if prompts.left_out else ""
        return (
            f"{config.rounds} rounds of {len(prompts.parts[0])} prompts{left_out}, {config.sampling.n} "
            f"responses to each; {len(prompts.held_out)} held-out prompts, {config.evaluation.n} responses "
            "to each"
        )


def make_plan(config: IterateConfig, *, overwrite: bool = False, reward: Specification | None = None) -> Plan:
    """Check everything that can be checked without weights.

    Args:
        config: what is asked for.
        reward: a function in place of the configuration's reward.
        overwrite: resume in a folder of other rounds, and keep only what stays the same.

    Raises:
        InputError: something is wrong with the configuration, a source, the reward or the folder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "preftune iterate is one process and starts the others: run it without torchrun, and set "
            'launch: [torchrun, --nproc_per_node, "8"] in the configuration'
        )
    if config.update_every == "batch":
        _check_batches(config)
    if config.launch and shutil.which(config.launch[0]) is None:
        raise InputError(
            f"launch={config.launch}: the program {config.launch[0]!r} is not installed: install "
            "or correct it"
        )
    model_config = load_model_config(config.model)
    tokenizer = load_tokenizer(config.model)
    config = _with_precision(config)
    # Where its defaults are, every key of it is seen to be right; no round reads these names.
    tried = config.run_config(
        model=config.model, reference=None, data="-", held_out=None, seed=config.seed, output=Path("-")
    )
    if tried.lora and tried.model_dtype != "float32":
        raise InputError(
            f"train.model_dtype={tried.model_dtype} with train.lora: a round merges its adapter into the "
            "weights, and 16 bits lose most of a small update; set train.model_dtype=float32"
        )
    if tried.quantization and config.rounds > 1 and config.update_every != "batch":
        raise InputError(
            f"train.quantization={tried.quantization.type} with rounds={config.rounds}: a round merges its "
            "adapter into whole weights, and the next would round the update away as it quantises them: set "
            "update_every=batch, which trains one adapter all along, or rounds=1"
        )
    if config.sampling.engine != "transformers":
        build_engine(config.sampling.engine, config.model, config.sampling.rows)
    needs = _needs(tried)
    scored_by = PolicyReward(reward or config.reward, tokenizer)
    prompts = read_prompts(config, tokenizer, tried.data.longest_prompt)
    start = Model(config.model, model_content(config.model))
    plan = Plan(config, tokenizer, prompts, scored_by, start, needs)
    _check_context(plan, getattr(model_config.get_text_config(), "max_position_embeddings", None))
    _try_training(plan)
    _check_folder(plan, overwrite)
    return plan


def _check_batches(config: IterateConfig) -> None:
    """Refuse settings that do not work if the policy is updated after every batch."""
    refused = {
        "launch": (config.launch, "the policy answers and learns in one process; remove it"),
        "replay": (config.replay, "a batch is trained on where it is sampled; remove it"),
        "sampling.engine": (
            config.sampling.engine if config.sampling.engine != "transformers" else "",
            "it does not sample from the weights that are trained; set sampling.engine=transformers",
        ),
        "train.batches": (
            config.train.get("batches"),
            "the length of answers is unknown; set train.training.per_device_train_batch_size",
        ),
        "train.fully_sharded": (
            config.train.get("fully_sharded"),
            "one process has nothing to shard; remove it",
        ),
        "train.training.fp16": (
            dict(config.train.get("training") or {}).get("fp16"),
            "a batch without a pair gives no gradient to scale; set train.training.bf16=true",
        ),
    }
    for key, (value, reason) in refused.items():
        if value:
            raise InputError(f"{key}={value} with update_every=batch: {reason}")


def _with_precision(config: IterateConfig) -> IterateConfig:
    """bfloat16 as in the paper, where the machine is fast in it; rounds go on as they began."""
    training = dict(config.train.get("training") or {})
    if not {"bf16", "fp16"} & training.keys():
        began = _stored(config).get("train", {}).get("training", {})
        training["bf16"] = began.get("bf16", has_fast_bfloat16(generation_device()))
    return config.model_copy(update={"train": {**config.train, "training": training}})


def _stored(config: IterateConfig) -> dict[str, Any]:
    """The configuration that the folder was started with; empty if it is new."""
    file = Path(config.output) / CONFIG_FILE
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.exists() else {}


def _needs(config: RunConfig) -> frozenset[str]:
    try:
        needs = objectives.build(config.objective).needs
    except ValueError as error:
        raise InputError(f"train: objective: {error}") from None
    if "score" in needs:
        raise InputError(
            f"train.objective.method={config.objective.get('method')} trains a reward model, which cannot "
            "sample responses; set a method that trains a policy"
        )
    return needs


def _check_context(plan: Plan, context: int | None) -> None:
    config = plan.config
    asked = {
        "sampling.max_new_tokens": config.sampling.max_new_tokens,
        "evaluation.max_new_tokens": config.evaluation.max_new_tokens or 0,
    }
    for key, tokens in asked.items():
        if context and plan.prompts.longest + tokens > context:
            raise InputError(
                f"{key}={tokens}: the longest prompt has {plan.prompts.longest} tokens, and the model's "
                f"context is {context}; lower it, or set train.data.max_prompt_length"
            )


def _try_training(plan: Plan) -> None:
    """Prepare a run on some prompts with stand-in answers, so that no first round is sampled in vain."""
    rows = [
        {**row, "responses": ["Yes.", "No."], "scores": [1.0, 0.0]}
        for row in plan.prompts.parts[0][:ROWS_TRIED]
    ]
    config = plan.run_config(1, plan.start, Path(PAIRS_FILE))
    # Of an earlier call.
    data = config.data.model_copy(update={"evaluation": None})
    try:
        with quiet():
            arguments = prepare(config.model_copy(update={"data": data}), given=Given(train=rows)).arguments
    except InputError as error:
        raise InputError(f"train: {str(error).replace(GIVEN_ROWS, 'a round')}") from None
    if arguments.max_steps > 0 or config.batches:
        return
    in_a_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    if in_a_step < 1:
        raise InputError(
            "train.training: per_device_train_batch_size and gradient_accumulation_steps must be at least 1; "
            f"they are {arguments.per_device_train_batch_size} and {arguments.gradient_accumulation_steps}"
        )
    steps = math.ceil(len(plan.prompts.parts[0]) / in_a_step * arguments.num_train_epochs)
    warmup = arguments.get_warmup_steps(steps)
    if warmup >= steps:
        logger.warning(
            "a round has %d steps of %d prompts and train.training.warmup_steps=%g: the learning rate never "
            "reaches its maximum; lower warmup_steps, or the prompts in a step",
            steps,
            in_a_step,
            arguments.warmup_steps,
        )


def _check_folder(plan: Plan, overwrite: bool) -> None:
    """Check that the folder's rounds can resume with this configuration."""
    folder = plan.output
    if folder.is_file():
        raise InputError(f"output={folder} is a file; give a folder")
    stored = folder / CONFIG_FILE
    if not stored.exists():
        if folder.exists() and any(path.name != LOCK_FILE for path in folder.iterdir()):
            raise InputError(f"output={folder} is not empty and has no rounds; give an empty or new folder")
        return
    if overwrite:
        return
    before = _stored(plan.config)
    now = plan.config.model_dump(mode="json")
    changed = [key for key in {**now, **before} if key not in FREE and now.get(key) != before.get(key)]
    try:
        known = json.loads((folder / SOURCES_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    changed += [f"what {key} holds" for key, value in sources(plan).items() if known.get(key, value) != value]
    if changed:
        raise InputError(
            f"output={folder} was started with another configuration ({', '.join(changed)}); give another "
            "output=FOLDER, or pass --overwrite to resume there with this one and keep what stays the same"
        )


def sources(plan: Plan) -> dict[str, Any]:
    """Hashes of what the configuration names."""
    return {
        "model": plan.start.content,
        "prompts": hash_json(plan.prompts.parts),
        "held_out": hash_json(plan.prompts.held_out),
        "reward": plan.reward.identity,
        "train.rewards": hash_json(rewards_content(plan.config.train.get("rewards") or {}, plan.tokenizer)),
    }
