"""What a trained model gains and pays on held-out prompts: rewards of its own samples, and its drift."""

import gc
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from preftune.data import Group, Response, RowRules, Text, load_groups, set_control
from preftune.errors import InputError
from preftune.measuring.statistics import Interval, mean_interval
from preftune.models import Policy, load_language_model, load_model_config, load_tokenizer, logps_of_tokens
from preftune.rewards import AuxiliaryReward, auxiliary_rewards, combine, measure_groups
from preftune.sampling.sampler import SampledResponse, prompt_tokens, sample_responses
from preftune.training.configuration import RunConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How held-out prompts are answered; at temperature 1, so that drift is the sampled policy's own.

    Attributes:
        n: responses per prompt.
        max_new_tokens: longest response, in tokens.
        seed: the same seed gives the same responses.

    Raises:
        InputError: n or max_new_tokens is below 1.
    """

    n: int = 4
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value in {"--n": self.n, "--max-new-tokens": self.max_new_tokens}.items():
            if value < 1:
                raise InputError(f"{flag} {value}: it must be at least 1")


@dataclass(frozen=True)
class HeldOut:
    """Distinct held-out prompts and everything that is measured on them.

    Attributes:
        groups: the first of each prompt, with the other columns of its row.
        tokens: token ids of each prompt, as it is sampled.
        rewards: auxiliary rewards that can be measured on any response.
        tokenizer: the policy's.
    """

    groups: tuple[Group, ...]
    tokens: tuple[tuple[int, ...], ...]
    rewards: tuple[AuxiliaryReward, ...]
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluation:
    """One model, measured: means of a response, with intervals that count a prompt once.

    Attributes:
        drift: log pi_theta - log pi_ref of the model's own responses, summed over tokens, in nats.
        tokens: length of a response.
        finished: share of responses that the model ended itself.
        reward: auxiliary reward R; None where the run has no rewards that can be measured.
        measurements: what each reward measures, before its goal and weight.
        rows: each prompt with its responses and what was measured of them.
    """

    drift: Interval
    tokens: Interval
    finished: Interval
    reward: Interval | None
    measurements: dict[str, Interval]
    rows: list[dict[str, Any]]


def read_held_out(config: RunConfig, sampling: Sampling, control: str = "") -> HeldOut:
    """The prompts of `data.evaluation`, and the rewards of the run.

    Args:
        config: of the run.
        sampling: how the prompts will be answered.
        control: text that a prompt of messages ends with, for a model that was conditioned on it.

    Raises:
        InputError: there are fewer than two distinct prompts, one does not fit the model's context, or a
            reward is wrong.
    """
    if config.data.evaluation is None:
        raise InputError("a sweep compares its points on held-out prompts; set data.evaluation=FILE")
    tokenizer = load_tokenizer(config.model)
    set_control(tokenizer, control)
    rewards = _of_any_response(auxiliary_rewards(config.rewards, tokenizer))
    loaded = load_groups(
        config.data.evaluation,
        split=config.data.evaluation_split,
        needs_pairs=False,
        keep_columns=True,
        rules=RowRules(config.data.rules),
    )
    distinct: dict[str, Group] = {}
    for group in loaded.groups:
        distinct.setdefault(json.dumps(group.prompt), group)
    longest = config.data.max_prompt_length
    kwargs = config.data.chat_template_kwargs
    asked = [(group, tuple(prompt_tokens(tokenizer, group.prompt, kwargs))) for group in distinct.values()]
    fitting = [(group, ids) for group, ids in asked if len(ids) <= longest]
    if len(fitting) < len(asked):
        logger.info("%d held-out prompts are too long to be sampled", len(asked) - len(fitting))
    if len(fitting) < 2:
        raise InputError(
            f"data.evaluation={config.data.evaluation} has {len(fitting)} distinct prompts of at most "
            f"data.max_prompt_length={longest} tokens, and intervals need at least 2; give more prompts"
        )
    groups, tokens = zip(*fitting, strict=True)
    _check_context(config, max(map(len, tokens)), sampling)
    return HeldOut(groups, tokens, rewards, tokenizer)


def evaluate(
    config: RunConfig,
    trained: Path | None,
    held_out: HeldOut,
    sampling: Sampling,
    device: torch.device,
    progress: bool = False,
) -> Evaluation:
    """Sample responses, measure them, and compare their log-probabilities with the starting model's.

    One model is in memory at a time.

    Args:
        config: of the run; names the starting model.
        trained: the run's `model` folder, whole weights or an adapter; None for the starting model itself.
        held_out: prompts and rewards.
        sampling: how they are answered.
        device: where models run.
        progress: show bars.
    """
    sampled = _sample(config, trained, held_out, sampling, device, progress)
    own = np.array([[response.logp for response in responses] for responses in sampled])
    drift = np.zeros_like(own)
    if trained is not None:
        drift = own - _score(_load(config, None, device), held_out, sampled, progress)
        _free(device)
    texts = [[response.text for response in responses] for responses in sampled]
    measured, reward = _measure(held_out, texts)
    tokens = np.array([[len(response.tokens) for response in row] for row in sampled])
    finished = np.array([[response.finished for response in row] for row in sampled])
    rows = [
        {
            "prompt": group.prompt,
            "responses": texts[place],
            **({} if reward is None else {"rewards": reward[place].tolist()}),
            "measurements": {name: values[place].tolist() for name, values in measured.items()},
            "drift": drift[place].tolist(),
        }
        for place, group in enumerate(held_out.groups)
    ]
    return Evaluation(
        drift=_interval(drift),
        tokens=_interval(tokens),
        finished=_interval(finished),
        reward=None if reward is None else _interval(reward),
        measurements={name: _interval(values) for name, values in measured.items()},
        rows=rows,
    )


def _interval(values: Shaped[np.ndarray, "prompts n"]) -> Interval:
    # Responses to one prompt are alike, so a prompt's mean counts once.
    return mean_interval(values.mean(axis=1).tolist())


def _of_any_response(rewards: Sequence[AuxiliaryReward]) -> tuple[AuxiliaryReward, ...]:
    """The rewards that can be measured on a response the data do not have."""
    if of_data := [reward.name for reward in rewards if reward.column]:
        logger.info("columns of the data, no part of the samples' reward: %s", ", ".join(of_data))
    return tuple(reward for reward in rewards if not reward.column)


def _check_context(config: RunConfig, longest: int, sampling: Sampling) -> None:
    context = getattr(load_model_config(config.model).get_text_config(), "max_position_embeddings", None)
    if context and longest + sampling.max_new_tokens > context:
        raise InputError(
            f"--max-new-tokens {sampling.max_new_tokens}: the longest held-out prompt has {longest} tokens, "
            f"and the model's context is {context}; lower --max-new-tokens or data.max_prompt_length"
        )


def _load(config: RunConfig, trained: Path | None, device: torch.device) -> torch.nn.Module:
    """The starting model, or what a run made of it."""
    dtype = getattr(torch, config.model_dtype)
    model: torch.nn.Module
    if trained is not None and (trained / "adapter_config.json").is_file():
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(load_language_model(config.model, dtype), trained)
        # A sixth faster; 16 bits would round most of a small update away.
        model = adapted.merge_and_unload() if dtype == torch.float32 else adapted
    else:
        model = load_language_model(str(trained or config.model), dtype)
    return model.to(device).eval()


def _free(device: torch.device) -> None:
    """Give back a model's memory once nothing refers to it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _sample(
    config: RunConfig,
    trained: Path | None,
    held_out: HeldOut,
    sampling: Sampling,
    device: torch.device,
    progress: bool,
) -> list[list[SampledResponse]]:
    """Responses to every prompt."""
    model = _load(config, trained, device)
    sampled = sample_responses(
        model,
        held_out.tokenizer,
        [group.prompt for group in held_out.groups],
        n=sampling.n,
        max_new_tokens=sampling.max_new_tokens,
        temperature=1.0,
        seed=sampling.seed,
        chat_template_kwargs=config.data.chat_template_kwargs,
        progress=progress,
    )
    del model
    _free(device)
    return sampled


def _score(
    model: torch.nn.Module, held_out: HeldOut, sampled: Sequence[Sequence[SampledResponse]], progress: bool
) -> Float64[np.ndarray, "prompts n"]:
    """Log-probability of each response under a model, in nats."""
    policy = Policy(model)
    pairs = list(zip(held_out.tokens, sampled, strict=True))
    found = [
        logps_of_tokens(policy, prompt, [response.tokens for response in responses])
        for prompt, responses in track(pairs, "Log-probabilities", disable=not progress, transient=True)
    ]
    return np.array(found, dtype=np.float64)


def _measure(
    held_out: HeldOut, texts: Sequence[Sequence[str]]
) -> tuple[dict[str, Float64[np.ndarray, "prompts n"]], Float64[np.ndarray, "prompts n"] | None]:
    """Each measurement, and the auxiliary reward where there are rewards."""
    if not held_out.rewards:
        return {}, None
    answered = [
        replace(
            group,
            responses=tuple(Response(_as_answer(text, group.prompt)) for text in row),
            pairs=(),
            # What the data says of its own responses says nothing of these.
            per_response=frozenset(),
        )
        for group, row in zip(held_out.groups, texts, strict=True)
    ]
    found = measure_groups(answered, held_out.rewards, "samples of held-out row {}".format)
    shape = (len(texts), len(texts[0]))
    reward = combine(held_out.rewards, found.measurements).reshape(shape)
    return {name: values.reshape(shape) for name, values in found.measurements.items()}, reward


def _as_answer(text: str, prompt: Text) -> Text:
    return text if isinstance(prompt, str) else ({"role": "assistant", "content": text},)
