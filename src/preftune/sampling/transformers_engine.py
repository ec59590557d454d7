"""`--engine transformers`: the model in this process, on its accelerator or CPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from preftune.models import (
    generation_device,
    generation_dtype,
    load_language_model,
    load_model_config,
)
from preftune.models.adapters import base_of, is_adapter, tokenizer_of
from preftune.models.allocator import keep_freed_memory
from preftune.models.content import model_content
from preftune.models.loading import load_adapted
from preftune.models.quantization import read_quantization
from preftune.sampling.engine import Generated, Sample
from preftune.sampling.sampler import sample_responses
from preftune.sampling.settings import Conversation, SamplingSettings


class TransformersEngine:
    """A model that `sample_responses` samples from. See `SamplingEngine`."""

    def __init__(self, model: str, rows: int) -> None:
        """Check that the model exists. Its weights are hashed and not loaded.

        Args:
            model: folder or hub name; of an adapter's folder the base model is loaded too, quantised as it
                was in training.
            rows: responses decoded together.

        Raises:
            InputError: the model, or an adapter's base, does not exist.
        """
        self._base = base_of(model) if is_adapter(model) else None
        load_model_config(self._base or model)
        quantization = read_quantization(model)
        self._model, self._rows = model, rows
        self._device = generation_device()
        self._dtype = generation_dtype(self._device)
        self.description = {
            "engine": "transformers",
            "version": str(transformers.__version__),
            "model": model_content(model),
            "precision": str(self._dtype).removeprefix("torch."),
            **({"base": model_content(self._base)} if self._base else {}),
            **({"quantization": quantization.type} if quantization else {}),
        }
        # The number of rows that decode together changes the rounding.
        self.identity = repr((sorted(self.description.items()), self._device.type, rows))

    @contextmanager
    def ready(self, kept: Path | None = None) -> Iterator[Sample]:
        """Model and tokenizer."""
        if self._device.type == "cpu":
            keep_freed_memory()
        tokenizer = tokenizer_of(self._model)
        if self._base:
            model = load_adapted(self._model, self._base, self._dtype, self._device)
        else:
            model = load_language_model(self._model, self._dtype).to(self._device)
        yield sampler(model, tokenizer, self._rows)


def sampler(model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: int) -> Sample:
    """Build a sampler of a loaded model.

    Args:
        model: as for `sample_responses`.
        tokenizer: the model's.
        rows: responses decoded together.
    """

    def sample(
        prompts: Sequence[str | Conversation],
        repeats: Sequence[int],
        settings: SamplingSettings,
        *,
        progress: bool = False,
    ) -> list[list[Generated]]:
        sampled = sample_responses(
            model,
            tokenizer,
            prompts,
            **asdict(settings),
            rows=rows,
            repeats=repeats,
            progress=progress,
        )
        return [
            [Generated(each.text, len(each.tokens), "stop" if each.finished else "length") for each in group]
            for group in sampled
        ]

    return sample
