"""A user's own method, by `module:Class`."""

import inspect
from dataclasses import fields
from typing import Any, cast

from preftune.objectives.imports import import_named
from preftune.objectives.methods.method import Method


def import_method(reference: str) -> type[Method]:
    """The method that `module:Class` names.

    Raises:
        ValueError: the module cannot be imported, or the class is no method whose options can be set.
    """
    try:
        method = cast(type[Method], import_named(reference, "method", _is_method))
    except ValueError as error:
        rule = "a method is a subclass of preftune.objectives.Method"
        raise ValueError(f"method = {reference!r}: {error}; {rule}") from error.__cause__
    if inspect.isabstract(method):
        raise ValueError(f"method = {reference!r} has no `parts`: define parts(self, prior, standardization)")
    # A subclass of a dataclass is none itself, and its own fields would be no options.
    if "__dataclass_fields__" not in vars(method):
        raise ValueError(f"method = {reference!r} is not a dataclass: write @dataclass(frozen=True) above it")
    for each in fields(cast(Any, method)):
        if "option" not in each.metadata:
            raise ValueError(
                f"method = {reference!r}: the field {each.name} has no rule: write {each.name}: float = "
                'option(0.1, POSITIVE, "what it is"), with the rules of preftune.objectives.options'
            )
    return method


def _is_method(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Method) and found is not Method
