"""Groups of text to groups of token ids: one BOS, the prompt once, a trained end on every response."""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from preftune.data.control import ControlTexts, split_by_label
from preftune.data.groups import Group, Message, Response, TokenizedGroup, numbers_of
from preftune.data.rules import BadRow, RowReport, RowRules
from preftune.errors import InputError

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

Chat = tuple[Message, ...]

GROUPS_PER_CALL = 256
"""Groups handed to the tokenizer at once: enough to keep a fast tokenizer's threads busy."""


@dataclass(frozen=True)
class LengthLimits:
    """How many tokens a row may have.

    Attributes:
        max_length: prompt + response.
        max_prompt_length: the prompt alone.

    Raises:
        InputError: no room is left for a response, or none for a prompt.
    """

    max_length: int = 1024
    max_prompt_length: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.max_prompt_length < self.max_length:
            raise InputError(
                f"data.max_prompt_length={self.max_prompt_length}, data.max_length={self.max_length}: the "
                "prompt's limit must be at least 1 and below max_length, which counts prompt + response. "
                "Change one of them."
            )


@dataclass(frozen=True)
class RenderedGroup:
    """A group as the text the tokenizer sees; the prompt's text and a response's text join to the whole.

    Attributes:
        group: where it comes from.
        prompt: the prompt, rendered with the generation prompt if it is a chat.
        responses: what follows the prompt, up to and including the end of turn.
        is_chat: a chat's text holds its special tokens already; plain text gets them from the tokenizer.
    """

    group: Group
    prompt: str
    responses: tuple[str, ...]
    is_chat: bool


def tokenize_groups(
    groups: Sequence[Group],
    tokenizer: "transformers.PreTrainedTokenizerBase",
    limits: LengthLimits | None = None,
    rules: RowRules | None = None,
    report: RowReport | None = None,
    *,
    progress: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    control: ControlTexts | None = None,
) -> list[TokenizedGroup]:
    """Tokenize groups; messages go through the tokenizer's chat template, plain text never does.

    Where some responses of a group have a label and others have none, the others are left out: labels, where
    there are any, are all that such a group teaches.

    Args:
        groups: as loaded.
        tokenizer: must have an EOS token, and a chat template where there are messages.
        limits: lengths in tokens.
        rules: `prompt_too_long` and `response_too_long` are applied here.
        report: the one of `load_groups`, to go on counting in it.
        progress: show a progress bar.
        chat_template_kwargs: passed on to the chat template, such as `{"enable_thinking": False}`.
        control: a text by label that the prompt ends with, once rendered. A group then becomes one for each
            label its responses have, without pairs, and a response without a label is left out.

    Returns:
        The groups that were kept, in order.

    Raises:
        InputError: the tokenizer lacks what the groups need, the template refuses a conversation, a rule
            whose action is `error` applies, or no group is left.
    """
    limits, rules, report = (
        limits or LengthLimits(),
        rules or RowRules(),
        report or RowReport(rows=len(groups)),
    )
    template = ChatTemplate(tokenizer, dict(chat_template_kwargs or {}), report)
    kept: list[TokenizedGroup] = []
    for chunk in _chunks(groups, progress):
        rows = [_render_row(template, _only_labelled(group), control) for group in chunk]
        encoded = iter(_encode_groups([part for row in rows for part in row], tokenizer))
        for group, row in zip(chunk, rows, strict=True):
            parts = islice(encoded, len(row))
            kept += _limit_row(list(parts), group.row, tokenizer.bos_token_id, limits, rules, report)
    report.require_rows(len(kept))
    return kept


def _chunks(groups: Sequence[Group], progress: bool) -> Iterator[Sequence[Group]]:
    from rich.progress import track

    starts = range(0, len(groups), GROUPS_PER_CALL)
    for start in track(starts, description="Tokenizing", disable=not progress):
        yield groups[start : start + GROUPS_PER_CALL]


def _render_row(template: "ChatTemplate", group: Group, control: ControlTexts | None) -> list[RenderedGroup]:
    """The group as text, or with control texts its part for each label."""
    if control is None:
        return [template.render(group)]
    parts = [template.render(part) for part in split_by_label(group)]
    return [
        replace(part, prompt=part.prompt + control[bool(part.group.responses[0].label)]) for part in parts
    ]


def _only_labelled(group: Group) -> Group:
    """Leave out responses without a label, and pairs with them, where others of the group have one."""
    labelled = [index for index, response in enumerate(group.responses) if response.label is not None]
    if len(labelled) in (0, len(group.responses)):
        return group
    place = {index: position for position, index in enumerate(labelled)}
    pairs = (
        replace(pair, chosen=place[pair.chosen], rejected=place[pair.rejected])
        for pair in group.pairs
        if {pair.chosen, pair.rejected} <= place.keys()
    )
    return replace(group, responses=tuple(group.responses[index] for index in labelled), pairs=tuple(pairs))


# --- groups to text ---


class ChatTemplate:
    """Renders groups with a tokenizer's chat template: one text for the prompt, one for each response."""

    def __init__(
        self, tokenizer: "transformers.PreTrainedTokenizerBase", kwargs: dict[str, Any], report: RowReport
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                "The tokenizer has no EOS token, so no response could learn to end. Set its eos_token."
            )
        self._tokenizer = tokenizer
        self._kwargs = kwargs
        self._report = report
        self._has_warned = False
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        special = sorted({*special, *tokenizer.all_special_tokens}, key=len, reverse=True)
        any_special = "|".join(map(re.escape, special))
        # The first special token after which only special tokens and whitespace follow.
        self._turn_end = re.compile(rf"(?:{any_special})(?=(?:\s|{any_special})*\Z)")

    def render(self, group: Group) -> RenderedGroup:
        """Write a group as text.

        Raises:
            InputError: there are messages and no chat template, or the template refuses them.
        """
        if isinstance(group.prompt, str):
            texts = tuple(r.content for r in group.responses if isinstance(r.content, str))
            if len(texts) < len(group.responses):
                raise InputError(
                    f"{self._report.locate(group.row)}: the prompt is text and a response is messages. "
                    "Make the prompt messages too."
                )
            return RenderedGroup(group, group.prompt, texts, is_chat=False)
        prompt = self._apply(group.prompt, group.row, add_generation_prompt=True)
        responses = tuple(self._render_response(group.prompt, prompt, r, group.row) for r in group.responses)
        return RenderedGroup(group, prompt, responses, is_chat=True)

    def _render_response(self, messages: Chat, prompt: str, response: Response, row: int) -> str:
        content = response.content
        turns = ({"role": "assistant", "content": content},) if isinstance(content, str) else content
        full = self._apply((*messages, *turns), row, add_generation_prompt=False)
        if full.startswith(prompt):
            return self._cut_after_turn(full[len(prompt) :])
        if len(turns) > 1:
            raise InputError(
                f"{self._report.locate(row)}: the response is {len(turns)} messages, and the chat "
                "template does not write them after its own generation prompt. Give one assistant message, "
                "or change the template."
            )
        # Some templates open the generation prompt with more than they write back, such as a thinking block.
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: the chat template's conversation does not begin with its own generation prompt; "
                "responses are trained as their text and the end of turn.",
                self._report.locate(row),
            )
        end = self._turn_end.search(full)
        return turns[-1]["content"] + (end.group() if end else self._eos())

    def _cut_after_turn(self, text: str) -> str:
        """End the text with its end of turn, exactly once; EOS where the template writes none."""
        end = self._turn_end.search(text)
        return text[: end.end()] if end else text + self._eos()

    def _eos(self) -> str:
        return str(self._tokenizer.eos_token)

    def _apply(self, messages: Chat, row: int, *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        if not self._tokenizer.chat_template:
            raise InputError(
                f"{self._report.locate(row)} holds messages, and the tokenizer has no chat template. "
                "Use an instruction-tuned model's tokenizer, set its chat_template, or give plain text."
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self._kwargs,
                )
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"{self._report.locate(row)}: the chat template refuses the roles {roles}: {error}. "
                "Change the messages, or the template."
            ) from error


# --- text to tokens ---


def _encode_groups(
    rendered: Sequence[RenderedGroup], tokenizer: "transformers.PreTrainedTokenizerBase"
) -> list[TokenizedGroup]:
    plain = iter(_encode([r.prompt for r in rendered if not r.is_chat], tokenizer, add_special_tokens=True))
    written = [text for r in rendered for text in ((r.prompt, *r.responses) if r.is_chat else r.responses)]
    others = iter(_encode(written, tokenizer, add_special_tokens=False))
    groups = []
    for item in rendered:
        prompt = next(others) if item.is_chat else _one_bos(next(plain), item.prompt, tokenizer)
        responses = [next(others) for _ in item.responses]
        if not item.is_chat:
            responses = [_one_eos(ids, tokenizer) for ids in responses]
        groups.append(
            TokenizedGroup(
                _ids(prompt),
                tuple(map(_ids, responses)),
                item.group.pairs,
                numbers_of(item.group.responses, "response"),
            )
        )
    return groups


def _encode(
    texts: list[str], tokenizer: "transformers.PreTrainedTokenizerBase", *, add_special_tokens: bool
) -> list[list[int]]:
    if not texts:
        return []
    # verbose=False: lengths beyond the model's are this module's business, not a warning per run.
    encoded = tokenizer(
        texts, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
    )
    return list(encoded["input_ids"])


def _one_bos(ids: list[int], text: str, tokenizer: "transformers.PreTrainedTokenizerBase") -> list[int]:
    """Undo what tokenizers add beyond one BOS: a final EOS, a second BOS where the text has its own."""
    if ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    return ids[1:] if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2 else ids


def _one_eos(ids: list[int], tokenizer: "transformers.PreTrainedTokenizerBase") -> list[int]:
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _ids(ids: list[int]) -> Int32[np.ndarray, "tokens"]:
    return np.array(ids, dtype=np.int32)


# --- limits ---


def _limit_row(
    parts: Sequence[TokenizedGroup],
    row: int,
    bos: int | None,
    limits: LengthLimits,
    rules: RowRules,
    report: RowReport,
) -> list[TokenizedGroup]:
    """What is kept of a row's groups: all of them or none, so that a dropped row counts once."""
    kept: list[TokenizedGroup] = []
    for part in parts:
        limited = _limit(part, row, bos, limits, rules, report)
        if limited is None:
            return []
        kept.append(limited)
    return kept


def _limit(
    group: TokenizedGroup, row: int, bos: int | None, limits: LengthLimits, rules: RowRules, report: RowReport
) -> TokenizedGroup | None:
    """Bring a group within the limits; None where a rule drops it."""
    prompt = group.prompt
    if len(prompt) == 0:
        report.settle(BadRow("empty_prompt", "prompt", "", "the tokenizer makes no token of it"), row, rules)
        return None
    if len(prompt) > limits.max_prompt_length:
        why = f"{len(prompt)} tokens, and max_prompt_length is {limits.max_prompt_length}"
        if report.settle(BadRow("prompt_too_long", "prompt", len(prompt), why), row, rules) == "drop":
            return None
        prompt = _keep_end(prompt, limits.max_prompt_length, bos)
    room = limits.max_length - len(prompt)
    too_long = [len(response) for response in group.responses if len(response) > room]
    if too_long:
        why = f"{len(prompt)} + {max(too_long)} tokens, and max_length is {limits.max_length}"
        bad = BadRow("response_too_long", "response", max(too_long), why)
        if report.settle(bad, row, rules, times=len(too_long)) == "drop":
            return None
    return replace(group, prompt=prompt, responses=tuple(response[:room] for response in group.responses))


def _keep_end(prompt: Int32[np.ndarray, "tokens"], length: int, bos: int | None) -> Int32[np.ndarray, "kept"]:
    """Keep the last `length` tokens, after BOS where that token is not also ChatML's start of turn."""
    if bos is not None and prompt[0] == bos and np.count_nonzero(prompt == bos) == 1:
        return np.concatenate([prompt[:1], prompt[len(prompt) - length + 1 :]])
    return prompt[-length:]


def fingerprint_groups(groups: Iterable[TokenizedGroup]) -> str:
    """SHA-256 over what is trained on: token ids, pairs, and the data's numbers of both, in order."""
    from preftune.objectives.responses import NUMBERS

    # What is computed of the tokens, as the reference's log-probabilities are, is no part of it.
    of = {name: number.of for name, number in NUMBERS.items() if number.of}
    digest = hashlib.sha256()
    for group in groups:
        pairs = [(pair.chosen, pair.rejected, pair.gap) for pair in group.pairs]
        digest.update(f"group {pairs}".encode())
        for name in (name for name in of if NUMBERS[name].per == "pair" and name != "prior_gap"):
            values = [value for pair in group.pairs if (value := getattr(pair, of[name])) is not None]
            if values:
                digest.update(f"{name} {values}".encode())
        for ids in (group.prompt, *group.responses):
            digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
        for name in (name for name in of if name in group.per_response):
            numbers = group.per_response[name]
            digest.update(name.encode() + numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
