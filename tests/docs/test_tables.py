"""The pages' tables of methods, measures and scorers say what the registries say."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from preftune.objectives import METHODS, Auxiliary, Option, options_of
from preftune.rewards import MEASURES
from preftune.rewards.auxiliary import OF_EVERY_REWARD
from preftune.rewards.sources import SOURCES

DOCS = Path(__file__).parents[2] / "docs"


def rows_below(page: str, header: str) -> dict[str, list[str]]:
    """The cells of a table's rows, by the name that the first one has in backticks."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *others = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        found[re.sub(r"`(\w+).*", r"\1", first)] = others
    return found


def default_of(option: Option) -> str:
    """A default as YAML writes it; empty where there is none."""
    if option.default is None:
        return ""
    return str(option.default).lower() if isinstance(option.default, bool) else str(option.default)


@pytest.mark.parametrize("name", METHODS)
def test_equations_lists_every_method_with_its_options(name: str) -> None:
    """Each method has a row, with every option and its default."""
    options = rows_below("equations.md", "| `method` |")[name][1]
    for key, option in options_of(METHODS[name]).items():
        value = default_of(option)
        assert f"`{key}: {value}`" in options if value else f"`{key}`" in options


def test_equations_lists_the_options_of_auxiliary_and_their_defaults() -> None:
    """Names in the order of the code, and their defaults."""
    rows = rows_below("equations.md", "| option of `auxiliary`")
    assert list(rows) == list(options_of(Auxiliary))
    for key, option in options_of(Auxiliary).items():
        shown = {"1/3": str(1 / 3), "20": "20.0"}.get(rows[key][0].strip("`"), rows[key][0].strip("`"))
        assert shown == default_of(option)


def test_no_table_lists_what_there_is_not() -> None:
    """The rows are those of the registries, no more and no fewer."""
    assert list(rows_below("equations.md", "| `method` |")) == list(METHODS)
    assert set(rows_below("rewards.md", "| name | what is measured")) == set(MEASURES)
    assert list(rows_below("rewards.md", "| option of every reward")) == list(OF_EVERY_REWARD)
    assert set(SOURCES) <= set(rows_below("score.md", "| source |"))


DESCRIBED: dict[str, tuple[Mapping[str, Option], str]] = {
    **{
        name: (measure.options, rows_below("rewards.md", "| name | what is measured")[name][-1])
        for name, measure in MEASURES.items()
    },
    **{
        name: (source.options, rows_below("score.md", "| source |")[name][-1])
        for name, source in SOURCES.items()
    },
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_option_of_a_reward_is_in_its_row(name: str) -> None:
    """Options are named in the code's order, with their defaults where they have one."""
    options, cell = DESCRIBED[name]
    assert re.findall(r"`(\w+)`", cell) == list(options)
    for key, option in options.items():
        value = default_of(option).removesuffix(".0")
        assert not value or f"`{key}` ({value}" in cell


def test_the_goals_and_ranges_of_measures_are_those_of_the_code() -> None:
    """A row says the measure's goal, and the ends of its range."""
    for name, (_, span, goal, _) in rows_below("rewards.md", "| name | what is measured").items():
        assert goal.startswith(MEASURES[name].goal or "give a target")
        ends = [f"{end:g}" for end in MEASURES[name].range if end is not None]
        assert re.findall(r"-?\d+(?:\.\d+)?", span) == ends
