"""A causal language model in this process: sampled replies, or exact log-probabilities of a few labels."""

import logging
import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from preftune.errors import InputError
from preftune.models.content import model_content
from preftune.serving.asking import Keep, Request
from preftune.serving.prices import Usage
from preftune.serving.replies import Reply

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ROWS = 32
"""Replies sampled together, and kept together."""


class LocalModel:
    """A model from a folder or the hub. See `Respondent`.

    A request with labels is answered by the likeliest of them, in the shape of a server's reply: a token that
    is the label, with the log-probability of every label as its alternatives. These are exact: they are
    summed over a label's tokens, and none is left out as unlikely.
    """

    repeats_itself = True

    def __init__(self, model: str, *, name: str | None = None, seed: int = 0) -> None:
        """Check that there is such a model; its weights are loaded when it is asked.

        Args:
            model: folder or hub name.
            name: what results call it; the folder's name unless given, or the run's where that is `model`.
            seed: of the samples.

        Raises:
            InputError: it is no causal language model, or has no chat template.
        """
        from preftune.models import load_model_config, load_tokenizer

        self._config = load_model_config(model)
        self._tokenizer = load_tokenizer(model)
        if not self._tokenizer.chat_template:
            raise InputError(
                f"{model} has no chat template, and prompts are chat messages: give a model that has one, or "
                "add chat_template.jinja to its folder"
            )
        self._model = model
        self._seed = seed
        self._loaded: PreTrainedModel | None = None
        parts = [part for part in model.split("/") if part not in ("", "model")]
        self.name = name or (parts or ["model"])[-1]
        self.identity = f"{model_content(model)} seed={seed}"
        self.usage = Usage()

    def reply(self, requests: Sequence[Request], keep: Keep) -> None:
        """Labels one by one, samples by the batch; see `Respondent`."""
        model = self._load()

        def kind(index: int) -> tuple[Any, ...]:
            request = requests[index]
            return bool(request.labels), request.max_tokens, request.temperature, request.attempt

        for (has_labels, *_), group in groupby(sorted(range(len(requests)), key=kind), key=kind):
            indices = list(group)
            for start in range(0, len(indices), 1 if has_labels else ROWS):
                batch = indices[start : start + (1 if has_labels else ROWS)]
                asked = [requests[index] for index in batch]
                replies = [self._weigh(model, asked[0])] if has_labels else self._sample(model, asked)
                for index, reply in zip(batch, replies, strict=True):
                    self.usage.add(reply, None)
                    keep(index, reply)

    def _load(self) -> "PreTrainedModel":
        from preftune.models import generation_device, generation_dtype, load_language_model

        if self._loaded is None:
            device = generation_device()
            self._loaded = load_language_model(self._model, generation_dtype(device)).to(device).eval()
        return self._loaded

    def _tokens(self, request: Request) -> list[int]:
        from preftune.sampling.sampler import prompt_tokens

        tokens = prompt_tokens(self._tokenizer, request.messages)
        longest = getattr(self._config, "max_position_embeddings", None) or math.inf
        if len(tokens) + request.max_tokens > longest:
            logger.warning(
                "%s: %s: %d tokens and up to %d of the reply exceed the %d that the model was trained on",
                self.name,
                request.name,
                len(tokens),
                request.max_tokens,
                longest,
            )
        return tokens

    def _sample(self, model: "PreTrainedModel", requests: Sequence[Request]) -> list[Reply]:
        from preftune.sampling.sampler import sample_responses

        first = requests[0]
        lengths = [len(self._tokens(request)) for request in requests]
        sampled = sample_responses(
            model,
            self._tokenizer,
            [request.messages for request in requests],
            n=1,
            max_new_tokens=first.max_tokens,
            temperature=first.temperature,
            seed=self._seed + first.attempt,
            rows=ROWS,
        )
        return [
            Reply(
                response.text,
                "stop" if response.finished else "length",
                prompt_tokens=length,
                completion_tokens=len(response.tokens),
            )
            for length, (response,) in zip(lengths, sampled, strict=True)
        ]

    def _weigh(self, model: "PreTrainedModel", request: Request) -> Reply:
        tokens = self._tokens(request)
        weights = label_log_probs(model, self._tokenizer, tokens, request.labels)
        ranked = sorted(zip(request.labels, weights, strict=True), key=lambda pair: -pair[1])
        alternatives = [{"token": label, "logprob": weight} for label, weight in ranked]
        return Reply(
            ranked[0][0],
            "stop",
            [{**alternatives[0], "top_logprobs": alternatives}],
            prompt_tokens=len(tokens),
            completion_tokens=1,
        )


def label_log_probs(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[int],
    labels: Sequence[str],
) -> list[float]:
    """Log-probability of each label after a prompt, summed over its tokens, in float32.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; labels are tokenized by themselves, as they follow a chat template.
        prompt: token ids, at least one.
        labels: none empty.
    """
    import torch

    device = next(model.parameters()).device
    tokenized = [list(tokenizer(label, add_special_tokens=False)["input_ids"]) for label in labels]
    # A label's last token is predicted, never read: labels of one token share a single row.
    rows = {tuple(tokens[:-1]): _row([*prompt, *tokens[:-1]], device) for tokens in tokenized}
    log_probs = {}
    with torch.inference_mode():
        for read, row in rows.items():
            logits = model(input_ids=row, logits_to_keep=len(read) + 1).logits[0]
            log_probs[read] = logits.float().log_softmax(-1)
    return [
        sum(float(log_probs[tuple(tokens[:-1])][place, token]) for place, token in enumerate(tokens))
        for tokens in tokenized
    ]


def _row(tokens: list[int], device: "torch.device") -> "torch.Tensor":
    import torch

    return torch.tensor([tokens], device=device)
