"""One name, one thing: no public class, function or constant of the package is defined twice."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import preftune

SOURCE = Path(preftune.__file__).parent

SAME_THING = {"logger"}
"""Names that stand for one thing in every file."""


def public_names(path: Path) -> Iterator[str]:
    """Classes, functions and constants at a file's top level, without those that begin with `_`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def test_no_name_stands_for_two_things() -> None:
    """A reader who knows a name knows what it is everywhere; verbs of the command line are the API's."""
    places = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        if path.parent == SOURCE / "cli":
            continue
        for name in public_names(path):
            places[name].append(str(path.relative_to(SOURCE)))
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SAME_THING} == {}
