"""Options as fields of a frozen dataclass: default, rule and help are there, and one check serves all."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, cast

Value = float | bool | str
"""What an option can be set to."""


@dataclass(frozen=True)
class Constraint:
    """Which values an option takes: `holds` decides, `text` says it to people."""

    text: str
    holds: Callable[[object], bool]


def _is_number(value: object) -> bool:
    # Not isfinite, which refuses whole numbers that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


POSITIVE = Constraint("a finite number > 0", lambda value: _is_number(value) and cast(float, value) > 0)
BELOW_ONE = Constraint("a number > 0 and < 1", lambda value: _is_number(value) and 0 < cast(float, value) < 1)
SHARE = Constraint("a number > 0 and <= 1", lambda value: _is_number(value) and 0 < cast(float, value) <= 1)
NOT_NEGATIVE = Constraint("a finite number >= 0", lambda value: _is_number(value) and cast(float, value) >= 0)
SWITCH = Constraint("true or false", lambda value: isinstance(value, bool))
REDUCTION = Constraint(
    "'token_mean' or 'sum'", lambda value: isinstance(value, str) and value in ("token_mean", "sum")
)


@dataclass(frozen=True)
class Option:
    """A field's setting.

    Attributes:
        default: the value when it is not given; None for an option that is then absent.
        rule: which values it takes.
        summary: one line for people.
        instead_of: the option that must not be given beside this one.
    """

    default: Value | None
    rule: Constraint
    summary: str
    instead_of: str | None = None


def option(default: Value | None, rule: Constraint, summary: str, *, instead_of: str | None = None) -> Any:
    """A field of a dataclass of options; see `Option`."""
    return field(default=default, metadata={"option": Option(default, rule, summary, instead_of)})


class Options:
    """Base of frozen dataclasses of options: made by hand, they are checked as from a configuration.

    Raises:
        ValueError: a value breaks its option's rule.
    """

    def __post_init__(self) -> None:
        for key, option in options_of(type(self)).items():
            value = getattr(self, key)
            if value is not None or option.default is not None:
                _checked(key, value, option)


def options_of(*owners: type[Options]) -> dict[str, Option]:
    """Options of one or more dataclasses, by name."""
    return {each.name: each.metadata["option"] for owner in owners for each in fields(cast(Any, owner))}


def resolve_options(
    settings: Mapping[Any, object],
    options: Mapping[str, Option],
    owner: str,
    prefix: str = "",
    others: Iterable[str] = (),
) -> dict[str, Value]:
    """Every option with its value, given or default.

    Args:
        settings: what is given.
        options: what there is.
        owner: whose options they are, for messages.
        prefix: what keys begin with in messages.
        others: keys that stand beside them, for suggestions.

    Raises:
        ValueError: a key or a value is not allowed; the message names it, the rule and the fix.
    """
    for key in settings:
        if key not in options:
            raise ValueError(
                f"{prefix + str(key)!r} is not an option of {owner}, which takes {', '.join(options)}: "
                f"{nearest(key, (*others, *options)) or 'remove it'}"
            )
    # An option without a default is absent when None, as a fully written configuration has it.
    given = {
        key: value for key, value in settings.items() if not (value is None and options[key].default is None)
    }
    resolved: dict[str, Value] = {}
    replaced = {options[key].instead_of: key for key in given}
    for key, option in options.items():
        if key in given and key in replaced:
            other = replaced[key]
            raise ValueError(
                f"{key} = {given[key]!r} and {other} = {given[other]!r} are two ways to set the same "
                "number: remove one of them"
            )
        if key in given:
            resolved[key] = _checked(prefix + key, given[key], option)
        elif option.default is not None and key not in replaced:
            resolved[key] = option.default
    return resolved


def nearest(word: object, candidates: Iterable[str], names_elsewhere: Mapping[str, str] | None = None) -> str:
    """A question that names the candidate a word may stand for; empty where none is near.

    Args:
        word: what was written.
        candidates: what there is.
        names_elsewhere: candidates by what others call them, in lower case.
    """
    candidates = tuple(candidates)
    known = (names_elsewhere or {}).get(str(word).lower())
    matches = [known] if known in candidates else get_close_matches(str(word).lower(), candidates, n=1)
    return f"did you mean {matches[0]!r}?" if matches else ""


def _checked(key: str, value: object, option: Option) -> Value:
    if option.rule.holds(value):
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else cast(Value, value)
    raise ValueError(f"{key} = {value!r} must be {option.rule.text}: {_fix(key, value, option)}")


def _fix(key: str, value: object, option: Option) -> str:
    """YAML reads 1e-1 as text; such a value only has to be written differently."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        number = None
    if number is not None and option.rule.holds(number):
        return f"it is text; write {key}: {number!r} without quotes and with a decimal point"
    if option.default is None:
        return f"set such a value, or remove {key}"
    return f"set such a value, or remove {key} to use {option.default!r}"
