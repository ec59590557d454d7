"""The user's own reward functions, in TRL's signature."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from preftune.errors import InputError
from preftune.objectives.imports import import_named

DatasetColumns = Mapping[str, Sequence[Any]]
"""Columns of the data, with a value for each completion."""
RewardFunction = Callable[..., Any]

RESERVED = ("prompts", "completions")


def import_function(reference: str) -> RewardFunction:
    """The function that `module:function` names, from Python's path or the current directory.

    Raises:
        InputError: the module or function does not exist, its import fails, or it does not take `prompts` and
            `completions`.
    """
    try:
        function: RewardFunction = import_named(reference, "function", callable)
    except ValueError as error:
        raise InputError(str(error)) from error.__cause__
    return check_function(function, reference)


def check_function(function: RewardFunction, name: str | None = None) -> RewardFunction:
    """The function itself.

    Raises:
        InputError: it is async, or does not take `prompts` and `completions`.
    """
    name = name or function_name(function)
    if inspect.iscoroutinefunction(function):
        raise InputError(f"{name} is an async function: give a function that returns the numbers")
    try:
        inspect.signature(function).bind_partial(completions=None)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} cannot be called with completions ({error}): define it as "
            "function(prompts, completions, **columns)"
        ) from None
    return function


def function_content(function: RewardFunction) -> str:
    """A hash of a function's source, or of its bytecode if it has no source."""
    try:
        text = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = repr((code.co_code, code.co_consts, code.co_names)) if code else function_name(function)
    return hashlib.sha256(text.encode()).hexdigest()


def function_name(function: RewardFunction) -> str:
    """`module:function` of a user's function; for a callable object, of its class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def call_function(
    function: RewardFunction, prompts: Sequence[Any], completions: Sequence[Any], columns: DatasetColumns
) -> Any:
    """Call a function with the columns that it takes: all if it has `**columns`, else those that it names.

    Args:
        function: takes `prompts`, `completions` and columns by keyword.
        prompts: text, or messages.
        completions: text, or messages.
        columns: other columns that it may read.
    """
    given = {
        **{name: values for name, values in columns.items() if name not in RESERVED},
        "prompts": list(prompts),
        "completions": list(completions),
    }
    return function(**{name: given[name] for name in _taken(function, given)})


def _taken(function: RewardFunction, names: Iterable[str]) -> list[str]:
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return list(names)
    return [name for name in names if name in parameters]
