"""What a trained model gains and pays on held-out prompts: rewards of its own samples, and its drift."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped

from preftune.data import Asked, Group, Response, RowRules, load_groups, set_control
from preftune.data.groups import as_answer
from preftune.errors import InputError
from preftune.measuring.held_out import HeldOut, measure_policy
from preftune.measuring.statistics import Interval, mean_interval, named_interval
from preftune.models import load_tokenizer
from preftune.models.adapters import base_config, tokenizer_source
from preftune.rewards import AuxiliaryReward, auxiliary_rewards, combine, measure_groups
from preftune.sampling.settings import SamplingSettings
from preftune.storage.manifest import Figures
from preftune.training.configuration import RunConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardedPrompts:
    """Distinct held-out prompts of a run, and the rewards that are measured on them.

    Attributes:
        held_out: what is asked.
        groups: the first of each prompt, with the other columns of its row.
        rewards: auxiliary rewards that can be measured on any response.
    """

    held_out: HeldOut
    groups: tuple[Group, ...]
    rewards: tuple[AuxiliaryReward, ...]


def read_held_out(
    config: RunConfig,
    settings: SamplingSettings,
    device: torch.device,
    control: str = "",
    *,
    progress: bool = False,
) -> RewardedPrompts:
    """The prompts of `data.evaluation`, and the rewards of the run.

    Args:
        config: of the run.
        settings: how the prompts will be answered.
        device: where models run.
        control: text that a prompt of messages ends with, for a model that was conditioned on it.
        progress: show bars.

    Raises:
        InputError: there are fewer than two distinct prompts, one does not fit the model's context, or a
            reward is wrong.
    """
    if not isinstance(config.data.evaluation, str):
        raise InputError("a sweep compares its points on one held-out set: set data.evaluation=FILE")
    tokenizer = load_tokenizer(tokenizer_source(config.model))
    set_control(tokenizer, control)
    rewards = _of_any_response(auxiliary_rewards(config.rewards, tokenizer))
    loaded = load_groups(
        config.data.evaluation,
        asked=Asked(needs_pairs=False, mapping=config.data.columns),
        split=config.data.evaluation_split,
        keep_columns=True,
        rules=RowRules(config.data.rules),
    )
    distinct: dict[str, Group] = {}
    for group in loaded.groups:
        distinct.setdefault(json.dumps(group.prompt), group)
    held_out = HeldOut(
        [{"prompt": group.prompt} for group in distinct.values()],
        tokenizer,
        settings,
        dtype=getattr(torch, config.model_dtype),
        device=device,
        chat_template_kwargs=config.data.chat_template_kwargs,
        progress=progress,
    )
    longest = config.data.longest_prompt
    asked = zip(distinct.values(), held_out.tokens(), strict=True)
    fitting = [(group, len(ids)) for group, ids in asked if len(ids) <= longest]
    if len(fitting) < len(distinct):
        logger.info("%d held-out prompts are too long to be sampled", len(distinct) - len(fitting))
    if len(fitting) < 2:
        raise InputError(
            f"data.evaluation={config.data.evaluation} has {len(fitting)} distinct prompts of at most "
            f"{longest} tokens (data.max_prompt_length), and intervals need at least 2; give more prompts"
        )
    groups, lengths = zip(*fitting, strict=True)
    _check_context(config, max(lengths), settings)
    held_out = replace(held_out, prompts=[{"prompt": group.prompt} for group in groups])
    return RewardedPrompts(held_out, groups, rewards)


def measure_run(
    config: RunConfig, trained: Path | None, asked: RewardedPrompts
) -> tuple[list[dict[str, Any]], Figures]:
    """Sample responses, measure them, and compare their log-probabilities with the starting model's.

    Args:
        config: of the run; names the starting model.
        trained: the run's `model` folder, whole weights or an adapter; None for the starting model itself.
        asked: prompts and rewards.

    Returns:
        Each prompt with its responses and what was measured of them; and the means of a response: `drift` in
        nats, auxiliary `reward` (None if the run has none that can be measured), `tokens`, the share that
        is `finished`, and under `measurements` what each reward measures, before its goal and weight.
    """
    samples = measure_policy(str(trained or config.model), config.model, asked.held_out)
    texts = [row["responses"] for row in samples.rows]
    measured, reward = _measure(asked, texts)
    rows = [
        {
            "prompt": group.prompt,
            "responses": texts[place],
            **({} if reward is None else {"rewards": reward[place].tolist()}),
            "measurements": {name: values[place].tolist() for name, values in measured.items()},
            "drift": list(samples.drift[place]),
        }
        for place, group in enumerate(asked.groups)
    ]
    figures = {
        "drift": _figure(np.array(samples.drift)),
        "reward": None if reward is None else _figure(reward),
        "tokens": _figure(np.array(samples.lengths)),
        "finished": _figure(np.array([row["finished"] for row in samples.rows])),
        "measurements": {name: _figure(values) for name, values in measured.items()},
    }
    return rows, figures


def mean_rewards(
    rows: Sequence[Mapping[str, Any]], rewards: Sequence[AuxiliaryReward], names: Sequence[str]
) -> dict[str, Interval]:
    """Mean R_k of sampled responses, before its weight, of the named rewards; a prompt counts once.

    Args:
        rows: what `measure_run` gives of each prompt.
        rewards: those that were measured.
        names: of the rewards that are asked for.
    """
    by_name = {reward.name: reward for reward in rewards}
    return {
        name: mean_interval(
            [
                float(np.mean([by_name[name].reward(value) for value in row["measurements"][name]]))
                for row in rows
            ]
        )
        for name in names
    }


def _figure(values: Shaped[np.ndarray, "prompts n"]) -> dict[str, float]:
    # Responses to one prompt are alike, so a prompt's mean counts once.
    return named_interval(mean_interval(values.mean(axis=1).tolist()))


def _of_any_response(rewards: Sequence[AuxiliaryReward]) -> tuple[AuxiliaryReward, ...]:
    """The rewards that can be measured on a response the data do not have."""
    if of_data := [reward.name for reward in rewards if reward.column]:
        logger.info("columns of the data, no part of the samples' reward: %s", ", ".join(of_data))
    return tuple(reward for reward in rewards if not reward.column)


def _check_context(config: RunConfig, longest: int, settings: SamplingSettings) -> None:
    context = getattr(base_config(config.model).get_text_config(), "max_position_embeddings", None)
    if context and longest + settings.max_new_tokens > context:
        raise InputError(
            f"--max-new-tokens {settings.max_new_tokens}: the longest held-out prompt has {longest} tokens, "
            f"and the model's context is {context}; lower --max-new-tokens, or set data.max_prompt_length"
        )


def _measure(
    asked: RewardedPrompts, texts: Sequence[Sequence[str]]
) -> tuple[dict[str, Float64[np.ndarray, "prompts n"]], Float64[np.ndarray, "prompts n"] | None]:
    """Each measurement, and the auxiliary reward where there are rewards."""
    if not asked.rewards:
        return {}, None
    answered = [
        replace(
            group,
            responses=tuple(Response(as_answer(text, group.prompt)) for text in row),
            pairs=(),
            # What the data says of its own responses says nothing of these.
            response_columns=frozenset(),
        )
        for group, row in zip(asked.groups, texts, strict=True)
    ]
    found = measure_groups(answered, asked.rewards, "samples of held-out row {}".format)
    shape = (len(texts), len(texts[0]))
    weighted = any(reward.bound is None for reward in asked.rewards)
    reward = combine(asked.rewards, found.measurements).reshape(shape) if weighted else None
    return {name: values.reshape(shape) for name, values in found.measurements.items()}, reward
