"""Options as fields of a frozen dataclass or parameters of a function, and one check for all.

Default, rule and help stand at the field or parameter.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Annotated, Any, cast, get_origin

Value = float | bool | str | None
"""What an option of a method can be set to; None where its rule allows it."""


@dataclass(frozen=True)
class Constraint:
    """Which values an option takes: `holds` decides, `text` says it to people."""

    text: str
    holds: Callable[[object], bool]


def is_finite_number(value: object) -> bool:
    """Whether it is an int or a float, not a bool, NaN or infinite."""
    # Not isfinite, which refuses whole numbers that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


POSITIVE = Constraint("a finite number > 0", lambda value: is_finite_number(value) and cast(float, value) > 0)
POSITIVE_OR_NONE = Constraint(
    "a finite number > 0, or null for none", lambda value: value is None or POSITIVE.holds(value)
)
BELOW_ONE = Constraint(
    "a number > 0 and < 1", lambda value: is_finite_number(value) and 0 < cast(float, value) < 1
)
SHARE = Constraint(
    "a number > 0 and <= 1", lambda value: is_finite_number(value) and 0 < cast(float, value) <= 1
)
UNIT_INTERVAL = Constraint(
    "a number >= 0 and <= 1", lambda value: is_finite_number(value) and 0 <= cast(float, value) <= 1
)
NOT_NEGATIVE = Constraint(
    "a finite number >= 0", lambda value: is_finite_number(value) and cast(float, value) >= 0
)
BELOW_HALF = Constraint(
    "a number >= 0 and < 0.5", lambda value: is_finite_number(value) and 0 <= cast(float, value) < 0.5
)
AT_LEAST_ONE = Constraint(
    "a finite number >= 1", lambda value: is_finite_number(value) and cast(float, value) >= 1
)
SWITCH = Constraint("true or false", lambda value: isinstance(value, bool))


def one_of(*names: str) -> Constraint:
    """One of some words."""
    return Constraint(f"{', '.join(names[:-1])} or {names[-1]}", lambda value: value in names)


REDUCTION = one_of("token_mean", "sum")


@dataclass(frozen=True)
class Option:
    """What one can be set.

    Attributes:
        default: the value when it is not given; None for an option that is then absent.
        rule: which values it takes.
        summary: one line for people.
        instead_of: the option that must not be given beside this one.
        is_required: whether it must be given.
    """

    default: Value | int
    rule: Constraint
    summary: str
    instead_of: str | None = None
    is_required: bool = False


def option(default: Value, rule: Constraint, summary: str, *, instead_of: str | None = None) -> Any:
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
                _check(key, value, option)


def options_of(*owners: type[Options]) -> dict[str, Option]:
    """Options of one or more dataclasses, by name."""
    return {each.name: each.metadata["option"] for owner in owners for each in fields(cast(Any, owner))}


def parameter_options(function: Callable[..., object]) -> dict[str, Option]:
    """Options of a function or class: its parameters with the hint `Annotated[type, rule, help]`."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if get_origin(parameter.annotation) is Annotated:
            rule, summary = parameter.annotation.__metadata__
            is_required = parameter.default is parameter.empty
            default = None if is_required else parameter.default
            found[name] = Option(default, rule, summary, is_required=is_required)
    return found


def resolve_options(
    settings: Mapping[Any, object],
    options: Mapping[str, Option],
    owner: str,
    prefix: str = "",
    others: Iterable[str] = (),
) -> dict[str, Value]:
    """Every option with its value, given or default, whole numbers as floats; see `check_options`."""
    # An option without a default is absent when None, as a fully written configuration has it.
    given = {
        key: value
        for key, value in settings.items()
        if not (value is None and key in options and options[key].default is None)
    }
    check_options(given, options, owner, prefix, others)
    replaced = {options[key].instead_of for key in given}
    found = {
        key: given.get(key, option.default)
        for key, option in options.items()
        if key in given or (option.default is not None and key not in replaced)
    }
    return {key: float(value) if type(value) is int else cast(Value, value) for key, value in found.items()}


def check_options(
    settings: Mapping[Any, object],
    options: Mapping[str, Option],
    owner: str,
    prefix: str = "",
    others: Iterable[str] = (),
) -> None:
    """Hold what is given against the options there are.

    Args:
        settings: what is given.
        options: what there is.
        owner: whose options they are, for messages.
        prefix: what keys begin with in messages.
        others: keys that stand beside them, for suggestions.

    Raises:
        ValueError: a key or a value is not allowed, or a key is missing; the message names it, the rule and
            the fix.
    """
    for key, value in settings.items():
        if key not in options:
            raise ValueError(
                f"{prefix}{key} = {value!r} is not an option of {owner}, which takes {', '.join(options)}: "
                f"{nearest(key, (*others, *options)) or 'remove it'}"
            )
    for key, option in options.items():
        if key not in settings:
            if option.is_required:
                raise ValueError(f"{prefix}{key} is missing, {option.summary}: set it to {option.rule.text}")
            continue
        if (other := option.instead_of) in settings:
            raise ValueError(
                f"{prefix}{key} = {settings[key]!r} and {prefix}{other} = {settings[other]!r} are two "
                "ways to set the same: remove one of them"
            )
        _check(prefix + key, settings[key], option)


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


def _check(key: str, value: object, option: Option) -> None:
    if not option.rule.holds(value):
        raise ValueError(f"{key} = {value!r} must be {option.rule.text}: {_fix(key, value, option)}")


def _fix(key: str, value: object, option: Option) -> str:
    """YAML reads 1e-1 as text; such a value only has to be written differently."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        number = None
    if number is not None and option.rule.holds(number):
        return f"it is text; write {key}: {number!r} without quotes and with a decimal point"
    if option.is_required:
        return "set a value that is"
    if option.default is None:
        return f"set such a value, or remove {key}"
    return f"set such a value, or remove {key} to use {option.default!r}"
