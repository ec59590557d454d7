"""How a step fares beside other programs, by how its threads wait for one another: `make bench-busy`.

A step on the CPU is thousands of small parallel regions, and at the end of each the threads wait for the
last. One that spins while it waits holds a core that the awaited thread needs, where other programs have the
rest. Every setting has a process of its own; steps are taken in turn, with nothing else running and beside
programs that do nothing but hold a core. Writes `benchmarks/results/busy.json` and a table in
`docs/performance.md`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cpu import with_reference
from processes import Worker
from rich.console import Console
from sections import markdown_table, write_section
from workloads import WORKLOADS, draw_groups, write_groups

from preftune.demo.model import demo_model_dir
from preftune.storage.files import write_json

SETTINGS: dict[str, dict[str, str]] = {
    "as torch comes": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
MARKERS = "<!-- busy table -->", "<!-- end of busy -->"
SPINS = "while True: pass"

console = Console()


@contextmanager
def programs(count: int) -> Iterator[None]:
    """So many other programs that hold a core each."""
    running = [subprocess.Popen([sys.executable, "-c", SPINS]) for _ in range(count)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def measure(workload: str, settings: list[str], others: list[int], rounds: int) -> list[dict[str, Any]]:
    """Seconds of every step, by setting and number of other programs."""
    model = str(demo_model_dir())
    groups = with_reference(model, draw_groups(WORKLOADS[workload], model))
    taken: dict[tuple[str, int], list[float]] = {(name, count): [] for name in settings for count in others}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        file = Path(scratch) / "groups.json"
        write_groups(file, groups)
        specification = {
            "model": model,
            "groups": str(file),
            "lora": WORKLOADS[workload].lora,
            "task": WORKLOADS[workload].task,
            "contestant": "preftune",
        }
        workers = {
            name: running.enter_context(Worker(specification, Path(scratch), SETTINGS[name]))
            for name in settings
        }
        items = {name: worker.ready()["items"] for name, worker in workers.items()}
        for worker in workers.values():
            worker.do("warm_up", 1)
        for turn in range(rounds):
            for count in others:
                for name, worker in workers.items():
                    with programs(count):
                        seconds = worker.do("step", items[name])["seconds"]
                    taken[name, count].append(seconds)
                    console.print(f"  round {turn}, beside {count}: {name} {seconds:.2f} s")
    return [
        {"setting": name, "other_programs": count, "seconds": [round(value, 3) for value in values]}
        for (name, count), values in taken.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Median seconds by setting; in brackets, against the same setting alone."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    others = sorted({row["other_programs"] for row in rows})
    middle = {(row["setting"], row["other_programs"]): median(row["seconds"]) for row in rows}

    def cell(name: str, count: int) -> str:
        value = f"{middle[name, count]:.1f} s"
        return (
            value if count == others[0] else f"{value} ({middle[name, count] / middle[name, others[0]]:.1f}x)"
        )

    titles = ["Threads wait", *(f"Beside {count} other programs" for count in others)]
    return markdown_table(titles, [[name, *(cell(name, count) for count in others)] for name in settings])


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=list(WORKLOADS), default="chat")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--others", nargs="+", type=int, default=[0, 1, 2], help="other programs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/busy.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    given = parser.parse_args()
    load = os.getloadavg()[0]
    rows = measure(given.workload, given.settings, given.others, given.rounds)
    surroundings = {
        "processor": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "cores": os.cpu_count(),
        "load_at_start": round(load, 2),
    }
    write_json(given.results, {"workload": given.workload, "environment": surroundings, "steps": rows})
    write_section(given.page, MARKERS, table(rows))
    console.print(table(rows))


if __name__ == "__main__":
    main()
