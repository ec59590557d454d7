"""Whether two commits do the same, byte for byte: `make same-as COMMIT=HEAD~1`.

Small runs of every verb are made by COMMIT and by the working tree, side by side, on the same inputs, in
folders of the same layout; then every file is compared. What may differ stands in `differences.py`, with its
reason. The runs of a commit are kept in `build/same-as/COMMIT`.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compare import compare_folders
from differences import WANTED
from inputs import write_inputs
from rich.console import Console
from rich.table import Table
from runs import RUNS, Side
from server import serving

ROOT = Path(__file__).parents[2]


def exported(commit: str, folder: Path) -> Path:
    """The sources of a commit.

    Raises:
        SystemExit: there is no such commit.
    """
    source = folder / "source"
    if not source.exists():
        source.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit, "src"], capture_output=True, check=False
        )
        if archive.returncode:
            sys.exit(archive.stderr.decode())
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    return source / "src"


def full_hash(commit: str) -> str:
    """A commit's hash.

    Raises:
        SystemExit: there is no such commit.
    """
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{commit}^{{commit}}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"there is no commit {commit}")
    return found.stdout.strip()


def make(side: Side, names: Sequence[str], console: Console) -> dict[str, str]:
    """Make the runs that are not kept; why each failed that did."""
    failed = {}
    for name in names:
        done = side.folder / f"{name}.done"
        if done.exists() and side.is_kept:
            failed.update({name: text} if (text := done.read_text(encoding="utf-8")) else {})
            continue
        shutil.rmtree(side.folder / name, ignore_errors=True)
        error = side.make(name, RUNS[name])
        done.write_text(error, encoding="utf-8")
        if error:
            failed[name] = error
        console.print(f"{side.title}: {name} {'failed' if error else 'made'}")
    return failed


def main() -> None:
    """Make both sides, compare, and print a line a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="what the working tree is compared with")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), help="these runs alone")
    parser.add_argument("--base-only", action="store_true", help="make the commit's runs and compare nothing")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "same-as")
    options = parser.parse_args()
    console = Console(width=120)
    commit = full_hash(options.commit)
    inputs = write_inputs(options.cache / "inputs")
    base = Side(
        "base", exported(commit, options.cache / commit), options.cache / commit / "runs", inputs, True
    )
    # A copy, so that the sources can be edited meanwhile.
    copy = options.cache / "tree" / "source"
    shutil.rmtree(options.cache / "tree", ignore_errors=True)
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
    tree = Side("tree", copy, options.cache / "tree" / "runs", inputs, is_kept=False)
    sides = [base] if options.base_only else [base, tree]
    with serving() as address, ThreadPoolExecutor(2) as pool:
        os.environ.update(OPENAI_BASE_URL=address, OPENAI_API_KEY="sk-same-as")
        failed = list(pool.map(lambda side: make(side, options.only, console), sides))
    if options.base_only:
        sys.exit(bool(failed[0]))
    sys.exit(report(options.only, base, tree, failed, console))


def report(
    names: Sequence[str], base: Side, tree: Side, failed: list[dict[str, str]], console: Console
) -> int:
    """Print what differs; the exit code."""
    table = Table("run", "result", "first difference")
    used: dict[str, int] = {}
    is_different = False
    for name in names:
        sides = zip((base, tree), failed, strict=True)
        errors = [f"{side.title}: {own[name][-300:]}" for side, own in sides if name in own]
        if errors:
            table.add_row(name, "[red]failed[/]", " ".join(errors))
            is_different = True
            continue
        found = compare_folders(name, base.folder / name, tree.folder / name)
        for reason in found.wanted:
            used[reason] = used.get(reason, 0) + 1
        is_different |= bool(found.differences)
        shown = "[red]differs[/]" if found.differences else f"identical ({found.files} files)"
        table.add_row(name, shown, "\n".join(found.differences[:4]))
    console.print(table)
    for wanted in WANTED:
        console.print(f"wanted, {used.get(wanted.reason, 0)} times: {wanted.reason}")
    return int(is_different)


if __name__ == "__main__":
    main()
