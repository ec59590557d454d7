"""Who may import whom: read from the source, so that an import inside a function counts too."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import preftune
from preftune.objectives import METHODS

SOURCE = Path(preftune.__file__).parent

PACKAGES = (
    "objectives",
    "data",
    "serving",
    "storage",
    "models",
    "rewards",
    "sampling",
    "training",
    "measuring",
    "online",
    "sweep",
    "evaluation",
    "report",
    "api",
    "demo",
    "cli",
)
"""From the ground up: a package may import those that stand before it, and `preftune.errors`."""

NOR = {"evaluation": {"training", "online", "sweep"}}
"""What a package may not import though it stands before it."""


def source_files(package: str) -> list[Path]:
    """A package's files; a module of that name counts as one."""
    single = SOURCE / f"{package}.py"
    return [single] if single.exists() else sorted((SOURCE / package).rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of everything a file imports, wherever in the file."""
    parents = path.relative_to(SOURCE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            # `from preftune import cli` names the package in the alias.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_package(path: Path, package: str) -> bool:
    """Whether a file imports preftune.<package> or something in it."""
    name = f"preftune.{package}"
    return any(module == name or module.startswith(f"{name}.") for module in imported_modules(path))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_what_stands_before_them(package: str) -> None:
    """No package imports one that stands behind it, wherever in a file."""
    files = source_files(package)
    assert files
    place = PACKAGES.index(package)
    forbidden = {*PACKAGES[place + 1 :], *NOR.get(package, ())}
    crossings = [
        f"{path.relative_to(SOURCE)} imports preftune.{other}"
        for path in files
        for other in sorted(forbidden)
        if imports_package(path, other)
    ]
    assert crossings == []


def test_every_package_has_a_row() -> None:
    """A new package must take its place among the others; nothing lies beside them but the errors."""
    beside = {path.name for path in SOURCE.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert beside == {*PACKAGES, "__init__.py", "__main__.py", "errors.py"}


def module_of(path: Path) -> str:
    """A file's name as a module."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_imports_go_round_in_a_circle() -> None:
    """Following imports from any file, those inside functions too, never leads back to it."""
    files = {module_of(path): path for path in SOURCE.rglob("*.py")}
    graph = {
        name: {
            found
            for module in imported_modules(path)
            if (found := module if module in files else module.rpartition(".")[0]) in files and found != name
        }
        for name, path in files.items()
    }
    # A package's __init__ offers what its files define; that is no circle.
    graph = {
        name: {other for other in others if not name.startswith(f"{other}.")}
        for name, others in graph.items()
    }
    # What is offered lazily to users is not imported.
    graph["preftune"] = set()
    assert list(TopologicalSorter(graph).static_order())


def test_objectives_import_only_torch() -> None:
    """The papers' formulas need torch, jaxtyping, the standard library and themselves."""
    allowed = {"torch", "jaxtyping", *sys.stdlib_module_names}
    foreign = {
        f"{path.name}: {module}"
        for path in source_files("objectives")
        for module in imported_modules(path)
        if module.split(".")[0] not in allowed and not module.startswith("preftune.objectives.")
    }
    assert foreign == set()


def test_calibration_needs_no_torch() -> None:
    """Calibrating scores works on numbers: numpy, scipy, the standard library, groups, errors and imports."""
    allowed = {"numpy", "scipy", "jaxtyping", *sys.stdlib_module_names}
    shared = ("data.groups", "data.stored", "errors", "objectives.imports", "rewards.reliability")
    ours = tuple(f"preftune.{name}." for name in shared)
    foreign = {
        module
        for name in ("calibration.py", "reliability.py")
        for module in imported_modules(SOURCE / "rewards" / name)
        if module.split(".")[0] not in allowed and not module.startswith(ours)
    }
    assert foreign == set()


def test_training_names_no_method() -> None:
    """The trainer is blind to the algorithm: no file of it holds a method's name as a literal."""
    named = [
        f"{path.name}:{node.lineno} names {node.value!r}"
        for path in source_files("training")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in METHODS
    ]
    assert named == []


def test_nothing_imports_the_command_line() -> None:
    """Only the command line itself and `python -m preftune` import preftune.cli."""
    entry = {SOURCE / "__main__.py", *source_files("cli")}
    importers = [
        str(path.relative_to(SOURCE))
        for path in sorted(SOURCE.rglob("*.py"))
        if path not in entry and imports_package(path, "cli")
    ]
    assert importers == []
