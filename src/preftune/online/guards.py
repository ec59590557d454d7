"""When to stop before the last round: equal rewards, low entropy, or large drift."""

from collections.abc import Mapping, Sequence
from typing import Any

from preftune.online.configuration import GuardsSection


class GuardStop(Exception):  # noqa: N818  # not an error: the rounds end here
    """A guard has stopped the rounds; the message says why."""


def reward_collapse(scores: Sequence[Sequence[float]]) -> str | None:
    """The reason to stop if no prompt has two responses with different scores; else None."""
    if any(len(set(row)) > 1 for row in scores):
        return None
    return (
        f"reward collapse: the responses to each of the {len(scores)} prompts have equal rewards, and no "
        "pair can be made; look at the samples and the reward"
    )


def policy_beyond_bounds(guards: GuardsSection, evaluation: Mapping[str, Any]) -> str | None:
    """The reason to stop if a policy's figures on held-out prompts exceed the bounds; else None.

    Args:
        guards: the bounds; None is no bound.
        evaluation: `entropy` in nats per token and `drift` in nats per response, each with its `mean`.
    """
    entropy, drift = evaluation["entropy"]["mean"], evaluation["drift"]["mean"]
    if guards.min_entropy is not None and entropy < guards.min_entropy:
        return f"entropy: {entropy:.3f} nats per sampled token, below guards.min_entropy={guards.min_entropy}"
    if guards.max_drift is not None and drift > guards.max_drift:
        return f"drift: {drift:.2f} nats per response, above guards.max_drift={guards.max_drift}"
    return None
