"""How training sees a row: which tokens are given, which are trained, and which the length limits cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from preftune.data.groups import TokenizedGroup

if TYPE_CHECKING:
    import transformers

TokenKind = Literal["prompt", "trained", "context", "cut"]
"""What becomes of tokens: a prompt's are given; a response's are trained or, as context, given too."""
MEANINGS: dict[TokenKind, str] = {
    "prompt": "prompt, not trained",
    "trained": "trained",
    "context": "context, not trained",
    "cut": "cut off",
}
"""The same in a few words."""
NO_TEXT = "\N{REPLACEMENT CHARACTER}"
"""What a token that is only a part of a character decodes to."""


class ShownToken(NamedTuple):
    """A token: its id, its text behind the token before it, and whether it is a special one."""

    id: int
    text: str
    is_special: bool


@dataclass(frozen=True)
class TokenRun:
    """Neighbouring tokens of one kind.

    Attributes:
        kind: what becomes of them.
        tokens: one by one.
        pieces: their text in parts, and whether a part is special tokens.
    """

    kind: TokenKind
    tokens: tuple[ShownToken, ...]
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class ExampleResponse:
    """A response that is trained on, and what it is in its group, such as `chosen`."""

    title: str
    runs: tuple[TokenRun, ...]

    def count(self, kind: TokenKind) -> int:
        """Its tokens of a kind."""
        return sum(len(run.tokens) for run in self.runs if run.kind == kind)


@dataclass(frozen=True)
class Example:
    """One group as it is trained.

    Attributes:
        place: where its row stands, such as `pairs.jsonl row 3`.
        prompt: its tokens, with those that were cut.
        responses: those that something is learned from.
        left_out: how many others the group has.
    """

    place: str
    prompt: tuple[TokenRun, ...]
    responses: tuple[ExampleResponse, ...]
    left_out: int


class TokenTexts:
    """Texts of token ids, special tokens included."""

    def __init__(self, tokenizer: "transformers.PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}

    def run(self, kind: TokenKind, ids: Sequence[int], before: Sequence[int] = ()) -> TokenRun:
        """Tokens of one kind, with the token before them, on which their first one's text may depend."""
        previous = [*before[-1:], *ids]
        shift = len(previous) - len(ids)
        tokens = tuple(
            ShownToken(number, self._single(number, previous[: place + shift][-1:]), number in self._special)
            for place, number in enumerate(ids)
        )
        pieces, place = [], 0
        for is_special, same in groupby(ids, key=self._special.__contains__):
            piece = list(same)
            pieces.append((self._text(piece, previous[: place + shift][-1:]), is_special))
            place += len(piece)
        return TokenRun(kind, tokens, tuple(pieces))

    def _single(self, number: int, before: list[int]) -> str:
        text = self._text([number], before)
        # The vocabulary's own writing says more than a replacement character.
        return str(self._tokenizer.convert_ids_to_tokens(number)) if NO_TEXT in text else text

    def _text(self, ids: list[int], before: list[int]) -> str:
        """Some tokenizers drop the space that a text begins with, so it is decoded behind what precedes."""
        whole, start = self._decode([*before, *ids]), self._decode(before)
        return whole[len(start) :] if whole.startswith(start) else self._decode(ids)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def show_group(
    whole: TokenizedGroup, kept: TokenizedGroup, tokenizer: "transformers.PreTrainedTokenizerBase", place: str
) -> Example:
    """A group as it is trained.

    Args:
        whole: its tokens before any limit.
        kept: those that are trained on, with its pairs and numbers.
        tokenizer: what cut them.
        place: where its row stands.
    """
    texts = TokenTexts(tokenizer)
    prompt = _prompt_runs(whole.prompt.tolist(), kept.prompt.tolist())
    responses = []
    for index in kept.packed:
        mask = None if kept.trained is None else kept.trained[index]
        runs = _response_runs(whole.responses[index], kept.responses[index], mask)
        responses.append(ExampleResponse(_title(kept, index), _shown(texts, runs, kept.prompt.tolist())))
    return Example(place, _shown(texts, prompt, []), tuple(responses), len(kept.responses) - len(kept.packed))


def _shown(
    texts: TokenTexts, runs: Sequence[tuple[TokenKind, list[int]]], before: list[int]
) -> tuple[TokenRun, ...]:
    shown = []
    for kind, ids in runs:
        shown.append(texts.run(kind, ids, before))
        before = ids
    return tuple(shown)


def _prompt_runs(whole: list[int], kept: list[int]) -> list[tuple[TokenKind, list[int]]]:
    """A prompt is cut at its beginning, or behind the BOS token with which it begins."""
    cut = len(whole) - len(kept)
    start = 0 if whole[cut:] == kept else 1
    runs: list[tuple[TokenKind, list[int]]] = [
        ("prompt", whole[:start]),
        ("cut", whole[start : start + cut]),
        ("prompt", whole[start + cut :]),
    ]
    return [run for run in runs if run[1]]


def _response_runs(
    whole: Int32[np.ndarray, "tokens"],
    kept: Int32[np.ndarray, "kept"],
    trained: Bool[np.ndarray, "kept"] | None,
) -> list[tuple[TokenKind, list[int]]]:
    """A response is cut at its end."""
    mask = [True] * len(kept) if trained is None else trained.tolist()
    kinds: list[TokenKind] = ["trained" if is_trained else "context" for is_trained in mask]
    kinds += ["cut"] * (len(whole) - len(kept))
    pairs = zip(kinds, whole.tolist(), strict=True)
    return [(kind, [number for _, number in same]) for kind, same in groupby(pairs, key=lambda pair: pair[0])]


def _title(group: TokenizedGroup, index: int) -> str:
    """What a response is in its group."""
    wins = [pair for pair in group.pairs if pair.chosen == index]
    losses = [pair for pair in group.pairs if pair.rejected == index]
    parts = []
    if len(group.pairs) == 1 and (wins or losses):
        number = "" if len(group.responses) == 2 else f"response {index}, "
        parts.append(f"{number}{'chosen' if wins else 'rejected'}")
        gap = group.pairs[0].gap
        parts += [] if gap is None else [f"gap {gap:.3f}"]
        weight = group.pairs[0].weight
        parts += [] if weight is None else [f"weight {weight:.3g}"]
    elif wins or losses:
        parts.append(f"response {index}, chosen in {len(wins)} and rejected in {len(losses)} pairs")
    else:
        parts.append(f"response {index}")
    if "labels" in group.per_response:
        parts.append("desirable" if group.per_response["labels"][index] else "undesirable")
    if "auxiliary" in group.per_response:
        parts.append(f"auxiliary reward {group.per_response['auxiliary'][index]:.3f}")
    return ", ".join(parts)
