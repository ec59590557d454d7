"""What a user wrote, by the name `module:name` that a configuration has for it."""

import importlib
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

REFERENCE = re.compile(r"(?P<module>\w+(?:\.\w+)*):(?P<name>\w+)")


def import_named(reference: str, kind: str, is_one: Callable[[object], bool]) -> Any:
    """The object that `module:name` names, from Python's path or the current directory.

    Args:
        reference: `module:name`.
        kind: what it must be, for messages.
        is_one: whether an object is that.

    Raises:
        ValueError: the module cannot be imported, or has no such object.
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
        raise ValueError(
            f"the module {module_name!r} cannot be imported{where}: {type(error).__name__}: {error}; "
            "check its name, or run in the folder that has it"
        ) from error
    found = getattr(module, name, None)
    if not is_one(found):
        there = [key for key, value in vars(module).items() if is_one(value)]
        near = get_close_matches(name, there, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"the module {module_name!r} has no {kind} {name!r}{hint}; it has {', '.join(there) or 'none'}"
        )
    return found
