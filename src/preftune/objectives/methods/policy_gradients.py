"""Methods for the policy's own samples, in online training that updates after every batch."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.methods.method import Method, published
from preftune.objectives.options import NOT_NEGATIVE, SWITCH, option
from preftune.objectives.parts import Part
from preftune.objectives.policy_gradients import GroupRelative, LeaveOneOut
from preftune.objectives.priors import Prior


@published
@dataclass(frozen=True)
class RLOO(Method):
    """-A grad l, A = R - the mean R of the prompt's other samples, R = r - beta h."""

    name = "rloo"
    summary = "policy gradient on own samples, each against the mean of its prompt's others"
    source = "RLOO, arXiv 2402.14740, Eq. 8; the prior in each pair is ours"
    on_policy = True

    beta: float = option(0.05, NOT_NEGATIVE, "weight of the divergence from the reference in the reward")

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (LeaveOneOut(self.beta, prior),)


@published
@dataclass(frozen=True)
class GRPO(Method):
    """-A grad lbar, A = (r - mean r) / std r over the prompt's samples."""

    name = "grpo"
    summary = "policy gradient on own samples, standardised within the prompt; no reference"
    source = "GRPO, arXiv 2402.03300, Eq. 3, without the divergence; the prior in each pair is ours"
    on_policy = True

    scale_rewards: bool = option(True, SWITCH, "divide by the standard deviation of the prompt's rewards")

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (GroupRelative(self.scale_rewards, prior),)
