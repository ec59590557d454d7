"""Results as tables: for the terminal, Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preftune.evaluation.verdicts import Results

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: its head.
        key: of the results; parts are joined by dots.
        digits: after the point; None prints as it is.
        interval: key of the interval that is written after the figure.
        share: the value is a share, printed in percent.
    """

    title: str
    key: str
    digits: int | None = None
    interval: str = ""
    share: bool = False


COLUMNS = (
    Column("model", "model"),
    Column("baseline", "baseline"),
    Column("category", "category"),
    Column("n", "n"),
    Column("prompts", "prompts"),
    Column("win rate", "win_rate", 2, "interval"),
    Column("draws as half", "win_rate_adjusted", 2, "win_rate_adjusted_interval"),
    Column("standard error", "standard_error", 2),
    Column("upstream's interval", "upstream_interval", 2),
    Column("length-controlled", "length_controlled_win_rate", 2, "length_controlled_interval"),
    Column("style-controlled", "style_controlled_win_rate", 2, "style_controlled_interval"),
    Column("discrete", "discrete_win_rate", 2),
    Column("average", "average", 3, "interval"),
    Column("reward", "reward"),
    Column("mean reward", "mean_reward", 3, "interval"),
    Column("turn 1", "turn_1", 3),
    Column("turn 2", "turn_2", 3),
    Column("wins", "wins"),
    Column("losses", "losses"),
    Column("ties", "ties"),
    Column("invalid", "invalid_rate", 1, share=True),
    Column("flipped", "flipped_rate", 1, share=True),
    Column("difference to", "difference.to"),
    Column("difference", "difference.win_rate", 2, "difference.interval"),
    Column("difference", "difference.average", 3, "difference.interval"),
    Column("difference", "difference.mean_reward", 3, "difference.interval"),
    Column("p (sign test)", "difference.p_value", 4),
    Column("length-controlled against it", "difference.length_controlled_win_rate", 2),
)
"""A column is shown where any of the results has a value for it."""
RESULTS_SIDE_BY_SIDE = 3


def as_rows(results: Sequence[Results]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of what these results have."""
    columns = [column for column in COLUMNS if any(_get(one, column.key) is not None for one in results)]
    return [column.title for column in columns], [
        [_cell(one, column) for column in columns] for one in results
    ]


def as_table(results: Sequence[Results]) -> "Table":
    """For a terminal; names of models are never read as markup.

    Few results stand beside one another: there are more figures than a terminal is wide.
    """
    from rich.table import Table
    from rich.text import Text

    head, rows = as_rows(results)
    if len(rows) <= RESULTS_SIDE_BY_SIDE:
        head, *rows = [list(line) for line in zip(head, *rows, strict=True)]
    table = Table()
    for title in head:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def as_markdown(results: Sequence[Results]) -> str:
    """A Markdown table."""
    head, rows = as_rows(results)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_escape, line))} |\n" for line in lines)


def as_csv(results: Sequence[Results]) -> str:
    """Every figure unrounded, nested ones by dotted names."""
    flat = [dict(_flatten(one)) for one in results]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _get(results: Results, key: str) -> Any:
    value: Any = results
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if value != "" else None


def _cell(results: Results, column: Column) -> str:
    value = _get(results, column.key)
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _interval(value, column.digits or 0)
    if column.digits is None:
        return str(value)
    text = f"{100 * value if column.share else value:.{column.digits}f}" + "%" * column.share
    interval = _get(results, column.interval) if column.interval else None
    return text if interval is None else f"{text} {_interval(interval, column.digits)}"


def _interval(ends: Sequence[float], digits: int) -> str:
    return f"({ends[0]:.{digits}f} .. {ends[1]:.{digits}f})"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _flatten(results: Results, prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat += _flatten(dict(value), f"{prefix}{key}.")
        elif key == "warnings":
            flat.append((prefix + key, " ".join(value)))
        elif isinstance(value, list | tuple):
            flat += [(f"{prefix}{key}.{end}", part) for end, part in zip(("low", "high"), value, strict=True)]
        else:
            flat.append((prefix + key, value))
    return flat
