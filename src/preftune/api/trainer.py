"""`PreferenceTrainer`: the trainer for people who have their own model, data and loop."""

import tempfile
from collections.abc import Mapping, Sequence
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
from preftune.errors import InputError
from preftune.models import Policy
from preftune.objectives import Objective
from preftune.training.inspection import Inspection, inspect_run
from preftune.training.policy import (
    GroupsByName,
    build_policy,
    by_other_reference,
    has_other_reference,
    with_reference_logps,
)
from preftune.training.preparation import EVALUATION, PreparedRun, prepare
from preftune.training.rows import RowDataset
from preftune.training.splits import PreparedData
from preftune.training.trainer import PackedTrainer

if TYPE_CHECKING:
    from peft import PeftConfig


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
        **others: Any,
    ) -> None:
        """Read the data, check everything, and load the model.

        Args:
            model: a name, a folder, a loaded transformers model, or a `PeftModel`, whose adapter is trained.
            objective: a method's name, its options (`{"method": "dpo", "prior": "reward_gap"}`, or of several
                methods `{"mix": {"dpo": 0.8, "hinge": 0.2}}`, see `preftune.objectives.build`), or an
                `Objective` of your own. DPO unless given.
            args: transformers' `TrainingArguments`, or a mapping of some of its fields.
            train_dataset: preference data: a `datasets.Dataset`, a list of rows, a path or a hub name.
            eval_dataset: the same, held out; or several by name, which have metrics `eval_NAME_...`.
            processing_class: the model's tokenizer; loaded by the model's name unless given.
            peft_config: an adapter to put on the model and train, or fields of peft's LoraConfig.
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
            fully_sharded=fully_sharded,
            cache=cache,
        )
        with errors_name_keywords():
            config, given = keywords.resolve()
            self.prepared = prepared = prepare(config, given=given)
            show = not prepared.arguments.disable_tqdm
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
                callbacks or (),
                batches=config.batches,
                value_head=config.value_head,
                fully_sharded=fully_sharded and prepared.arguments.world_size > 1,
                optimizers=optimizers,
            )
        finally:
            # Until training begins the model is the caller's, and where there will be none it stays so.
            policy.restore()
        self._lacks_reference = scored is None and "reference" in prepared.objective.needs

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train; see `transformers.Trainer.train`."""
        self._score_reference()
        return super().train(*arguments, **named)

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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the tuned model and its tokenizer, and the value head beside them where there is one."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            self.save_value_head(Path(output_dir or self.args.output_dir))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **_: Any,
    ) -> str | None:
        """Upload what `save_model` saves, to `args.hub_model_id` or a repository of the output folder's name.

        Returns:
            The address of the repository; None in processes that are not the main one.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_model(folder)
            if not self.is_world_process_zero():
                return None
            api = HfApi(token=token or self.args.hub_token)
            name = self.args.hub_model_id or Path(self.args.output_dir).resolve().name
            repository = api.create_repo(name, private=self.args.hub_private_repo, exist_ok=True)
            api.upload_folder(
                repo_id=repository.repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
            )
            return str(repository)

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
        if self.state.global_step and not prepared.has_new_adapter:
            raise InputError(
                "eval_dataset: the reference is the model before training, whose weights are gone by now: "
                'give the data to PreferenceTrainer (eval_dataset={"NAME": ...}), or name the model as '
                "reference"
            )
        with policy.in_use():
            return with_reference_logps(prepared, policy, splits=splits)[EVALUATION]
