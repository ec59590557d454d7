"""A function is read on one screen."""

import ast
from pathlib import Path

import preftune

SOURCE = Path(preftune.__file__).parent

MOST_LINES = 60
"""Of a function, signature and body together; its docstring is read by itself."""

LONGER = {
    "cli/evaluate_run.py:run": "a verb's flags, each with its help, handed to one call",
    "api/trainer.py:__init__": "the keywords of the trainer, each handed on",
    "api/evaluate.py:evaluate": "the keywords of the benchmarks, each handed on",
    "cli/evaluate.py:rescore": "a verb's flags, each with its help, handed to one call",
}
"""Functions that may be longer, and why."""


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring's."""
    assert function.end_lineno is not None
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None and first.end_lineno is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def long_functions() -> set[str]:
    """Functions with more lines than `MOST_LINES`, as FILE:NAME."""
    return {
        f"{path.relative_to(SOURCE)}:{node.name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > MOST_LINES
    }


def test_functions_fit_on_a_screen() -> None:
    """No function is longer than 60 lines, but for those whose reason stands here."""
    assert long_functions() - set(LONGER) == set()


def test_the_list_of_longer_functions_gets_shorter() -> None:
    """A function that fits on a screen again is taken from the list."""
    assert set(LONGER) - long_functions() == set()
