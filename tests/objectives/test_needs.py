"""What scores, priors and parts need travels with them, and what they keep quiet about is found early."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.objectives import (
    NEEDS,
    PRIORS,
    Logistic,
    Margin,
    Objective,
    Prior,
    ScoredResponses,
    Term,
    build,
    log_ratio,
    needing,
    needs_of,
    prior,
)
from preftune.objectives.methods import METHODS, Method, published
from preftune.objectives.methods.margins import DPO


@needing("reference")
def length_discounted(responses: ScoredResponses, alpha: float) -> Tensor:
    """The log-ratio over n^alpha."""
    return log_ratio(responses) / responses.lengths**alpha


@dataclass(frozen=True)
class LengthDiscounted:
    """The same as an object."""

    alpha: float
    needs = frozenset({"reference"})

    def __call__(self, responses: ScoredResponses) -> Tensor:
        """The log-ratio over n^alpha."""
        return length_discounted(responses, self.alpha)


def closure(alpha: float) -> Callable[[ScoredResponses], Tensor]:
    """The same as a function within one."""

    @needing("reference")
    def score(responses: ScoredResponses) -> Tensor:
        return length_discounted(responses, alpha)

    return score


FORMS = {
    "partial": partial(length_discounted, alpha=1.0),
    "partial of partial": partial(partial(length_discounted, alpha=0.5), alpha=1.0),
    "object": LengthDiscounted(1.0),
    "closure": closure(1.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_score_with_a_parameter_keeps_its_needs(form: str) -> None:
    """A partial, an object and a closure declare the reference; 2 over 2 tokens and 3 over 3 give log 2."""
    margin = Margin(FORMS[form], Logistic(1.0))
    assert margin.needs == {"pairs", "reference"}
    assert Margin(log_ratio, Logistic(1.0), reward=FORMS[form]).needs == {"pairs", "reference"}
    objective = Objective((margin,))
    assert objective.needs == {"pairs", "reference"}
    responses = ScoredResponses(
        logps=torch.tensor([-4.0, -6.0]),
        lengths=torch.tensor([2, 3]),
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        reference_logps=torch.tensor([-6.0, -9.0]),
    )
    assert objective(responses).terms["preference"].values.tolist() == pytest.approx([0.6931472])


def test_a_score_that_says_nothing_is_refused() -> None:
    """Whatever form it has, a score or prior without declared needs cannot be put into a margin."""

    def plain(responses: ScoredResponses) -> Tensor:
        return log_ratio(responses)

    for score in (plain, partial(plain), lambda responses: log_ratio(responses)):
        with pytest.raises(ValueError, match=r"does not say what it needs: write @needing\(\.\.\.\)"):
            Margin(score, Logistic(0.1))
    with pytest.raises(ValueError, match="plain does not say what it needs"):
        Margin(log_ratio, Logistic(0.1), reward=plain)
    with pytest.raises(ValueError, match="plain does not say what it needs"):
        Prior(plain)


def test_an_undeclared_need_is_found_at_construction() -> None:
    """An objective whose score, prior or part reads what it did not declare is refused before any batch."""

    @needing()
    def quiet_score(responses: ScoredResponses) -> Tensor:
        return log_ratio(responses)

    @needing("reference")
    def quiet_prior(responses: ScoredResponses) -> Tensor:
        return responses.auxiliary[responses.chosen]  # type: ignore[index]  # None, since it was not declared

    class QuietPart:
        name = "quiet"
        needs = frozenset({"pairs"})

        def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
            return Term(log_ratio(responses), "responses"), {}

    with pytest.raises(ValueError, match=r"part 'preference' fails on .* needs \(pairs\): .*reference_logps"):
        Objective((Margin(quiet_score, Logistic(0.1)),))
    with pytest.raises(ValueError, match=r"needs \(pairs, reference\): TypeError"):
        Objective((Margin(log_ratio, Logistic(0.1), Prior(quiet_prior)),))
    with pytest.raises(ValueError, match=r"part 'quiet' fails on .* \(pairs\).* declare every need"):
        Objective((QuietPart(),))


def test_an_unknown_need_is_refused() -> None:
    """A misspelt need is named with the nearest one, wherever it is declared."""
    with pytest.raises(ValueError, match=r"'referense', which is unknown.*did you mean 'reference'"):
        needing("referense")

    class Misspelt:
        name = "misspelt"
        needs = frozenset({"pair"})

        def __call__(self, _: ScoredResponses) -> Any:
            raise AssertionError

    with pytest.raises(ValueError, match=r"part 'misspelt' names the need 'pair'.*did you mean 'pairs'"):
        Objective((Misspelt(),))


def test_every_need_has_a_field() -> None:
    """A name that a part can ask by stands for one field of ScoredResponses."""
    assert len(set(NEEDS.values())) == len(NEEDS)
    assert NEEDS["reference"] == "reference_logps"
    assert needs_of(log_ratio) == {"reference"}


def test_a_prior_is_one_function() -> None:
    """A decorated function is a prior that a configuration can name, with its own needs."""
    try:

        @prior("half", "delta = 0.5")
        @needing("auxiliary")
        def half(responses: ScoredResponses) -> Tensor:
            return torch.full((len(responses.chosen),), 0.5)

        assert PRIORS["half"] == Prior(half, "delta = 0.5")
        assert Margin(log_ratio, Logistic(0.1), PRIORS["half"]).needs == {"pairs", "reference", "auxiliary"}
    finally:
        PRIORS.pop("half", None)


def test_a_method_is_one_dataclass() -> None:
    """A decorated dataclass is a method that a configuration can name, with its options checked."""
    try:

        @published
        @dataclass(frozen=True)
        class Doubled(DPO):
            """DPO at twice its beta."""

            name = "doubled"

            def parts(self, *given: Any) -> Any:
                return DPO(2 * self.beta).parts(*given)

        assert build({"method": "doubled", "beta": 0.2}).parts == build({"method": "dpo", "beta": 0.4}).parts
        with pytest.raises(ValueError, match="beta = 0 must be a finite number > 0"):
            build({"method": "doubled", "beta": 0})
    finally:
        METHODS.pop("doubled", None)


def test_options_given_in_python_are_checked() -> None:
    """A method made by hand refuses what a configuration would be refused for."""
    assert issubclass(DPO, Method)
    with pytest.raises(ValueError, match=r"beta = -1.0 must be a finite number > 0"):
        DPO(beta=-1.0)
