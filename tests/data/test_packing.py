"""What a packed row looks like, spelled out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preftune.data import Pair, TokenizedGroup
from preftune.data.packing import PackedBatch, Span, pack, pad
from preftune.objectives import NUMBERS, ScoredResponses


def group(
    prompt: list[int], *responses: list[int], pairs: tuple[Pair, ...] = (Pair(0, 1),)
) -> TokenizedGroup:
    """A group of literal token ids."""
    arrays = tuple(np.array(response, dtype=np.int32) for response in responses)
    return TokenizedGroup(np.array(prompt, dtype=np.int32), arrays, pairs)


def test_a_prompt_stands_once_and_responses_restart_behind_it() -> None:
    """Prompt 10 11 with responses 20 21 and 30: one row, positions 0 1 2 3 and again 2."""
    batch = pack([group([10, 11], [20, 21], [30])])
    assert batch.input_ids.tolist() == [10, 11, 20, 21, 30]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 2]
    # The first response continues its prompt's span; the second sees the prompt, rows 0 and 1, as a prefix.
    assert batch.spans == (Span(0, 4, 0, 0), Span(4, 5, 0, 2))
    # Token 20 is predicted from the prompt's last row, 21 from 20's row, and 30 from the prompt's last row.
    assert batch.predictors.tolist() == [1, 2, 1]
    assert batch.targets.tolist() == [20, 21, 30]
    assert batch.lengths.tolist() == [2, 1]
    # Both responses follow the prompt's last token, 11 in row 1.
    assert batch.prompt_ends.tolist() == [1, 1]


def test_groups_follow_each_other() -> None:
    """The second group's rows, predictors and pair count on from the first's."""
    batch = pack([group([10], [20], [30, 31]), group([11, 12], [21], [32], pairs=(Pair(1, 0),))])
    assert batch.input_ids.tolist() == [10, 20, 30, 31, 11, 12, 21, 32]
    assert batch.spans == (Span(0, 2, 0, 0), Span(2, 4, 0, 1), Span(4, 7, 4, 4), Span(7, 8, 4, 6))
    assert batch.predictors.tolist() == [0, 0, 2, 5, 5]
    assert batch.prompt_ends.tolist() == [0, 0, 5, 5]
    assert batch.chosen.tolist() == [0, 3]
    assert batch.rejected.tolist() == [1, 2]


def test_unpaired_responses_are_left_out() -> None:
    """Of four responses only the paired second and fourth are packed, and the pair points at them."""
    batch = pack([group([10], [20], [21], [22], [23], pairs=(Pair(3, 1),))])
    assert batch.input_ids.tolist() == [10, 21, 23]
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([1], [0])


def test_gaps_and_references_ride_along() -> None:
    """Gaps come from the pairs in order, references only for the packed responses."""
    first = group([10], [20], [21], [22], pairs=(Pair(2, 0, gap=0.25),))
    first = replace(first, per_response={"reference_logps": np.array([-1, np.nan, -3], np.float32)})
    batch = pack([first])
    assert batch.numbers["prior_gap"].tolist() == [0.25]
    assert batch.numbers["reference_logps"].tolist() == [-1, -3]


def test_a_batch_with_a_missing_gap_has_no_gaps() -> None:
    """The objective then refuses the batch instead of training on half of it."""
    mixed = [group([10], [20], [21], pairs=(Pair(0, 1, gap=0.5),)), group([10], [20], [22])]
    assert "prior_gap" not in pack(mixed).numbers


def labelled(*labels: bool) -> TokenizedGroup:
    """A group of one-token responses, 20, 21, ..., to prompt 10 11, without pairs."""
    one = group([10, 11], *([20 + index] for index in range(len(labels))), pairs=())
    return replace(one, per_response={"labels": np.array(labels)})


def test_responses_without_pairs() -> None:
    """All responses of a group without pairs are packed, and there are no indices of pairs."""
    batch = pack([labelled(True), labelled(False, True)])
    assert batch.targets.tolist() == [20, 20, 21]
    assert batch.numbers["labels"].tolist() == [True, False, True]
    for indices in (batch.chosen, batch.rejected):
        assert indices.dtype == torch.int64
        assert indices.tolist() == []
    assert torch.arange(3)[batch.chosen].tolist() == []


@pytest.mark.parametrize("name", ["labels", "auxiliary"])
def test_what_is_known_of_a_response_packs_it(name: str) -> None:
    """A response with a label or an auxiliary reward is packed even where no pair uses it."""
    values = np.array([0, 1, 1], dtype=bool if name == "labels" else np.float32)
    paired = group([10], [20], [21], [22], pairs=(Pair(2, 0),))
    batch = pack([replace(paired, per_response={name: values})])
    assert batch.targets.tolist() == [20, 21, 22]
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([2], [0])
    assert batch.numbers[name].tolist() == [0, 1, 1]
    assert name not in pack([paired]).numbers


def test_every_registered_number_reaches_the_objective() -> None:
    """What is registered for a response, a pair or a token goes from the group to its field by name alone."""
    plain = group(
        [10], [20], [21], pairs=(Pair(1, 0, **{n.of: 0.5 for n in NUMBERS.values() if n.per == "pair"}),)
    )
    arrays = {
        name: np.array([1, 0], dtype=number.dtype)
        for name, number in NUMBERS.items()
        if number.per == "response"
    }
    arrays |= {
        name: np.array([[1], [0]], dtype=number.dtype)
        for name, number in NUMBERS.items()
        if number.per == "response and bound"
    }
    tokens = {
        name: (np.array([1], dtype=number.dtype), np.array([0], dtype=number.dtype))
        for name, number in NUMBERS.items()
        if number.per == "token"
    }
    batch = pack([replace(plain, per_response=arrays, per_token=tokens)])
    responses = ScoredResponses(None, batch.lengths, batch.chosen, batch.rejected, **batch.numbers)
    for name, number in NUMBERS.items():
        values = getattr(responses, name)
        by_response = [0, 0] if name == "groups" else [1, 0]  # both answer the one prompt
        assert values.flatten().tolist() == ([0.5] if number.per == "pair" else by_response)
        assert values.dtype == getattr(torch, number.dtype)


@pytest.mark.parametrize("name", ["reference_logps", "labels", "auxiliary"])
def test_values_that_a_group_lacks_are_no_values(name: str) -> None:
    """Where one group has no values, the batch has none, so that none is taken for another's response."""
    values = np.array([1, 0], dtype=bool if name == "labels" else np.float32)
    with_values = replace(group([10], [20], [21]), per_response={name: values})
    assert pack([with_values, with_values]).numbers[name].tolist() == [1, 0, 1, 0]
    assert name not in pack([with_values, group([10], [20], [21])]).numbers


def test_mismatched_responses_are_a_batch_of_their_own() -> None:
    """Each group's prompt with its foreign response, and the reference's log-probability of that."""
    logps = {"reference_logps": np.array([-2], np.float32)}
    foreign = replace(group([10, 11], [30, 31], pairs=()), per_response=logps)
    batch = pack(
        [replace(labelled(True, False), mismatched=foreign), replace(labelled(True), mismatched=foreign)]
    )
    assert batch.input_ids.tolist() == [10, 11, 20, 21, 10, 11, 20]
    assert batch.mismatched is not None
    assert batch.mismatched.input_ids.tolist() == [10, 11, 30, 31, 10, 11, 30, 31]
    assert batch.mismatched.prompt_ends.tolist() == [1, 5]
    assert batch.mismatched.numbers["reference_logps"].tolist() == [-2, -2]
    moved = batch.to("meta").mismatched
    assert moved is not None
    assert moved.input_ids.is_meta
    assert pack([replace(labelled(True), mismatched=foreign), labelled(False)]).mismatched is None


def test_a_batch_says_which_responses_share_a_prompt() -> None:
    """Groups are numbered in order, and of each those responses that are packed count: 2, 3 and 1."""
    three = group([10], [20], [21], [22], pairs=())
    batch = pack([group([10], [20], [21], [22], pairs=(Pair(0, 2),)), three, group([11], [20], pairs=())])
    assert batch.numbers["groups"].tolist() == [0, 0, 1, 1, 1, 2]
    assert batch.numbers["groups"].dtype == torch.int64


def test_moving_keeps_everything() -> None:
    """`to` moves tensors and leaves spans and absent fields."""
    moved = pack([group([10], [20], [21])]).to("meta")
    assert moved.input_ids.is_meta
    assert moved.spans == (Span(0, 2, 0, 0), Span(2, 3, 0, 1))
    assert moved.numbers.keys() == {"groups"}
    gap = pack([group([10], [20], [21], pairs=(Pair(0, 1, gap=0.5),))]).to("meta").numbers["prior_gap"]
    assert gap.is_meta


tokens = st.lists(st.integers(3, 99), min_size=1, max_size=6)


@given(st.lists(st.tuples(tokens, st.lists(tokens, min_size=2, max_size=4)), min_size=1, max_size=4))
def test_padding_undoes_packing(content: list[tuple[list[int], list[list[int]]]]) -> None:
    """Whatever the lengths, every padded row is prompt + response, and predicts exactly the response."""
    groups = [
        group(prompt, *responses, pairs=tuple(Pair(0, i) for i in range(1, len(responses))))
        for prompt, responses in content
    ]
    batch: PackedBatch = pack(groups)
    rows = pad(batch)
    expected = [(prompt, response) for prompt, responses in content for response in responses]
    assert len(rows.input_ids) == len(expected)
    for index, (prompt, response) in enumerate(expected):
        whole = [*prompt, *response]
        assert rows.input_ids[index, : len(whole)].tolist() == whole
        assert rows.attention_mask[index].sum() == len(whole)
        assert rows.prompt_ends[index] == len(prompt) - 1
        assert batch.input_ids[batch.prompt_ends[index]] == prompt[-1]
        at = torch.arange(rows.input_ids.shape[1])
        assert torch.equal(rows.predicts[index], (at >= len(prompt) - 1) & (at < len(whole) - 1))
    assert batch.targets.tolist() == [token for _, response in expected for token in response]
    assert sum(span.stop - span.start for span in batch.spans) == len(batch.input_ids)


def test_packed_tokens_counts_what_is_packed() -> None:
    """The prompt once, and only paired responses."""
    one = group([10, 11], [20], [21, 22], [23, 24, 25], pairs=(Pair(0, 2),))
    assert one.packed_tokens == len(pack([one]).input_ids) == 6


def test_no_groups_cannot_be_packed() -> None:
    """An empty batch is a mistake of the caller."""
    with pytest.raises(ValueError, match="concatenate"):
        pack([])
