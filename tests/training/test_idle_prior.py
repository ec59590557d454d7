"""What of the prior has no effect in a run is said, once."""

import logging
from typing import Any

import pytest

import preftune

MIX = {"dpo": 0.5, "kto": 0.3, "ours": {"method": "exo", "weight": 0.2}, "nca": 0.0}

SAID: dict[str, tuple[dict[str, Any], str]] = {
    "methods of a mix that have no prior": (
        {"objective": {"mix": MIX, "prior": "reward_gap"}},
        "objective.prior=reward_gap is not defined for kto of the mix, which is trained without it",
    ),
    "methods of a mix that do not take it by tokens": (
        {"objective": {"mix": MIX, "prior": "token_reward_gap"}},
        "objective.prior=token_reward_gap is not defined for kto and ours of the mix",
    ),
    "a rule for negative gaps where there are none": (
        {"objective": {"method": "qrpo"}, "prior": {"calibration": "identity", "negative_gap": "drop"}},
        "prior.negative_gap=drop has no effect",
    ),
    "the section without a prior": (
        {"objective": {"method": "dpo"}, "prior": {"calibration": "minmax"}},
        "the section `prior` is not used",
    ),
}


def warnings_of(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a check of a run with held-out data warns of."""
    with caplog.at_level(logging.WARNING, "preftune"):
        preftune.check(config)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("changed", "said"), SAID.values(), ids=SAID)
def test_what_has_no_effect_is_said_once(
    changed: dict[str, Any], said: str, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the number of splits; a method without a weight in the mix is not named."""
    found = warnings_of(config | changed, caplog)
    assert sum(said in line for line in found) == 1, found


@pytest.mark.parametrize(
    "changed",
    [
        {"objective": {"mix": {"dpo": 0.5, "simpo": 0.5}, "prior": "reward_gap"}},
        {"objective": {"mix": {"dpo": 0.5, "kto": 0.5}}, "prior": {}},
        {"objective": {"method": "odpo"}, "prior": {"calibration": "identity", "negative_gap": "drop"}},
        {"objective": {"method": "qrpo"}, "prior": {"calibration": "identity"}},
    ],
)
def test_what_has_an_effect_is_not(
    changed: dict[str, Any], config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Every method takes the prior, there is none, or gaps are read."""
    found = warnings_of(config | changed, caplog)
    assert not any("prior" in line for line in found), found
