"""The column shapes preference data comes in, and how a row of each becomes a group."""

import hashlib
import json
import math
import os.path
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from preftune.data.groups import Group, Message, Pair, Response, Text
from preftune.data.rules import BadRow, RowReport, RowRules, suggest
from preftune.data.sources import Row, read_rows
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


def best_worst(scores: Sequence[float]) -> list[tuple[int, int]]:
    """Prefer the best response over the worst; among equals the first. Nothing where all are equal."""
    if max(scores) == min(scores):
        return []
    return [(scores.index(max(scores)), scores.index(min(scores)))]


def all_pairs(scores: Sequence[float]) -> list[tuple[int, int]]:
    """Prefer every response over every one that scored lower."""
    places = range(len(scores))
    return [(i, j) for i in places for j in places if scores[i] > scores[j]]


PAIR_RULES: dict[str, Callable[[Sequence[float]], list[tuple[int, int]]]] = {
    "best_worst": best_worst,
    "all_pairs": all_pairs,
}
"""How pairs, as (chosen, rejected), are chosen among the scored responses of a group."""


@dataclass(frozen=True)
class Columns:
    """Which columns of the source a run reads, and as what.

    Attributes:
        shape: pairwise, groups or labelled.
        prompt: the prompt's column; None where chosen and rejected begin with it.
        responses: the columns of the responses.
        scores: the columns of the scores; empty where the run needs none.
        conversation: chosen and rejected of a groups row, which tell chat from plain text.
        label: the column that says whether the response of a labelled row is desirable.
    """

    shape: Literal["pairwise", "groups", "labelled"]
    prompt: str | None
    responses: tuple[str, ...]
    scores: tuple[str, ...]
    conversation: tuple[str, ...] = ()
    label: str | None = None

    @property
    def texts(self) -> set[str]:
        """The columns of the prompt and the responses."""
        return {self.prompt or "", *self.responses, *self.conversation}

    @property
    def used(self) -> set[str]:
        """Every column that groups are built from."""
        return {*self.texts, *self.scores, self.label or ""}


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
        needs_prior: the objective needs a score per response, or a margin per pair. Where it does not, the
            score columns of a pairwise source are not read.
        needs_pairs: the objective learns from pairs, which prompt/completion/label rows do not have.
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
    if pair_rule not in PAIR_RULES:
        raise InputError(
            f"data.pair_rule={pair_rule}: there is no such rule{suggest(pair_rule, list(PAIR_RULES))}. "
            f"Rules: {', '.join(PAIR_RULES)}."
        )
    rows = read_rows(source, split)
    report = RowReport(locate=rows.locate, rows=len(rows))
    report.require_rows(len(rows))
    columns = detect_columns(
        rows.columns, needs_prior=needs_prior, needs_pairs=needs_pairs, label_methods=label_methods
    )
    kept = tuple(name for name in rows.columns if name not in columns.texts) if keep_columns else ()
    groups = list(_build_groups(rows, columns, kept, pair_rule, rules, report))
    report.require_rows(len(groups))
    if needs_labels:
        groups = [_label_pairs(group) for group in groups]
    unused = tuple(name for name in rows.columns if name not in columns.used and name not in kept)
    return LoadedGroups(groups, report, columns, unused)


def _build_groups(
    rows: Iterable[Row],
    columns: Columns,
    kept: Sequence[str],
    pair_rule: str,
    rules: RowRules,
    report: RowReport,
) -> Iterable[Group]:
    seen: set[bytes] = set()
    for number, row in enumerate(rows):
        try:
            if columns.shape == "pairwise":
                group = _read_pair(row, columns, number)
            elif columns.shape == "groups":
                group = _read_group(row, columns, number, pair_rule)
            else:
                group = _read_labelled(row, columns, number)
            content = hashlib.sha256(_content(group)).digest()
            if content in seen:
                raise BadRow("duplicate_row", columns.prompt or columns.responses[0], group.prompt)
            seen.add(content)
        except BadRow as bad:
            if report.settle(bad, number, rules) == "drop":
                continue
        yield replace(group, columns={name: row[name] for name in kept if name in row}) if kept else group


# --- columns ---


def detect_columns(
    found: Sequence[str],
    *,
    needs_prior: bool = False,
    needs_pairs: bool = True,
    label_methods: Sequence[str] = (),
) -> Columns:
    """Say which columns hold what.

    Chosen and rejected come before N scored responses, unless only the latter have the scores a prior needs;
    a response with a label comes last.

    Raises:
        InputError: the columns are none of the accepted shapes, a prior is needed and there are no scores, or
            pairs are needed and there are only labels.
    """
    is_pairwise = "chosen" in found and "rejected" in found
    in_group = next((pair for pair in GROUP_COLUMNS if "prompt" in found and set(pair) <= set(found)), None)
    scores = next((names for names in SCORE_COLUMNS if set(names) <= set(found)), ())
    if is_pairwise and (scores or not needs_prior or in_group is None):
        if needs_prior and not scores:
            raise _no_scores(found)
        prompt = "prompt" if "prompt" in found else None
        if prompt is None and (near := _near("prompt", found)):
            raise InputError(f"No `prompt` column; found {near!r}: was it meant? Rename it to `prompt`.")
        return Columns("pairwise", prompt, ("chosen", "rejected"), scores if needs_prior else ())
    if in_group:
        conversation = ("chosen", "rejected") if is_pairwise else ()
        return Columns("groups", "prompt", in_group[:1], in_group[1:], conversation)
    if {"prompt", "completion", "label"} <= set(found):
        if needs_pairs:
            raise _no_pairs(found, label_methods)
        return Columns("labelled", "prompt", ("completion",), (), label="label")
    raise _no_shape(found)


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


def _read_pair(row: Row, columns: Columns, number: int) -> Group:
    prompt = _text(row, columns.prompt) if columns.prompt else None
    contents = [_text(row, column) for column in columns.responses]
    _check_responses(contents, columns.responses)
    if contents[0] == contents[1]:
        raise BadRow("equal_responses", columns.responses[1], contents[1])
    prompt, contents = separate_prompt(prompt, contents, columns.responses)
    _check_prompt(prompt, columns)
    _check_responses(contents, columns.responses)
    numbers = [_number(row.get(column), column) for column in columns.scores]
    if len(numbers) == 1:
        return Group(prompt, _responses(contents, [None, None]), (Pair(0, 1, margin=numbers[0]),), number)
    return Group(prompt, _responses(contents, numbers or [None, None]), (Pair(0, 1),), number)


def _read_group(row: Row, columns: Columns, number: int, pair_rule: str) -> Group:
    (responses_column,), (scores_column,) = columns.responses, columns.scores
    prompt = _text(row, columns.prompt or "")
    contents = [_as_text(item, responses_column) for item in _items(row, responses_column, "missing_field")]
    scores = [_number(item, scores_column) for item in _items(row, scores_column, "missing_score")]
    if len(contents) != len(scores):
        why = f"there are {len(contents)} responses and {len(scores)} scores"
        raise BadRow("missing_score", scores_column, scores, why)
    names = [responses_column] * len(contents)
    _check_responses(contents, names)
    if isinstance(prompt, str) and columns.conversation and isinstance(row.get("chosen"), list):
        # Sets with both shapes write the responses as text; only chosen and rejected show that it is chat.
        prompt, _ = separate_prompt(
            prompt, [_text(row, name) for name in columns.conversation], columns.conversation
        )
    prompt, contents = separate_prompt(prompt, contents, names)
    _check_prompt(prompt, columns)
    _check_responses(contents, names)
    pairs = PAIR_RULES[pair_rule](scores)
    if not pairs:
        raise BadRow("tied_scores", scores_column, scores)
    unequal = tuple(Pair(i, j) for i, j in pairs if contents[i] != contents[j])
    if not unequal:
        raise BadRow("equal_responses", responses_column, contents[pairs[0][1]])
    return Group(prompt, _responses(contents, scores), unequal, number)


def _read_labelled(row: Row, columns: Columns, number: int) -> Group:
    (completion,) = columns.responses
    contents = [_text(row, completion)]
    _check_responses(contents, columns.responses)
    prompt, contents = separate_prompt(_text(row, columns.prompt or ""), contents, columns.responses)
    _check_prompt(prompt, columns)
    _check_responses(contents, columns.responses)
    return Group(prompt, (Response(contents[0], label=_label(row, columns.label or "")),), (), number)


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


def _items(row: Row, column: str, rule: str) -> list[Any]:
    value = row.get(column)
    if not isinstance(value, list) or not value:
        raise BadRow(rule, column, value, "it must be a list with an item per response")
    return value


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
