"""How rows become groups: each in one of the plain shapes, or counted under a rule."""

import hashlib
import math
import numbers
import os.path
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.data.columns import (
    SHARED_BEGINNING,
    UNUSED,
    Asked,
    check_mapping,
    detect_columns,
    is_unused,
    map_columns,
)
from preftune.data.groups import Group, Message, Pair, Response, Text, text_key
from preftune.data.layouts import Columns, after_system, text_beside
from preftune.data.messages import (
    CALLING_ROLES,
    ROLES,
    WEIGHT,
    as_content,
    as_tools,
    is_blank,
    messages_in_json,
    split_weights,
    structured,
    transcript,
)
from preftune.data.pairing import Pairing
from preftune.data.rules import BadRow, RowReport, RowRules
from preftune.data.sources import GIVEN_ROWS, Row, Rows, read_rows
from preftune.data.stored import StoredGroups
from preftune.errors import InputError

LABELS: dict[bool | int | float | str, bool] = {
    1: True,
    0: False,
    -1: False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
    "-1": False,
}
"""How a label is written; True is 1 to Python, and text is compared in lower case."""

OWN_ROLES = [name for name, role in ROLES.items() if role == "assistant" and name not in CALLING_ROLES]
BY_CHANCE = "rows whose responses all begin with their prompt, left so: others of the first rows do not"
MAPPED_TEXTS = ("prompt", "chosen", "rejected", "responses", "completion", "tools", "system")
"""Mapped names whose columns hold text, even where it looks like numbers."""

SYSTEM_BESIDE_TEXT = (
    "the column `system` has text, the prompt is plain text, and plain text has no system message. Set "
    "data.columns.system=system, and prompts and responses become messages after a system message; or "
    "data.columns.prompt='[system, prompt]', and the text stands before the prompt; or "
    f"data.columns.system={UNUSED}, and it is left out. Elsewhere, rename or remove the column."
)
"""What may be meant, and how to say it."""

TOOLS_BESIDE_TEXT = (
    "the column `{}` has tools, the prompt is plain text, and only a chat template writes tools. Write the "
    f"prompt as messages, or leave the column out: data.columns.tools={UNUSED}."
)
"""What is wrong, and how to mend it."""

PEEKED = 20
"""First rows in which a column is looked at, to see what it holds."""


@dataclass(frozen=True)
class LoadedGroups:
    """Groups in the order of the source, and what was done to get them.

    Attributes:
        groups: one per row that was kept, outside of memory.
        report: counts per rule; `tokenize_groups` goes on counting in it.
        columns: what was read as what.
        unused_columns: columns the run does not use, for the log; none where the groups keep them.
        read_as: what was read as what, and from which files, in a line for people.
        sources: each file with its number of rows.
    """

    groups: StoredGroups
    report: RowReport
    columns: Columns
    unused_columns: tuple[str, ...]
    read_as: str
    sources: tuple[tuple[str, int], ...]


def load_groups(
    source: Any,
    *,
    split: str = "train",
    asked: Asked | None = None,
    pairing: Pairing | None = None,
    keep_columns: bool = False,
    rules: RowRules | None = None,
) -> LoadedGroups:
    """Read a source, detect its shape and build its groups.

    Args:
        source: see `read_rows`.
        split: the split to read.
        asked: what the run needs of the columns. Where it does not need scores, those of a pairwise source
            are not read. Where it needs neither pairs nor labels, groups without scores or with equal ones
            are kept, without a pair, and rows of one response each are not joined by prompt. Where it needs
            labels, the chosen response of a pair becomes a desirable one, the rejected an undesirable one,
            and others of their group stay without a label.
        pairing: how pairs are made of N scored responses per prompt.
        keep_columns: keep what else is in a row in its group's `columns`, for rewards that read it.
        rules: what to do with rows that cannot be used as they stand.

    Raises:
        InputError: the source, its columns, or rows (under a rule whose action is `error`) cannot be used; or
            no row is left.
    """
    rules, asked = rules or RowRules(), asked or Asked()
    mapping = dict(asked.mapping or {})
    sources = {name: [each] if isinstance(each, str) else list(each) for name, each in mapping.items()}
    texts = {each for name, every in sources.items() if name in MAPPED_TEXTS for each in every}
    rows = read_rows(source, split, unreadable_line=rules["unreadable_line"], texts=texts)
    report = RowReport(locate=rows.locate, rows=len(rows))
    if not len(rows):
        title = source if isinstance(source, str | Path) else GIVEN_ROWS
        raise InputError(
            f"{title}, split={split}: The data has no rows. Give a source or a split with at least one."
        )
    report.drop("unreadable_line", len(rows.unreadable))
    report.require_rows(len(rows) - len(rows.unreadable))
    check_mapping(mapping, rows.columns)
    is_shared = mapping.pop("prompt", None) if mapping.get("prompt") == SHARED_BEGINNING else None
    left_out = {name for name, each in mapping.items() if is_unused(name, each)}
    left_out |= {"prompt"} if is_shared else set()
    taken = {each for name, every in sources.items() if name != "system" for each in every}
    if "system" in taken and "system" not in mapping:
        left_out.add("system")
    found = [name for name in rows.columns if name not in left_out]
    columns = detect_columns(
        [name for name in dict.fromkeys([*found, *mapping]) if name not in left_out],
        asked,
        lambda name: (row.get(name) for row in islice(rows, PEEKED) if row.get(name) is not None),
    )
    read = {each for name in columns.used for each in (sources[name] if name in mapping else (name,))}
    kept = tuple(name for name in rows.columns if name not in columns.texts) if keep_columns else ()
    numbered: Iterable[tuple[int, Row]] = _readable(rows, mapping)
    habits = Habits.of((row for _, row in islice(_readable(rows, mapping), PEEKED)), columns)
    if columns.by_prompt:
        counts = Counter(_prompt_digest(row, columns) for _, row in numbered)
        numbered = _join_by_prompt(_readable(rows, mapping), columns, counts)
        report.rows = len(counts) + len(rows.unreadable)
    build = _GroupBuilder(
        columns,
        pairing or Pairing(),
        asked.needs_pairs or asked.needs_labels,
        habits,
        report.notes,
        makes_chats="system" in mapping and columns.system is not None,
    )
    built = _build_groups(numbered, build, kept, rules, report)
    groups = StoredGroups(map(_label_pairs, built) if asked.needs_labels else built)
    report.require_no_errors()
    report.require_rows(len(groups))
    unused = tuple(name for name in rows.columns if name not in read and name not in kept)
    names = {name: " + ".join(each) for name, each in sources.items()}
    read_as = f"{rows.described}: {columns.describe(found, names)}"
    sizes = tuple((part.name, len(part.rows)) for part in rows.parts)
    return LoadedGroups(groups, report, columns, unused, read_as, sizes)


def _readable(rows: Rows, mapping: Mapping[str, str | Sequence[str]]) -> Iterator[tuple[int, Row]]:
    """The rows with their numbers, and mapped columns under their new names."""
    unreadable = rows.unreadable
    for number, row in enumerate(rows):
        if number not in unreadable:
            yield number, map_columns(row, mapping) if mapping else row


def _prompt_digest(row: Row, columns: Columns) -> bytes:
    """The same for rows that ask the same: with the same system message and tools, where there are any."""
    beside = (row.get(name) or "" for name in (columns.system, columns.tools) if name)
    return hashlib.sha256(text_key([row.get(columns.prompt or ""), *beside]).encode()).digest()


def _join_by_prompt(
    rows: Iterable[tuple[int, Row]], columns: Columns, counts: Mapping[bytes, int]
) -> Iterator[tuple[int, Row]]:
    """One row, under the first one's number, for rows with one prompt; its other columns are lists.

    Where they are neighbours, few are held at a time.
    """
    begun: dict[bytes, list[tuple[int, Row]]] = {}
    for numbered in rows:
        begun.setdefault(_prompt_digest(numbered[1], columns), []).append(numbered)
        while begun and len(begun[first := next(iter(begun))]) == counts[first]:
            numbers_of_rows, joined = zip(*begun.pop(first), strict=True)
            names = dict.fromkeys(name for row in joined for name in row)
            lists = {name: [row.get(name) for row in joined] for name in names}
            shared = {name: joined[0].get(name) for name in columns.shared if name in lists}
            yield numbers_of_rows[0], lists | shared


def _build_groups(
    numbered: Iterable[tuple[int, Row]],
    build: "_GroupBuilder",
    kept: Sequence[str],
    rules: RowRules,
    report: RowReport,
) -> Iterator[Group]:
    seen: set[bytes] = set()
    columns = build.columns
    for number, row in numbered:
        try:
            group = build.group(columns.rewrite(row), number)
            content = hashlib.sha256(_content(group)).digest()
            if content in seen:
                raise BadRow("duplicate_row", columns.prompt or columns.responses[0], group.prompt)
            seen.add(content)
        except BadRow as bad:
            if report.settle(bad, number, rules) != "keep":
                continue
        except InputError as error:
            raise InputError(f"{report.locate(number)}: {error}") from None
        except RecursionError:
            raise InputError(
                f"{report.locate(number)}: it holds lists or mappings in each other too many times. "
                "Remove the row."
            ) from None
        if not kept:
            yield group
            continue
        own = frozenset(kept) - columns.shared if columns.by_prompt else None
        others = {name: row[name] for name in kept if name in row}
        yield replace(group, columns=others, response_columns=own)


# --- rows ---


@dataclass(frozen=True)
class Habits:
    """How a source writes its texts, as its first rows show: what a row does by chance is no habit.

    Attributes:
        json_columns: those whose texts are all messages, written as JSON.
        repeats_prompt: whether all responses that are text begin with their prompt.
    """

    json_columns: frozenset[str] = frozenset()
    repeats_prompt: bool = False

    @classmethod
    def of(cls, rows: Iterable[Row], columns: Columns) -> "Habits":
        """Look at the first rows."""
        prompts: list[str] = []
        answers: list[str] = []
        repeating: list[bool] = []
        for raw in rows:
            try:
                row = columns.rewrite(raw)
            except BadRow:
                continue  # is settled where the row is read
            (prompt,) = _texts_of([row.get(columns.prompt or "")]) or [""]
            cells: list[Any] = [row.get(name) for name in columns.responses]
            is_list = columns.shape == "groups" and len(cells) == 1
            responses = _texts_of(
                listed if is_list and isinstance(listed := structured(cells[0]), list) else cells
            )
            prompts += [prompt] if prompt else []
            answers += responses
            if prompt and responses:
                repeating.append(all(text.startswith(prompt) for text in responses))
        is_json = {
            tuple(names): bool(texts) and all(map(messages_in_json, texts))
            for names, texts in ((columns.responses, answers), ([columns.prompt or ""], prompts))
        }
        found = frozenset(name for names, all_are in is_json.items() if all_are for name in names)
        return cls(found, bool(repeating) and all(repeating))


def _texts_of(cells: Iterable[Any]) -> list[str]:
    """Those that are text, but for blank ones."""
    return [cell for cell in cells if isinstance(cell, str) and cell.strip()]


@dataclass(frozen=True)
class _GroupBuilder:
    """Builds a group of a row, or says by a `BadRow` why there is none."""

    columns: Columns
    pairing: Pairing
    needs_pairs: bool
    habits: Habits = field(default_factory=Habits)
    notes: Counter[str] = field(default_factory=Counter)
    makes_chats: bool = False

    def group(self, row: Row, number: int) -> Group:
        """The group of a row in one of the plain shapes."""
        if self.columns.shape == "pairwise":
            group = self._read_pair(row, number)
        elif self.columns.shape == "groups":
            group = self._read_group(row, number)
        else:
            group = self._read_labelled(row, number)
        if self.columns.weight:
            weight = row.get(self.columns.weight)
            group = replace(group, pairs=_weighted(group.pairs, weight, self.columns.weight))
        tools = as_tools(row.get(self.columns.tools), self.columns.tools) if self.columns.tools else ()
        group = replace(group, tools=tools) if tools else group
        group = self._with_system(group, row) if self.columns.system else group
        if group.tools and isinstance(group.prompt, str):
            raise InputError(TOOLS_BESIDE_TEXT.format(self.columns.tools))
        return group

    def _with_system(self, group: Group, row: Row) -> Group:
        """The group whose conversation begins with the row's system message.

        Raises:
            InputError: the prompt is plain text, and nobody said what becomes of the system's text.
        """
        if isinstance(group.prompt, str):
            if self.makes_chats:
                group = _as_chat(group)
            elif text_beside(row, "system"):
                raise InputError(SYSTEM_BESIDE_TEXT)
        if isinstance(group.prompt, str):
            return group
        return replace(group, prompt=tuple(after_system(row, list(group.prompt))))

    def _read_group(self, row: Row, number: int) -> Group:
        columns = self.columns
        prompt: Text | None = self._text(row, columns.prompt or "")
        items, names = _several(row, columns.responses, "missing_field")
        contents = [self._content(item, name) for item, name in zip(items, names, strict=True)]
        if isinstance(prompt, str):
            prompt = self._shown_chat(row, prompt)
        scores = _group_scores(row, columns, len(contents))
        prompt, contents = self._separated(prompt, contents, names)
        pairs = self._pairs(row, prompt, contents, scores)
        if self.needs_pairs and not pairs:
            distinct = {_key(content) for content in contents}
            if len(distinct) < min(len(contents), 2):
                raise BadRow("equal_responses", names[-1], contents[-1])
            column = columns.preference or (columns.scores or columns.responses)[-1]
            raise BadRow("tied_scores", column, scores or row.get(column))
        responses = _responses(contents, scores or [None] * len(contents), names)
        return Group(prompt, responses, tuple(pairs), number)

    def _pairs(self, row: Row, prompt: Text, contents: list[Text], scores: list[float]) -> list[Pair]:
        columns = self.columns
        if columns.preference:
            pairs = _preferred(_number(row.get(columns.preference), columns.preference))
        elif columns.better:
            better = row.get(columns.better)
            if isinstance(better, bool) or better not in (0, 1, "0", "1"):
                why = "it must be the number of the better response, 0 or 1"
                raise BadRow("bad_label", columns.better, better, why)
            pairs = [Pair(int(better), 1 - int(better))]
        elif scores:
            return self._chosen_pairs(prompt, contents, scores)
        else:
            return []
        return [pair for pair in pairs if contents[pair.chosen] != contents[pair.rejected]]

    def _chosen_pairs(self, prompt: Text, contents: list[Text], scores: list[float]) -> list[Pair]:
        """Pairs by the rule, of responses that differ; where it takes equal ones, each text counts once."""
        chosen = self.pairing.choose(prompt, contents, scores)
        keys = [_key(content) for content in contents]
        unequal = [pair for pair in chosen if keys[pair[0]] != keys[pair[1]]]
        if chosen and not unequal:
            places = {key: [place for place, other in enumerate(keys) if other == key] for key in keys}
            firsts = [same[0] for same in places.values()]
            means = [sum(scores[place] for place in same) / len(same) for same in places.values()]
            chosen = self.pairing.choose(prompt, [contents[place] for place in firsts], means)
            unequal = [(firsts[better], firsts[worse]) for better, worse in chosen]
        return [Pair(*places) for places in unequal]

    def _shown_chat(self, row: Row, prompt: str) -> Text:
        """Sets with both shapes write the responses as text; chosen and rejected show that it is a chat."""
        shown = ("chosen", "rejected")
        if not set(shown) <= set(self.columns.beside) or not isinstance(row.get("chosen"), list):
            return prompt
        messages, _ = self._separated(prompt, [self._text(row, name) for name in shown], shown)
        return messages

    def _read_pair(self, row: Row, number: int) -> Group:
        columns = self.columns
        prompt = self._text(row, columns.prompt) if columns.prompt else None
        contents = [self._text(row, column) for column in columns.responses]
        _check_responses(contents, columns.responses)
        if _key(contents[0]) == _key(contents[1]):
            raise BadRow("equal_responses", columns.responses[1], contents[1])
        if prompt is None:
            contents = _read_transcripts(contents)
        prompt, contents = self._separated(prompt, contents, columns.responses)
        scores = [_number(row.get(column), column) for column in columns.scores]
        margin = scores[0] if len(scores) == 1 else None
        both = [None, None] if len(scores) < 2 else scores  # a margin is one number
        responses = _responses(contents, both, columns.responses)
        return Group(prompt, responses, (Pair(0, 1, margin=margin),), number)

    def _read_labelled(self, row: Row, number: int) -> Group:
        columns = self.columns
        (name,) = columns.responses
        content = self._text(row, name)
        _check_responses([content], [name])
        if columns.prompt is None:
            prompt, content = self._split_conversation(content, name)
            _check_prompt(prompt, columns)
            _check_responses([content], [name])
        else:
            prompt, (content,) = self._separated(self._text(row, columns.prompt), [content], [name])
        score = next((_number(row.get(column), column) for column in columns.scores), None)
        label = _label(row, columns.label) if columns.label else None
        (response,) = _responses([content], [score], [name])
        return Group(prompt, (replace(response, label=label),), (), number)

    def _split_conversation(self, content: Text, column: str) -> tuple[Text, Text]:
        """A conversation's prompt and response: from the first message with weight 1, or the model's last."""
        messages = transcript(content) if isinstance(content, str) else list(content)
        if not messages:
            raise BadRow("missing_field", column, content, "it must be a list of messages")
        own = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        if not own:
            raise BadRow("nothing_trained", column, content)
        # Where some messages have a weight, the model's own without one are trained too.
        has_weights = any(WEIGHT in message for message in messages)
        weighed = [place for place in own if has_weights and messages[place].get(WEIGHT, 1) == 1]
        start = weighed[0] if weighed else own[-1]
        if own[-1] < len(messages) - 1:
            self.notes[f"`{column}`: messages after the model's last one left out"] += 1
        prompt, _ = split_weights(messages[:start], column)
        return prompt, tuple(messages[start : own[-1] + 1])

    def _separated(
        self, prompt: Text | None, contents: list[Text], names: Sequence[str]
    ) -> tuple[Text, list[Text]]:
        """Prompt and responses, none of which is blank."""
        _check_responses(contents, names)
        if prompt is not None:
            _check_prompt(prompt, self.columns)
        if isinstance(prompt, tuple):
            split_weights(prompt, self.columns.prompt or names[0])
        prompt, contents = separate_prompt(
            prompt, contents, names, self.notes, repeats_prompt=self.habits.repeats_prompt
        )
        _check_prompt(prompt, self.columns)
        _check_responses(contents, names)
        return prompt, contents

    def _text(self, row: Row, column: str) -> Text:
        return self._content(row.get(column), column)

    def _content(self, value: Any, column: str) -> Text:
        return as_content(value, column, self.notes, reads_json=column in self.habits.json_columns)


def _as_chat(group: Group) -> Group:
    """Text as a conversation: what the user asks, and what the model answers."""
    responses = (
        replace(response, content=(_message("assistant", response.content),))
        if isinstance(response.content, str)
        else response
        for response in group.responses
    )
    prompt = (_message("user", str(group.prompt)),)
    return replace(group, prompt=prompt, responses=tuple(responses))


def _without_weights(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple({key: value for key, value in message.items() if key != WEIGHT} for message in messages)


def _key(content: Text) -> str:
    """The same for contents that say the same."""
    return text_key(content if isinstance(content, str) else _without_weights(content))


def _preferred(strength: float) -> list[Pair]:
    """The pair of two responses of which the second is better by `strength`; none at zero."""
    if strength == 0:
        return []
    return [Pair(1, 0, margin=strength) if strength > 0 else Pair(0, 1, margin=-strength)]


def _read_transcripts(contents: list[Text]) -> list[Text]:
    """Messages where all texts are transcripts of a dialogue."""
    chats = [chat for content in contents if (chat := transcript(content))]
    return [tuple(chat) for chat in chats] if len(chats) == len(contents) else contents


def _label_pairs(group: Group) -> Group:
    """Label what only won or only lost: desirable or undesirable. What did both stays without a label."""
    won, lost = {pair.chosen for pair in group.pairs}, {pair.rejected for pair in group.pairs}
    labels = {index: index in won for index in won ^ lost}
    responses = (
        replace(response, label=labels.get(index, response.label))
        for index, response in enumerate(group.responses)
    )
    return replace(group, responses=tuple(responses))


def _responses(
    contents: Sequence[Text], scores: Sequence[float | None], columns: Sequence[str]
) -> tuple[Response, ...]:
    """Responses with what of them is trained.

    Raises:
        BadRow: nothing of one is.
    """
    result = []
    for content, score, column in zip(contents, scores, columns, strict=True):
        trained = None
        if not isinstance(content, str):
            content, flags = split_weights(content, column)
            if not any(flags or (message["role"] == "assistant" for message in content)):
                raise BadRow("nothing_trained", column, content)
            trained = tuple(flags) if flags else None
        result.append(Response(content, score, trained=trained))
    return tuple(result)


def _several(row: Row, columns: Sequence[str], rule: str) -> tuple[list[Any], list[str]]:
    """What several columns hold, or the items of the list in one; and the column of each."""
    if len(columns) > 1:
        return [row.get(column) for column in columns], list(columns)
    value = structured(row.get(columns[0]))
    if not isinstance(value, list) or not value:
        raise BadRow(rule, columns[0], value, "it must be a list with an item per response")
    return value, [columns[0]] * len(value)


def _group_scores(row: Row, columns: Columns, count: int) -> list[float]:
    """A score for each of the responses; none where the columns have none."""
    if not columns.scores:
        return []
    items, names = _several(row, columns.scores, "missing_score")
    scores = [_number(item, name) for item, name in zip(items, names, strict=True)]
    if len(scores) != count:
        why = f"there are {count} responses and {len(scores)} scores"
        raise BadRow("missing_score", names[0], scores, why)
    return scores


def _number(value: Any, column: str) -> float:
    if value is None:
        raise BadRow("missing_score", column, value)
    number = _finite_or_nan(value)
    if math.isnan(number):
        raise BadRow("nan_score", column, value)
    return number


def _finite_or_nan(value: Any) -> float:
    is_number = isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:  # a whole number of 400 digits
        number = math.nan
    return number if math.isfinite(number) else math.nan


def _weighted(pairs: Sequence[Pair], value: Any, column: str) -> tuple[Pair, ...]:
    """A row's pair with the row's weight.

    Raises:
        BadRow: the weight is not a finite number >= 0, or there are several pairs.
    """
    weight = _finite_or_nan(value)
    if not weight >= 0:
        raise BadRow("bad_pair_weight", column, value, "it must be a finite number >= 0")
    if len(pairs) > 1:
        why = f"the row has {len(pairs)} pairs, and a weight is of one: choose another data.pair_rule"
        raise BadRow("bad_pair_weight", column, value, why)
    return tuple(replace(pair, weight=weight) for pair in pairs)


def _label(row: Row, column: str) -> bool:
    value = row.get(column)
    written = value.strip().lower() if isinstance(value, str) else value
    written = float(written) if isinstance(written, Decimal) else written
    if not isinstance(written, bool | int | float | str) or written not in LABELS:
        raise BadRow("bad_label", column, value, "it must be true or false, 1 or 0, +1 or -1")
    return LABELS[written]


def _check_responses(contents: Sequence[Text], columns: Sequence[str]) -> None:
    for content, column in zip(contents, columns, strict=True):
        if is_blank(content):
            raise BadRow("empty_response", column, content)
        given = set() if isinstance(content, str) else {message["role"] for message in content}
        if "assistant" not in given and not given <= set(ROLES.values()):
            roles = ", ".join(map(repr, sorted(given)))
            why = f"its roles are {roles}. The model's may be called {', '.join(OWN_ROLES)}"
            raise BadRow("nothing_trained", column, content, why)


def _check_prompt(prompt: Text, columns: Columns) -> None:
    if is_blank(prompt):
        if columns.prompt:
            raise BadRow("empty_prompt", columns.prompt, prompt)
        why = "there is no `prompt` column, and chosen and rejected share no beginning"
        raise BadRow("empty_prompt", columns.responses[0], prompt, why)


# --- prompt and responses ---


def separate_prompt(
    prompt: Text | None,
    contents: list[Text],
    columns: Sequence[str],
    notes: Counter[str] | None = None,
    *,
    repeats_prompt: bool = False,
) -> tuple[Text, list[Text]]:
    """Give the prompt, and of each response only what follows it.

    Args:
        prompt: the row's explicit prompt, if any.
        contents: the responses as written, with or without the prompt before them.
        columns: where each response comes from, for messages.
        notes: counts what was done.
        repeats_prompt: whether responses that are text begin with the prompt.

    Raises:
        BadRow: text and messages are mixed, the responses begin with another prompt, or answer different
            ones.
    """
    notes = Counter() if notes is None else notes
    texts = [content for content in contents if isinstance(content, str)]
    chats = [content for content in contents if not isinstance(content, str)]
    if texts and chats:
        raise BadRow("missing_field", columns[-1], contents[-1], "one response is text, another is messages")
    if prompt is not None and not isinstance(prompt, str):
        # A column that repeats a whole conversation says nothing of where its prompt ends.
        is_repeated = len(chats) > 1 and any(_is_same(prompt, chat) for chat in chats)
        prompt = None if is_repeated else _without_weights(prompt)
    if texts:
        return _of_texts(prompt, texts, columns, notes, repeats_prompt)
    if prompt is None:
        return _shared_messages(chats, columns, notes)
    asked = (_message("user", prompt),) if isinstance(prompt, str) else prompt
    if not isinstance(prompt, str) and all(_is_same(chat[: len(prompt)], prompt) for chat in chats):
        rests: list[Text] = [chat[len(prompt) :] for chat in chats]
        _check_responses(rests, columns)
        return _require_answers(prompt, rests, columns)
    if all(chat[0]["role"] == "assistant" for chat in chats):
        return asked, list(chats)
    own, rest = _shared_messages(chats, columns, notes)
    said = {message["content"].strip() for message in own}
    if all(message["content"].strip() in said for message in asked):
        return own, rest
    why = "its first messages differ from `prompt`; without that column they would be the prompt"
    raise BadRow("prompt_mismatch", columns[0], contents[0], why)


def _of_texts(
    prompt: Text | None,
    texts: list[str],
    columns: Sequence[str],
    notes: Counter[str],
    repeats_prompt: bool,
) -> tuple[Text, list[Text]]:
    if prompt is None:
        return _shared_text(texts)
    if not isinstance(prompt, str):
        return prompt, [(_message("assistant", text),) for text in texts]
    if not repeats_prompt:
        if all(text.startswith(prompt) for text in texts):
            notes[BY_CHANCE] += 1
        return prompt, list(texts)
    for text, column in zip(texts, columns, strict=True):
        if not text.startswith(prompt):
            why = "it does not begin with its prompt, and the first rows repeat their prompt in all responses"
            raise BadRow("prompt_mismatch", column, text, why)
    notes["the prompt stood before the responses too, and was taken off them"] += 1
    return prompt, [text[len(prompt) :] for text in texts]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _shared_text(texts: list[str]) -> tuple[Text, list[Text]]:
    """Split where the texts first differ; a space right before that belongs to the responses."""
    shared = os.path.commonprefix(texts).removesuffix(" ")  # noqa: RUF071  # by character is what is meant
    return shared, [text[len(shared) :] for text in texts]


def _is_same(one: Sequence[Message], other: Sequence[Message]) -> bool:
    return _without_weights(one) == _without_weights(other)


def _shared_messages(
    chats: list[tuple[Message, ...]], columns: Sequence[str], notes: Counter[str]
) -> tuple[tuple[Message, ...], list[Text]]:
    """Split after the last message all chats share; each keeps at least one of the model as its response."""
    own = [[place for place, message in enumerate(chat) if message["role"] == "assistant"] for chat in chats]
    most = min(places[-1] if places else len(chat) - 1 for places, chat in zip(own, chats, strict=True))
    shared = 0
    while shared < most and all(
        _is_same(chat[shared : shared + 1], chats[0][shared : shared + 1]) for chat in chats
    ):
        shared += 1
    prompts = [split_weights(chat[:shared], name) for chat, name in zip(chats, columns, strict=True)]
    prompt = prompts[0][0]
    if any(any(flags or ()) for _, flags in prompts):
        notes["messages with a loss weight of 1 that all responses share: part of the prompt"] += 1
    return _require_answers(prompt, [chat[shared:] for chat in chats], columns)


def _require_answers(
    prompt: tuple[Message, ...], rests: Sequence[Text], columns: Sequence[str]
) -> tuple[tuple[Message, ...], list[Text]]:
    """Refuse responses that begin with somebody else's message: their prompts differ.

    Raises:
        BadRow: one does.
    """
    for rest, column in zip(rests, columns, strict=True):
        if rest and not isinstance(rest, str) and rest[0]["role"] != "assistant":
            raise BadRow("different_prompts", column, rest[0])
    return prompt, list(rests)


# --- fingerprint ---


def _content(group: Group) -> bytes:
    """Everything a group says, and not where it came from."""
    responses = [
        (
            response.content,
            response.score,
            *(() if response.label is None else (response.label,)),
            *(() if response.trained is None else (response.trained,)),
        )
        for response in group.responses
    ]
    pairs = [
        (pair.chosen, pair.rejected, pair.margin, pair.gap, *(() if pair.weight is None else (pair.weight,)))
        for pair in group.pairs
    ]
    said = [group.prompt, responses, pairs, *([group.tools] if group.tools else [])]
    return text_key(said).encode()


def fingerprint_rows(groups: Iterable[Group]) -> str:
    """SHA-256 over prompts, responses, scores, labels and pairs, in order.

    The same rows from another file agree, whatever other columns they have.
    """
    digest = hashlib.sha256()
    for group in groups:
        digest.update(_content(group) + b"\n")
    return digest.hexdigest()
