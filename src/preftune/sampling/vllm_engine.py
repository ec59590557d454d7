"""`--engine vllm`: vLLM in this process. For a running vLLM server use `--engine server`."""

import importlib
import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preftune.errors import InputError
from preftune.models import load_model_config, load_tokenizer
from preftune.models.content import model_content
from preftune.sampling.draws import sample_seed
from preftune.sampling.engine import Generated, Sample
from preftune.sampling.sampler import prompt_tokens
from preftune.sampling.settings import Conversation, SamplingSettings

LARGEST_SEED = 0x7FFFFFFFFFFFFFFF


class VllmEngine:
    """A model that vLLM loads. See `SamplingEngine`."""

    def __init__(self, model: str, rows: int) -> None:
        """Check that vLLM is installed and that the model exists.

        Args:
            model: folder or hub name.
            rows: most responses decoded together.

        Raises:
            InputError: vLLM or the model is missing, or several processes were launched.
        """
        try:
            version = importlib.metadata.version("vllm")
        except importlib.metadata.PackageNotFoundError:
            raise InputError(
                "engine=vllm needs the package vllm: install it, or start `vllm serve` elsewhere and use "
                "engine=server"
            ) from None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                "engine=vllm runs in one process, and several were launched: launch one, or start `vllm "
                "serve --data-parallel-size` with a replica for each GPU and use engine=server"
            )
        load_model_config(model)
        self._model, self._rows = model, rows
        self.description = {"engine": "vllm", "version": version, "model": model_content(model)}
        self.identity = repr((sorted(self.description.items()), rows))

    @contextmanager
    def ready(self, kept: Path | None = None) -> Iterator[Sample]:
        """The model in vLLM, and its tokenizer."""
        vllm: Any = importlib.import_module("vllm")

        tokenizer = load_tokenizer(self._model)
        # Keep a prompt's keys and values for its other responses.
        engine = vllm.LLM(model=self._model, max_num_seqs=self._rows, enable_prefix_caching=True)

        def sample(
            prompts: Sequence[str | Conversation],
            repeats: Sequence[int],
            settings: SamplingSettings,
            *,
            progress: bool = False,
        ) -> list[list[Generated]]:
            asked, parameters = [], []
            for prompt, repeat in zip(prompts, repeats, strict=True):
                tokens = prompt_tokens(tokenizer, prompt)
                for number in range(settings.n):
                    asked.append({"prompt_token_ids": tokens})
                    parameters.append(
                        vllm.SamplingParams(
                            n=1,
                            max_tokens=settings.max_new_tokens,
                            temperature=settings.temperature,
                            top_p=settings.top_p,
                            seed=sample_seed(settings, tuple(tokens), repeat, number) & LARGEST_SEED,
                        )
                    )
            outputs = [
                request.outputs[0] for request in engine.generate(asked, parameters, use_tqdm=progress)
            ]
            answers = [Generated(each.text, len(each.token_ids), str(each.finish_reason)) for each in outputs]
            return [answers[at : at + settings.n] for at in range(0, len(answers), settings.n)]

        yield sample
