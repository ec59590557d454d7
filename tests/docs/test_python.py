"""The pages' Python runs as it stands, from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def blocks() -> list[tuple[str, str]]:
    """Every Python block with the heading above it."""
    text = PAGE.read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    return [
        (section.splitlines()[0], code)
        for section in sections
        for code in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    ]


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(hub: dict[str, str], workplace: Path) -> None:
    """Every block works in the names that the blocks before it have made; `# NAME.py` begins a file."""
    script = workplace / "page.py"
    lines = []
    for heading, code in blocks():
        if file := re.match(r"# (\w+\.py)\n", code):
            (workplace / file[1]).write_text(code, encoding="utf-8")
        else:
            lines.append(f"# {heading}\n{code}")
    script.write_text("\n\n".join(lines), encoding="utf-8")
    environment = {**os.environ, **hub}
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, cwd=workplace, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (workplace / "out" / "adapter_config.json").is_file()
    assert (workplace / "runs" / "simpo" / "report.html").is_file()


@pytest.mark.slow
def test_the_readmes_example_runs(hub: dict[str, str], workplace: Path) -> None:
    """The first Python that a newcomer copies trains and saves an adapter."""
    text = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        if "PreferenceTrainer" in block
    ]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workplace,
        env={**os.environ, **hub},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (workplace / "out" / "adapter_config.json").is_file()


def test_every_example_is_short() -> None:
    """An example that is longer than a screen teaches two things at once."""
    lengths = {heading: len(code.splitlines()) for heading, code in blocks()}
    assert len(lengths) >= 9
    assert {heading: length for heading, length in lengths.items() if length > 27} == {}
