"""What a published method is, and the table of all."""

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.options import Options
from preftune.objectives.parts import Part
from preftune.objectives.priors import PRIORS, Prior

BETA = "scale of the implicit reward; a larger one keeps the policy closer to where it started"
VALUE_WEIGHT = "weight of the value's regression"


class Method(Options, ABC):
    """A published loss; the fields of its dataclass are its options.

    Attributes:
        name: by which a configuration names it.
        summary: one line for people.
        source: the paper, and the equation with the prior.
        priors: names of the priors it is defined with.
        learns_auxiliary: it learns from auxiliary rewards itself, so that `auxiliary` cannot be added.
        trains_policy: it trains a policy, and not a reward model, whose likelihood `auxiliary` could weigh.
        reads_control: a text in front of each response says whether it is desirable.
        on_policy: the responses must be samples of the policy as it is, and one step is made on them.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    priors: ClassVar[tuple[str, ...]] = tuple(PRIORS)
    learns_auxiliary: ClassVar[bool] = False
    trains_policy: ClassVar[bool] = True
    reads_control: ClassVar[bool] = False
    on_policy: ClassVar[bool] = False

    @abstractmethod
    def parts(self, prior: Prior, standardization: Standardization) -> tuple[Part, ...]:
        """The summands of its loss.

        Args:
            prior: one of `priors`.
            standardization: of the auxiliary reward.
        """

    @classmethod
    def takes_auxiliary(cls) -> bool:
        """Whether `auxiliary` can be added to it."""
        return cls.trains_policy and not cls.learns_auxiliary


METHODS: dict[str, type[Method]] = {}
"""Every method by its name."""

M = TypeVar("M", bound=type[Method])


def published(method: M) -> M:
    """Let a configuration name a method."""
    METHODS[method.name] = method
    return method
