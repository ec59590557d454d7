"""Who gets whose response, on literal token ids."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data import TokenizedGroup, mismatched
from preftune.errors import InputError


def group(prompt: list[int], *responses: list[int]) -> TokenizedGroup:
    """A labelled group of literal token ids."""
    arrays = tuple(np.array(response, dtype=np.int32) for response in responses)
    labels = np.ones(len(responses), dtype=bool)
    return TokenizedGroup(np.array(prompt, dtype=np.int32), arrays, (), {"labels": labels})


def received(groups: list[TokenizedGroup], seed: int = 0, max_length: int = 99) -> list[list[int]]:
    """The response that each group gets, which stands behind the group's own prompt and has no pair."""
    responses = []
    for before, after in zip(groups, mismatched(groups, seed, max_length), strict=True):
        assert after.mismatched is not None
        assert after.mismatched.prompt.tolist() == before.prompt.tolist()
        assert after.mismatched.pairs == ()
        (response,) = after.mismatched.responses
        responses.append(response.tolist())
    return responses


def test_two_groups_exchange_their_responses() -> None:
    """With two groups there is one way; all else about a group stays."""
    groups = [group([1], [10, 11]), group([2], [20])]
    assert received(groups) == [[20], [10, 11]]
    for before, after in zip(groups, mismatched(groups, 0, 99), strict=True):
        assert replace(after, mismatched=None) == before


@given(st.integers(2, 40), st.integers(0, 1000))
def test_each_gives_once_and_none_to_itself(count: int, seed: int) -> None:
    """With distinct prompts and responses it is a permutation without a fixed point."""
    groups = [group([1, index], [2, index]) for index in range(count)]
    givers = [response[1] for response in received(groups, seed)]
    assert sorted(givers) == list(range(count))
    assert all(giver != receiver for receiver, giver in enumerate(givers))


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=30).filter(lambda p: len(set(p)) > 1), st.integers(0, 9)
)
def test_no_prompt_gets_a_response_to_itself(prompts: list[int], seed: int) -> None:
    """Groups of one prompt do not give to each other, and each gives once if no prompt has more than half."""
    groups = [group([prompt], [prompt, index]) for index, prompt in enumerate(prompts)]
    responses = received(groups, seed)
    assert all(response[0] != prompt for prompt, response in zip(prompts, responses, strict=True))
    if 2 * max(Counter(prompts).values()) <= len(prompts):
        assert sorted(index for _, index in responses) == list(range(len(prompts)))


def test_others_give_more_often_where_they_are_few() -> None:
    """Of six groups four have one prompt: the other two give to all four, twice each."""
    groups = [*(group([1], [10 + index]) for index in range(4)), group([2], [20]), group([3], [30])]
    assert Counter(map(tuple, received(groups)[:4])) == {(20,): 2, (30,): 2}


@pytest.mark.parametrize("seed", range(10))
def test_own_responses_are_not_received(seed: int) -> None:
    """A response that the receiver has too is passed over, within a group and then with its group."""
    # The first has both of the second's responses, so only the third can give to it; its [12] is new to both.
    groups = [group([1], [10], [11]), group([2], [11], [10]), group([3], [10], [12])]
    first, second, third = received(groups, seed)
    assert (first, second) == ([12], [12])
    assert third == [11]


def test_own_response_where_there_is_no_other() -> None:
    """Where all responses are the same there is nothing else to give."""
    assert received([group([index], [7]) for index in range(100)]) == [[7]] * 100


def test_responses_are_cut_to_the_context() -> None:
    """Prompt and foreign response have at most `max_length` tokens, and what is left is still foreign."""
    groups = [group([1, 1, 1], [9, 9]), group([2], [8, 8, 8, 8, 8])]
    assert received(groups, max_length=5) == [[8, 8], [9, 9]]
    # Cut to one token the second's first response is the first group's own, so its other one is taken.
    alike = [group([1, 1], [9]), group([2], [9, 8], [7, 8])]
    assert {tuple(received(alike, seed, max_length=3)[0]) for seed in range(10)} == {(7,)}


def test_the_seed_decides() -> None:
    """The same seed draws the same again, another one another; both who gives and which response."""
    groups = [group([index], [index, 0], [index, 1]) for index in range(20)]
    draws = [received(groups, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert {response[1] for response in draws[0]} == {0, 1}


def test_one_prompt_has_no_others() -> None:
    """Where all groups have one prompt, the data is refused."""
    with pytest.raises(
        InputError, match=r"The 2 rows have one prompt .* Give data with at least two prompts"
    ):
        mismatched([group([1], [10]), group([1], [11])], seed=0, max_length=9)


def test_a_row_has_room_for_the_longer_of_both() -> None:
    """Rows are filled so that neither a group's own responses nor the foreign one exceed them."""
    own = group([1, 2], [3, 4])
    long = replace(own, mismatched=group([1, 2], [5] * 9))
    assert (own.row_tokens, long.packed_tokens, long.row_tokens) == (4, 4, 11)
