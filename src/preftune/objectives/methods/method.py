"""What a published method is, and the table of all."""

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.options import Options, options_of
from preftune.objectives.parts import ChosenLikelihood, Part
from preftune.objectives.priors import PRIORS, Prior
from preftune.objectives.responses import Need

BETA = "scale of the implicit reward; a larger one keeps the policy closer to where it started"
LIKELIHOOD_WEIGHT = "weight of the chosen response's negative log-likelihood"
LIKELIHOOD_REDUCTION = "of it: mean over all chosen tokens, or sums per pair"
LABEL_SMOOTHING = "share of the labels that are wrong, as smoothed labels (cDPO)"
LENGTH_NORMALIZED = "log-ratios per token instead of summed"
VALUE_WEIGHT = "weight of the value's regression"


def unread(method: "Method", key: str, cause: str) -> None:
    """Refuse an option that another one leaves without effect, unless it has its default.

    Raises:
        ValueError: it was set.
    """
    value, default = getattr(method, key), options_of(type(method))[key].default
    if value != default:
        raise ValueError(f"{key} = {value!r} has no effect with {cause}: remove {key}, or change the other")


class Method(Options, ABC):
    """A published loss; the fields of its dataclass are its options.

    Attributes:
        name: by which a configuration names it, if published; that of the class unless given.
        summary: one line for people.
        source: the paper, and the equation with the prior.
        priors: names of the priors it is defined with.
        learns_auxiliary: it learns from auxiliary rewards itself, so that `auxiliary` cannot be added.
        trains_policy: it trains a policy, and not a reward model, whose likelihood `auxiliary` could weigh.
        learning_rate: of AdamW on all weights, where the user gives none.
        reads_control: a text in front of each response says whether it is desirable.
        on_policy: the responses must be samples of the policy as it is, and one step is made on them.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    priors: ClassVar[tuple[str, ...]] = ("none", "reward_gap")
    learns_auxiliary: ClassVar[bool] = False
    trains_policy: ClassVar[bool] = True
    reads_control: ClassVar[bool] = False
    # TRL's default of its DPO, KTO and CPO trainers; the papers' recipes lie between 3e-7 and 5e-6.
    learning_rate: ClassVar[float] = 1e-6
    on_policy: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """One of the user's own is named as its class is, unless it has a name."""
        super().__init_subclass__()
        if not hasattr(cls, "name"):
            cls.name = cls.__name__

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

    @classmethod
    def learns_from(cls, need: Need) -> bool:
        """Whether its loss needs this of the responses, such as pairs or labels, with its default options."""
        return any(need in part.needs for part in cls._plain_parts())

    @classmethod
    def takes_likelihood(cls) -> bool:
        """Whether the likelihood of the chosen response can be added: it has pairs, and no such term."""
        has_own = any(isinstance(part, ChosenLikelihood) for part in cls._plain_parts())
        return cls.trains_policy and cls.learns_from("pairs") and not has_own

    @classmethod
    def _plain_parts(cls) -> tuple[Part, ...]:
        return cls().parts(PRIORS["none"], Standardization())


METHODS: dict[str, type[Method]] = {}
"""Every method by its name."""

M = TypeVar("M", bound=type[Method])


def published(method: M) -> M:
    """Let a configuration name a method."""
    METHODS[method.name] = method
    return method
