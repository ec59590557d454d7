"""Which columns of a source hold what: by their names, by a mapping, and never by a silent guess."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from preftune.data.layouts import (
    ALPACA_ANSWER,
    ALPACA_RANKING,
    LAYOUTS,
    RANKED,
    Columns,
    conversation_layout,
)
from preftune.data.messages import structured
from preftune.data.rules import suggest
from preftune.data.sources import Row
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

LABEL_COLUMNS = ("label", "kto_tag")
"""Names of the label of a single response."""

BETTER_COLUMNS = ("better_response_id", "safer_response_id", "better")
"""Names of the number of the better of two responses."""

MAPPED: tuple[str, ...] = (
    *("prompt", "chosen", "rejected", "responses", "scores", "completion", "label"),
    *("score_chosen", "score_rejected", "margin", "better", "tools", "weight", "system"),
)
"""Names that `data.columns` gives to columns of the source."""

SHARED_BEGINNING = "shared_beginning"
"""In place of a prompt's column: the prompt is what chosen and rejected begin with."""

UNUSED = "unused"
"""In place of a column that would be read by its name alone: it is left out."""

LEFT_OUT = ("system", "tools", "weight")
"""Names that may be UNUSED."""

PROMPT_NAMES = frozenset(
    {
        *("instruction", "instructions", "question", "query", "input", "context", "history", "messages"),
        *("conversations", "conversation", "dialogue", "dialog", "post", "problem", "user", "request"),
    }
)
"""Names that prompts have in public sets."""

ACCEPTED = """Shapes accepted:
  prompt, chosen, rejected                  text or messages; without `prompt`: what chosen and rejected share
  ... with score_chosen, score_rejected     or an alias, or margin
  ... with weight                           of a row's pair
  prompt, responses, scores                 N responses and N scores
  prompt, completion, label                 one response, desirable or not
  messages, label                           a conversation whose last message is desirable or not"""


@dataclass(frozen=True)
class Asked:
    """What a run asks of the columns.

    Attributes:
        needs_prior: a score per response, or a margin per pair.
        needs_pairs: pairs.
        needs_labels: labels.
        label_methods: methods that learn from labels, for messages.
        mapping: the source's column, or columns, for names in `MAPPED`.
    """

    needs_prior: bool = False
    needs_pairs: bool = True
    needs_labels: bool = False
    label_methods: Sequence[str] = ()
    mapping: Mapping[str, str | Sequence[str]] | None = None

    @property
    def needs_neither(self) -> bool:
        """Whether single responses without a label are enough."""
        return not (self.needs_prior or self.needs_pairs or self.needs_labels)


Peek = Callable[[str], Iterator[Any]]
"""Values of a column in the first rows."""


def map_columns(row: Row, mapping: Mapping[str, str | Sequence[str]]) -> Row:
    """The row with mapped columns under their new names; several are joined, texts by line breaks."""
    renamed = {}
    for name, source in mapping.items():
        if isinstance(source, str):
            renamed[name] = None if is_unused(name, source) else row.get(source)
        else:
            renamed[name] = _joined_cells(name, [row.get(each) for each in source])
    return {**row, **renamed}


def is_unused(name: str, source: str | Sequence[str] | None) -> bool:
    """Whether a mapping leaves a column out."""
    return source == UNUSED and name in LEFT_OUT


def _joined_cells(name: str, parts: list[Any]) -> Any:
    """Texts as one, messages as one conversation, responses and scores as a list."""
    if name in ("responses", "scores"):
        return parts
    given = [part for part in parts if part not in (None, "", [])]
    if all(isinstance(part, list) for part in given):
        return [message for part in given for message in part] or None
    if all(isinstance(part, str) for part in given):
        return "\n".join(given)
    return parts


def check_mapping(mapping: Mapping[str, str | Sequence[str]], found: Sequence[str]) -> None:
    """Refuse names that nothing reads, and columns that the source does not have.

    Raises:
        InputError: there is one.
    """
    for name, source in mapping.items():
        if name not in MAPPED:
            raise InputError(
                f"data.columns.{name}={source}: there is no such name{suggest(name, list(MAPPED))}. "
                f"Names: {', '.join(MAPPED)}."
            )
        if (name, source) == ("prompt", SHARED_BEGINNING) or is_unused(name, source):
            continue
        for each in [source] if isinstance(source, str) else source:
            if each not in found:
                raise InputError(
                    f"data.columns.{name}={each}: the data has no such column{suggest(each, list(found))}. "
                    f"Columns: {listed(found)}."
                )


def detect_columns(found: Sequence[str], asked: Asked | None = None, peek: Peek | None = None) -> Columns:
    """Say which columns hold what.

    Chosen and rejected come before N scored responses, unless only the latter have the scores a prior needs;
    then comes a response with a label. The layouts of public sets follow, for columns that are no plain shape
    with a `prompt`, and chosen and rejected without one come last.

    Args:
        found: the source's columns, mapped ones under their new names.
        asked: what the run needs.
        peek: gives values of a column, to see whether it could hold the prompt.

    Raises:
        InputError: the columns are none of the accepted shapes, could be read in two ways, a prior is needed
            and there are no scores, pairs are needed and there are only labels, or a weight is mapped where
            nothing is learned from pairs.
    """
    asked = asked or Asked()
    peek = peek or (lambda _: iter(()))
    columns = _detect(found, asked, peek)
    if columns.tools is None and "tools" in found:
        columns = replace(columns, tools="tools")
    if asked.needs_pairs and "weight" in found:
        if columns.by_prompt:
            weight = (asked.mapping or {}).get("weight", "weight")
            raise InputError(
                f"The column {weight!r} holds a weight for every row, and rows with the same prompt are "
                f"joined here: a weight is of one pair. Set data.columns.weight={UNUSED}, or remove it."
            )
        columns = replace(columns, weight="weight")
    elif (source := (asked.mapping or {}).get("weight")) and not is_unused("weight", source):
        raise InputError(
            f"data.columns.weight={source}: a weight is of a row's pair, and nothing here is learned from "
            "pairs. Remove it, or choose a method that learns from pairs."
        )
    if "system" not in found or "system" in columns.beside:
        return columns
    return replace(columns, system="system")


def _detect(found: Sequence[str], asked: Asked, peek: Peek) -> Columns:
    is_pairwise = "chosen" in found and "rejected" in found
    in_group = next((pair for pair in GROUP_COLUMNS if "prompt" in found and set(pair) <= set(found)), None)
    is_labelled = {"prompt", "completion"} <= set(found)
    is_plain = in_group or is_labelled or (is_pairwise and "prompt" in found)
    is_shared = (asked.mapping or {}).get("prompt") == SHARED_BEGINNING
    layout = None if is_plain or is_shared else _layout(found, asked)
    if layout and layout.shape == "groups":
        return (
            _of_two(layout, found, asked)
            if len(layout.responses) > 1 and not layout.scores
            else _joined(layout, asked)
        )
    scores = next((names for names in SCORE_COLUMNS if set(names) <= set(found)), ())
    if (is_pairwise or layout) and (scores or not asked.needs_prior or in_group is None):
        if asked.needs_prior and not scores:
            raise _no_scores(found)
        read = scores if asked.needs_prior else ()
        if layout:
            return replace(layout, scores=read)
        prompt = "prompt" if "prompt" in found else None
        if prompt is None and not is_shared:
            _refuse_other_prompts(found, {*("chosen", "rejected"), *scores}, peek)
        return Columns("pairwise", prompt, ("chosen", "rejected"), read)
    if in_group:
        beside = ("chosen", "rejected") if is_pairwise else ()
        return Columns("groups", "prompt", in_group[:1], in_group[1:], beside=beside)
    return _single(found, asked, peek)


def _joined(layout: Columns, asked: Asked) -> Columns:
    """The layout, whose rows of one response are joined by prompt only where pairs are made of them."""
    is_joined = not layout.by_prompt or asked.needs_pairs or asked.needs_labels or asked.needs_prior
    return layout if is_joined else replace(layout, shape="labelled", by_prompt=False)


def _of_two(layout: Columns, found: Sequence[str], asked: Asked) -> Columns:
    """Two responses, and the column that says which is better, where that is needed.

    Raises:
        InputError: several columns say it, or none does; or a prior is needed.
    """
    if layout.preference:
        return layout
    if asked.needs_prior:
        raise _no_scores(found)
    if "better" in found:
        return replace(layout, better="better")
    saying = [name for name in BETTER_COLUMNS if name in found]
    if len(saying) == 1:
        return replace(layout, better=saying[0])
    if asked.needs_neither:
        return layout
    keys = " or ".join(f"data.columns.better={name}" for name in saying or ("COLUMN",))
    how = f"{listed(saying)} both say" if saying else "no column that is known says"
    raise InputError(
        f"The columns {listed(found)}: {how} which of {listed(layout.responses)} is better. Set {keys}."
    )


def _single(found: Sequence[str], asked: Asked, peek: Peek) -> Columns:
    """One response a row, or several without scores.

    Raises:
        InputError: the columns are no accepted shape, or the objective needs what they lack.
    """
    label = next((name for name in LABEL_COLUMNS if name in found), None)
    if {"prompt", "completion"} <= set(found):
        columns = Columns("labelled", "prompt", ("completion",), label=label)
    elif {"instruction", "output"} <= set(found):
        if _is_ranking(list(peek("output"))):
            if asked.needs_prior:
                raise _no_scores(found)
            return ALPACA_RANKING
        columns = replace(ALPACA_ANSWER, label=label)
    elif conversation := conversation_layout(found, label):
        columns = conversation
    else:
        listing = next((names for names, _ in GROUP_COLUMNS if {"prompt", names} <= set(found)), None)
        if listing and asked.needs_neither:
            return Columns("groups", "prompt", (listing,))
        raise _no_shape(found)
    if columns.label is None and near_miss("label", found) and not asked.needs_neither:
        raise _no_shape(found)
    if asked.needs_pairs or asked.needs_prior:
        raise _no_pairs(found, asked.label_methods if label else ())
    if asked.needs_labels and not label:
        raise InputError(
            f"The columns {listed(found)} have one response and no label, and the objective learns from "
            "labels. Add a column `label`, or set data.columns.label=COLUMN."
        )
    return columns


def _is_ranking(outputs: Sequence[Any]) -> bool:
    """Whether Alpaca's outputs are lists, or JSON texts that are all lists of two texts."""
    if any(isinstance(output, list | tuple) for output in outputs):
        return True
    lists = [found for output in outputs if isinstance(found := structured(output), list)]
    return 0 < len(lists) == len(outputs) and all(
        len(found) == len(RANKED) and all(isinstance(text, str) for text in found) for found in lists
    )


def _layout(found: Sequence[str], asked: Asked) -> Columns | None:
    chosen = {"chosen", "rejected"} & (asked.mapping or {}).keys()
    # Who maps chosen or rejected says what the columns are.
    complete = (columns for names, columns in LAYOUTS.items() if set(names) <= set(found) and not chosen)
    return next(complete, None)


def _refuse_other_prompts(found: Sequence[str], used: set[str], peek: Peek) -> None:
    """Refuse to take what chosen and rejected share for the prompt where another column could hold it.

    Raises:
        InputError: one could.
    """
    if near := near_miss("prompt", found):
        raise InputError(f"No `prompt` column; found {near!r}: was it meant? Set data.columns.prompt={near}.")
    is_text = all(isinstance(value, str) and not value.startswith("\n\nHuman:") for value in peek("chosen"))
    # What a system says is asked for where it is read.
    others = [name for name in found if name not in {*used, "system"}]
    could = [
        name
        for name in others
        if name.lower() in PROMPT_NAMES or (is_text and any(_is_prompt_like(value) for value in peek(name)))
    ]
    if could:
        raise InputError(
            f"No `prompt` column, and {listed(could)} could hold it. Set data.columns.prompt={could[0]}, or "
            f"data.columns.prompt={SHARED_BEGINNING} if chosen and rejected begin with the prompt."
        )


def _is_prompt_like(value: Any) -> bool:
    """Text of several words, or messages."""
    if isinstance(value, str):
        return " " in value.strip()
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def near_miss(wanted: str, found: Sequence[str]) -> str | None:
    """Find a column that looks like a misspelling of the wanted one; `prompt_id` is none of `prompt`."""
    lower = {column.lower(): column for column in found}
    near = get_close_matches(wanted, list(lower), n=1, cutoff=0.82)
    return lower[near[0]] if near and lower[near[0]] != wanted else None


def _no_scores(found: Sequence[str]) -> InputError:
    aliases = "; ".join(" and ".join(names) for names in SCORE_COLUMNS)
    wanted = [name for names in SCORE_COLUMNS for name in names]
    hints = [
        f"{near!r} was found: was `{name}` meant?" for name in wanted if (near := near_miss(name, found))
    ]
    halves = [
        f"`{name}` was found without `{other}`."
        for names in SCORE_COLUMNS[:-1]
        for name, other in (names, names[::-1])
        if name in found
    ]
    fix = "Add them, or choose an objective without a prior, or map them: data.columns.score_chosen=COLUMN."
    return InputError(
        f"The prior needs a score per response, and the columns {listed(found)} have none. "
        f"Accepted: {aliases}. " + " ".join(halves or hints[:1] or [fix])
    )


def _no_pairs(found: Sequence[str], label_methods: Sequence[str]) -> InputError:
    label_fix = f"Set objective.method to {' or '.join(label_methods)}, or give" if label_methods else "Give"
    return InputError(
        f"The columns {listed(found)}: a row has one response and no pair, and the objective learns from "
        f"pairs. {label_fix} chosen and rejected, or several scored responses per prompt."
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
        missing = [name for name in wanted if near_miss(name, found)]
    fixes = [_fix(name, found) for name in missing]
    if missing == ["scores"]:
        fixes.append("Without scores no pair can be built: add them.")
    return InputError(
        f"The columns {listed(found)} are no shape of preference data. {' '.join(fixes)}\n{ACCEPTED}\n"
        "Rename the columns to one of these, or map them, such as data.columns.prompt=COLUMN."
    )


def _fix(name: str, found: Sequence[str]) -> str:
    if near := near_miss(name, found):
        return f"No `{name}` column; found {near!r}: was it meant? Set data.columns.{name}={near}."
    could = [column for column in found if column.lower() in PROMPT_NAMES] if name == "prompt" else []
    if could:
        return f"No `prompt` column; {listed(could)} could hold it: set data.columns.prompt={could[0]}."
    return f"No `{name}` column."


def listed(columns: Sequence[str]) -> str:
    """Names of columns, for a message."""
    return ", ".join(f"`{column}`" for column in columns) or "(none)"
