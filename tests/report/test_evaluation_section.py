# ruff: noqa: RUF001  (the page writes true minus signs)
"""The section on evaluations: what it shows of which results, and how it treats what it cannot use."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.errors import InputError
from preftune.report import write_report

NOON = 1_760_000_000  # 2025-10-09, UTC
HOSTILE = '<script>alert(1)</script>" onload="x'

HEAD_TO_HEAD = {
    "protocol": "head_to_head",
    "model": "tuned",
    "baseline": "base",
    "n": 80,
    "win_rate": 62.5,
    "interval": [52.5, 72.25],
    "wins": 45,
    "ties": 10,
    "losses": 25,
    "length_controlled_win_rate": 55.0,
    "length_controlled_standard_error": 2.5,
}
GRADES = {"writing": 8.5, "math": 3.25, "coding": 4.0}
MT_BENCH = {
    "protocol": "mt_bench",
    "model": "/models/other",
    "baseline": None,
    "n": 160,
    "average": 6.819,
    "interval": [6.3, 7.3],
    "categories": GRADES,
}
ACADEMIC = {
    "protocol": "academic",
    "category": "gsm8k",
    "model": "tuned",
    "baseline": "base",
    "n": 100,
    "average": 60.0,
    "interval": [50.0, 69.0],
    "difference": {"to": "base", "average": -4.5, "interval": [-9.0, 0.5]},
}


class Section(HTMLParser):
    """The figures' labels and the table of the section, and every tag of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.figures: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.caption = ""
        self._open = False
        self._in: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Rows, cells and figures while the section is open."""
        self.tags.append(tag)
        self._in = tag if tag in ("h2", "figcaption", "th", "td") else self._in
        if self._open and tag == "svg":
            self.figures.append(dict(attrs)["aria-label"] or "")
        if self._open and tag == "tr":
            self.rows.append([])
        if self._open and tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        """A heading opens or closes the section."""
        if self._in == "h2":
            self._open = data == "Evaluation"
        elif self._open and self._in == "figcaption":
            self.caption += data
        elif self._open and self._in in ("th", "td"):
            self.rows[-1][-1] += data.strip()

    def handle_endtag(self, tag: str) -> None:
        """Text outside a cell is none of it."""
        self._in = None if tag == self._in else self._in


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """One finished run, called tuned."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": "base", "objective": {"method": "dpo"}}))
    (folder / "metrics.jsonl").write_text("")
    (folder / "summary.json").write_text(json.dumps({"steps": 4}))
    (folder / "environment.json").write_text("{}")
    os.utime(folder / "summary.json", (NOON, NOON))
    return {"tuned": folder}


def render(tmp_path: Path, runs: dict[str, Path], *results: Any) -> str:
    """A page with one file of results for each that is given."""
    paths = []
    for place, content in enumerate(results):
        paths.append(tmp_path / f"results-{place}.json")
        paths[-1].write_text(json.dumps(content), encoding="utf-8")
    write_report(tmp_path / "report.html", "A report", runs, evaluations=paths)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_every_figure_says_what_it_shows(tmp_path: Path, runs: dict[str, Path]) -> None:
    """Bars, radar and lengths are drawn for the results that have them, with intervals.

    The interval at equal length is 55 ± 1.96 · 2.5 = 50.1 to 59.9.
    """
    section = Section(render(tmp_path, runs, [HEAD_TO_HEAD], [MT_BENCH, ACADEMIC]))
    assert section.figures == [
        "head_to_head against base: tuned 45 wins, 10 ties, 25 losses, win rate 62.5 (52.5 to 72.2).",
        "MT-Bench grades by category: other writing 8.50, math 3.25, coding 4.00.",
        "Win rate and length: tuned 62.5 (52.5 to 72.2), at equal length 55.0 (50.1 to 59.9).",
    ]
    for word in ("Bars:", "Radar:", "Win rate and length:"):
        assert word in section.caption


def test_table_has_every_result(tmp_path: Path, runs: dict[str, Path]) -> None:
    """One row a result, in the order of the files, with the columns that any of them fills."""
    assert Section(render(tmp_path, runs, [HEAD_TO_HEAD], [MT_BENCH, ACADEMIC])).rows == [
        ["Model", "Protocol", "Against", "n", "Win rate, %", "At equal length, %", "Average", "Difference"],
        ["tuned", "head_to_head", "base", "80", "62.5 (52.5 to 72.2)", "55.0 (50.1 to 59.9)", "", ""],
        ["other", "mt_bench", "", "160", "", "", "6.82 (6.30 to 7.30)", ""],
        [
            "tuned",
            "academic, gsm8k",
            "base",
            "100",
            "",
            "",
            "60.00 (50.00 to 69.00)",
            "−4.50 (−9.00 to +0.50)",
        ],
    ]


@pytest.mark.parametrize(
    ("figure", "value", "shown"),
    [
        ("win_rate", 12.5, "+12.50 (+1.00 to +24.00)"),
        ("average", 0.25, "+0.25 (+1.00 to +24.00)"),
        ("mean_reward", -13.637, "−13.64 (+1.00 to +24.00)"),
        ("mean_reward", 0.0, "0.00 (+1.00 to +24.00)"),
    ],
)
def test_a_difference_is_shown_of_whatever_was_measured(
    tmp_path: Path, runs: dict[str, Path], figure: str, value: float, shown: str
) -> None:
    """The table states the difference to a baseline, be it of win rates, averages or mean rewards."""
    difference = {"to": "base", figure: value, "interval": [1.0, 24.0]}
    results = {"protocol": "reward", "model": "tuned", "baseline": "base", "n": 3, figure: 10.0}
    heads, cells = Section(render(tmp_path, runs, results | {"difference": difference})).rows
    assert dict(zip(heads, cells, strict=True))["Difference"] == shown


def test_bars_are_as_long_as_their_share(tmp_path: Path, runs: dict[str, Path]) -> None:
    """45 wins, 10 ties and 25 losses take 45/80, 10/80 and 25/80 of the bar."""
    page = render(tmp_path, runs, HEAD_TO_HEAD)
    svg = next(part for part in page.split("<svg")[1:] if "45 wins" in part)
    # The outline of a bar, which the figure's and the axes' own backgrounds precede.
    outline = r'<path d="M ([\d.]+) [\d.]+ *\n?L ([\d.]+) [\d.]+ *\n?L \2 [\d.]+ *\n?L \1 .*?style="([^"]*)"'
    bars = [found for found in re.findall(outline, svg, re.DOTALL) if "fill: none" not in found[2]]
    widths = [float(end) - float(start) for start, end, _ in bars]
    assert [width / sum(widths) for width in widths] == pytest.approx([45 / 80, 10 / 80, 25 / 80], abs=1e-3)


def test_a_run_keeps_its_colour(tmp_path: Path, runs: dict[str, Path]) -> None:
    """A model named like a run has the run's colour, and another model the next one, in table and figure."""
    page = render(tmp_path, runs, MT_BENCH, HEAD_TO_HEAD)
    swatches = dict(re.findall(r'background:var\(--(run-\d)\)"></span>(\w+)</th>', page)[::-1])
    assert {name: swatch for swatch, name in swatches.items()} == {"tuned": "run-0", "other": "run-1"}
    radar = next(part for part in page.split("<svg")[1:] if "MT-Bench grades" in part)
    assert "var(--run-1" in radar
    assert "var(--run-0" not in radar


def test_the_same_results_give_the_same_page(tmp_path: Path, runs: dict[str, Path]) -> None:
    """Byte for byte, and no id comes twice."""
    results = ([HEAD_TO_HEAD], [MT_BENCH, HEAD_TO_HEAD | {"protocol": "human"}])
    page = render(tmp_path, runs, *results)
    assert page == render(tmp_path, runs, *results)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_names_are_text(tmp_path: Path, runs: dict[str, Path]) -> None:
    """A model, baseline or category with markup in its name adds no element to the page."""
    plain = Section(render(tmp_path, runs, HEAD_TO_HEAD, MT_BENCH))
    hostile = {"model": HOSTILE, "baseline": HOSTILE}
    categories = {HOSTILE if name == "math" else name: grade for name, grade in GRADES.items()}
    page = render(tmp_path, runs, HEAD_TO_HEAD | hostile, MT_BENCH | hostile | {"categories": categories})
    section = Section(page)
    assert HOSTILE not in page
    assert "script" not in section.tags
    assert section.tags.count("tr") == plain.tags.count("tr")
    assert section.rows[1][0] == HOSTILE


def test_what_is_not_there_is_not_drawn(tmp_path: Path, runs: dict[str, Path]) -> None:
    """Without evaluations there is no section; figures that are null, text or not numbers are left out."""
    assert Section(render(tmp_path, runs)).rows == []
    odd = {
        "protocol": "alpaca_eval",
        "model": "m",
        "n": 0,
        "win_rate": None,
        "wins": 0,
        "ties": 0,
        "losses": 0,
    }
    section = Section(render(tmp_path, runs, odd | {"length_controlled_win_rate": "55", "interval": None}))
    assert section.figures == []
    assert section.rows == [["Model", "Protocol", "n"], ["m", "alpaca_eval", "0"]]


def test_two_folders_of_one_name_stay_apart(tmp_path: Path, runs: dict[str, Path]) -> None:
    """A folder is shown by its last part, unless another model would have the same name."""
    models = [HEAD_TO_HEAD | {"model": f"/runs/{name}/model"} for name in ("a", "b")]
    assert [row[0] for row in Section(render(tmp_path, runs, models)).rows[1:]] == [
        "/runs/a/model",
        "/runs/b/model",
    ]
    assert Section(render(tmp_path, runs, models[:1])).rows[1][0] == "model"


@pytest.mark.parametrize("content", [[], {"model": "m"}, [1], "text"])
def test_other_files_are_refused(tmp_path: Path, runs: dict[str, Path], content: Any) -> None:
    """A file that holds no results is named, and no page is written."""
    with pytest.raises(InputError, match=r"results-0\.json holds no results"):
        render(tmp_path, runs, content)
    assert not (tmp_path / "report.html").exists()
