"""What a finished run has left, as objects."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.storage.files import MODEL_FOLDER, REPORT_FILE

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from preftune.training.run import Trained


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what is in it.

    Attributes:
        folder: the run folder.
        summary: what its `summary.json` holds.
    """

    folder: Path
    summary: dict[str, Any]
    _trained: "Trained | None" = field(default=None, repr=False)

    @cached_property
    def model(self) -> "nn.Module":
        """The tuned model, with its adapter where one was trained; loaded from the folder at first use."""
        if self._trained is not None and self._trained.model is not None:
            return self._trained.model
        from preftune.models.loading import load_tuned_model

        model: nn.Module = load_tuned_model(str(self.folder / MODEL_FOLDER))
        return model

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tuned model's tokenizer."""
        if self._trained is not None and self._trained.tokenizer is not None:
            return self._trained.tokenizer
        from preftune.models import load_tokenizer

        return load_tokenizer(str(self.folder / MODEL_FOLDER))

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """`metrics.jsonl` as a table: a row for each line, with the step in the column `step`."""
        import pandas as pd

        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return pd.DataFrame([json.loads(line) for line in lines])

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model",
        token: str | None = None,
    ) -> str:
        """Upload the model to a repository on the hub, and return its address; see `preftune.push`."""
        from preftune.api.push import push

        return push(
            self.folder,
            repository,
            private=private,
            revision=revision,
            commit_message=commit_message,
            token=token,
        )

    @property
    def stopped(self) -> dict[str, Any] | None:
        """Why training ended before its last step: `by` (the key), `step`, `value`, `limit`, `message`."""
        found: dict[str, Any] | None = self.summary.get("stopped")
        return found

    @property
    def report(self) -> Path:
        """The run's page."""
        return self.folder / REPORT_FILE
