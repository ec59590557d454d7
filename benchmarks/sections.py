"""The part of a page that a script writes: between two markers, which stay; and a table in it."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from preftune.storage.files import write_whole

EXPERIMENTS_PAGE = Path("docs/experiments.md")


def experiment_markers(name: str) -> tuple[str, str]:
    """The lines of EXPERIMENTS_PAGE between which `make experiment-NAME` writes."""
    return f"<!-- tables: make experiment-{name} writes them -->", f"<!-- end of {name} -->"


def write_section(page: Path, markers: tuple[str, str], text: str) -> None:
    """Replace what stands between the markers; a page without them is left alone, with a word."""
    content = page.read_text(encoding="utf-8") if page.exists() else ""
    begin, end = markers
    head, found, rest = content.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        print(f"{page} has no lines '{begin}' and '{end}'; its tables are not written", file=sys.stderr)
        return
    write_whole(page, f"{head}{begin}\n\n{text}\n\n{end}{tail}")


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line of titles."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
