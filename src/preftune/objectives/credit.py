"""A response's tokens with weights of their own, and how the blame for a rejected response is shared out."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from preftune.objectives.options import POSITIVE, Options, option
from preftune.objectives.responses import Need, ScoredResponses


@dataclass(frozen=True)
class TokenCredit(Options):
    """Weights w_t = min(1 / delta, lambda exp(h_t / T)) of mean 1: likelier tokens carry more of the blame.

    Ours. h_t is the log-ratio of a rejected token to the reference, without gradient, delta the pair's gap,
    and lambda is what makes the n weights of a response add up to n. delta_t = delta w_t is then in [0, 1]
    with mean delta: of all such delta_t it has the largest sum_t (delta_t h_t - T delta_t log delta_t).

    With h = (log 3, 0), T = 1 and delta = 0.5 the weights are (1.5, 0.5); with delta = 0.8 the first is held
    at 1 / 0.8 and the weights are (1.25, 0.75), so that delta_t is (1, 0.6).

    Equal log-ratios and large T make every weight 1, and so does delta = 1: exactly in float32.
    """

    credit_temperature: float = option(
        1.0, POSITIVE, "T, in nats of a rejected token's log-ratio; a large one is reward_gap"
    )

    needs = frozenset[Need]({"pairs", "prior_gap", "reference", "token_logps", "reference_tokens"})

    def __call__(self, responses: ScoredResponses) -> Float[Tensor, "pairs longest"]:
        """A weight for every rejected token, 0 behind a response's end, without gradient."""
        own = cast(Tensor, responses.token_logps)
        ratios = (own - cast(Tensor, responses.reference_token_logps)).detach()
        delta = cast(Tensor, responses.prior_gap).double()[:, None]
        inside = _inside(responses)[responses.rejected]
        tokens = responses.lengths[responses.rejected].double()[:, None]
        # In float64 and as logarithms: nothing underflows, and weights of 1 are exactly 1 in float32.
        scaled = token_rows(ratios, responses)[responses.rejected].double() / self.credit_temperature
        scaled = scaled.masked_fill(~inside, -torch.inf)
        most = torch.minimum(1 / delta, tokens)
        # sum_t min(most, lambda e_t) is the least, over j, of j * most + lambda (e_t without the j largest).
        # It is n where lambda is the largest of (n - j * most) / (e_t without the j largest).
        largest_first = scaled.sort(dim=1, descending=True).values
        others = largest_first.flip(1).logcumsumexp(dim=1).flip(1)
        held = torch.arange(scaled.shape[1], device=scaled.device)
        left = (tokens - held * most).clamp(min=0).log()
        scale = (left - others).masked_fill(~inside, -torch.inf).amax(dim=1, keepdim=True)
        weights = torch.minimum((scale + scaled).exp(), most)
        return torch.where(delta < 1, weights, inside.double()).to(own.dtype)


def reweighted(
    responses: ScoredResponses, side: Int[Tensor, "pairs"], weights: Float[Tensor, "pairs longest"]
) -> ScoredResponses:
    """One side of every pair as responses of their own, each token's log-probabilities times its weight.

    Weights of 1 leave sums as they are, bit for bit.

    Args:
        responses: with log-probabilities of tokens.
        side: the chosen or the rejected responses, as indices.
        weights: of their tokens.
    """

    def weigh(sums: Tensor | None, tokens: Tensor | None) -> Tensor | None:
        if sums is None or tokens is None:
            return None
        excess = (weights - 1) * token_rows(tokens, responses)[side]
        return sums[side] + _row_sums(excess[_inside(responses)[side]], lengths)

    none, lengths = side[:0], responses.lengths[side]
    return ScoredResponses(
        logps=weigh(responses.logps, responses.token_logps),
        lengths=lengths,
        chosen=none,
        rejected=none,
        reference_logps=weigh(responses.reference_logps, responses.reference_token_logps),
    )


def token_rows(
    tokens: Float[Tensor, "response_tokens"], responses: ScoredResponses
) -> Float[Tensor, "responses longest"]:
    """A number of every token, a row for each response with zeros behind its end."""
    inside = _inside(responses)
    return tokens.new_zeros(inside.shape).masked_scatter(inside, tokens)


def token_share(
    responses: ScoredResponses, weights: Float[Tensor, "pairs longest"]
) -> Float[Tensor, "pairs"]:
    """(sum w)^2 / (n sum w^2) = n / sum w^2: which share of the rejected tokens carries weights of mean 1."""
    lengths = responses.lengths[responses.rejected]
    squares = _row_sums((weights**2)[_inside(responses)[responses.rejected]], lengths)
    # An empty response counts as one token.
    return lengths.clamp(min=1) / squares.clamp(min=1)


def _row_sums(tokens: Float[Tensor, "tokens"], lengths: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """Sums of neighbouring tokens, which other rows do not change: not a bit."""
    sums: Tensor = torch.segment_reduce(tokens, "sum", lengths=lengths, unsafe=True)
    return sums


def _inside(responses: ScoredResponses) -> Bool[Tensor, "responses longest"]:
    lengths = responses.lengths
    longest = max(int(lengths.max()) if len(lengths) else 0, 1)
    return torch.arange(longest, device=lengths.device) < lengths[:, None]
