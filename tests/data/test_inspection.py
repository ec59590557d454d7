"""Figures of groups, each derived by hand."""

import numpy as np

from preftune.data import Group, LengthLimits, Pair, Response, TokenizedGroup
from preftune.data.inspection import (
    LengthBias,
    LengthCut,
    count_equal_pairs,
    count_repeated_prompts,
    count_tied_pairs,
    length_bias,
    length_quantiles,
    measure_cut,
    rows_shared,
)


def tokens(*ids: int) -> np.ndarray:
    """Token ids."""
    return np.array(ids, dtype=np.int32)


def of_lengths(prompt: int, *responses: int) -> TokenizedGroup:
    """A group of so many tokens, whose first response is preferred to the second."""
    answers = tuple(np.arange(length, dtype=np.int32) for length in responses)
    return TokenizedGroup(np.arange(prompt, dtype=np.int32), answers, (Pair(0, 1),))


def scored(row: int, prompt: str, chosen: float | None, rejected: float | None) -> Group:
    """A pair with scores, or with none."""
    return Group(prompt, (Response("a", chosen), Response("b", rejected)), (Pair(0, 1),), row)


def test_quantiles_are_lengths_that_occur() -> None:
    """Of 1 to 20: 5% have at most 1, half at most 10, 95% at most 19, 99% at most 20."""
    assert length_quantiles(list(range(20, 0, -1))) == (1, 1, 5, 10, 15, 19, 20, 20)


def test_quantiles_of_one_length_are_that_length() -> None:
    """A single row is every quantile."""
    assert length_quantiles([7]) == (7,) * 8


def test_cuts_count_responses_beyond_the_room_behind_their_prompt() -> None:
    """Prompt 4 leaves 4 of 8: a response of 6 loses 2, one of 4 none; a prompt of 9 has no room."""
    groups = [of_lengths(4, 4, 6), of_lengths(9, 1, 1)]
    assert measure_cut(groups, LengthLimits(8)) == LengthCut(8, 1, 2, 1)


def test_cuts_shorten_prompts_first() -> None:
    """A prompt of 9 that is cut to 5 leaves 3 of 8: responses of 4 and 6 lose 1 and 3."""
    assert measure_cut([of_lengths(9, 4, 6)], LengthLimits(8, 5)) == LengthCut(8, 2, 4, 0)


def test_length_bias_compares_chosen_with_rejected() -> None:
    """Differences +3, -1, 0 and +2: half are longer, a quarter equal, and the mean is 1."""
    groups = [of_lengths(1, 5, 2), of_lengths(1, 1, 2), of_lengths(1, 4, 4), of_lengths(1, 3, 1)]
    assert length_bias(groups) == LengthBias(4, 0.5, 0.25, 1.0)


def test_length_bias_of_no_pairs_is_none() -> None:
    """Labelled responses have no chosen one."""
    assert length_bias([TokenizedGroup(tokens(1), (tokens(2),), ())]) is None


def test_equal_pairs_have_the_same_tokens() -> None:
    """Same length is not enough."""
    same = TokenizedGroup(tokens(1), (tokens(2, 3), tokens(2, 3)), (Pair(0, 1),))
    other = TokenizedGroup(tokens(1), (tokens(2, 3), tokens(2, 4)), (Pair(0, 1),))
    assert count_equal_pairs([same, other]) == 1


def test_ties_are_equal_scores_or_a_margin_of_zero() -> None:
    """One pair of equal scores, one margin of 0, one of unequal scores; without scores there is no count."""
    margin = Group("p", (Response("a"), Response("b")), (Pair(0, 1, margin=0.0),))
    assert count_tied_pairs([scored(0, "p", 2.0, 2.0), margin, scored(1, "p", 2.0, 1.0)]) == 2
    assert count_tied_pairs([scored(0, "p", None, None)]) is None


def test_prompts_repeat_whatever_the_order_of_a_messages_keys() -> None:
    """The same message, written in two orders of keys, is one prompt."""
    one = Group(({"role": "user", "content": "hi"},), (Response("a"),), ())
    other = Group(({"content": "hi", "role": "user"},), (Response("b"),), ())
    assert count_repeated_prompts([one, other, scored(2, "hi", None, None)]) == 1


def test_held_out_rows_are_found_by_their_prompt() -> None:
    """Row 4 asks what is trained on, whatever it answers; row 5 does not."""
    train = [scored(0, "a", 1.0, 0.0), scored(1, "b", 1.0, 0.0)]
    held_out = [scored(4, "b", 0.0, 1.0), scored(5, "c", 1.0, 0.0)]
    assert rows_shared(held_out, train) == [4]
