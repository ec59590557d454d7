"""A quarter of an hour on a GPU, used whole: `python benchmarks/gpu_day.py first --output FOLDER`.

The checks of a plan run one after another, each in a process with a time limit of its own: a crash, a hang or
a full memory ends one check and no other. After each, `FOLDER/gpu.json` holds all that is known so
far, and `FOLDER/gpu.log` what the checks wrote; a call that is cut short keeps both. `--small` is the same on
tiny models in float32, also on a CPU: the rehearsal.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
JSON_FILE, LOG_FILE = "gpu.json", "gpu.log"

Content = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One script of this folder.

    Attributes:
        name: in the results.
        question: what it answers.
        script: its file, which takes `--output FILE` and `--small`.
        seconds: after which it is stopped.
        options: what else it is called with.
    """

    name: str
    question: str
    script: str
    seconds: int
    options: tuple[str, ...] = ()


KERNELS = Check("kernels", "Do the compiled kernels agree with padded rows?", "gpu_kernels.py", 130)
SHORT = Check("speed, short", "How fast is a step of 0.5B?", "gpu.py", 160, ("--short",))
REAL = Check("real model", "Do all verbs run, and agree with the CPU?", "gpu_real.py", 210)
SPEED = Check("speed", "How fast are 0.5B, 1.5B and 7B?", "gpu.py", 290)
LESSON = Check("lesson", "What does ten times the CPU's training show?", "gpu_lesson.py", 80)

PLANS: dict[str, tuple[Check, ...]] = {
    "first": (KERNELS, SHORT),
    "second": (SPEED,),
    "third": (REAL, LESSON),
}
"""In order of value. Each fits a command of five minutes; the third needs the demo's model."""


def run(check: Check, folder: Path, small: bool) -> Content:
    """What a check has left, however it ended."""
    output = folder / f"{check.script.removesuffix('.py')}.part"
    output.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / check.script), "--output", str(output), *check.options]
    began = time.monotonic()
    with (folder / LOG_FILE).open("ab") as log:
        log.write(f"\n--- {check.name}: {' '.join(command)}\n".encode())
        log.flush()
        try:
            done = subprocess.run(
                [*command, *(["--small"] if small else [])],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=check.seconds,
                check=False,
            )
            outcome = "done" if done.returncode == 0 else f"failed with exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {check.seconds} s"
    found = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    output.unlink(missing_ok=True)
    return {"outcome": outcome, "seconds": round(time.monotonic() - began, 1), **found}


def write_whole(path: Path, content: Content) -> None:
    """Write JSON aside and rename it: a call may be cut at any moment."""
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def print_table(results: Content) -> None:
    """A line a check."""
    table = Table("check", "question", "outcome", "seconds", "rows", "wrong")
    for name, found in results.items():
        rows = found.get("rows", [])
        wrong = sum(row.get("holds") is False or "failed" in str(row.get("outcome")) for row in rows)
        question = next(check.question for plan in PLANS.values() for check in plan if check.name == name)
        figures = (str(found["seconds"]), str(len(rows)), str(wrong))
        table.add_row(name, question, found["outcome"], *figures)
    Console(width=120).print(table)


def main() -> None:
    """Run a plan; earlier plans' results in the folder stay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", choices=[*PLANS, "all"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--small", action="store_true", help="tiny models, on a CPU too")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / JSON_FILE
    results: Content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    plans = PLANS if options.plan == "all" else {options.plan: PLANS[options.plan]}
    for check in (check for plan in plans.values() for check in plan):
        results[check.name] = run(check, options.output, options.small)
        write_whole(file, results)
    print_table(results)
    sys.exit(any(found["outcome"] != "done" for found in results.values()))


if __name__ == "__main__":
    main()
