"""One name, one thing: no public class, type or function of the package is defined twice."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import preftune

SOURCE = Path(preftune.__file__).parent

TO_BE_RENAMED = {
    *(
        "Chat",
        "Columns",
        "Ends",
        "Part",
        "Read",
        "RewardModel",
        "Row",
        "Rule",
    ),
    *(
        "Tally",
        "Unit",
        "aggregate",
        "pad",
        "rescore",
        "transcript",
    ),
}
"""Names that still stand for two things. The list may only get shorter."""


def public_names(path: Path) -> Iterator[str]:
    """Classes, types and functions at a file's top level, without those that begin with `_`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        # Constants belong to their file.
        yield from (
            name for name in names if not name.startswith("_") and not name.isupper() and name != "logger"
        )


def twice() -> set[str]:
    """Names that are defined in two files; verbs of the command line are the API's."""
    places = defaultdict(set)
    for path in sorted(SOURCE.rglob("*.py")):
        if path.parent != SOURCE / "cli":
            for name in public_names(path):
                places[name].add(path)
    return {name for name, found in places.items() if len(found) > 1}


def test_no_further_name_stands_for_two_things() -> None:
    """A reader who knows a name knows what it is everywhere, but for those that are listed."""
    assert twice() - TO_BE_RENAMED == set()


def test_the_list_of_names_gets_shorter() -> None:
    """A name that stands for one thing again is taken from the list."""
    assert TO_BE_RENAMED - twice() == set()


def test_no_name_of_the_api_is_a_packages() -> None:
    """Importing a package makes it an attribute of `preftune`, and would hide a function of its name."""
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages & set(preftune.__all__) == set()
