"""A policy on held-out prompts: reward, win rate against the start, drift and entropy of its samples."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from preftune.measuring.statistics import mean_interval
from preftune.models import (
    Policy,
    generation_device,
    generation_dtype,
    load_language_model,
    logps_of_tokens,
)
from preftune.online.prompts import PromptRow
from preftune.online.scoring import Reward
from preftune.sampling.sampler import prompt_tokens, sample_responses
from preftune.storage.files import as_lines, write_json, write_whole
from preftune.storage.manifest import Figures
from preftune.storage.shards import Row, read_shard, write_shard

ANSWERS_FILE = "held_out.jsonl"
EVALUATION_FILE = "evaluation.json"
SHARDS_FOLDER = "held_out.shards"
PROMPTS_PER_SHARD = 32


@dataclass(frozen=True)
class HeldOut:
    """What every policy is asked, and how.

    Attributes:
        prompts: the rows.
        n: responses to each.
        max_new_tokens: longest response.
        seed: the same for every policy, so that policies are compared on the same draws.
        rows: responses decoded together.
        dtype: of the weights.
    """

    prompts: Sequence[PromptRow]
    n: int
    max_new_tokens: int
    seed: int
    rows: int
    dtype: torch.dtype


def evaluate(
    folder: Path,
    model: str,
    start: str,
    held_out: HeldOut,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    start_rewards: Sequence[Sequence[float]] | None,
) -> Figures:
    """Write a policy's answers with their rewards, and what they come to.

    One model is in memory at a time. A call that was stopped goes on at the first prompts without answers.

    Args:
        folder: where `ANSWERS_FILE` and `EVALUATION_FILE` go.
        model: the policy, a folder or hub name.
        start: the policy at the start of all rounds.
        held_out: what is asked.
        tokenizer: the policy's.
        reward: what scores the answers.
        start_rewards: the start's rewards; None where `model` is the start itself.

    Returns:
        `reward`, `win_rate` against the start (a tie is half a win), `drift` in nats per response, `entropy`
        in nats per token, `tokens` and `finished`, each with its `mean` and the ends of its 95% interval, in
        which a prompt counts once.
    """
    device = generation_device()
    policy = load_language_model(model, held_out.dtype).to(device).eval()
    answers = _answers(folder / SHARDS_FOLDER, policy, held_out, tokenizer)
    own = reference = _log_probabilities(policy, tokenizer, answers)
    del policy
    _free(device)
    if start_rewards is not None:
        other = load_language_model(start, held_out.dtype).to(device).eval()
        reference = _log_probabilities(other, tokenizer, answers)
        del other
        _free(device)
    rewards = reward.score(answers, folder / ANSWERS_FILE)
    figures = _figures(answers, rewards, own, reference, start_rewards or rewards)
    rows = [
        {
            **{column: value for column, value in row.items() if column != "response_tokens"},
            "scores": row_rewards,
            "drift": [one - two for one, two in zip(row_own, row_reference, strict=True)],
        }
        for row, row_rewards, row_own, row_reference in zip(answers, rewards, own, reference, strict=True)
    ]
    write_whole(folder / ANSWERS_FILE, as_lines(rows))
    write_json(folder / EVALUATION_FILE, figures)
    return figures


def _answers(
    shards: Path, policy: torch.nn.Module, held_out: HeldOut, tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """Every prompt's row with `responses`, `response_tokens` and `finished`, from shards or made now."""
    answers: list[Row] = []
    for start in range(0, len(held_out.prompts), PROMPTS_PER_SHARD):
        file = shards / f"{start}.json"
        found = read_shard(file)
        if found is None:
            asked = held_out.prompts[start : start + PROMPTS_PER_SHARD]
            sampled = sample_responses(
                policy,
                tokenizer,
                [row["prompt"] for row in asked],
                n=held_out.n,
                max_new_tokens=held_out.max_new_tokens,
                temperature=1.0,
                seed=held_out.seed,
                rows=held_out.rows,
                dtype=generation_dtype(next(policy.parameters()).device),
            )
            found = [
                {
                    **row,
                    "responses": [response.text for response in responses],
                    "response_tokens": [list(response.tokens) for response in responses],
                    "finished": [response.finished for response in responses],
                }
                for row, responses in zip(asked, sampled, strict=True)
            ]
            write_shard(file, found)
        answers += found
    return answers


def _log_probabilities(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, answers: Sequence[Row]
) -> list[list[float]]:
    """Log-probability of each response under a model, in nats, summed over its tokens."""
    policy = Policy(model)
    return [
        logps_of_tokens(policy, prompt_tokens(tokenizer, row["prompt"]), row["response_tokens"])
        for row in answers
    ]


def _figures(
    answers: Sequence[Row],
    rewards: Sequence[Sequence[float]],
    own: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    start_rewards: Sequence[Sequence[float]],
) -> Figures:
    lengths = [[len(tokens) for tokens in row["response_tokens"]] for row in answers]
    # Responses to one prompt are alike, so a prompt's mean counts once.
    per_prompt: Mapping[str, list[float]] = {
        "reward": [fmean(row) for row in rewards],
        "win_rate": [wins(*rows) for rows in zip(rewards, start_rewards, strict=True)],
        "drift": [fmean(one) - fmean(two) for one, two in zip(own, reference, strict=True)],
        "entropy": [
            fmean(-logp / length for logp, length in zip(*rows, strict=True))
            for rows in zip(own, lengths, strict=True)
        ],
        "tokens": [fmean(row) for row in lengths],
        "finished": [fmean(row["finished"]) for row in answers],
    }
    return {
        name: dict(zip(("mean", "low", "high"), mean_interval(values), strict=True))
        for name, values in per_prompt.items()
    }


def wins(rewards: Sequence[float], others: Sequence[float]) -> float:
    """Share of all comparisons between two lists that the first wins; a tie is half a win."""
    return fmean((one > other) + 0.5 * (one == other) for one in rewards for other in others)


def _free(device: torch.device) -> None:
    """Give back a model's memory once nothing refers to it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
