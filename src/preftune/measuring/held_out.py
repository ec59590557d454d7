"""A policy on held-out prompts: reward, win rate against the start, drift and entropy of its samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from rich.progress import track
from torch import nn
from transformers import PreTrainedTokenizerBase

from preftune.measuring.statistics import mean_interval, named_interval
from preftune.models import Policy, Quantization, load_language_model, logps_of_tokens
from preftune.models.adapters import base_of, is_adapter
from preftune.models.allocator import free_memory
from preftune.models.loading import load_adapted
from preftune.models.quantization import read_quantization
from preftune.sampling.sampler import prompt_tokens, sample_responses
from preftune.sampling.settings import SamplingSettings
from preftune.storage.shards import Shards

PROMPTS_PER_CHUNK = 32
"""Kept together: what a killed call loses."""

PromptRow = dict[str, Any]
"""`prompt`, and the columns that say more about it."""
ByPrompt = Sequence[Sequence[float]]
"""A number for each response to each prompt."""


@dataclass(frozen=True)
class HeldOut:
    """What every policy is asked, and how.

    Attributes:
        prompts: the rows; two or more, and none twice.
        tokenizer: the policy's.
        settings: the same for every policy, so that policies are compared on the same draws; at temperature
            1, so that drift is the sampled policy's own.
        dtype: of the weights.
        device: where models run.
        rows: responses decoded together.
        decoding_dtype: decodes with a copy of the weights in this precision, and reads the log-probabilities
            with the weights themselves; None decodes with these, and takes the log-probabilities as drawn.
        chat_template_kwargs: passed to the chat template.
        progress: show bars.
    """

    prompts: Sequence[PromptRow]
    tokenizer: PreTrainedTokenizerBase
    settings: SamplingSettings
    dtype: torch.dtype
    device: torch.device
    rows: int = 128
    decoding_dtype: torch.dtype | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    progress: bool = False

    def tokens(self) -> list[tuple[int, ...]]:
        """Token ids of each prompt, as it is sampled from."""
        return [
            tuple(prompt_tokens(self.tokenizer, row["prompt"], self.chat_template_kwargs))
            for row in self.prompts
        ]


@dataclass(frozen=True)
class PolicySamples:
    """What a policy answered, and how likely that is.

    Attributes:
        rows: each prompt's row with `responses`, `response_tokens` (ids) and `finished`.
        logps: of each response under the policy, summed over its tokens, in nats.
        start_logps: the same under the starting policy.
    """

    rows: list[PromptRow]
    logps: ByPrompt
    start_logps: ByPrompt

    @property
    def lengths(self) -> list[list[int]]:
        """Tokens of each response."""
        return [[len(tokens) for tokens in row["response_tokens"]] for row in self.rows]

    @property
    def drift(self) -> ByPrompt:
        """Log-probability of each response under the policy less that under the start, in nats."""
        return [
            [one - two for one, two in zip(*rows, strict=True)]
            for rows in zip(self.logps, self.start_logps, strict=True)
        ]

    def figures(self, rewards: ByPrompt, start_rewards: ByPrompt) -> dict[str, dict[str, float]]:
        """What the responses come to.

        Args:
            rewards: of the responses.
            start_rewards: of the starting policy's responses to the same prompts.

        Returns:
            `reward`, `win_rate` against the start (a tie is half a win), `drift` in nats per response,
            `entropy` in nats per token, `tokens` and `finished`, see `named_interval`.
        """
        # Responses to one prompt are alike, so a prompt's mean counts once.
        by_prompt = {
            "reward": [fmean(row) for row in rewards],
            "win_rate": [win_rate(*rows) for rows in zip(rewards, start_rewards, strict=True)],
            "drift": [fmean(one) - fmean(two) for one, two in zip(self.logps, self.start_logps, strict=True)],
            "entropy": [
                fmean(-logp / length for logp, length in zip(*rows, strict=True))
                for rows in zip(self.logps, self.lengths, strict=True)
            ],
            "tokens": [fmean(row) for row in self.lengths],
            "finished": [fmean(row["finished"]) for row in self.rows],
        }
        return {name: named_interval(mean_interval(values)) for name, values in by_prompt.items()}


def win_rate(rewards: Sequence[float], others: Sequence[float]) -> float:
    """Share of all comparisons between two lists that the first wins; a tie is half a win."""
    return fmean((one > other) + 0.5 * (one == other) for one in rewards for other in others)


def measure_policy(
    model: str, start: str, held_out: HeldOut, *, shards: Shards | None = None
) -> PolicySamples:
    """Sample from a policy, and read what it and the start say of the samples.

    One model is in memory at a time.

    Args:
        model: the policy: whole weights or an adapter, in a folder, or a hub name; the start may be given.
        start: the policy that it is compared with, and an adapter's base.
        held_out: what is asked.
        shards: keep finished samples here, and resume at the first prompts without answers.
    """
    policy = load_policy(model, start, held_out)
    answers = _answers(policy, held_out, shards)
    drawn = [row.pop("logps") for row in answers]
    own = drawn if held_out.decoding_dtype is None else _read(policy, held_out, answers)
    reference = own
    del policy
    free_memory()
    if model != start:
        # An adapter is compared with the model that it was trained on.
        alike = read_quantization(model)
        reference = _read(load_policy(start, start, held_out, alike), held_out, answers)
        free_memory()
    return PolicySamples(answers, own, reference)


def load_policy(
    model: str, start: str, held_out: HeldOut, quantization: Quantization | None = None
) -> nn.Module:
    """Whole weights, quantised where that is asked for, or the start with an adapter; ready to sample."""
    dtype, device = held_out.dtype, held_out.device
    if is_adapter(model):
        # What an adapter was trained on is the start, unless that is an adapter itself.
        base = base_of(model) if is_adapter(start) else start
        return load_adapted(model, base, dtype, device).eval()
    loaded: nn.Module = load_language_model(model, dtype, quantization, device)
    return (loaded if quantization else loaded.to(device)).eval()


def _answers(policy: nn.Module, held_out: HeldOut, shards: Shards | None) -> list[PromptRow]:
    """Every prompt's row with `responses`, `response_tokens`, `finished` and `logps`, kept or made now."""
    prompts = held_out.prompts
    finished = shards.rows() if shards else {}
    size = PROMPTS_PER_CHUNK if shards else len(prompts)
    for start in range(0, len(prompts), size):
        places = range(len(prompts))[start : start + size]
        if finished.keys() >= set(places):
            continue
        sampled = sample_responses(
            policy,
            held_out.tokenizer,
            [prompts[place]["prompt"] for place in places],
            **asdict(held_out.settings),
            rows=held_out.rows,
            dtype=held_out.decoding_dtype,
            chat_template_kwargs=held_out.chat_template_kwargs,
            progress=held_out.progress,
        )
        answers = {
            place: {
                **prompts[place],
                "responses": [response.text for response in responses],
                "response_tokens": [list(response.tokens) for response in responses],
                "finished": [response.finished for response in responses],
                "logps": [response.logp for response in responses],
            }
            for place, responses in zip(places, sampled, strict=True)
        }
        if shards:
            shards.append(answers)
        finished |= answers
    return [finished[place] for place in range(len(prompts))]


def _read(model: nn.Module, held_out: HeldOut, answers: Sequence[PromptRow]) -> list[list[float]]:
    """Log-probability of each response under a model, in nats, summed over its tokens."""
    policy = Policy(model)
    asked = list(zip(held_out.tokens(), answers, strict=True))
    bar = track(asked, "Log-probabilities", disable=not held_out.progress, transient=True)
    return [logps_of_tokens(policy, prompt, row["response_tokens"]) for prompt, row in bar]
