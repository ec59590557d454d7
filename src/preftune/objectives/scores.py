"""What a response is scored by.

Log-probabilities in nats, summed or per token, with or without reference; or the number a reward model gives.
A new score is one function under `@needing`. One with a parameter is a `functools.partial` of such a function
or an object with the attribute `needs`.
"""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from preftune.objectives.needs import needing
from preftune.objectives.responses import ScoredResponses

Score = Callable[[ScoredResponses], Float[Tensor, "responses"]]
"""One number per response: what the policy is trained to make larger for chosen than for rejected.

It says what it needs (`needs_of`).
"""


@needing()
def log_likelihood(responses: ScoredResponses) -> Float[Tensor, "responses"]:
    """Sum l = log pi_theta(y given x) over response tokens.

    Raises:
        ValueError: the responses carry no log-probabilities.
    """
    if responses.logps is None:
        raise ValueError("logps is None, but a likelihood needs it: score the responses with a policy")
    return responses.logps


@needing()
def mean_log_likelihood(responses: ScoredResponses) -> Float[Tensor, "responses"]:
    """Mean l / n over response tokens."""
    return log_likelihood(responses) / _token_counts(responses)


@needing("reference")
def log_ratio(responses: ScoredResponses) -> Float[Tensor, "responses"]:
    """Sum h = l - rho over response tokens.

    Raises:
        ValueError: the responses carry no reference log-probabilities.
    """
    if responses.reference_logps is None:
        raise ValueError("reference_logps is None, but a log-ratio needs it: score the reference policy too")
    return log_likelihood(responses) - responses.reference_logps


@needing("reference")
def mean_log_ratio(responses: ScoredResponses) -> Float[Tensor, "responses"]:
    """Mean h / n over response tokens.

    Raises:
        ValueError: the responses carry no reference log-probabilities.
    """
    return log_ratio(responses) / _token_counts(responses)


@needing("score")
def reward_score(responses: ScoredResponses) -> Float[Tensor, "responses"]:
    """What the reward model that is trained gives each response.

    Raises:
        ValueError: the responses carry no scores.
    """
    if responses.scores is None:
        raise ValueError("scores is None, but a reward model's loss needs it: score with a reward model")
    return responses.scores


def _token_counts(responses: ScoredResponses) -> Int[Tensor, "responses"]:
    """Lengths n, at least 1: a response truncated to nothing then scores 0 instead of NaN."""
    return responses.lengths.clamp(min=1)
