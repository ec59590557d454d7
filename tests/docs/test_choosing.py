"""The chooser names what there is: methods, settings and evidence."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.data.pairing import PAIR_RULES
from preftune.objectives import METHODS, PRIORS, overview, resolve
from preftune.rewards import CALIBRATIONS
from preftune.training import check_config, trl_names
from preftune.training.configuration import RunConfig, _apply_override

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "choosing.md"
COLUMNS = "| method | learns from | reference | prior | auxiliary added | what it is |"
HEAD = f"{COLUMNS}\n|---|---|---|---|---|---|\n"
OTHER_WORDS = {"rewards", "clip", "predicted_factors"}
"""Words in backticks that name a section, a reward's option and a key of the summary."""


def table() -> str:
    """A row for every method."""
    rows = [
        (
            f"`{each.name}`",
            ", ".join(each.data),
            "yes" if each.needs_reference else "no",
            ", ".join(f"`{prior}`" for prior in each.priors) or "no",
            "yes" if each.takes_auxiliary else "no",
            each.summary,
        )
        for each in overview()
    ]
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def written() -> str:
    """What is written by hand."""
    return PAGE.read_text(encoding="utf-8").partition("## All methods")[0]


def test_table_of_methods() -> None:
    """The table is what METHODS says; REWRITE_DOCS=1 in the environment writes it anew."""
    before = PAGE.read_text(encoding="utf-8").partition(COLUMNS)[0]
    expected = before + table()
    if os.environ.get("REWRITE_DOCS") == "1":
        PAGE.write_text(expected, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == expected


def test_every_word_of_the_chooser_exists() -> None:
    """A word in backticks is a method, a prior, a calibration, a pair rule or an option."""
    words = {text for text in re.findall(r"`([^`]+)`", written()) if re.fullmatch(r"\w+", text)}
    known = {*METHODS, *PRIORS, *CALIBRATIONS, *PAIR_RULES, *trl_names.option_names(), *OTHER_WORDS}
    assert words - known == set()
    assert {"dpo", "kto", "csft", "dro_v"} <= words


SETTINGS = [text for text in re.findall(r"`([^`]+)`", written()) if re.fullmatch(r"[a-z_.]+=.+", text)]


@pytest.mark.parametrize("setting", dict.fromkeys(SETTINGS))
def test_every_setting_of_the_chooser_can_be_set(setting: str) -> None:
    """A `key=value` is a key that a run or the rounds have, with a value that it takes."""
    tree: dict[str, Any] = {"model": "m", "data": {"train": "t"}}
    if setting == "update_every=batch":
        return
    if setting.startswith("data.pairs_per_prompt"):
        tree["data"]["pair_rule"] = "max_margin_topk"
    if setting.startswith("data.pair_rule=max_margin_topk"):
        tree["data"]["pairs_per_prompt"] = 1
    if setting.startswith("objective.margin"):
        tree["objective"] = {"method": "bradley_terry"}
    _apply_override(tree, setting)
    config = check_config(tree)
    assert resolve(config.objective)
    assert setting.split(".")[0].split("=")[0] in RunConfig.model_fields
    assert yaml.safe_load(setting.partition("=")[2]) is not None


def anchors(page: Path) -> set[str]:
    """Headings as a link names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    """Evidence is a page that exists, and a heading that it has."""
    links = re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert sum(link.startswith("experiments.md#") for link in links) >= 5
    for link in links:
        file, _, anchor = link.partition("#")
        assert (DOCS / file).is_file(), link
        assert not anchor or anchor in anchors(DOCS / file), link


def test_what_was_not_measured_is_said() -> None:
    """Each line of both tables has a link to evidence, a page, or says that there is none."""
    lines = [line for line in written().splitlines() if line.startswith("| ")]
    rows = [line for line in lines if "| measured here |" not in line]
    assert len(rows) > 10
    for row in rows:
        evidence = row.strip("| ").split(" | ")[-1]
        assert "](" in evidence or "not measured here" in evidence, row
