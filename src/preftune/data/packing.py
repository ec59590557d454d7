"""Groups of token ids become one row without padding, each prompt in it once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from preftune.data.groups import TokenizedGroup


@dataclass(frozen=True)
class Span:
    """Rows start:stop attend to rows prefix_start:prefix_stop, all of them, and causally to themselves.

    A group's first span is its prompt together with its first response, and has no prefix; every other
    response is a span of its own whose prefix is the prompt.
    """

    start: int
    stop: int
    prefix_start: int
    prefix_stop: int


@dataclass(frozen=True)
class PackedBatch:
    """Groups in one row: [prompt, response, response, ..., prompt, response, ...].

    Every response restarts at position len(prompt) and sees its prompt and itself, no other response.

    Attributes:
        input_ids: the row.
        position_ids: each token's position in its own prompt + response.
        spans: who attends to whom, in row order; together they cover the row.
        predictors: rows whose hidden states predict trained tokens: each response's first token is
            predicted from the prompt's last row.
        targets: the trained tokens they predict, response after response.
        lengths: number of trained tokens of each response.
        prompt_ends: row of the last token of each response's prompt.
        chosen: each pair's preferred response, as an index into the batch's responses.
        rejected: the other one.
        numbers: what `preftune.objectives.NUMBERS` names, of each response, pair or trained token, where
            every group has it; `groups` says which responses share a prompt.
        mismatched: the groups' prompts with responses to other ones, where every group has some.
    """

    input_ids: Int64[Tensor, "tokens"]
    position_ids: Int64[Tensor, "tokens"]
    spans: tuple[Span, ...]
    predictors: Int64[Tensor, "trained_tokens"]
    targets: Int64[Tensor, "trained_tokens"]
    lengths: Int64[Tensor, "responses"]
    prompt_ends: Int64[Tensor, "responses"]
    chosen: Int64[Tensor, "pairs"]
    rejected: Int64[Tensor, "pairs"]
    numbers: Mapping[str, Shaped[Tensor, "_"]] = field(default_factory=dict)
    mismatched: "PackedBatch | None" = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """The same batch with its tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in values.items()
            if isinstance(value, Tensor | PackedBatch)
        }
        numbers = {name: value.to(device, non_blocking=non_blocking) for name, value in self.numbers.items()}
        return replace(self, numbers=numbers, **moved)


def pack(groups: Sequence[TokenizedGroup]) -> PackedBatch:
    """Lay groups out in one row, each prompt once; a group stays whole.

    Responses that nothing is learned from are left out (`TokenizedGroup.packed`).
    """
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    predictors: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    prompt_ends: list[int] = []
    spans: list[Span] = []
    chosen: list[int] = []
    rejected: list[int] = []
    row = 0
    for group in groups:
        prompt_start, prompt_tokens = row, len(group.prompt)
        prompt_stop = prompt_start + prompt_tokens
        place = {index: len(targets) + offset for offset, index in enumerate(group.packed)}
        ids.append(group.prompt)
        positions.append(np.arange(prompt_tokens))
        row = prompt_stop
        for index in group.packed:
            response = group.responses[index]
            start, row = row, row + len(response)
            ids.append(response)
            positions.append(np.arange(prompt_tokens, prompt_tokens + len(response)))
            if start == prompt_stop:
                spans.append(Span(prompt_start, row, prompt_start, prompt_start))
            else:
                spans.append(Span(start, row, prompt_start, prompt_stop))
            each = np.concatenate(([prompt_stop - 1], np.arange(start, row - 1)))
            trained = slice(None) if group.trained is None else group.trained[index]
            predictors.append(each[trained])
            targets.append(response[trained])
            prompt_ends.append(prompt_stop - 1)
        chosen += [place[pair.chosen] for pair in group.pairs]
        rejected += [place[pair.rejected] for pair in group.pairs]
    mismatched = [group.mismatched for group in groups if group.mismatched]
    return PackedBatch(
        input_ids=_join(ids),
        position_ids=_join(positions),
        spans=tuple(spans),
        predictors=_join(predictors),
        targets=_join(targets),
        lengths=torch.tensor([len(tokens) for tokens in targets]),
        prompt_ends=torch.tensor(prompt_ends),
        chosen=torch.tensor(chosen, dtype=torch.int64),
        rejected=torch.tensor(rejected, dtype=torch.int64),
        numbers=_join_numbers(groups),
        mismatched=pack(mismatched) if len(mismatched) == len(groups) else None,
    )


def _join(parts: Sequence[np.ndarray]) -> Int64[Tensor, "tokens"]:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _join_numbers(groups: Sequence[TokenizedGroup]) -> dict[str, Shaped[Tensor, "_"]]:
    """Numbers of packed responses, their tokens and pairs, without those that a group lacks."""
    found = [
        {name: values[group.packed] for name, values in group.per_response.items()}
        | {name: np.concatenate([rows[i] for i in group.packed]) for name, rows in group.per_token.items()}
        | group.per_pair
        | {"groups": np.full(len(group.packed), place)}
        for place, group in enumerate(groups)
    ]
    return {
        name: torch.from_numpy(np.concatenate([each[name] for each in found]))
        for name in found[0]
        if all(name in each for each in found)
    }


@dataclass(frozen=True)
class PaddedRows:
    """The same responses, one to a row with its own copy of the prompt, padded on the right."""

    input_ids: Int64[Tensor, "responses longest"]
    attention_mask: Int64[Tensor, "responses longest"]
    predicts: Bool[Tensor, "responses longest"]
    """True where a position's logits predict a response token."""
    prompt_ends: Int64[Tensor, "responses"]
    """Column of the last prompt token."""


def pad(batch: PackedBatch) -> PaddedRows:
    """Unshare a packed batch: for architectures that cannot share a prompt, and to check those that can."""
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    prompt = batch.input_ids[:0]
    ends = batch.prompt_ends.tolist()
    predictors = torch.split(batch.predictors, batch.lengths.tolist())
    for span, end, predicting in zip(batch.spans, ends, predictors, strict=True):
        start = span.start
        if span.prefix_start == span.prefix_stop:
            start = end + 1
            prompt = batch.input_ids[span.start : start]
        rows.append(torch.cat((prompt, batch.input_ids[start : span.stop])))
        # The first token of a response is predicted from the prompt's end, which is elsewhere in the row.
        columns.append(torch.where(predicting == end, len(prompt) - 1, predicting - start + len(prompt)))
    longest = max(len(row) for row in rows)
    input_ids = batch.input_ids.new_zeros(len(rows), longest)
    attention_mask = torch.zeros_like(input_ids)
    predicts = torch.zeros_like(input_ids, dtype=torch.bool)
    for index, (row, predicting) in enumerate(zip(rows, columns, strict=True)):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
        predicts[index, predicting] = True
    prompt_ends = batch.prompt_ends.new_tensor([int(position) for position in batch.position_ids[ends]])
    return PaddedRows(input_ids, attention_mask, predicts, prompt_ends)
