"""Whether the working tree does what a commit does: `make same-as COMMIT=main`.

Both sides do the same small runs through the command line, a core each, and every file that they leave is
compared byte for byte, but for what `allowances.toml` names. The commit's runs are kept for the next time.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from same_as.allowances import Allowances, Rule, read_allowances
from same_as.comparing import Difference, compare_folders
from same_as.inputs import write_inputs
from same_as.runs import RUNS, renamed
from same_as.server import serving
from same_as.sides import (
    PROJECT,
    Outcome,
    Side,
    Starter,
    commit_of,
    digest_of,
    export,
    files_of,
    run_of,
)

SHOWN = 5
"""Differences of a run that are shown; the rest are counted."""


@dataclass(frozen=True)
class Verdict:
    """What the comparison of a run says.

    Attributes:
        failures: of either side.
        differences: that nobody wants.
        used: rules that wanted one.
    """

    failures: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    used: frozenset[Rule] = frozenset()

    @property
    def bad(self) -> bool:
        """Whether the working tree is another."""
        return bool(self.failures or self.differences)


def main() -> int:
    """Compare; 1 where anything differs that is not wanted, or fails."""
    asked = _arguments()
    if asked.list:
        print("\n".join(RUNS))
        return 0
    unknown = [name for name in asked.only if name not in RUNS]
    if unknown:
        sys.exit(f"--only {' '.join(unknown)}: no such run; the runs are {', '.join(RUNS)}")
    names = asked.only or list(RUNS)
    commit = commit_of(asked.commit)
    asked.cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=asked.cache, prefix="work-"))
    inputs = work / "inputs"
    write_inputs(inputs)
    kept = asked.cache / commit / digest_of(inputs)
    base = Side(commit[:10], export(commit, work / "source"), work / "base", Starter(), kept)
    # A copy, so that the sources can be edited meanwhile.
    source = shutil.copytree(PROJECT / "src", work / "tree", ignore=shutil.ignore_patterns("__pycache__"))
    new = Side("working tree", source, work / "new", Starter())
    bad = _fill(base, names, inputs) if asked.base_only else _compare(base, new, names, inputs)
    if bad:
        print(f"The files are in {kept} and {work / 'new'}.")
    else:
        shutil.rmtree(work)
    return int(bad)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD", help="what the working tree is compared with")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these runs alone")
    parser.add_argument("--list", action="store_true", help="show the runs' names and exit")
    parser.add_argument("--base-only", action="store_true", help="do the commit's runs for later")
    parser.add_argument(
        "--cache",
        type=Path,
        default=PROJECT / "build" / "same-as",
        metavar="FOLDER",
        help="keeps the commit's runs, by its hash",
    )
    asked = parser.parse_args()
    asked.cache = asked.cache.resolve()
    return asked


def _fill(base: Side, names: Sequence[str], inputs: Path) -> bool:
    """Do the base's runs; whether one failed."""
    failed = False
    for name, (outcome,) in _outcomes([base], names, inputs, Allowances()):
        failed |= bool(outcome.failure)
        print(f"{name:16} {outcome.failure or 'kept'} {_seconds(outcome)}", flush=True)
    return failed


def _compare(base: Side, new: Side, names: Sequence[str], inputs: Path) -> bool:
    """Do both sides' runs and print the table; whether one is bad."""
    allowances = read_allowances()
    print(f"{'run':16} {'verdict':10} seconds of {base.name}, of the {new.name}")
    used: set[Rule] = set()
    bad = []
    for name, outcomes in _outcomes([base, new], names, inputs, allowances):
        verdict = _verdict(name, [base, new], outcomes, allowances)
        said = "failed" if verdict.failures else "differs" if verdict.bad else "identical"
        print(f"{name:16} {said:10} {', '.join(map(_seconds, outcomes))}")
        for line in (*verdict.failures, *map(str, verdict.differences[:SHOWN])):
            print(f"    {line}")
        if len(verdict.differences) > SHOWN:
            listed = new.work / f"{name}.differences.txt"
            listed.write_text("".join(f"{one}\n" for one in verdict.differences), encoding="utf-8")
            print(f"    and {len(verdict.differences) - SHOWN} more, in {listed}")
        sys.stdout.flush()
        used |= verdict.used
        bad += [name] * verdict.bad
    for rule in allowances.wanted:
        print(f"{'wanted difference' if rule in used else 'wanted, but not found'}: {rule}")
    print(f"{len(names) - len(bad)} of {len(names)} runs are identical.")
    return bool(bad)


def _outcomes(
    sides: Sequence[Side], names: Sequence[str], inputs: Path, allowances: Allowances
) -> Iterator[tuple[str, list[Outcome]]]:
    """Each run's outcome on every side, as soon as all have it; the sides work at the same time."""
    with serving() as endpoint:
        waiting: list[list[Future[Outcome]]] = []
        pools = [ThreadPoolExecutor(1) for _ in sides]
        for name in names:
            run = RUNS[name]
            waiting.append(
                [
                    queue.submit(
                        run_of,
                        side,
                        name,
                        run if side.kept else renamed(run, allowances.arguments, allowances.keys),
                        inputs,
                        endpoint,
                    )
                    for side, queue in zip(sides, pools, strict=True)
                ]
            )
        for name, futures in zip(names, waiting, strict=True):
            yield name, [future.result() for future in futures]
        for side, queue in zip(sides, pools, strict=True):
            queue.shutdown()
            side.starter.close()


def _verdict(
    name: str, sides: Sequence[Side], outcomes: Sequence[Outcome], allowances: Allowances
) -> Verdict:
    failures = tuple(
        f"{side.name}: {one.failure}" for side, one in zip(sides, outcomes, strict=True) if one.failure
    )
    if failures:
        return Verdict(failures)
    found = compare_folders(name, *map(files_of, outcomes), allowances)
    rules = {one: allowances.wanted_rule(name, one.file, one.key) for one in found}
    return Verdict(
        differences=tuple(one for one, rule in rules.items() if rule is None),
        used=frozenset(rule for rule in rules.values() if rule is not None),
    )


def _seconds(outcome: Outcome) -> str:
    return f"{sum(outcome.seconds):.1f}"


if __name__ == "__main__":
    sys.exit(main())
