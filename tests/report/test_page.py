# ruff: noqa: RUF001  (the page writes true minus signs)
"""The report: what a reader finds on the page, and what must never be on it."""

import itertools
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.errors import InputError
from preftune.measuring.formatting import format_number
from preftune.measuring.samples import SampleRewards, SideBySide
from preftune.measuring.tradeoff import START, SweepPoint
from preftune.report import figures, write_report

NOON = 1_760_000_000  # 2025-10-09, UTC
HISTOGRAM = [0, 0, 0, 0, 2, 1, 11, 10, 12, 13]


def evaluation(step: int, chosen: float, rejected: float, margin: float, accuracy: float) -> dict[str, float]:
    """A line of metrics.jsonl as a held-out evaluation logs it."""
    return {
        "step": step,
        "eval_loss": 0.6,
        "eval_logps/chosen": chosen,
        "eval_logps/rejected": rejected,
        "eval_rewards/margins": margin,
        "eval_rewards/accuracies": accuracy,
    }


EVALUATIONS = (
    evaluation(0, -294.0, -260.0, 0.0, 0.0),
    evaluation(2, -296.5, -265.0, 0.25, 0.55),
    evaluation(4, -300.25, -275.5, 0.925, 0.66),
)


def run_folder(
    folder: Path,
    *,
    prior: bool = False,
    evaluations: tuple[dict[str, float], ...] = EVALUATIONS,
    **summary: Any,
) -> Path:
    """Write the four files of a finished run."""
    folder.mkdir()
    objective = {"method": "dpo", "prior": "reward_gap" if prior else None}
    config = {"model": "/models/SmolLM2-135M", "objective": objective, "output": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    steps = [{"step": step, "loss": 0.6, "rewards/margins": 0.2 * step} for step in range(1, 5)]
    lines = [*steps, *evaluations]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = {"mean_gap": 0.7809, "histogram": HISTOGRAM, "warning": None} if prior else None
    measured = {
        "train": {"pairs": 49, "prior": report},
        "steps": 4,
        "chosen_logp_change": -6.25 if evaluations else None,
        "rejected_logp_change": -15.5 if evaluations else None,
        "accuracy": 0.66 if evaluations else None,
        "seconds": 198.2,
        "tokens_per_second": 23.3,
        "peak_rss_mb": 4253,
    }
    (folder / "summary.json").write_text(json.dumps(measured | summary))
    environment = {
        "versions": {"preftune": "0.1.0", "torch": "2.13.0"},
        "processor": "AVX512",
        "device": "cpu",
        "threads": 2,
        "seed": 42,
        "commit": "b2e74578804f63b52886e25e2fd1382402341d72",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    os.utime(folder / "summary.json", (NOON, NOON))
    return folder


class Page(HTMLParser):
    """Table rows, figure labels, ids and references of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self.figures: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self._cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect ids, references and labels; a cell starts."""
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.references += [found[key] or "" for key in ("src", "href", "xlink:href") if key in found]
        if tag == "svg":
            self.figures.append(found["aria-label"] or "")
        if tag == "tr":
            self._cells = []
        if tag in ("th", "td"):
            self._cells.append("")

    def handle_data(self, data: str) -> None:
        """Text belongs to the cell that is open."""
        if self._cells:
            self._cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        """A row is complete."""
        if tag == "tr":
            label, *cells = (cell.strip() for cell in self._cells)
            self.rows[label] = cells
            self._cells = []


def render(tmp_path: Path, runs: dict[str, Path], **content: Any) -> str:
    """The page's text."""
    write_report(tmp_path / "report.html", "A report", runs, **content)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def two_runs(tmp_path: Path) -> dict[str, Path]:
    """One run without a prior and one with."""
    return {
        "dpo": run_folder(tmp_path / "dpo"),
        "dpo+prior": run_folder(tmp_path / "prior", prior=True, chosen_logp_change=2.04),
    }


def test_table_has_the_numbers_of_the_runs(tmp_path: Path, two_runs: dict[str, Path]) -> None:
    """Every run is a column with its own figures, in one number format."""
    rewards = {"dpo": SampleRewards((0.52, 0.48, 0.56), (0.571, 0.53, 0.61))}
    rows = Page(render(tmp_path, two_runs, rewards=rewards)).rows
    assert rows == {
        "Measure": ["dpo", "dpo+prior"],
        "Objective": ["dpo", "dpo, prior reward_gap"],
        "Training pairs": ["49", "49"],
        "Steps": ["4", "4"],
        "Chosen log-prob, change": ["−6.2", "+2.0"],
        "Rejected log-prob, change": ["−15.5", "−15.5"],
        "Held-out accuracy": ["0.66", "0.66"],
        "Mean prior gap": ["no prior", "0.78"],
        "Sample reward, before": ["0.52 (0.48 to 0.56)", "not measured"],
        "Sample reward, after": ["0.57 (0.53 to 0.61)", "not measured"],
        "Training time": ["198 s", "198 s"],
        "Tokens per second": ["23.3", "23.3"],
        "Peak memory": ["4.2 GiB", "4.2 GiB"],
    }


def test_figures_say_what_they_show(tmp_path: Path, two_runs: dict[str, Path]) -> None:
    """Each figure's label names what is drawn and where it ends: the change is last less first."""
    rewards = {"dpo": SampleRewards((0.52, 0.48, 0.56), (0.57, 0.53, 0.61))}
    assert Page(render(tmp_path, two_runs, rewards=rewards)).figures == [
        "Chosen, change of log-prob: dpo ends at −6.25 after step 4; dpo+prior ends at −6.25 after step 4.",
        "Rejected, change of log-prob: dpo ends at −15.50 after step 4; "
        "dpo+prior ends at −15.50 after step 4.",
        "Margin: dpo ends at 0.93 after step 4; dpo+prior ends at 0.93 after step 4.",
        "Held-out accuracy: dpo ends at 0.66 after step 4; dpo+prior ends at 0.66 after step 4.",
        "Reward of sampled responses: before 0.52 (0.48 to 0.56); dpo 0.57 (0.53 to 0.61).",
        "dpo+prior: 49 training pairs: pairs per tenth from 0 to 1: 0, 0, 0, 0, 2, 1, 11, 10, 12, 13; "
        "mean gap 0.78.",
    ]


def test_figures_keep_their_text(tmp_path: Path, two_runs: dict[str, Path]) -> None:
    """Labels in a figure are text, which can be read, searched and scaled, with colours of the page."""
    page = render(tmp_path, two_runs)
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert labels.count("dpo+prior") == 4  # two panels of log-probs, margin, accuracy
    assert {"13", "mean 0.78", "training step"} <= set(labels)
    assert "var(--run-0, #0072b2)" in page


def test_an_evaluation_of_ties_has_no_accuracy(tmp_path: Path) -> None:
    """A model compared with itself ranks nothing, so that its accuracy of zero is not drawn."""
    start = (evaluation(0, -294.0, -260.0, 0.0, 0.0),)
    figures = Page(render(tmp_path, {"dpo": run_folder(tmp_path / "dpo", evaluations=start)})).figures
    assert not any("accuracy" in label for label in figures)
    assert any(label.startswith("Margin") for label in figures)


def test_header_comes_from_the_run_folder(tmp_path: Path, two_runs: dict[str, Path]) -> None:
    """Date, model, device, seed, commit and versions are the run's, not those of whoever renders."""
    page = render(tmp_path, two_runs)
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts == {
        "Date": "2025-10-09",
        "Model": "SmolLM2-135M",
        "Device": "cpu (AVX512, 2 threads)",
        "Seed": "42",
        "Commit": "b2e7457880",
        "Versions": "preftune 0.1.0, torch 2.13.0",
    }


def share(value: float, low: float, high: float) -> dict[str, float]:
    """A share with its interval as in summary.json."""
    return {"share": value, "low": low, "high": high}


PRIOR_AGAINST_LABELS: dict[str, Any] = {
    "negative_gap": "drop",
    "negative": 100,
    "pairs": 1400,
    "mean_gap": 0.5,
    "histogram": HISTOGRAM,
    "share_below_05": 0.0,
    "share_above_95": 1.0,
    "warning": None,
    "reliability": {
        "pairs": 1500,
        "ties": 0,
        "agreement": share(0.9333, 0.9196, 0.9449),
        "expected_calibration_error": 0.0421,
        "bins": [
            {"pairs": 300, "probability": 0.624, "agreement": share(0.6666, 0.6115, 0.7177)},
            {"pairs": 1200, "probability": 0.976, "agreement": share(1.0, 0.9968, 1.0)},
        ],
    },
}


def with_priors(folder: Path, train: dict[str, Any] | None, evaluation: dict[str, Any] | None) -> Path:
    """A run folder whose summary has these reports on the prior."""
    return run_folder(
        folder,
        train={"pairs": 1400, "prior": train},
        evaluation={"pairs": 1400, "prior": evaluation},
    )


def test_a_prior_is_shown_against_the_labels(tmp_path: Path) -> None:
    """Each split has a diagram that names every bin, and a row of figures; shares have Wilson intervals.

    Of 1,400 pairs none is under 0.05, so that up to z^2 / (1400 + z^2) = 0.003 may be.
    """
    folder = with_priors(tmp_path / "run", PRIOR_AGAINST_LABELS, PRIOR_AGAINST_LABELS)
    page = render(tmp_path, {"prior": folder})
    parsed = Page(page)
    described = (
        "share of labels that agree, by stated probability: 0.67 (0.61 to 0.72) at 0.62, 300 pairs; "
        "1.00 (1.00 to 1.00) at 0.98, 1,200 pairs."
    )
    assert parsed.figures[-2:] == [f"prior: {split} pairs: {described}" for split in ("training", "held-out")]
    assert parsed.rows["Run"] == [
        "Pairs",
        "Agreement",
        "ECE",
        "Gaps under 0.05",
        "Gaps over 0.95",
        "Negative gaps",
    ]
    assert parsed.rows["prior"] == [
        "1,500 held-out",
        "0.93 (0.92 to 0.94)",
        "0.042",
        "0.00 (0.00 to 0.00)",
        "1.00 (1.00 to 1.00)",
        "100, dropped",
    ]
    assert "1,500 training" in page
    assert {"300", "1,200"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", page))
    assert "built from the same scores" not in page
    assert len(parsed.ids) == len(set(parsed.ids))


def test_a_prior_that_no_label_contradicts_proves_nothing(tmp_path: Path) -> None:
    """Agreement throughout, ties apart, is what pairs built from the scores have: the page says so."""
    # 1,300 pairs agree and 200 ties by half: 1,400 of 1,500.
    against = PRIOR_AGAINST_LABELS["reliability"] | {"ties": 200, "agreement": share(14 / 15, 0.9196, 0.9449)}
    folder = with_priors(tmp_path / "run", PRIOR_AGAINST_LABELS | {"reliability": against}, None)
    assert "built from the same scores" in render(tmp_path, {"prior": folder})


def test_a_prior_of_an_earlier_version_has_no_diagram(tmp_path: Path, two_runs: dict[str, Path]) -> None:
    """Summaries without figures on reliability still give a page, and no empty section."""
    assert "Prior against the labels" not in render(tmp_path, two_runs)


def test_text_of_others_is_escaped(tmp_path: Path) -> None:
    """Run names, prompts, responses, notes and configurations cannot become markup."""
    evil = '<script>alert("&")</script>'
    folder = run_folder(tmp_path / "run", prior=True)
    with (folder / "config.yaml").open("a") as file:
        file.write(f"note: '{evil}'\n")
    sample = SideBySide(evil, {"before": (evil, 0.1), f"a & {evil}": (evil, 0.25)})
    rewards = {evil: SampleRewards((0.5, 0.4, 0.6), (0.5, 0.4, 0.6))}
    page = render(tmp_path, {evil: folder}, samples=[sample], notes=[evil], rewards=rewards)
    assert "<script" not in page
    assert "script" not in Page(page).tags
    assert "a &amp; &lt;script&gt;" in page
    assert page.count("&lt;script&gt;") > 8
    assert "reward 0.25" in page


def test_names_are_not_formulas(tmp_path: Path) -> None:
    """Dollar signs in a run's name are drawn as they are, not read as mathematics."""
    assert ">$x_1$ & y<".replace("&", "&amp;") in render(tmp_path, {"$x_1$ & y": run_folder(tmp_path / "a")})


def test_a_run_without_evaluation_or_prior(tmp_path: Path) -> None:
    """The page then has what there is, says what was not measured, and names the run that lacks it."""
    page = render(tmp_path, {"bare": run_folder(tmp_path / "bare", evaluations=())})
    parsed = Page(page)
    assert parsed.rows["Held-out accuracy"] == ["not measured"]
    assert parsed.rows["Chosen log-prob, change"] == ["not measured"]
    assert "Mean prior gap" not in parsed.rows
    assert parsed.figures == ["Margin: bare ends at 0.80 after step 4."]
    assert "No held-out evaluation: bare." in page


def test_a_run_that_logged_nothing(tmp_path: Path) -> None:
    """Without a single line of metrics there are no figures, and there is still a page."""
    folder = run_folder(tmp_path / "run", evaluations=())
    (folder / "metrics.jsonl").write_text("")
    assert Page(render(tmp_path, {"run": folder})).figures == []


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    """A NaN is shown as NaN, left out of figures and named below them; other points are drawn."""
    nan = float("nan")
    broken = (*EVALUATIONS[:2], evaluation(4, nan, nan, nan, 0.0))
    folder = run_folder(tmp_path / "run", prior=True, evaluations=broken, chosen_logp_change=nan)
    page = render(tmp_path, {"broken": folder})
    parsed = Page(page)
    assert parsed.rows["Chosen log-prob, change"] == ["NaN"]
    assert parsed.figures[0] == "Chosen, change of log-prob: broken ends at −2.50 after step 2."
    assert "Values that are not numbers are left out: broken." in page


def test_runs_with_different_starts_show_each(tmp_path: Path, two_runs: dict[str, Path]) -> None:
    """When runs were measured from different starting rewards, each start has a row of its own."""
    after = (0.6, 0.5, 0.7)
    rewards = {
        "dpo": SampleRewards((0.4, 0.3, 0.5), after),
        "dpo+prior": SampleRewards((0.5, 0.4, 0.6), after),
    }
    label = next(
        text for text in Page(render(tmp_path, two_runs, rewards=rewards)).figures if "sampled" in text
    )
    assert label.count("before") == 2


def test_many_runs_with_long_names(tmp_path: Path) -> None:
    """More runs than colours, with names longer than their place, all get a label that is cut short."""
    runs = {f"{index} is a very long name": run_folder(tmp_path / str(index)) for index in range(8)}
    page = render(tmp_path, runs)
    assert all(f">{index} is a very lon…<" in page for index in range(8))


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "summary.json", "environment.json"])
def test_a_missing_file_is_named(tmp_path: Path, two_runs: dict[str, Path], file: str) -> None:
    """The error names the run, its folder and the file; no page is written."""
    (two_runs["dpo"] / file).unlink()
    with pytest.raises(InputError, match=rf"'dpo': {re.escape(str(two_runs['dpo']))} has no {file}"):
        render(tmp_path, two_runs)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("summary.json", "{", "is not JSON"),
        ("metrics.jsonl", '{"step": 1}\n{"st', "is not JSON"),
        ("environment.json", "[]", "has no keys"),
        ("config.yaml", "a: [", "is not YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, content: str, reason: str) -> None:
    """A file that cannot be read is the user's to fix: the error names it."""
    folder = run_folder(tmp_path / "run")
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=f"{re.escape(str(folder / file))} {reason}"):
        render(tmp_path, {"run": folder})


def test_no_runs_and_rewards_of_no_run_are_refused(tmp_path: Path, two_runs: dict[str, Path]) -> None:
    """An empty report and rewards under an unknown name are mistakes, never silently dropped."""
    with pytest.raises(InputError, match="runs is empty"):
        render(tmp_path, {})
    interval = (0.5, 0.4, 0.6)
    with pytest.raises(InputError, match="rewards of ppo: no such run; runs are dpo, dpo\\+prior"):
        render(tmp_path, two_runs, rewards={"ppo": SampleRewards(interval, interval)})


def test_page_stands_alone(tmp_path: Path, two_runs: dict[str, Path]) -> None:
    """Nothing is loaded from anywhere: references stay on the page, ids are unique, no scripts run."""
    rewards = {"dpo": SampleRewards((0.52, 0.48, 0.56), (0.57, 0.53, 0.61))}
    page = render(tmp_path, two_runs, rewards=rewards)
    parsed = Page(page)
    assert all(reference.startswith("#") or reference == "data:," for reference in parsed.references)
    assert {reference[1:] for reference in parsed.references if reference[0] == "#"} <= set(parsed.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(parsed.ids)
    assert "@import" not in page
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not {"script", "iframe", "img", "object"} & set(parsed.tags)


def test_same_folders_same_page(tmp_path: Path, two_runs: dict[str, Path]) -> None:
    """Rendering twice gives the same bytes."""
    assert render(tmp_path, two_runs) == render(tmp_path, two_runs)


def test_page_is_replaced_as_a_whole(
    tmp_path: Path, two_runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure while writing leaves the former page; success leaves nothing beside the page."""
    former = render(tmp_path, two_runs)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            render(tmp_path, {"only": two_runs["dpo"]})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == former
    render(tmp_path, two_runs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dpo", "prior", "report.html"]


def test_importing_loads_nothing_heavy() -> None:
    """The package can be imported by the command line without waiting for torch or matplotlib."""
    heavy = ["torch", "transformers", "matplotlib", "jinja2"]
    code = f"import sys, preftune.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "digits", "signed", "expected"),
    [
        (None, 2, False, "not measured"),
        (float("nan"), 2, True, "NaN"),
        (float("inf"), 1, True, "+inf"),
        (-0.04, 1, True, "0.0"),
        (3.14, 1, True, "+3.1"),
        (-21.26, 1, True, "−21.3"),
        (12345.6, 0, False, "12,346"),
    ],
)
def test_number_format(value: float | None, digits: int, signed: bool, expected: str) -> None:
    """One format: true minus signs, no signed zero, and words for what is not there."""
    assert format_number(value, digits, signed=signed) == expected


def sweep_point(
    name: str, accuracy: float | None, drift: float, reward: float, **measurements: float
) -> SweepPoint:
    """A point whose intervals reach 0.1 to each side."""

    def interval(mean: float) -> tuple[float, float, float]:
        return mean, mean - 0.1, mean + 0.1

    measured = {key: interval(mean) for key, mean in measurements.items()}
    return SweepPoint(name, accuracy, interval(drift), interval(reward), measured)


POINTS = (
    sweep_point(START, None, 0.0, 0.2, grade=9.0),
    sweep_point("0", 0.7, 1.0, 0.3, grade=8.5),
    sweep_point("0.1", 0.65, 2.0, 0.5, grade=7.25),
    sweep_point("0.3", 0.6, 3.0, 0.4, grade=7.0),
)


@pytest.fixture
def swept_runs(tmp_path: Path) -> dict[str, Path]:
    """A run folder for each point that was trained."""
    return {name: run_folder(tmp_path / f"w={name}") for name in ("0", "0.1", "0.3")}


def test_table_says_what_dominates(tmp_path: Path, swept_runs: dict[str, Path]) -> None:
    """Every model is a row with its figures and, for each plane, the front or who beats it."""
    page = render(tmp_path, swept_runs, tradeoff=POINTS)
    rows = Page(page).rows
    assert rows["Run"] == [
        "Accuracy",
        "Drift, nats",
        "Auxiliary reward",
        "grade",
        "Reward against accuracy",
        "Reward against drift",
    ]
    assert rows[START] == [
        "not measured",
        "0.00 (−0.10 to 0.10)",
        "0.20 (0.10 to 0.30)",
        "9.00 (8.90 to 9.10)",
        "not compared",
        "on the front",
    ]
    assert rows["0.1"][-2:] == ["on the front", "on the front"]
    assert rows["0.3"][-2:] == ["dominated by 0.1", "dominated by 0.1"]


def test_figure_marks_the_front(tmp_path: Path, swept_runs: dict[str, Path]) -> None:
    """The label names each point's place and standing; a dominated point is hollow and keeps its label."""
    page = render(tmp_path, swept_runs, tradeoff=POINTS)
    assert Page(page).figures[0] == (
        "Reward against accuracy: "
        "0 has accuracy 0.70, reward 0.30 (0.20 to 0.40), on the Pareto front; "
        "0.1 has accuracy 0.65, reward 0.50 (0.40 to 0.60), on the Pareto front; "
        "0.3 has accuracy 0.60, reward 0.40 (0.30 to 0.50), dominated by 0.1."
    )
    first = page[page.index("<svg") : page.index("</svg>")]
    hollow = re.findall(r"fill: var\(--paper[^;]*; stroke: var\((--run-\d)", first)
    filled = re.findall(r"fill: var\((--run-\d)[^;]*; stroke: var\(\1", first)
    assert set(hollow) == {"--run-2"}
    assert set(filled) == {"--run-0", "--run-1"}
    assert {"0", "0.1", "0.3"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", first))


def test_a_page_without_a_sweep_has_no_tradeoff(tmp_path: Path, swept_runs: dict[str, Path]) -> None:
    """The ordinary page stays as it is."""
    page = render(tmp_path, swept_runs)
    assert "Trade-off" not in page
    assert "Run" not in Page(page).rows


def test_points_of_no_run_are_refused(tmp_path: Path, swept_runs: dict[str, Path]) -> None:
    """A point under an unknown name is a mistake, never silently drawn."""
    with pytest.raises(InputError, match=r"points 0\.5: no such run; runs are 0, 0\.1, 0\.3"):
        render(tmp_path, swept_runs, tradeoff=[*POINTS, sweep_point("0.5", 0.5, 1.0, 0.5)])


def test_names_and_measurements_are_escaped(tmp_path: Path) -> None:
    """Swept values and names of rewards cannot become markup, in the figure or in the table."""
    evil = '<script>"&"</script>'
    points = [sweep_point(evil, 0.5, 1.0, 0.5, **{evil: 1.0}), sweep_point(START, None, 0.0, 0.4)]
    page = render(tmp_path, {evil: run_folder(tmp_path / "a")}, tradeoff=points)
    assert "script" not in Page(page).tags
    assert Page(page).rows[evil][-1] == "on the front"


def test_more_points_than_colours(tmp_path: Path) -> None:
    """Twenty runs and points get a page; their labels stay inside a panel, a text's height apart."""
    names = [f"{place / 100}" for place in range(20)]
    runs = {name: run_folder(tmp_path / name) for name in names}
    points = [sweep_point(name, place / 20, float(place), 1 - place / 20) for place, name in enumerate(names)]
    samples = [SideBySide("Why?", dict.fromkeys(names, ("so", None)))]
    page = render(tmp_path, runs, tradeoff=points, samples=samples)
    assert [Page(page).rows[name][-2] for name in names] == ["on the front"] * 20
    assert 'class="reward"' not in page  # no answer has one
    panel = page[page.index('aria-label="Chosen, change') : page.index('aria-label="Rejected, change')]
    height = float(re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', page)[2])
    places = sorted(
        float(y) for y, text in re.findall(r'y="([\d.-]+)"[^>]*>([\d.]+)<', panel) if text in names
    )
    assert len(places) == 20
    assert places[0] > 0
    assert places[-1] < height
    assert min(lower - upper for upper, lower in itertools.pairwise(places)) > 9.5


def test_a_seventh_run_differs_from_the_first() -> None:
    """Runs that share a colour have different markers, so that no two of the first 36 look alike."""
    looks = {(figures._colour(index), figures._marker(index)) for index in range(36)}
    assert len(looks) == 36
