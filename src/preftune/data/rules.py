"""What happens to a row that cannot be used as it stands: every kind has a name, an action and a count."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from preftune.errors import InputError, NothingLeftError


@dataclass(frozen=True)
class Rule:
    """One kind of row that needs a decision; the first action is the default."""

    what: str
    actions: tuple[str, ...]


RULES: dict[str, Rule] = {
    "unreadable_line": Rule(
        "a line of a JSON Lines file is cut, not UTF-8 or no JSON object", ("error", "drop")
    ),
    "missing_field": Rule("a prompt or response is null or neither text nor messages", ("error", "drop")),
    "prompt_mismatch": Rule("the messages do not begin with the row's prompt", ("error", "drop")),
    "empty_prompt": Rule("the prompt is empty or only whitespace", ("error", "drop")),
    "empty_response": Rule("a response is empty or only whitespace", ("error", "drop")),
    "equal_responses": Rule("chosen and rejected are the same", ("error", "drop")),
    "missing_score": Rule("a score is null", ("error", "drop")),
    "nan_score": Rule("a score is NaN, infinite or not a number", ("error", "drop")),
    "bad_label": Rule("a label is not true or false", ("error", "drop")),
    "missing_reward": Rule("a reward's column is missing or null", ("error", "drop")),
    "duplicate_row": Rule(
        "an earlier row has the same prompt, responses, scores and label", ("keep", "drop", "error")
    ),
    "tied_scores": Rule("all scores of a group are equal, so it has no pair", ("drop", "error")),
    "prompt_too_long": Rule("the prompt is longer than max_prompt_length", ("error", "drop", "truncate")),
    "response_too_long": Rule("prompt + response exceeds max_length", ("truncate", "drop", "error")),
}

PAST = {"keep": "kept", "drop": "dropped", "truncate": "truncated"}


def suggest(word: str, known: list[str]) -> str:
    """` (did you mean ...?)`, or nothing where no known word is near."""
    near = get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def shorten(value: object, width: int = 80) -> str:
    """Cut the value's repr, so that a message stays readable when the value is a whole conversation."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


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
    """

    locate: Callable[[int], str] = "row {}".format
    rows: int = 0
    dropped: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def settle(self, bad: BadRow, row: int, rules: RowRules, *, times: int = 1) -> str:
        """Count the finding and return the action to take.

        Raises:
            InputError: the rule's action is `error`.
        """
        action = rules[bad.rule]
        if action == "error":
            raise InputError(self._explain(bad, row))
        self.counts[bad.rule, action] += 1 if action == "drop" else times
        self.dropped += action == "drop"
        return action

    def drop(self, rule: str, rows: int) -> None:
        """Count rows that were left out under a rule by who settled it elsewhere."""
        if rows:
            self.counts[rule, "drop"] += rows
            self.dropped += rows

    def _explain(self, bad: BadRow, row: int) -> str:
        others = [a for a in RULES[bad.rule].actions if a != "error"]
        settings = " or ".join(f"data.rules.{bad.rule}={action}" for action in others)
        return (
            f"{self.locate(row)}, column `{bad.column}`: {shorten(bad.value)} breaks the rule {bad.rule}: "
            f"{bad.why}. Fix the data, or set {settings}."
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
        lines = [f"{self.rows:,} rows read, {self.rows - self.dropped:,} kept"]
        for (rule, action), count in sorted(self.counts.items()):
            unit = "responses" if (rule, action) == ("response_too_long", "truncate") else "rows"
            lines.append(f"  {rule}: {count:,} {unit} {PAST[action]} ({RULES[rule].what})")
        return "\n".join(lines)
