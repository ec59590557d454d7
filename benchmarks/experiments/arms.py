"""What is compared: objectives by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BASE = "dpo"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        objective: the section of a run.
        calibration: of scores into [0, 1].
        log_odds: whether scores that are probabilities are given as log-odds.
        rewards: auxiliary rewards.
        tuned_as: the arm whose kept point is taken, where the arm has no search of its own.
        compared_with: the arm that differences are to.
        responses: learns from the pair, or from all responses of its prompt.
    """

    objective: Mapping[str, Any]
    calibration: str = "identity"
    log_odds: bool = False
    rewards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuned_as: str | None = None
    compared_with: str = BASE
    responses: Literal["pair", "all"] = "pair"

    @property
    def judged_by(self) -> list[str]:
        """What decides whether it helps: its auxiliary rewards' figures, else the judge's reward."""
        return [FIGURES[name] for name in self.rewards] or ["reward"]


def _dpo(**options: Any) -> dict[str, Any]:
    return {"method": "dpo", **options}


PLAIN_AND_SCORED: dict[str, Arm] = {
    BASE: Arm(_dpo()),
    "dpo+prior": Arm(_dpo(prior="reward_gap")),
    "dpo+nll": Arm(_dpo(likelihood_weight=0.2, likelihood_reduction="token_mean")),
    "scaled_dpo": Arm({"method": "scaled_dpo"}),
    "mmpo": Arm({"method": "mmpo"}),
    "ipo": Arm({"method": "ipo"}),
    "ipo+prior": Arm({"method": "ipo", "prior": "reward_gap"}, compared_with="ipo"),
    "odpo": Arm({"method": "odpo"}),
    "rpo": Arm({"method": "rpo"}),
    "simpo": Arm({"method": "simpo"}),
    "simpo+prior": Arm({"method": "simpo", "prior": "reward_gap"}, compared_with="simpo"),
    "distilled_dpo": Arm({"method": "distilled_dpo"}),
    "dpo+prior, bradley_terry": Arm(_dpo(prior="reward_gap"), calibration="bradley_terry", log_odds=True),
    "dpo+prior, quantile": Arm(_dpo(prior="reward_gap"), calibration="quantile"),
    "dpo+prior, sigmoid": Arm(_dpo(prior="reward_gap"), calibration="sigmoid"),
}
"""Of parts a and b, the ones to have first at the head."""

VARIED = (BASE, "dpo+prior", "dpo+nll", "scaled_dpo", "mmpo", "ipo")
"""Trained on the data of every variation too."""

TOXICITY: dict[str, Mapping[str, Any]] = {"toxicity_words": {"goal": "minimise"}}
READING: dict[str, Mapping[str, Any]] = {"reading_grade": {"goal": "minimise", "clip": [0, 20]}}
HPO_WEIGHTS = (0.3, 1, 3)
FIGURES = {"toxicity_words": "toxicity", "reading_grade": "grade"}
"""What samples are measured by, for each auxiliary reward; less of it is better."""


def _with_auxiliary(base: str, rewards: Mapping[str, Mapping[str, Any]], weight: float) -> Arm:
    auxiliary = {"weight": weight, "temperature": 1}
    return Arm({"method": base, "auxiliary": auxiliary}, rewards=rewards, tuned_as=base, compared_with=base)


HARMLESSNESS: dict[str, Arm] = {
    BASE: Arm(_dpo()),
    "kto": Arm({"method": "kto"}, compared_with=BASE),
    **{
        f"{base}+{name} x {weight:g}": _with_auxiliary(base, rewards, weight)
        for weight in HPO_WEIGHTS
        for base in (BASE, "kto")
        for name, rewards in {"toxicity": TOXICITY, "both": {**TOXICITY, **READING}}.items()
    },
}
"""Of part c, on people's pairs."""

VALUED = ("dpo+both x 1",)
"""Trained on every pair once, to see what the value head explains."""

ALL_OR_PAIR: dict[str, Arm] = {
    BASE: Arm(_dpo(), tuned_as=BASE),
} | {
    f"dpo+grade x {weight:g}, {responses}": Arm(
        {"method": "dpo", "auxiliary": {"weight": weight, "temperature": 1}},
        rewards=READING,
        tuned_as=BASE,
        responses=responses,
    )
    for weight in HPO_WEIGHTS
    for responses in ("pair", "all")
}
"""Of part c, on the groups of part a: the auxiliary term sees all eight responses, or the pair."""

ROUNDS: dict[str, Arm] = {
    "dpo, one round": Arm(_dpo(prior="none"), tuned_as=BASE),
    "dpo, rounds": Arm(_dpo(prior="none"), tuned_as=BASE, compared_with="dpo, one round"),
    "dpo+prior, one round": Arm(
        _dpo(prior="reward_gap"), tuned_as="dpo+prior", compared_with="dpo, one round"
    ),
    "dpo+prior, rounds": Arm(_dpo(prior="reward_gap"), tuned_as="dpo+prior", compared_with="dpo, rounds"),
}
"""Of part d."""
