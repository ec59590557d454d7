"""Whether the working tree does what a commit does: `make same-as COMMIT=HEAD~1`.

Both sides do the same small runs through the command line, a core each, and every file that they leave is
compared byte for byte, but for what `allowances.toml` names. The commit's runs are kept for the next time.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from same_as.allowances import Rule, read_rules
from same_as.comparing import Difference, compare_folders
from same_as.inputs import write_inputs
from same_as.runs import RUNS
from same_as.server import serving
from same_as.sides import Outcome, Side, clean_environment, commit_of, digest_of, export, has_commit
from same_as.starter import PROJECT, preload

SHOWN = 5
"""Differences of a run that are shown; the rest are counted."""


def main() -> int:
    """Compare; 1 where anything differs that no rule allows, or fails."""
    asked = _arguments()
    commit = commit_of(asked.commit)
    rules = read_rules(partial(has_commit, commit))
    clean_environment()
    preload()
    cache = asked.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=cache, prefix="work-"))
    inputs = work / "inputs"
    write_inputs(inputs)
    # A copy, so that the sources can be edited meanwhile.
    source = shutil.copytree(PROJECT / "src", work / "tree", ignore=shutil.ignore_patterns("__pycache__"))
    kept = cache / commit / digest_of(inputs)
    sides = [
        Side(commit[:10], export(commit, work / "base"), kept, inputs, is_kept=True),
        Side("working tree", source, work / "runs", inputs),
    ]
    bad = _compare(sides, asked.only, rules)
    print(f"{len(asked.only) - bad} of {len(asked.only)} runs are the same.")
    if bad:
        print(f"The files are in {kept} and {work / 'runs'}.")
    else:
        shutil.rmtree(work)
    return int(bad > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="what the working tree is compared with")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), help="these runs alone")
    parser.add_argument("--cache", type=Path, default=PROJECT / "build" / "same-as", help="keeps the runs")
    return parser.parse_args()


def _compare(sides: Sequence[Side], names: Sequence[str], rules: Sequence[Rule]) -> int:
    """Do both sides' runs, each side's in a thread, and print a line for each; how many are bad."""
    used: Counter[Rule] = Counter()
    bad = 0
    print(f"{'run':16} {'verdict':10} seconds of {sides[0].name}, of the {sides[1].name}")
    with serving() as endpoint, ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        waiting = {
            name: [
                pool.submit(side.outcome, name, RUNS[name], endpoint)
                for side, pool in zip(sides, (one, other), strict=True)
            ]
            for name in names
        }
        for name, futures in waiting.items():
            outcomes = [future.result() for future in futures]
            verdict, lines, wanted = judge(name, outcomes, rules)
            print(f"{name:16} {verdict:10} {', '.join(f'{outcome.seconds:.1f}' for outcome in outcomes)}")
            listed = outcomes[1].folder.with_suffix(".differences.txt")
            listed.write_text("\n".join(lines), encoding="utf-8")
            more = [f"and {len(lines) - SHOWN} more: {listed}"] if len(lines) > SHOWN else []
            print("".join(f"    {line}\n" for line in lines[:SHOWN] + more), end="", flush=True)
            used += wanted
            bad += bool(lines)
    for rule in rules:
        if rule.since:
            print(f"wanted since {rule.since}, {used[rule]} times in {', '.join(rule.runs)}: {rule.reason}")
    return bad


def judge(
    run: str, outcomes: Sequence[Outcome], rules: Sequence[Rule]
) -> tuple[str, list[str], Counter[Rule]]:
    """What a run shows.

    Returns:
        A word, a line for every failure or difference that no rule allows, and how often each rule of a
        wanted difference allowed one.
    """
    if failures := [outcome.failure for outcome in outcomes if outcome.failure]:
        return "failed", failures, Counter()
    base, new = (outcome.files() for outcome in outcomes)
    wanted: Counter[Rule] = Counter()
    lines = []
    for found in compare_folders(base, new):
        rule = _rule(run, found, rules)
        if rule is None:
            lines.append(str(found))
        elif rule.since:
            wanted[rule] += 1
    return "differs" if lines else "as wanted" if wanted else "identical", lines, wanted


def _rule(run: str, found: Difference, rules: Sequence[Rule]) -> Rule | None:
    return next((rule for rule in rules if rule.names(run, found.file, found.key)), None)


if __name__ == "__main__":
    sys.exit(main())
