"""Groups of text to groups of token ids: one BOS, the prompt once, a trained end on every response."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int32

from preftune.data.control import ControlTexts, split_by_label
from preftune.data.groups import Group, Pair, TokenizedGroup, numbers_of
from preftune.data.messages import as_content
from preftune.data.rules import RULES, BadRow, RowReport, RowRules, shorten
from preftune.data.stored import with_mapped_tokens
from preftune.data.template import ChatTemplate, Segment, Tools
from preftune.errors import InputError

if TYPE_CHECKING:
    import transformers

GROUPS_PER_CALL = 256
"""Groups handed to the tokenizer at once: enough to keep a fast tokenizer's threads busy."""


@dataclass(frozen=True)
class LengthLimits:
    """How many tokens a row may have.

    Attributes:
        max_length: prompt + response.
        max_prompt_length: the prompt alone; None leaves it to `max_length`.

    Raises:
        InputError: no room is left for a response, or none for a prompt.
    """

    max_length: int = 1024
    max_prompt_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_prompt_length is not None and not 1 <= self.max_prompt_length < self.max_length:
            raise InputError(
                f"data.max_prompt_length={self.max_prompt_length}, data.max_length={self.max_length}: the "
                "prompt's limit must be at least 1 and below max_length, which counts prompt + response. "
                "Change one of them."
            )


@dataclass(frozen=True)
class RenderedGroup:
    """A group as the text the tokenizer sees; the prompt's text and a response's parts join to the whole.

    Attributes:
        group: where it comes from.
        prompt: the prompt, rendered with the generation prompt if it is a chat.
        responses: what follows the prompt, up to and including the end of turn, in parts.
        is_chat: a chat's text holds its special tokens already; plain text gets them from the tokenizer.
    """

    group: Group
    prompt: str
    responses: tuple[tuple[Segment, ...], ...]
    is_chat: bool


def tokenize_groups(
    groups: Sequence[Group],
    tokenizer: "transformers.PreTrainedTokenizerBase",
    limits: LengthLimits | None = None,
    rules: RowRules | None = None,
    report: RowReport | None = None,
    *,
    progress: bool = False,
    needs_pairs: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    today: date | None = None,
    control: ControlTexts | None = None,
) -> list[TokenizedGroup]:
    """Tokenize groups; messages go through the tokenizer's chat template, plain text never does.

    Where some responses of a group have a label and others have none, the others are left out: labels, where
    there are any, are all that such a group teaches.

    Args:
        groups: as loaded.
        tokenizer: must have an EOS token, and a chat template where there are messages.
        limits: lengths in tokens.
        rules: those about templates and lengths are applied here, and `equal_responses` to tokens.
        report: the one of `load_groups`, to go on counting in it.
        progress: show a progress bar.
        needs_pairs: a group whose pairs have equal tokens is left out under `equal_responses`.
        chat_template_kwargs: passed on to the chat template, such as `{"enable_thinking": False}`.
        today: see `ChatTemplate`.
        control: a text by label that the prompt ends with, once rendered. A group then becomes one for each
            label its responses have, without pairs, and a response without a label is left out.

    Returns:
        The groups that were kept, in order; see `with_mapped_tokens`.

    Raises:
        InputError: the tokenizer lacks what the groups need, a rule whose action is `error` applies, or no
            group is left.
    """
    report, rules = report or RowReport(rows=len(groups)), rules or RowRules()
    whole = whole_groups(
        groups,
        tokenizer,
        rules,
        report,
        progress=progress,
        chat_template_kwargs=chat_template_kwargs,
        today=today,
        control=control,
    )
    return limit_groups(whole, tokenizer, limits or LengthLimits(), rules, report, needs_pairs=needs_pairs)


def limit_groups(
    whole: Iterable[Sequence[TokenizedGroup]],
    tokenizer: "transformers.PreTrainedTokenizerBase",
    limits: LengthLimits,
    rules: RowRules,
    report: RowReport,
    *,
    needs_pairs: bool = False,
) -> list[TokenizedGroup]:
    """The second half of `tokenize_groups`: what is left of `whole_groups` within the limits."""
    limit = _Limits(limits, rules, report, tokenizer.bos_token_id, needs_pairs)
    kept = with_mapped_tokens(group for parts in whole for group in limit.row(parts))
    report.require_no_errors()
    report.require_rows(len(kept))
    return kept


def whole_groups(
    groups: Sequence[Group],
    tokenizer: "transformers.PreTrainedTokenizerBase",
    rules: RowRules,
    report: RowReport,
    *,
    progress: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    today: date | None = None,
    control: ControlTexts | None = None,
) -> Iterator[list[TokenizedGroup]]:
    """The token ids of every row before any limit: of one group, or of one for each label with `control`.

    Arguments and errors are those of `tokenize_groups`; the caller asks the report for its errors.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "The tokenizer has no EOS token, so no response could learn to end. Set its eos_token."
        )
    template = ChatTemplate(tokenizer, chat_template_kwargs, report.notes, today)
    for chunk in _chunks(groups, progress):
        rows = []
        for group in chunk:
            try:
                rows.append(_render_row(template, _only_labelled(group), control))
            except BadRow as bad:
                report.settle(bad, group.row, rules)
            except InputError as error:
                raise InputError(f"{report.locate(group.row)}: {error}") from None
        encoded = iter(encode_groups([part for row in rows for part in row], tokenizer, report.notes))
        for row in rows:
            yield list(islice(encoded, len(row)))


def _chunks(groups: Sequence[Group], progress: bool) -> Iterator[Sequence[Group]]:
    starts: Iterable[int] = range(0, len(groups), GROUPS_PER_CALL)
    if progress:
        from rich.console import Console
        from rich.progress import track

        # What a verb prints, others may read.
        starts = track(starts, description="Tokenizing", console=Console(stderr=True))
    for start in starts:
        yield groups[start : start + GROUPS_PER_CALL]


def _render_row(template: ChatTemplate, group: Group, control: ControlTexts | None) -> list[RenderedGroup]:
    """The group as text, or with control texts its part for each label."""
    if control is None:
        return [render_group(template, group)]
    parts = [render_group(template, part) for part in split_by_label(group)]
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


def render_group(template: ChatTemplate, group: Group) -> RenderedGroup:
    """Write a group as text.

    Raises:
        BadRow: the template refuses the messages, or leaves out what is trained.
        InputError: there are messages and no chat template.
    """
    if isinstance(group.prompt, str):
        texts = [response.content for response in group.responses if isinstance(response.content, str)]
        if len(texts) < len(group.responses):
            raise InputError("the prompt is text and a response is messages. Make the prompt messages too.")
        parts = tuple((Segment(text, is_trained=True),) for text in texts)
        return RenderedGroup(group, group.prompt, parts, is_chat=False)
    messages, tools = group.prompt, group.tools
    prompt = template.prompt(messages, tools)
    responses = tuple(
        tuple(template.response(messages, prompt, response, tools)) for response in group.responses
    )
    return RenderedGroup(group, prompt, responses, is_chat=True)


# --- text to tokens ---


def encode_prompt(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    prompt: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    tools: Tools = (),
) -> list[int]:
    """Token ids of a prompt, the same where one trains and where one samples.

    Args:
        tokenizer: of the model that answers.
        prompt: text, or messages in any writing that `as_content` reads.
        chat_template_kwargs: passed on to the chat template.
        tools: that the model may call.

    Raises:
        InputError: the prompt is neither text nor messages, or there is no chat template or it refuses them.
    """
    try:
        content = as_content(prompt, "prompt")
        if isinstance(content, str):
            return _one_bos(_encode([content], tokenizer, add_special_tokens=True)[0], content, tokenizer)
        text = ChatTemplate(tokenizer, chat_template_kwargs).prompt(content, tools)
    except BadRow as bad:
        raise InputError(f"prompt {shorten(bad.value)}: {RULES[bad.rule].what}: {bad.why}") from None
    # The template writes the special tokens itself.
    return _encode([text], tokenizer, add_special_tokens=False)[0]


def end_tokens(tokenizer: "transformers.PreTrainedTokenizerBase", *, is_chat: bool) -> frozenset[int]:
    """Tokens that end a response: EOS, and of a chat the first one that its template closes a turn with."""
    ends = {tokenizer.eos_token_id} - {None}
    if is_chat and tokenizer.chat_template:
        try:
            closing = ChatTemplate(tokenizer).turn_end()
        except (BadRow, InputError):
            closing = ""
        ends.update(_encode([closing], tokenizer, add_special_tokens=False)[0][:1] if closing else [])
    return frozenset(int(end) for end in ends)


def encode_groups(
    rendered: Sequence[RenderedGroup],
    tokenizer: "transformers.PreTrainedTokenizerBase",
    notes: Counter[str] | None = None,
) -> list[TokenizedGroup]:
    """Token ids of texts: each response as the tokenizer cuts it behind its prompt.

    Args:
        rendered: the texts.
        tokenizer: cuts them.
        notes: counts the responses whose first token would merge with the prompt's last.
    """
    notes = Counter() if notes is None else notes
    texts: dict[bool, list[str]] = {True: [], False: []}
    for item in rendered:
        texts[item.is_chat] += [item.prompt]
        texts[item.is_chat] += [text for response in item.responses for text in _joined(item, response)]
    encoded = {
        is_chat: iter(_encode(found, tokenizer, add_special_tokens=not is_chat))
        for is_chat, found in texts.items()
    }
    groups = []
    for item in rendered:
        encode = partial(_next_ids, encoded[item.is_chat], None if item.is_chat else tokenizer)
        prompt = encode(item.prompt)
        responses = []
        for response in item.responses:
            joined = [prompt, *map(encode, _joined(item, response))]
            responses.append(_parts_of(joined, response, tokenizer, notes, item.is_chat))
        groups.append(
            TokenizedGroup(
                _ids(prompt),
                tuple(_ids(ids) for ids, _ in responses),
                item.group.pairs,
                numbers_of(item.group.responses, "response"),
                trained=_masks([mask for _, mask in responses]),
                row=item.group.row,
            )
        )
    return groups


def _joined(item: RenderedGroup, response: Sequence[Segment]) -> list[str]:
    """The prompt with ever more of the response."""
    return list(accumulate((part.text for part in response), initial=item.prompt))[1:]


def _next_ids(
    encoded: Iterator[list[int]], tokenizer: "transformers.PreTrainedTokenizerBase | None", text: str
) -> list[int]:
    ids = next(encoded)
    return ids if tokenizer is None else _one_bos(ids, text, tokenizer)


def _parts_of(
    joined: Sequence[list[int]],
    response: Sequence[Segment],
    tokenizer: "transformers.PreTrainedTokenizerBase",
    notes: Counter[str],
    is_chat: bool,
) -> tuple[list[int], list[bool]]:
    """Token ids of a response and which are trained, from the ids of the prompt with ever more of it."""
    ids: list[int] = []
    mask: list[bool] = []
    for before, after, part in zip(joined, joined[1:], response, strict=False):
        if after[: len(before)] == before:
            own = after[len(before) :]
        else:
            notes["responses whose tokens would merge with the prompt's last, cut apart from them"] += 1
            own = _encode([part.text], tokenizer, add_special_tokens=False)[0]
        ids += own
        mask += [part.is_trained] * len(own)
    if not is_chat and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(int(tokenizer.eos_token_id))
        mask.append(True)
    return ids, mask


def _masks(masks: Sequence[Sequence[bool]]) -> tuple[Bool[np.ndarray, "_"], ...] | None:
    if all(all(mask) for mask in masks):
        return None
    return tuple(np.array(mask, dtype=np.bool_) for mask in masks)


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


def _ids(ids: list[int]) -> Int32[np.ndarray, "tokens"]:
    return np.array(ids, dtype=np.int32)


# --- limits ---


@dataclass(frozen=True)
class _Limits:
    """Brings groups within the limits, and leaves out what rules drop."""

    lengths: LengthLimits
    rules: RowRules
    report: RowReport
    bos: int | None
    needs_pairs: bool

    def row(self, parts: Sequence[TokenizedGroup]) -> list[TokenizedGroup]:
        """What is kept of a row's groups: all of them or none, so that a dropped row counts once."""
        kept: list[TokenizedGroup] = []
        for part in parts:
            try:
                kept.append(self._limited(part))
            except BadRow as bad:
                self.report.settle(bad, part.row, self.rules)
                return []
        return kept

    def _limited(self, group: TokenizedGroup) -> TokenizedGroup:
        """The group within the limits.

        Raises:
            BadRow: nothing of it is left to train, or a rule drops it.
        """
        if len(group.prompt) == 0:
            raise BadRow("empty_prompt", "prompt", "", "the tokenizer makes no token of it")
        prompt = self._prompt(group.prompt, group.row)
        longest = self.lengths.max_length
        room = longest - len(prompt)
        if room < 1:
            why = f"{len(prompt)} tokens, and max_length is {longest}: no token of a response would fit"
            raise BadRow("no_room", "prompt", len(prompt), why)
        too_long = [len(response) for response in group.responses if len(response) > room]
        if too_long:
            why = f"{len(prompt)} + {max(too_long)} tokens, and max_length is {longest}"
            bad = BadRow("response_too_long", "response", max(too_long), why)
            if self.rules["response_too_long"] != "truncate":
                raise bad
            self.report.settle(bad, group.row, self.rules, times=len(too_long))
            cut = sum(too_long) - room * len(too_long)
            self.report.notes[f"tokens cut from the ends of responses by max_length={longest}"] += cut
        trained = None if group.trained is None else tuple(mask[:room] for mask in group.trained)
        if trained and not all(mask.any() for mask in trained):
            why = f"max_length={longest} cuts off all that is trained of a response"
            raise BadRow("no_room", "response", longest, why)
        responses = tuple(response[:room] for response in group.responses)
        pairs = self._unequal(group.pairs, responses)
        return replace(group, prompt=prompt, responses=responses, trained=trained, pairs=pairs)

    def _prompt(self, prompt: Int32[np.ndarray, "tokens"], row: int) -> Int32[np.ndarray, "kept"]:
        most = self.lengths.max_prompt_length
        if most is None or len(prompt) <= most:
            return prompt
        bad = BadRow(
            "prompt_too_long", "prompt", len(prompt), f"{len(prompt)} tokens, and max_prompt_length is {most}"
        )
        if self.rules["prompt_too_long"] != "truncate":
            raise bad
        self.report.settle(bad, row, self.rules)
        cut = len(prompt) - most
        self.report.notes[f"tokens cut from the beginnings of prompts by max_prompt_length={most}"] += cut
        return _keep_end(prompt, most, self.bos)

    def _unequal(
        self, pairs: tuple[Pair, ...], responses: Sequence[Int32[np.ndarray, "_"]]
    ) -> tuple[Pair, ...]:
        """Pairs whose tokens differ.

        Raises:
            BadRow: none does, and the objective learns from pairs.
        """
        kept = tuple(
            pair for pair in pairs if not np.array_equal(responses[pair.chosen], responses[pair.rejected])
        )
        if pairs and not kept and self.needs_pairs:
            why = f"they have the same tokens, within max_length={self.lengths.max_length}"
            raise BadRow("equal_responses", "responses", responses[pairs[0].chosen].tolist(), why)
        return kept


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
        for mask in group.trained or ():
            digest.update(b"trained" + np.packbits(mask).tobytes())
        for name in (name for name in of if name in group.per_response):
            numbers = group.per_response[name]
            digest.update(name.encode() + numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
