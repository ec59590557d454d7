"""Fully online training: the policy as it is answers a batch of prompts, and is trained on that at once.

This is MaPPO's Algorithm 1 (arXiv 2507.21183). Between two batches the weights stay where they are.
"""

import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset
from transformers import TrainerCallback

from preftune.data import TokenizedGroup
from preftune.data.packing import pack
from preftune.errors import InputError, NothingLeftError
from preftune.measuring.held_out import PromptRow
from preftune.models import PackedReader, Policy, load_language_model, with_reference
from preftune.online.configuration import SamplingSection
from preftune.online.guards import GuardStop, reward_collapse
from preftune.online.quiet import quiet
from preftune.online.stages import (
    PAIRS_FILE,
    SCORED_FILE,
    PairSettings,
    pair_round,
    paired_groups,
    reward_of_samples,
    usable_scores,
)
from preftune.rewards.policy_reward import AnsweredRow, PolicyReward
from preftune.sampling.sample_file import answered
from preftune.sampling.settings import SamplingSettings
from preftune.sampling.transformers_engine import sampler
from preftune.storage.files import as_lines, read_lines, write_whole
from preftune.storage.manifest import Figures
from preftune.storage.shards import Shards
from preftune.training.batches import StepSampler, StepSize, fill
from preftune.training.policy import training_precision
from preftune.training.preparation import PreparedRun
from preftune.training.quantizing import quantization_of_run
from preftune.training.rows import Batch, Counts, Step
from preftune.training.splits import PreparedData
from preftune.training.trainer import HeldOutGroups, PackedTrainer

SCALE_FILE = "scale.jsonl"
"""What calibration and standardisation are fitted to: pairs of the starting model's held-out answers."""
COLLAPSED_BATCHES = 8
"""So many batches on end without a pair stop the run."""


@dataclass(frozen=True)
class Interleaved:
    """A run's groups, made batch by batch. See `LiveData`.

    A batch's samples and scores are kept until all are joined: a run that resumes from a checkpoint reads
    those of the finished steps, and only trains on them again.

    Attributes:
        folder: where `SCORED_FILE` and `PAIRS_FILE` go.
        prompts: what is asked.
        sampling: how.
        seed: of the draws.
        pairs: which responses are trained on.
        reward: what they are scored with.
    """

    folder: Path
    prompts: Sequence[PromptRow]
    sampling: SamplingSection
    seed: int
    pairs: PairSettings
    reward: PolicyReward

    @property
    def steps(self) -> Shards:
        """The samples and scores of each step; the stage's manifest says what they were made from."""
        return Shards(self.folder / SCORED_FILE, "steps")

    def missing(self, steps: int) -> list[int]:
        """Steps whose samples are missing, or not as they were trained on.

        Args:
            steps: that have been taken for certain.
        """
        found = self.steps.rows()
        return [number for number in range(1, max([steps, *found]) + 1) if number not in found]

    def trainer(
        self,
        prepared: PreparedRun,
        policy: PackedReader,
        evaluation_groups: HeldOutGroups | None,
        callbacks: Sequence[TrainerCallback],
    ) -> PackedTrainer:
        """What trains on a batch as soon as it is made."""
        assert isinstance(policy, Policy)
        make = _Batches(self, prepared, policy, _reference(prepared, policy))
        return InterleavedTrainer(make, len(self.prompts), prepared, policy, evaluation_groups, callbacks)

    def trained_on(self, prepared: PreparedRun) -> PreparedData:
        """All groups, once their files are joined.

        Raises:
            GuardStop: there are none.
            InputError: samples were damaged while this process trained.
        """
        if missing := self.missing(0):
            raise InputError(
                f"{self.folder}: the samples of step {missing[0]} are damaged, and have been trained on; "
                "run the same command again"
            )
        steps = self.steps.rows()
        rows = [row for number in sorted(steps) for row in steps[number]]
        write_whole(self.folder / SCORED_FILE, as_lines(rows))
        if not pair_round(self.folder, self.folder / SCORED_FILE, (), self.pairs)["groups"]:
            raise GuardStop(
                reward_collapse(usable_scores(rows, self.pairs))
                or "no pair: the responses' rewards differ, and train.data.length_penalty makes them equal"
            )
        return prepared.read(str(self.folder / PAIRS_FILE))

    def figures(self) -> dict[str, Figures]:
        """Of the joined files, as the stages of a round give them."""
        scored = self.folder / SCORED_FILE
        by_prompt: defaultdict[str, list[float]] = defaultdict(list)
        for row in read_lines(scored):
            by_prompt[json.dumps(row["prompt"])] += row["scores"]
        return {
            "samples": reward_of_samples(list(by_prompt.values())),
            "pairs": pair_round(self.folder, scored, (), self.pairs),
        }


@dataclass(frozen=True)
class Made:
    """A batch: its groups, and what the log says of its samples."""

    groups: list[TokenizedGroup]
    figures: Mapping[str, float]


class _Batches:
    """Samples, scores and pairs a batch of prompts."""

    def __init__(
        self, source: Interleaved, prepared: PreparedRun, policy: Policy, reference: Policy | None
    ) -> None:
        self._source, self._prepared = source, prepared
        self._policy, self._reference = policy, reference
        self._steps: dict[int, list[AnsweredRow]] = source.steps.rows()

    def __call__(self, number: int, epoch: int, places: Sequence[int]) -> Made:
        """The batch of a step; its samples and scores are those of an earlier call where there was one."""
        source, began = self._source, time.perf_counter()
        if number not in self._steps:
            answers = self._answers([source.prompts[place] for place in places], number, epoch)
            scores = source.reward.score(answers, source.folder / SCORED_FILE)
            self._steps[number] = [row | {"scores": own} for row, own in zip(answers, scores, strict=True)]
            source.steps.append({number: self._steps[number]})
            source.reward.forget(answers, source.folder / SCORED_FILE)
        rows = self._steps[number]
        paired = paired_groups(rows, source.pairs)
        if not paired:
            self._guard(number)
        groups = self._groups(paired)
        figures = {
            "samples/reward": fmean(fmean(row["scores"]) for row in rows),
            "samples/tokens": fmean(count for row in rows for count in row["response_tokens"]),
            "samples/paired": len(paired) / len(rows),
            "samples/seconds": time.perf_counter() - began,
        }
        return Made(groups, figures)

    def _answers(self, asked: Sequence[PromptRow], number: int, epoch: int) -> list[dict[str, Any]]:
        source, asked_for = self._source, self._source.sampling.model_dump(exclude={"engine", "rows"})
        settings = SamplingSettings(**asked_for, seed=source.seed)
        with self._policy.own_attention() as model, training_precision(self._prepared.arguments):
            sample = sampler(model, self._prepared.tokenizer, source.sampling.rows)
            # Prompts of a part differ: how often one has come before is the number of the epoch.
            groups = sample([row["prompt"] for row in asked], [epoch] * len(asked), settings)
        about = {"engine": "transformers", "version": transformers.__version__, "step": number}
        return [
            answered(row, group, about | asdict(settings)) for row, group in zip(asked, groups, strict=True)
        ]

    def _groups(self, paired: Sequence[AnsweredRow]) -> list[TokenizedGroup]:
        """What is trained on; none where nothing can be learned from the batch."""
        prepared = self._prepared
        # The divergence is estimated on responses to other prompts.
        if len(paired) < (2 if "divergence" in prepared.objective.needs else 1):
            return []
        with quiet():
            try:
                groups = prepared.read(paired).groups
            except NothingLeftError:
                return []
        if self._reference is None:
            return groups
        tokens = "reference_tokens" in prepared.objective.needs
        return with_reference(self._reference, groups, training_precision(prepared.arguments), tokens)

    def _guard(self, number: int) -> None:
        """Stop where the last batches have taught nothing."""
        if number < COLLAPSED_BATCHES:
            return
        recent = range(number - COLLAPSED_BATCHES + 1, number + 1)
        rows = [row for step in recent for row in self._steps[step]]
        if reason := reward_collapse(usable_scores(rows, self._source.pairs)):
            raise GuardStop(reason)


class _PromptNumbers(Dataset[list[int]]):
    """Prompts by their place, of which any row can be taken."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: list[int]) -> list[int]:
        return row


class InterleavedTrainer(PackedTrainer):
    """Takes prompts where the usual trainer takes groups; a step's are made when it begins.

    A step takes `per_device_train_batch_size` times `gradient_accumulation_steps` prompts, in rows of the
    former.
    """

    def __init__(
        self,
        make: Callable[[int, int, Sequence[int]], Made],
        prompts: int,
        prepared: PreparedRun,
        policy: Policy,
        evaluation_groups: HeldOutGroups | None,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        arguments = copy.copy(prepared.arguments)
        self._row = arguments.per_device_train_batch_size
        size = StepSize(self._row * arguments.gradient_accumulation_steps, None, in_tokens=False)
        # A batch is sampled by one policy: it cannot be cut into what the Trainer accumulates.
        arguments.gradient_accumulation_steps = 1
        super().__init__(
            policy,
            prepared.objective,
            arguments,
            [],
            evaluation_groups,
            prepared.tokenizer,
            callbacks,
            value_head=prepared.config.value_head,
            stop=prepared.config.stop,
            learning_rates=prepared.config.learning_rates,
            stochastic_rounding=prepared.config.stochastic_rounding,
            ema=prepared.config.ema,
        )
        self.train_dataset = _PromptNumbers(prompts)
        self._steps = StepSampler(
            [1] * prompts,
            size,
            seed=arguments.seed if arguments.data_seed is None else arguments.data_seed,
            drop_last=arguments.dataloader_drop_last,
        )
        self._make = make
        self._figures: list[Mapping[str, float]] = []

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Step], Counts]:
        """The next step's prompts, answered by the policy as the last step has left it."""
        return super().get_batch_samples(map(self._made, epoch_iterator), num_batches, device)

    def _made(self, prompts: Sequence[int]) -> Step:
        done = self.state.global_step
        made = self._make(done + 1, done // len(self._steps), prompts)
        self._figures.append(made.figures)
        rows = fill(np.ones(len(made.groups), dtype=np.int64), self._row)
        return [Batch(batch=pack([made.groups[place] for place in row])) for row in rows]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the samples' figures to the log line."""
        if "loss" in logs:
            names = self._figures[0] if self._figures else ()
            logs |= {name: fmean(figures[name] for figures in self._figures) for name in names}
            self._figures = []
        super().log(logs, start_time)


def _reference(prepared: PreparedRun, policy: Policy) -> Policy | None:
    """What the policy is compared with: itself without its adapter, or a model that stays as it is."""
    config = prepared.config
    if "reference" not in prepared.objective.needs:
        return None
    if prepared.reference_is_base and not config.reference:
        return policy
    device, dtype = prepared.arguments.device, getattr(torch, config.model_dtype)
    quantization = quantization_of_run(config)
    model = load_language_model(config.reference or config.model, dtype, quantization, device)
    return Policy(model.to(device)).eval()
