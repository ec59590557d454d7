"""Responses with numbers of their tokens, for tests that give sums alone."""

from dataclasses import replace

from torch import Tensor

from preftune.objectives import ScoredResponses


def with_tokens(responses: ScoredResponses) -> ScoredResponses:
    """The same with their sums spread evenly over tokens, and w(y) = exp(-0.25) for WPO.

    Gradients by tokens reach the sums they were made of.
    """
    logps, lengths = responses.logps, responses.lengths
    assert logps is not None
    logps = logps + logps.new_zeros(1).float()

    def spread(sums: Tensor | None) -> Tensor | None:
        return None if sums is None else (sums / lengths.clamp(min=1)).repeat_interleave(lengths)

    return replace(
        responses,
        logps=logps,
        token_logps=spread(logps),
        reference_token_logps=spread(responses.reference_logps),
        collision_logps=logps.detach() + 0.25 * lengths,
    )
