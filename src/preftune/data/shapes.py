"""The column shapes preference data comes in, and how a row of each becomes a group."""

import hashlib
import json
import math
import os.path
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import groupby
from typing import Any

from preftune.data.groups import Group, Message, Pair, Response, Text
from preftune.data.layouts import LAYOUTS, Columns, transcript
from preftune.data.pairing import Pairing
from preftune.data.rules import BadRow, RowReport, RowRules
from preftune.data.sources import Row, Rows, read_rows
from preftune.errors import InputError

SCORE_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen_reward", "rejected_reward"),
    ("margin",),
)
"""Names under which public sets score a pair; the first that is complete is read."""

GROUP_COLUMNS: tuple[tuple[str, str], ...] = (
    ("responses", "scores"),
    ("responses", "rewards"),
    ("completions", "scores"),
    ("all_generated_responses", "all_rm_scores"),
)
"""Names under which public sets hold N responses and their N scores."""

LABELS: dict[bool | int | float | str, bool] = {1: True, 0: False, -1: False, "true": True, "false": False}
"""How a label is written; True is 1 to Python, and text is compared in lower case."""

ACCEPTED = """Shapes accepted:
  prompt, chosen, rejected                  text or messages; without `prompt`: what chosen and rejected share
  ... with score_chosen, score_rejected     or an alias, or margin
  prompt, responses, scores                 N responses and N scores
  prompt, completion, label                 one response, desirable or not"""


@dataclass(frozen=True)
class LoadedGroups:
    """Groups in the order of the source, and what was done to get them.

    Attributes:
        groups: one per row that was kept.
        report: counts per rule; `tokenize_groups` goes on counting in it.
        columns: what was read as what.
        unused_columns: columns the run does not use, for the log; none where the groups keep them.
    """

    groups: list[Group]
    report: RowReport
    columns: Columns
    unused_columns: tuple[str, ...]


def load_groups(
    source: Any,
    *,
    split: str = "train",
    pair_rule: str = "best_worst",
    pairs_per_prompt: int | None = None,
    pair_seed: int = 0,
    length_penalty: float = 0.0,
    needs_prior: bool = False,
    needs_pairs: bool = True,
    needs_labels: bool = False,
    label_methods: Sequence[str] = (),
    keep_columns: bool = False,
    rules: RowRules | None = None,
) -> LoadedGroups:
    """Read a source, detect its shape and build its groups.

    Args:
        source: see `read_rows`.
        split: the split to read.
        pair_rule: a name in `PAIR_RULES`, for sources with N scored responses per prompt.
        pairs_per_prompt: pairs of a group at most; only rules that count read it.
        pair_seed: decides what a rule leaves to chance.
        length_penalty: see `Pairing`.
        needs_prior: the objective needs a score per response, or a margin per pair. Where it does not, the
            score columns of a pairwise source are not read.
        needs_pairs: the objective learns from pairs, which prompt/completion/label rows do not have. Where
            it needs neither pairs nor labels, groups without scores or with equal ones are kept, without a
            pair, and rows of one response each are not joined by prompt.
        needs_labels: the objective learns from labels: the chosen response of a pair becomes a desirable
            one, the rejected an undesirable one, and others of their group stay without a label.
        label_methods: methods that learn from labels, named where the data has those and pairs are needed.
        keep_columns: keep what else is in a row in its group's `columns`, for rewards that read it.
        rules: what to do with rows that cannot be used as they stand.

    Raises:
        InputError: the source, its columns, a row (under a rule whose action is `error`) or `pair_rule`
            cannot be used; or no row is left.
    """
    rules = rules or RowRules()
    pairing = Pairing(pair_rule, pairs_per_prompt, pair_seed, length_penalty)
    rows = read_rows(source, split, unreadable_line=rules["unreadable_line"])
    report = RowReport(locate=rows.locate, rows=len(rows))
    report.require_rows(len(rows))
    report.drop("unreadable_line", len(rows.unreadable))
    report.require_rows(len(rows) - len(rows.unreadable))
    columns = detect_columns(
        rows.columns,
        needs_prior=needs_prior,
        needs_pairs=needs_pairs,
        needs_labels=needs_labels,
        label_methods=label_methods,
    )
    kept = tuple(name for name in rows.columns if name not in columns.texts) if keep_columns else ()
    numbered: Iterable[tuple[int, Row]] = _readable(rows)
    if columns.by_prompt:
        numbered = joined = list(_join_by_prompt(numbered, columns.prompt or ""))
        report.rows = len(joined) + len(rows.unreadable)
    build = _GroupBuilder(columns, pairing, needs_pairs=needs_pairs or needs_labels)
    groups = list(_build_groups(numbered, build, kept, rules, report))
    report.require_rows(len(groups))
    if needs_labels:
        groups = [_label_pairs(group) for group in groups]
    unused = tuple(name for name in rows.columns if name not in columns.used and name not in kept)
    return LoadedGroups(groups, report, columns, unused)


def _readable(rows: Rows) -> Iterator[tuple[int, Row]]:
    """The rows with their numbers."""
    unreadable = rows.unreadable
    return ((number, row) for number, row in enumerate(rows) if number not in unreadable)


def _join_by_prompt(rows: Iterable[tuple[int, Row]], prompt: str) -> Iterator[tuple[int, Row]]:
    """One row, under the first one's number, for neighbours with one prompt; its other columns are lists."""
    for value, same in groupby(rows, key=lambda numbered: numbered[1].get(prompt)):
        numbers, joined = zip(*same, strict=True)
        yield numbers[0], {**{name: [row.get(name) for row in joined] for name in joined[0]}, prompt: value}


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
            if report.settle(bad, number, rules) == "drop":
                continue
        if not kept:
            yield group
            continue
        own = frozenset(kept) if columns.by_prompt else None
        others = {name: row[name] for name in kept if name in row}
        yield replace(group, columns=others, response_columns=own)


# --- columns ---


def detect_columns(
    found: Sequence[str],
    *,
    needs_prior: bool = False,
    needs_pairs: bool = True,
    needs_labels: bool = False,
    label_methods: Sequence[str] = (),
) -> Columns:
    """Say which columns hold what.

    Chosen and rejected come before N scored responses, unless only the latter have the scores a prior needs;
    then comes a response with a label. The layouts of public sets follow, for columns that are no plain shape
    with a `prompt`, and chosen and rejected without one come last.

    Raises:
        InputError: the columns are none of the accepted shapes, a prior is needed and there are no scores, or
            pairs are needed and there are only labels.
    """
    is_pairwise = "chosen" in found and "rejected" in found
    in_group = next((pair for pair in GROUP_COLUMNS if "prompt" in found and set(pair) <= set(found)), None)
    is_labelled = {"prompt", "completion", "label"} <= set(found)
    is_plain = in_group or is_labelled or (is_pairwise and "prompt" in found)
    layout = None if is_plain else _layout(found)
    if layout and layout.shape == "groups":
        is_joined = not layout.by_prompt or needs_pairs or needs_labels
        return layout if is_joined else replace(layout, shape="labelled", by_prompt=False)
    scores = next((names for names in SCORE_COLUMNS if set(names) <= set(found)), ())
    if (is_pairwise or layout) and (scores or not needs_prior or in_group is None):
        if needs_prior and not scores:
            raise _no_scores(found)
        read = scores if needs_prior else ()
        if layout:
            return replace(layout, scores=read)
        prompt = "prompt" if "prompt" in found else None
        if prompt is None and (near := _near("prompt", found)):
            raise InputError(f"No `prompt` column; found {near!r}: was it meant? Rename it to `prompt`.")
        return Columns("pairwise", prompt, ("chosen", "rejected"), read)
    if in_group:
        beside = ("chosen", "rejected") if is_pairwise else ()
        rewrite = _with_shown_chat if is_pairwise else Columns.rewrite
        return Columns("groups", "prompt", in_group[:1], in_group[1:], beside=beside, rewrite=rewrite)
    if is_labelled:
        if needs_pairs:
            raise _no_pairs(found, label_methods)
        return Columns("labelled", "prompt", ("completion",), label="label")
    listed = next((responses for responses, _ in GROUP_COLUMNS if {"prompt", responses} <= set(found)), None)
    if listed and not (needs_prior or needs_pairs or needs_labels):
        return Columns("groups", "prompt", (listed,))
    raise _no_shape(found)


def _layout(found: Sequence[str]) -> Columns | None:
    return next((columns for names, columns in LAYOUTS.items() if set(names) <= set(found)), None)


def _near(wanted: str, found: Sequence[str]) -> str | None:
    """Find a column that looks like a misspelling of the wanted one; `prompt_id` is none of `prompt`."""
    lower = {column.lower(): column for column in found}
    near = get_close_matches(wanted, list(lower), n=1, cutoff=0.82)
    return lower[near[0]] if near and lower[near[0]] != wanted else None


def _no_scores(found: Sequence[str]) -> InputError:
    aliases = "; ".join(" and ".join(names) for names in SCORE_COLUMNS)
    wanted = [name for names in SCORE_COLUMNS for name in names]
    hints = [f"{near!r} was found: was `{name}` meant?" for name in wanted if (near := _near(name, found))]
    halves = [
        f"`{name}` was found without `{other}`."
        for names in SCORE_COLUMNS[:-1]
        for name, other in (names, names[::-1])
        if name in found
    ]
    return InputError(
        f"The prior needs a score per response, and the columns {_listed(found)} have none. "
        f"Accepted: {aliases}. "
        + " ".join(halves or hints[:1] or ["Add them, or choose an objective without a prior."])
    )


def _no_pairs(found: Sequence[str], label_methods: Sequence[str]) -> InputError:
    settings = " or ".join(f"objective.method={name}" for name in label_methods)
    return InputError(
        f"The columns {_listed(found)}: prompt/completion/label rows have one response and no pair, and the "
        f"objective learns from pairs. Set {settings or 'a method that learns from labels'}, or give chosen "
        "and rejected, or several scored responses per prompt."
    )


def _no_shape(found: Sequence[str]) -> InputError:
    group_names = {name for names in GROUP_COLUMNS for name in names}
    if "chosen" in found or "rejected" in found:
        missing = [name for name in ("chosen", "rejected") if name not in found]
    elif "completion" in found or ("label" in found and not group_names & set(found)):
        missing = [name for name in ("prompt", "completion", "label") if name not in found]
    elif group_names & set(found):
        missing = [name for name in ("prompt",) if name not in found]
        missing += ["responses"] if not {r for r, _ in GROUP_COLUMNS} & set(found) else []
        missing += ["scores"] if not {s for _, s in GROUP_COLUMNS} & set(found) else []
    else:
        wanted = ("chosen", "rejected", "responses", "scores", "completion", "label")
        missing = [name for name in wanted if _near(name, found)]
    fixes = [
        f"No `{name}` column; found {near!r}: was it meant?"
        if (near := _near(name, found))
        else f"No `{name}` column."
        for name in missing
    ]
    if missing == ["scores"]:
        fixes.append("Without scores no pair can be built: add them.")
    return InputError(
        f"The columns {_listed(found)} are no shape of preference data. {' '.join(fixes)}\n{ACCEPTED}\n"
        "Rename the columns to one of these."
    )


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(f"`{column}`" for column in columns) or "(none)"


# --- rows ---


@dataclass(frozen=True)
class _GroupBuilder:
    """Builds a group of a row, or says by a `BadRow` why there is none."""

    columns: Columns
    pairing: Pairing
    needs_pairs: bool

    def group(self, row: Row, number: int) -> Group:
        """The group of a row in one of the plain shapes."""
        if self.columns.shape == "pairwise":
            return _read_pair(row, self.columns, number)
        if self.columns.shape == "groups":
            return self._read_group(row, number)
        return _read_labelled(row, self.columns, number)

    def _read_group(self, row: Row, number: int) -> Group:
        columns = self.columns
        prompt = _text(row, columns.prompt or "")
        items, names = _several(row, columns.responses, "missing_field")
        contents = [_as_text(item, name) for item, name in zip(items, names, strict=True)]
        scores = _group_scores(row, columns, len(contents))
        _check_responses(contents, names)
        prompt, contents = separate_prompt(prompt, contents, names)
        _check_prompt(prompt, columns)
        _check_responses(contents, names)
        if columns.preference:
            pairs = _preferred(_number(row.get(columns.preference), columns.preference))
        else:
            chosen = self.pairing.choose(prompt, contents, scores) if scores else []
            pairs = [Pair(*indices) for indices in chosen]
        unequal = tuple(pair for pair in pairs if contents[pair.chosen] != contents[pair.rejected])
        if self.needs_pairs and not pairs:
            column = columns.preference or columns.scores[-1]
            raise BadRow("tied_scores", column, scores or row.get(column))
        if self.needs_pairs and not unequal:
            raise BadRow("equal_responses", names[pairs[0].rejected], contents[pairs[0].rejected])
        return Group(prompt, _responses(contents, scores or [None] * len(contents)), unequal, number)


def _preferred(strength: float) -> list[Pair]:
    """The pair of two responses of which the second is better by `strength`; none at zero."""
    if strength == 0:
        return []
    return [Pair(1, 0, margin=strength) if strength > 0 else Pair(0, 1, margin=-strength)]


def _read_pair(row: Row, columns: Columns, number: int) -> Group:
    prompt = _text(row, columns.prompt) if columns.prompt else None
    contents = [_text(row, column) for column in columns.responses]
    _check_responses(contents, columns.responses)
    if contents[0] == contents[1]:
        raise BadRow("equal_responses", columns.responses[1], contents[1])
    if prompt is None:
        contents = _read_transcripts(contents)
    prompt, contents = separate_prompt(prompt, contents, columns.responses)
    _check_prompt(prompt, columns)
    _check_responses(contents, columns.responses)
    numbers = [_number(row.get(column), column) for column in columns.scores]
    if len(numbers) == 1:
        return Group(prompt, _responses(contents, [None, None]), (Pair(0, 1, margin=numbers[0]),), number)
    return Group(prompt, _responses(contents, numbers or [None, None]), (Pair(0, 1),), number)


def _read_labelled(row: Row, columns: Columns, number: int) -> Group:
    (completion,) = columns.responses
    contents = [_text(row, completion)]
    _check_responses(contents, columns.responses)
    prompt, contents = separate_prompt(_text(row, columns.prompt or ""), contents, columns.responses)
    _check_prompt(prompt, columns)
    _check_responses(contents, columns.responses)
    score = next((_number(row.get(column), column) for column in columns.scores), None)
    label = _label(row, columns.label) if columns.label else None
    return Group(prompt, (Response(contents[0], score, label),), (), number)


def _with_shown_chat(row: Row) -> Row:
    """Sets with both shapes write the responses as text; only chosen and rejected show that it is chat."""
    prompt, shown = row.get("prompt"), ("chosen", "rejected")
    if not isinstance(prompt, str) or not isinstance(row.get("chosen"), list):
        return row
    messages, _ = separate_prompt(prompt, [_text(row, name) for name in shown], shown)
    return {**row, "prompt": list(messages)}


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


def _responses(contents: Sequence[Text], scores: Sequence[float | None]) -> tuple[Response, ...]:
    return tuple(Response(content, score) for content, score in zip(contents, scores, strict=True))


def _several(row: Row, columns: Sequence[str], rule: str) -> tuple[list[Any], list[str]]:
    """What several columns hold, or the items of the list in one; and the column of each."""
    if len(columns) > 1:
        return [row.get(column) for column in columns], list(columns)
    value = row.get(columns[0])
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


def _text(row: Row, column: str) -> Text:
    return _as_text(row.get(column), column)


def _as_text(value: Any, column: str) -> Text:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRow("missing_field", column, value)
    messages = tuple(item for item in value if isinstance(item, dict))
    if len(messages) < len(value) or not all(
        isinstance(message.get(key), str) for message in messages for key in ("role", "content")
    ):
        why = "every message must have a text under `role` and under `content`"
        raise BadRow("missing_field", column, value, why)
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _number(value: Any, column: str) -> float:
    if value is None:
        raise BadRow("missing_score", column, value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow("nan_score", column, value)
    return float(value)


def _label(row: Row, column: str) -> bool:
    value = row.get(column)
    written = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(written, bool | int | float | str) or written not in LABELS:
        raise BadRow("bad_label", column, value, "it must be true or false, 1 or 0, +1 or -1")
    return LABELS[written]


def _is_blank(text: Text) -> bool:
    return not any(
        part.strip() for part in ([text] if isinstance(text, str) else [m["content"] for m in text])
    )


def _check_responses(contents: Sequence[Text], columns: Sequence[str]) -> None:
    for content, column in zip(contents, columns, strict=True):
        if _is_blank(content):
            raise BadRow("empty_response", column, content)


def _check_prompt(prompt: Text, columns: Columns) -> None:
    if _is_blank(prompt):
        if columns.prompt:
            raise BadRow("empty_prompt", columns.prompt, prompt)
        why = "there is no `prompt` column, and chosen and rejected share no beginning"
        raise BadRow("empty_prompt", columns.responses[0], prompt, why)


# --- prompt and responses ---


def separate_prompt(
    prompt: Text | None, contents: list[Text], columns: Sequence[str]
) -> tuple[Text, list[Text]]:
    """Give the prompt, and of each response only what follows it.

    Args:
        prompt: the row's explicit prompt, if any.
        contents: the responses as written, with or without the prompt before them.
        columns: where each response comes from, for messages.

    Raises:
        BadRow: text and messages are mixed, or the messages begin with another prompt.
    """
    texts = [content for content in contents if isinstance(content, str)]
    chats = [content for content in contents if not isinstance(content, str)]
    if texts and chats:
        raise BadRow("missing_field", columns[-1], contents[-1], "one response is text, another is messages")
    if texts:
        if prompt is None:
            return _shared_text(texts)
        if isinstance(prompt, str):
            return prompt, contents
        return prompt, [(_message("assistant", text),) for text in texts]
    if prompt is None:
        return _shared_messages(chats)
    if not isinstance(prompt, str) and all(chat[: len(prompt)] == prompt for chat in chats):
        return prompt, [chat[len(prompt) :] for chat in chats]
    if all(chat[0]["role"] == "assistant" for chat in chats):
        return (_message("user", prompt),) if isinstance(prompt, str) else prompt, contents
    own, rest = _shared_messages(chats)
    if isinstance(prompt, str) and any(message["content"].strip() == prompt.strip() for message in own):
        return own, rest
    why = "its first messages differ from `prompt`; without that column they would be the prompt"
    raise BadRow("prompt_mismatch", columns[0], contents[0], why)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _shared_text(texts: list[str]) -> tuple[Text, list[Text]]:
    """Split where the texts first differ; a space right before that belongs to the responses."""
    shared = os.path.commonprefix(texts).removesuffix(" ")  # noqa: RUF071  # by character is what is meant
    return shared, [text[len(shared) :] for text in texts]


def _shared_messages(chats: list[tuple[Message, ...]]) -> tuple[tuple[Message, ...], list[Text]]:
    """Split after the last message all chats share; each keeps at least one as its response."""
    shared = 0
    while shared < min(map(len, chats)) - 1 and all(chat[shared] == chats[0][shared] for chat in chats):
        shared += 1
    return chats[0][:shared], [chat[shared:] for chat in chats]


# --- fingerprint ---


def _content(group: Group) -> bytes:
    """Everything a group says, and not where it came from."""
    responses = [
        (response.content, response.score, *(() if response.label is None else (response.label,)))
        for response in group.responses
    ]
    pairs = [(pair.chosen, pair.rejected, pair.margin, pair.gap) for pair in group.pairs]
    # Keys are sorted so that {"role", "content"} and {"content", "role"} are the same message.
    return json.dumps([group.prompt, responses, pairs], sort_keys=True).encode()


def fingerprint_rows(groups: Iterable[Group]) -> str:
    """SHA-256 over prompts, responses, scores, labels and pairs, in order.

    The same rows from another file agree, whatever other columns they have.
    """
    digest = hashlib.sha256()
    for group in groups:
        digest.update(_content(group) + b"\n")
    return digest.hexdigest()
