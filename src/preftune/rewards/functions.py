"""The user's own reward functions, in TRL's signature."""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.data.rules import suggest
from preftune.errors import InputError

DatasetColumns = Mapping[str, Sequence[Any]]
"""Columns of the data, with a value for each completion."""
RewardFunction = Callable[..., Any]

REFERENCE = re.compile(r"(?P<module>\w+(?:\.\w+)*):(?P<function>\w+)")
RESERVED = ("prompts", "completions")


def import_function(reference: str) -> RewardFunction:
    """The function that `module:function` names, from Python's path or the current directory.

    Raises:
        InputError: the module or function does not exist, its import fails, or it does not take `prompts` and
            `completions`.
    """
    module_name, _, name = reference.partition(":")
    if not any(Path(entry).resolve() == Path.cwd() for entry in sys.path):
        # Last, so that a local file does not hide an installed package.
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    # A module that calls sys.exit would end the run without a message.
    except (Exception, SystemExit) as error:
        where = (
            f" (looked in {Path.cwd()} and Python's path)" if isinstance(error, ModuleNotFoundError) else ""
        )
        raise InputError(
            f"the module {module_name!r} cannot be imported{where}: {type(error).__name__}: {error}; "
            "check its name, or run in the folder that has it"
        ) from error
    function: RewardFunction | None = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(
            f"the module {module_name!r} has no function {name!r}{suggest(name, functions)}; it has "
            f"{', '.join(functions) or 'none'}"
        )
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
