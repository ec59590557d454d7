"""Who may import whom: read from the source, so that an import inside a function counts too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import preftune
from preftune.objectives import METHODS

SOURCE = Path(preftune.__file__).parent

MAY_NOT_IMPORT = {
    "data": {"policy", "training", "online", "sweep", "evaluation"},
    "policy": {"training", "online", "sweep", "evaluation"},
    "rewards": {"training", "online", "sweep", "evaluation"},
    "training": {"online", "sweep", "evaluation"},
    "online": {"sweep", "evaluation"},
    "evaluation": {"training", "sweep"},
    "report": {"training", "online", "sweep", "evaluation"},
}
"""Packages by name, without cli, which nobody may import."""


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


@pytest.mark.parametrize("package", MAY_NOT_IMPORT)
def test_packages_keep_to_their_side(package: str) -> None:
    """No package imports one that is further along the way from text to run."""
    files = source_files(package)
    assert files
    crossings = [
        f"{path.relative_to(SOURCE)} imports preftune.{other}"
        for path in files
        for other in sorted(MAY_NOT_IMPORT[package])
        if imports_package(path, other)
    ]
    assert crossings == []


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
    """Calibrating scores works on numbers: numpy, scipy, the standard library, groups and the error."""
    allowed = {"numpy", "scipy", "jaxtyping", *sys.stdlib_module_names}
    ours = ("preftune.data.groups.", "preftune.errors.", "preftune.rewards.reliability.")
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
