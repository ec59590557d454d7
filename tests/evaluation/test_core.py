"""The core runs every benchmark and names none; only the table knows them."""

import ast
from pathlib import Path

import pytest

import preftune.evaluation
from preftune.evaluation.benchmark import Benchmark
from preftune.evaluation.table import BENCHMARKS

FOLDER = Path(preftune.evaluation.__file__).parent
FOLDERS = sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))
CORE = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "table.py")


def named(source: str) -> set[str]:
    """The benchmarks' folders that a source imports, or that stand in its code as text or as a name."""
    words: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            words |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            words |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words |= {name for name in FOLDERS if node.value == name or f"evaluation.{name}" in node.value}
        elif isinstance(node, ast.Name):
            words.add(node.id)
    return words & set(FOLDERS)


def test_there_is_a_folder_for_each_benchmark() -> None:
    """The six folders, and a class in the table for each that has a judge which is asked."""
    assert FOLDERS == ["academic", "alpaca_eval", "arena_hard", "head_to_head", "human", "mt_bench"]
    assert sorted(BENCHMARKS) == ["alpaca_eval", "arena_hard", "head_to_head", "mt_bench"]
    assert all(issubclass(benchmark, Benchmark) for benchmark in BENCHMARKS.values())


@pytest.mark.parametrize(
    "source",
    [
        "from preftune.evaluation.mt_bench.figures import settle",
        "from preftune.evaluation import mt_bench",
        "import preftune.evaluation.mt_bench",
        "if name == 'mt_bench': pass",
        "def late():\n    from preftune.evaluation.mt_bench import figures",
    ],
)
def test_the_reader_finds_a_benchmark(source: str) -> None:
    """An import in whichever form and a name as a literal are found."""
    assert named(source) == {"mt_bench"}


@pytest.mark.parametrize("file", CORE)
def test_the_core_names_no_benchmark(file: str) -> None:
    """No file of the core holds a benchmark's name as a literal or imports its folder, at any depth."""
    assert named((FOLDER / file).read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_benchmarks_do_not_know_each_other(folder: str) -> None:
    """A folder imports the core and itself, never another benchmark or the table."""
    sources = [path.read_text(encoding="utf-8") for path in (FOLDER / folder).glob("*.py")]
    assert {name for source in sources for name in named(source)} <= {folder}
    assert not any("evaluation.table import" in source for source in sources)
