"""Objects that stand in for what a configuration can only name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from preftune.models.adapters import base_config, tokenizer_of
from preftune.objectives import Objective

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class Given:
    """What a caller in Python has at hand; everything that is None comes from the configuration.

    Attributes:
        model: a loaded model, or a `PeftModel` around one; it is tuned in place.
        tokenizer: the model's.
        reference: a loaded model that the policy is compared with.
        train: rows to train on: a `datasets.Dataset`, or a list of mappings.
        held_out: the same for evaluation, by name; a single set is named "evaluation".
        objective: an objective of the caller's own.
        arguments: of transformers' Trainer; they are copied.
        adapter: what is put on the model and trained.
        callbacks: beside those of the run.
        optimizers: an optimizer and a scheduler, either may be None.
    """

    model: Any = None
    tokenizer: PreTrainedTokenizerBase | None = None
    reference: Any = None
    train: Any = None
    held_out: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective | None = None
    arguments: TrainingArguments | None = None
    adapter: "PeftConfig | None" = None
    callbacks: tuple[TrainerCallback, ...] = ()
    optimizers: tuple[Any, Any] = (None, None)

    def model_config(self, name: str) -> PretrainedConfig:
        """The configuration of the model, or of an adapter's base, by `name` where no model is given."""
        if self.model is None:
            return base_config(name, scores=True)
        config: PretrainedConfig = self.model.config
        return config

    def tokenizer_of(self, name: str) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded by the model's `name` where none is given."""
        return self.tokenizer or tokenizer_of(name)


NOTHING_GIVEN = Given()
