"""What there is to choose from: each method with what it needs and takes, read from the methods."""

from dataclasses import dataclass

from preftune.objectives.methods import METHODS
from preftune.objectives.naming import method_named
from preftune.objectives.objective import build
from preftune.objectives.options import Option, options_of
from preftune.objectives.priors import PRIORS
from preftune.objectives.responses import FIELDS, NEEDS


@dataclass(frozen=True)
class MethodOverview:
    """One method.

    Attributes:
        name: by which a configuration names it.
        summary: one line for people; empty for one of the user's own without it.
        source: the paper, and the equation; likewise.
        data: what the data must have, as names in NEEDS.
        needs_reference: whether it compares the policy with a reference.
        priors: names of the priors that it takes, `none` left out.
        takes_auxiliary: whether `auxiliary` can be added to it.
        trains_policy: whether it trains a policy, and not a reward model.
        learning_rate: of AdamW on all weights, where the user gives none.
        on_policy: whether the responses must be samples of the policy as it is.
        options: by name.
    """

    name: str
    summary: str
    source: str
    data: tuple[str, ...]
    needs_reference: bool
    priors: tuple[str, ...]
    takes_auxiliary: bool
    trains_policy: bool
    learning_rate: float
    on_policy: bool
    options: dict[str, Option]

    @property
    def needs(self) -> tuple[str, ...]:
        """What the data must have, and the reference."""
        return (*self.data, *(("reference",) if self.needs_reference else ()))


def overview() -> list[MethodOverview]:
    """Every method, in the order of METHODS."""
    return [overview_of(name) for name in METHODS]


def overview_of(name: str) -> MethodOverview:
    """One method, published or of the user's own as `module:Class`.

    Raises:
        ValueError: there is none of this name; the message names what is near.
    """
    method, needs = method_named(name), build({"method": name}).needs
    # What is not read from the data, the model computes.
    of_data = [need for need, field in NEEDS.items() if need == "pairs" or FIELDS[field].of]
    return MethodOverview(
        name=name,
        summary=getattr(method, "summary", ""),
        source=getattr(method, "source", ""),
        data=tuple(need for need in of_data if need in needs),
        needs_reference="reference" in needs,
        priors=tuple(prior for prior in PRIORS if prior in method.priors and prior != "none"),
        takes_auxiliary=method.takes_auxiliary(),
        trains_policy=method.trains_policy,
        learning_rate=method.learning_rate,
        on_policy=method.on_policy,
        options=options_of(method),
    )
