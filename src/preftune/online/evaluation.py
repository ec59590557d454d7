"""The evaluation stage of a round: a policy on held-out prompts, written as answers and figures."""

from dataclasses import asdict
from pathlib import Path

from preftune.measuring.held_out import ByPrompt, HeldOut, measure_policy
from preftune.rewards.policy_reward import PolicyReward
from preftune.storage.files import as_lines, write_json, write_whole
from preftune.storage.hashing import hash_json
from preftune.storage.manifest import Figures
from preftune.storage.shards import Shards

ANSWERS_FILE = "held_out.jsonl"
EVALUATION_FILE = "evaluation.json"


def evaluate_policy(
    folder: Path,
    model: str,
    start: str,
    held_out: HeldOut,
    reward: PolicyReward,
    start_rewards: ByPrompt | None,
) -> Figures:
    """Write a policy's answers with their rewards, and what they come to.

    A stopped call resumes at the first prompts without answers.

    Args:
        folder: where `ANSWERS_FILE` and `EVALUATION_FILE` go.
        model: the policy, a folder or hub name.
        start: the policy at the start of all rounds.
        held_out: what is asked.
        reward: what scores the answers.
        start_rewards: the start's rewards; None where `model` is the start itself.

    Returns:
        See `PolicySamples.figures`.
    """
    answers = folder / ANSWERS_FILE
    key = hash_json([model, list(held_out.prompts), asdict(held_out.settings)])
    samples = measure_policy(model, start, held_out, shards=Shards(answers, key))
    rewards = reward.score(samples.rows, answers)
    figures = samples.figures(rewards, start_rewards or rewards)
    rows = [
        {
            **{column: value for column, value in row.items() if column != "response_tokens"},
            "scores": row_rewards,
            "drift": row_drift,
        }
        for row, row_rewards, row_drift in zip(samples.rows, rewards, samples.drift, strict=True)
    ]
    write_whole(answers, as_lines(rows))
    write_json(folder / EVALUATION_FILE, figures)
    return figures
