"""What happens to a row that cannot be used as it stands: every kind has a name, an action and a count."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from preftune.errors import InputError, NothingLeftError


@dataclass(frozen=True)
class Rule:
    """One kind of row that needs a decision; the first action is the default."""

    what: str
    actions: tuple[str, ...]


RULES: dict[str, Rule] = {
    # Surely a mistake: the run stops.
    "unreadable_line": Rule(
        "a line of a JSON Lines file is cut, not UTF-8 or no JSON object", ("error", "drop")
    ),
    "missing_field": Rule("a prompt or response is null or neither text nor messages", ("error", "drop")),
    "bad_tools": Rule("a tool or a call of one cannot be read", ("error", "drop")),
    "bad_weight": Rule("a message's loss weight is neither 0 nor 1", ("error", "drop")),
    "prompt_mismatch": Rule("the responses do not begin with the row's prompt", ("error", "drop")),
    "empty_prompt": Rule("the prompt is empty or only whitespace", ("error", "drop")),
    "nothing_trained": Rule("a response has no message of the model that is trained", ("error", "drop")),
    "missing_score": Rule("a score is null", ("error", "drop")),
    "nan_score": Rule("a score is NaN, infinite or not a number", ("error", "drop")),
    "bad_pair_weight": Rule(
        "a pair's weight is not a finite number >= 0, or the row has several pairs", ("error", "drop")
    ),
    "bad_label": Rule("a label is not true or false", ("error", "drop")),
    "missing_reward": Rule("a reward's column is missing or null", ("error", "drop")),
    "template_refuses": Rule("the chat template refuses the messages", ("error", "drop")),
    "template_loses": Rule("the chat template leaves out what a response says", ("error", "drop")),
    # What real sets contain: counted, and left out or shortened.
    "empty_response": Rule("a response is empty or only whitespace", ("drop", "error")),
    "equal_responses": Rule("chosen and rejected are the same", ("drop", "error")),
    "different_prompts": Rule(
        "chosen and rejected differ at a user's message: they answer different prompts", ("drop", "error")
    ),
    "tied_scores": Rule("all scores of a group are equal, so it has no pair", ("drop", "error")),
    "duplicate_row": Rule(
        "an earlier row has the same prompt, responses, scores and label", ("keep", "drop", "error")
    ),
    "prompt_too_long": Rule("the prompt is longer than max_prompt_length", ("truncate", "drop", "error")),
    "no_room": Rule("the prompt alone has max_length tokens or more", ("drop", "error")),
    "response_too_long": Rule("prompt + response exceeds max_length", ("truncate", "drop", "error")),
}
"""Rules in the order of the documentation."""

PAST = {"keep": "kept", "drop": "dropped", "truncate": "truncated"}
COST = {"keep": "keeps all {rows}", "drop": "drops {rows}", "truncate": "shortens {rows}"}
SHOWN_ROWS = 3
"""Rows of an error that are shown."""


def suggest(word: str, known: list[str]) -> str:
    """` (did you mean ...?)`, or nothing where no known word is near."""
    near = get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def shorten(value: object, width: int = 80) -> str:
    """Cut the value's repr, so that a message stays readable when the value is a whole conversation."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def counted(count: int, noun: str) -> str:
    """`1 row`, or `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class RowRules:
    """The action for every rule: `RowRules({"equal_responses": "drop"})[rule]`.

    Attributes:
        overrides: actions that differ from the defaults in `RULES`.

    Raises:
        InputError: a rule or an action that does not exist.
    """

    overrides: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rule, action in self.overrides.items():
            if rule not in RULES:
                raise InputError(
                    f"data.rules.{rule}={action}: there is no such rule{suggest(rule, list(RULES))}. "
                    f"Rules: {', '.join(RULES)}."
                )
            actions = RULES[rule].actions
            if action not in actions:
                raise InputError(
                    f"data.rules.{rule}={action}: there is no such action"
                    f"{suggest(str(action), list(actions))}. {rule} takes {', '.join(actions)}."
                )

    def __getitem__(self, rule: str) -> str:
        return self.overrides.get(rule, RULES[rule].actions[0])


class BadRow(Exception):  # noqa: N818  # a finding on its way to a rule; what the user may see is an InputError
    """A row that broke a rule. It never leaves the package: `RowReport.settle` decides."""

    def __init__(self, rule: str, column: str, value: object, why: str = "") -> None:
        super().__init__(rule)
        self.rule = rule
        self.column = column
        self.value = value
        self.why = why or RULES[rule].what


@dataclass
class RowReport:
    """What was read, and how often each rule was applied.

    Attributes:
        locate: names a row for an error message, such as `pairs.jsonl row 3`.
        rows: rows read.
        dropped: rows no longer in the data.
        counts: (rule, action) to a number; responses for `response_too_long=truncate`, else rows.
        notes: what else was done to rows or found in them, and how often.
        sources: rows read and groups used of each source of a mixture.
    """

    locate: Callable[[int], str] = "row {}".format
    rows: int = 0
    dropped: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    _errors: dict[str, list[str]] = field(default_factory=dict)

    def settle(self, bad: BadRow, row: int, rules: RowRules, *, times: int = 1) -> str:
        """Count the finding and return the action to take; an `error` waits for `require_no_errors`."""
        action = rules[bad.rule]
        if action == "error":
            found = self._errors.setdefault(bad.rule, [])
            # The first few are shown; the rest are counted.
            found.append(self._explain(bad, row) if len(found) < SHOWN_ROWS else "")
            return action
        self.counts[bad.rule, action] += 1 if action == "drop" else times
        self.dropped += action == "drop"
        return action

    def require_no_errors(self) -> None:
        """Stop if rows broke a rule whose action is `error`.

        Raises:
            InputError: with the number of rows, the first of them, and what each other action would cost.
        """
        if self._errors:
            raise InputError("\n".join(self._complaint(rule, found) for rule, found in self._errors.items()))

    def drop(self, rule: str, rows: int) -> None:
        """Count rows that were left out under a rule by who settled it elsewhere."""
        if rows:
            self.counts[rule, "drop"] += rows
            self.dropped += rows

    def _explain(self, bad: BadRow, row: int) -> str:
        return f"{self.locate(row)}, column `{bad.column}`: {shorten(bad.value)}: {bad.why}"

    def _complaint(self, rule: str, found: Sequence[str]) -> str:
        shown = [text for text in found if text]
        more = f"\n  and {len(found) - len(shown):,} more" if len(found) > len(shown) else ""
        rows = f"{len(found):,} of {counted(self.rows, 'row')}" if self.rows > 1 else "the row"
        settings = " or ".join(
            f"data.rules.{rule}={action} ({COST[action].format(rows=f'{len(found):,}')})"
            for action in RULES[rule].actions
            if action != "error"
        )
        return (
            f"{rows} {'break' if len(found) > 1 else 'breaks'} the rule {rule} ({RULES[rule].what}):\n  "
            + "\n  ".join(shown)
            + f"{more}\nFix the data, or set {settings}."
        )

    def require_rows(self, kept: int) -> None:
        """Refuse data of which nothing is left.

        Raises:
            InputError: there were no rows.
            NothingLeftError: every one was dropped.
        """
        if self.rows == 0:
            raise InputError("The data has no rows. Give a source or a split with at least one.")
        if kept == 0:
            raise NothingLeftError(
                f"No row is left to train on. {self.summary()}\nFix the data, or relax data.rules."
            )

    def summary(self) -> str:
        """One line for the rows, and one for each rule that was applied."""
        lines = [f"{counted(self.rows, 'row')} read, {self.rows - self.dropped:,} kept"]
        for (rule, action), count in sorted(self.counts.items()):
            unit = "response" if (rule, action) == ("response_too_long", "truncate") else "row"
            lines.append(f"  {rule}: {counted(count, unit)} {PAST[action]} ({RULES[rule].what})")
        lines += [f"  {note}: {count:,}" for note, count in self.notes.items()]
        lines += [
            f"  {name}: {counted(counts['rows'], 'row')}, {counted(counts['groups'], 'group')}"
            for name, counts in self.sources.items()
        ]
        return "\n".join(lines)
