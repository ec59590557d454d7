"""When rounds stop before the last."""

import pytest

from preftune.online.configuration import GuardsSection
from preftune.online.guards import policy_beyond_bounds, reward_collapse

EVALUATION = {"entropy": {"mean": 1.5}, "drift": {"mean": 8.0}}


def test_a_reward_that_tells_nothing_apart_is_a_collapse() -> None:
    """Equal rewards within every prompt make no pair, whatever differs between prompts."""
    reason = reward_collapse([[0.5, 0.5], [1.0, 1.0, 1.0], [2.0]])
    assert reason is not None
    assert reason.startswith("reward collapse: the responses to each of the 3 prompts")
    assert reward_collapse([[0.5, 0.5], [1.0, 1.0, 1.1]]) is None


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({}, None),
        ({"min_entropy": 1.5, "max_drift": 8.0}, None),
        ({"min_entropy": 1.6}, "entropy: 1.500 nats per sampled token, below guards.min_entropy=1.6"),
        ({"max_drift": 7.9}, "drift: 8.00 nats per response, above guards.max_drift=7.9"),
    ],
)
def test_a_policy_beyond_a_bound_is_not_gone_on_with(bounds: dict[str, float], reason: str | None) -> None:
    """The reason has the figure and the bound; at the bound itself there is none."""
    assert policy_beyond_bounds(GuardsSection.model_validate(bounds), EVALUATION) == reason
