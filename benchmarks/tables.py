"""The benchmark's figures as tables: on the terminal, and in docs/performance.md."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sections import markdown_table, write_section

MARKERS = "<!-- cpu table -->", "<!-- end -->"


def print_workload(row: dict[str, Any]) -> None:
    """A workload's contestants, and how they compare, on stdout."""
    table = Table(
        "contestant", "seconds", "forward + backward", "tokens/s", "peak MB", "loss", "in float32", "rounds"
    )
    for name, entry in row["contestants"].items():
        table.add_row(name, *_figures(entry, loss_digits=5))
    # Where stdout is a file, rich would take 80 columns and cut names.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for key in (
        *("speedup_vs_trl_default", "speedup_vs_trl_best", "trl_best", "peak_memory_ratio"),
        *("fraction_of_floor", "largest_loss_difference", "largest_rounded_loss_difference"),
    ):
        console.print(f"{key}: {row.get(key)}")


def write_page(page: Path, content: dict[str, Any]) -> None:
    """Put the tables between the page's two markers."""
    write_section(page, MARKERS, markdown(content))


def markdown(content: dict[str, Any]) -> str:
    """All tables."""
    parts = [_machine(content["environment"]), _ratios(content), _contestants(content), _profile(content)]
    if content.get("growth"):
        parts.append(_growth(content["growth"]))
    return "\n\n".join(parts)


def _machine(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    return (
        f"Measured {environment['date']}: {environment['model']}, {environment['numerics']}, "
        f"{environment['threads']} threads, {environment['processor']}; {versions}."
    )


def _ratios(content: dict[str, Any]) -> str:
    rows = [
        [
            row["workload"],
            str(row["tokens"]["packed"]),
            str(row["tokens"]["padded"]),
            _number(row["speedup_vs_trl_default"], 2),
            _number(row["speedup_vs_trl_best"], 2),
            _number(row["peak_memory_ratio"], 2),
            f"{row['fraction_of_floor']:.0%}",
        ]
        for row in content["workloads"]
    ]
    titles = (
        *("workload", "tokens, packed", "padded", "speed: times TRL's defaults", "times TRL's best"),
        *("peak memory: share of TRL's defaults'", "of the machine's rate"),
    )
    return markdown_table(titles, rows)


def _contestants(content: dict[str, Any]) -> str:
    rows = [
        [row["workload"], name, *_figures(entry, loss_digits=4)]
        for row in content["workloads"]
        for name, entry in row["contestants"].items()
    ]
    titles = ("workload", "contestant", "seconds (fastest to slowest)", "forward and backward", "tokens/s")
    return markdown_table((*titles, "peak memory, MB", "loss", "first group's in float32", "rounds"), rows)


def _profile(content: dict[str, Any]) -> str:
    workloads = list(dict.fromkeys(entry["workload"] for entry in content["profile"]))
    shares: dict[str, dict[str, float]] = {}
    for entry in content["profile"]:
        shares.setdefault(entry["class"], {})[entry["workload"]] = entry["share"]
    rows = [[name, *(f"{share[w]:.0%}" for w in workloads)] for name, share in shares.items()]
    return markdown_table(("where preftune's time goes", *workloads), rows)


def _growth(growth: dict[str, Any]) -> str:
    rows = [
        [
            factor["name"],
            ", ".join(f"{value:g}" for value in factor["values"]),
            ", ".join(f"{value:.2f}" for value in factor["seconds"]),
            _exponent(factor["seconds_exponent"]),
            _exponent(factor["memory_exponent"]),
        ]
        for factor in growth["factors"]
    ]
    return markdown_table(("what grows", "values", "seconds", "exponent of seconds", "of memory"), rows)


def _exponent(fit: dict[str, float] | None) -> str:
    return f"{fit['exponent']:.2f} ± {fit['standard_error']:.2f}" if fit else "not measured"


def _figures(entry: dict[str, Any], loss_digits: int) -> list[str]:
    """What a contestant's row says of it, on the terminal and on the page."""
    return [
        _spread(entry),
        f"{entry['forward_backward_seconds']:.2f}",
        f"{entry['tokens_per_second']:.0f}",
        _number(entry["peak_memory_mb"], 0),
        _number(entry["loss"], loss_digits),
        _number(entry["exact_loss"], 5),
        str(entry["rounds"]),
    ]


def _spread(entry: dict[str, Any]) -> str:
    return f"{entry['seconds']:.2f} ({entry['fastest']:.2f} to {entry['slowest']:.2f})"


def _number(value: float | None, digits: int) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"
