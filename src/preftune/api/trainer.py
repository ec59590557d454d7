"""`PreferenceTrainer`: the trainer for people who have their own model, data and loop."""

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed

from preftune.api.keywords import (
    Keywords,
    NamedOrRows,
    RewardOptions,
    errors_name_keywords,
    unknown_keyword,
)
from preftune.data import TokenizedGroup
from preftune.errors import InputError, NotFiniteError
from preftune.models import Policy
from preftune.objectives import Objective
from preftune.report.card import write_card
from preftune.report.folders import RunRecord
from preftune.storage.cards import check_card
from preftune.training.footprint import check_trained_weights
from preftune.training.inspection import Inspection, inspect_run
from preftune.training.policy import (
    GroupsByName,
    build_policy,
    by_other_reference,
    has_other_reference,
    with_reference_logps,
)
from preftune.training.preparation import EVALUATION, PreparedRun, prepare
from preftune.training.pushing import (
    NOT_OF_MODEL,
    make_repository,
    push_in_background,
    repository_of,
)
from preftune.training.recording import environment, is_evaluation
from preftune.training.rows import RowDataset
from preftune.training.splits import PreparedData
from preftune.training.stopping import describe_ending, early_stopping
from preftune.training.trainer import PackedTrainer

if TYPE_CHECKING:
    from concurrent.futures import Future

    from peft import PeftConfig

logger = logging.getLogger(__name__)


class PreferenceTrainer(PackedTrainer):
    """Tunes a language model on preferences; a `transformers.Trainer` in every other respect.

    The given model is tuned in place: after `train()` it generates as any other model does, and
    `trainer.model.generate(...)` is the same.

    Attributes:
        prepared: the data as they were read, with counts (`trainer.prepared.summary()`).
    """

    prepared: PreparedRun

    def __init__(
        self,
        model: str | Path | nn.Module,
        objective: str | Mapping[str, Any] | Objective | None = None,
        args: TrainingArguments | Mapping[str, Any] | None = None,
        *,
        train_dataset: NamedOrRows = None,
        eval_dataset: NamedOrRows | Mapping[str, NamedOrRows] = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: "PeftConfig | Mapping[str, Any] | None" = None,
        lora_start: str | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        rewards: Mapping[str, RewardOptions] | None = None,
        prior: Mapping[str, Any] | None = None,
        reward_sum: Mapping[str, Any] | None = None,
        value_head: Mapping[str, Any] | None = None,
        batches: Mapping[str, Any] | None = None,
        reference: str | Path | nn.Module | None = None,
        data: Mapping[str, Any] | None = None,
        quantization: str | Mapping[str, Any] | None = None,
        fully_sharded: bool = False,
        cache: str | Path | None = None,
        stop: Mapping[str, Any] | None = None,
        learning_rates: Mapping[str, float] | None = None,
        stochastic_rounding: bool = False,
        ema: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Read the data, check everything, and load the model.

        Args:
            model: a name, a folder, a loaded transformers model, an adapter's folder, or a `PeftModel`.
            objective: a method's name, its options (`{"method": "dpo", "prior": "reward_gap"}`, or of several
                methods `{"mix": {"dpo": 0.8, "hinge": 0.2}}`, see `preftune.objectives.build`), or an
                `Objective` of your own. DPO unless given.
            args: transformers' `TrainingArguments`, or a mapping of some of its fields, whose `output_dir`
                is the run folder: checkpoints are in `checkpoints` inside.
            train_dataset: preference data: a `datasets.Dataset`, a list of rows, a path or a hub name.
            eval_dataset: the same, held out; or several by name, which have metrics `eval_NAME_...`.
            processing_class: the model's tokenizer; loaded by the model's name unless given.
            peft_config: an adapter to put on the model and train, or fields of peft's LoraConfig.
            lora_start: of a model that is an adapter: "continue" trains it further (a `PeftModel` unless
                given), "merge" merges it into its base model, on which `peft_config` puts a new one; without
                that all weights are trained.
            callbacks: as transformers takes them.
            optimizers: an optimizer and a scheduler in place of those that `args` describe.
            rewards: auxiliary rewards by name: options, or a function (prompts, completions, **columns) ->
                one number for each completion.
            prior: how raw scores become the reward gap: `{"calibration": ..., "temperature": ...}`.
            reward_sum: how several rewards become one: `{"normalize": ..., "weights": {...}}`.
            value_head: `{"architecture": ..., "width": ..., "learning_rate": ..., "max_grad_norm": ...}`.
            batches: steps of so many tokens: `{"tokens_per_step": ..., "tokens_per_row": ...}`.
            reference: what the policy is compared with; the model as it is before training unless given.
            data: options of the data: `{"max_length": ..., "pair_rule": ..., "rules": {...}}`.
            quantization: of the named model under an adapter: "nf4", "int8", or `{"type": "nf4", "double":
                True, "compute_dtype": "bfloat16"}`.
            fully_sharded: shard weights, gradients and optimizer state over the processes (FSDP2).
            cache: where reference log-probabilities are kept.
            stop: when training ends by itself: `{"not_finite": ..., "chosen_logp_change_below": ...}`.
            learning_rates: of weights whose names match a regular expression, such as `{"lm_head": 1e-5}`.
            stochastic_rounding: round updates of weights in bfloat16 by chance, so that small ones count.
            ema: an average of the trained weights: `{"decay": 0.999, "keep": "average"}`; after training the
                model has the weights that are kept, and `trainer.ema.in_use(average=...)` has the others.
            **others: refused, with what TRL's name for it is here.

        Raises:
            InputError: a keyword, the data or the model cannot be used; nothing was changed.
        """
        if others:
            raise unknown_keyword(min(others))
        keywords = Keywords(
            model=model,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            objective=objective,
            rewards=rewards,
            prior=prior,
            reward_sum=reward_sum,
            value_head=value_head,
            batches=batches,
            reference=reference,
            data=data,
            args=args,
            processing_class=processing_class,
            peft_config=peft_config,
            quantization=quantization,
            optimizers=optimizers,
            lora_start=lora_start,
            fully_sharded=fully_sharded,
            cache=cache,
            stop=stop,
            learning_rates=learning_rates,
            stochastic_rounding=stochastic_rounding,
            ema=ema,
        )
        with errors_name_keywords():
            config, given = keywords.resolve()
            self.prepared = prepared = prepare(config, given=given)
            show = not prepared.arguments.disable_tqdm
            check_trained_weights(prepared)
            make_repository(prepared.arguments)
            # Before the policy loads, so that one model is in memory at a time.
            scored = by_other_reference(prepared, show) if has_other_reference(prepared) else None
            # Adapters start at random numbers, which the seed decides too.
            set_seed(prepared.arguments.seed)
            policy = build_policy(prepared)
        groups: GroupsByName = scored or {name: split.groups for name, split in prepared.splits.items()}
        try:
            super().__init__(
                policy,
                prepared.objective,
                prepared.arguments,
                groups["train"],
                prepared.held_out_groups(groups),
                prepared.tokenizer,
                [*early_stopping(config), *(callbacks or ())],
                batches=config.batches,
                value_head=config.value_head,
                fully_sharded=fully_sharded and prepared.arguments.world_size > 1,
                optimizers=optimizers,
                stop=config.stop,
                learning_rates=config.learning_rates,
                stochastic_rounding=stochastic_rounding,
                ema=config.ema,
            )
        finally:
            # Until training begins the model is the caller's, and where there will be none it stays so.
            policy.restore()
        self._lacks_reference = scored is None and "reference" in prepared.objective.needs

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train; see `transformers.Trainer.train`.

        Raises:
            NotFiniteError: training met NaN or infinity and has ended; the model has the weights of the
                newest checkpoint from before, where there is one.
        """
        self._score_reference()
        output = super().train(*arguments, **named)
        if stopped := describe_ending(self, self.prepared.config).get("stopped"):
            if stopped["is_failure"]:
                raise NotFiniteError(stopped["message"])
            logger.warning("%s", stopped["message"])
        return output

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on the held-out data, or on other data.

        Args:
            eval_dataset: None, the name of a held-out set, or data as the constructor takes them.
            ignore_keys: of no use here.
            metric_key_prefix: what metrics begin with.

        Raises:
            InputError: the data cannot be read, or need the reference, whose weights training has changed.
        """
        self._score_reference()
        return super().evaluate(self._rows(eval_dataset), ignore_keys, metric_key_prefix)

    def inspect(self, rows: int = 3, only: Sequence[int] = ()) -> Inspection:
        """Look at the data as they are trained, and the memory that follows; see `preftune.inspect`."""
        with errors_name_keywords():
            return inspect_run(self.prepared, rows, only)

    def predict(self, *_: Any, **__: Any) -> Any:
        """Not offered: preference data have no labels to predict.

        Raises:
            InputError: always.
        """
        raise InputError("predict is not offered: call evaluate(), or trainer.model.generate(...)")

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False, max_shard_size: str | None = None
    ) -> None:
        """Save the tuned model with tokenizer, card and, where there is one, the value head.

        With `args.push_to_hub` the folder is then uploaded, as the Trainer does it.

        Args:
            output_dir: the folder; `args.output_dir` unless given.
            _internal_call: whether it is a checkpoint.
            max_shard_size: of a file of weights, such as 5GB; transformers' own unless given.

        Raises:
            InputError: the folder has a model card of the user's, or the hub refuses.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call, max_shard_size)
            return
        folder = Path(output_dir or self.args.output_dir)
        self._save_with_card(folder, max_shard_size)
        if self.args.push_to_hub and self.is_world_process_zero():
            repository_of(self.args).upload(folder, "Model save", leave_out=NOT_OF_MODEL, kept=folder)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        max_shard_size: str | None = None,
        **metadata: Any,
    ) -> "str | Future[str] | None":
        """Upload what `save_model` saves, to `args.hub_model_id` or a repository of the output folder's name.

        Args:
            commit_message: of the commit.
            blocking: whether to return only when it is uploaded.
            token: of the hub; HF_TOKEN, or what `hf auth login` has stored, unless given.
            revision: the branch; `args.hub_revision` unless given.
            private: whether a new repository is private; `args.hub_private_repo` unless given.
            max_shard_size: of a file of weights, such as 5GB.
            **metadata: fields of the card's metadata, such as `license`, `language` or `tags`.

        Returns:
            The address of the repository, or what will have it; None in processes that are not the main one.

        Raises:
            InputError: the name or token is not valid, or the hub refuses or cannot be reached.
        """
        repository = repository_of(self.args, token=token, private=private)
        if revision:
            repository = replace(repository, revision=revision)
        if self.is_world_process_zero():
            repository = repository.checked()
            repository.create()
        aside = Path(tempfile.mkdtemp())
        self._save_with_card(aside / "model", max_shard_size, metadata, repository.name.rpartition("/")[2])
        if not self.is_world_process_zero():
            shutil.rmtree(aside)
            return None
        upload = push_in_background(repository, aside, "model", commit_message or "End of training")
        return upload.result() if blocking else upload

    def _save_with_card(
        self,
        folder: Path,
        max_shard_size: str | None,
        metadata: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        check_card(folder, "output_dir")
        super().save_model(str(folder), max_shard_size=max_shard_size)
        self.save_value_head(folder)
        if self.is_world_process_zero():
            write_card(folder, self._record(name or folder.absolute().name), metadata)

    def _record(self, name: str) -> RunRecord:
        """What a run folder would say of this trainer."""
        evaluations = [line for line in self.state.log_history if is_evaluation(line)]
        figures = (
            {"evaluation_start": evaluations[0], "evaluation_end": evaluations[-1]} if evaluations else {}
        )
        return RunRecord(
            name=name,
            index=0,
            config=self.prepared.config.model_dump(mode="json"),
            config_text="",
            summary=self.prepared.summary() | figures | {"steps": self.state.global_step},
            environment=environment(self.args, self.prepared.fingerprints),
            metrics=self.state.log_history,
            date="",
        )

    def _score_reference(self) -> None:
        """Fill in the log-probabilities of the model as it is before its first step."""
        if not self._lacks_reference or not isinstance(self.model, Policy):
            return
        with self.model.in_use():
            groups = with_reference_logps(self.prepared, self.model, not self.args.disable_tqdm)
        self.train_dataset.groups = groups["train"]
        for name in self.prepared.held_out:
            held_out = self.eval_dataset[name] if isinstance(self.eval_dataset, dict) else self.eval_dataset
            held_out.groups = groups[name]
        self._lacks_reference = False

    def _rows(self, eval_dataset: Any) -> Any:
        """What the Trainer evaluates on, of what the caller gives."""
        is_known = isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict)
        if eval_dataset is None or isinstance(eval_dataset, RowDataset):
            return eval_dataset
        if is_known and eval_dataset in self.eval_dataset:
            return eval_dataset
        if isinstance(eval_dataset, Mapping):
            return {name: self._rows(source) for name, source in eval_dataset.items()}
        with errors_name_keywords():
            data = self.prepared.read(eval_dataset)
        return RowDataset(self._referenced(data))

    def _referenced(self, data: PreparedData) -> Sequence[TokenizedGroup]:
        """The groups of other data, with log-probabilities of the reference where they are needed."""
        prepared, policy, splits = self.prepared, self.model, {EVALUATION: data}
        if "reference" not in prepared.objective.needs or not isinstance(policy, Policy):
            return data.groups
        if has_other_reference(prepared):
            scored = by_other_reference(prepared, splits=splits)
            assert scored is not None
            return scored[EVALUATION]
        if self.state.global_step and not prepared.reference_is_base:
            raise InputError(
                "eval_dataset: the reference is the model before training, whose weights are gone by now: "
                'give the data to PreferenceTrainer (eval_dataset={"NAME": ...}), or name the model as '
                "reference"
            )
        with policy.in_use():
            return with_reference_logps(prepared, policy, splits=splits)[EVALUATION]
