"""Which figures the page has, what they show and how their captions explain it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.measuring.formatting import format_number
from preftune.measuring.samples import SampleRewards
from preftune.measuring.tradeoff import SweepPoint, planes, tradeoff_table
from preftune.report.evaluation import Evaluated, controlled_interval, evaluation_table
from preftune.report.evaluation_panels import (
    Categories,
    Controlled,
    Outcomes,
    categories_panel,
    controlled_panel,
    outcomes_panel,
)
from preftune.report.figures import (
    RewardRow,
    RunLine,
    gap_panel,
    reliability_panel,
    rewards_panel,
    steps_panel,
    tradeoff_panel,
    value_range,
)
from preftune.report.folders import RunRecord
from preftune.rewards.reliability import share_interval


@dataclass(frozen=True)
class FigureBlock:
    """Panels under one heading; a panel is an <svg> element.

    Attributes:
        title: the heading.
        caption: how to read the panels.
        panels: side by side.
        heads, rows: a table below them, where there is one.
    """

    title: str
    caption: str
    panels: list[str]
    heads: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def figure_blocks(records: Sequence[RunRecord], rewards: Mapping[str, SampleRewards]) -> list[FigureBlock]:
    """Every figure for which the runs have something to draw."""
    blocks = [
        _change_figure(records),
        _margin_figure(records),
        _reward_figure(records, rewards),
        _gap_figure(records),
        _reliability_figure(records),
    ]
    return [block for block in blocks if block is not None]


def tradeoff_block(records: Sequence[RunRecord], points: Sequence[SweepPoint]) -> FigureBlock:
    """What the points of a sweep gain and pay, with the Pareto front."""
    indices = {record.name: record.index for record in records}
    caption = (
        "Accuracy: share of held-out pairs whose chosen response has the higher implicit reward, a single "
        "number of the run. Drift: log-probability of sampled responses under the model less that under the "
        "starting model, an estimate of the KL divergence. Other figures are means over responses sampled on "
        "held-out prompts. Intervals are 95%, and a prompt counts once. Filled points lie on the Pareto "
        "front; hollow ones are dominated: another point is at least as good on both axes and better on one. "
        "That compares the means: where intervals overlap, the order may be chance."
    )
    panels = [
        tradeoff_panel(f"tradeoff{place}", plane, indices) for place, plane in enumerate(planes(points))
    ]
    return FigureBlock("Trade-off", caption, panels, *tradeoff_table(points))


def evaluation_block(evaluations: Sequence[Evaluated]) -> FigureBlock:
    """What judges, people and tests said of the models."""
    outcomes, categories, controlled = (
        _outcomes(evaluations),
        _categories(evaluations),
        _controlled(evaluations),
    )
    panels = [
        outcomes_panel(f"outcomes{place}", title, rows)
        for place, (title, rows) in enumerate(outcomes.items())
    ]
    caption = (
        "Intervals are 95%, over prompts. Where those of two models overlap, that does not show them equal: "
        "the difference on the same prompts says more, where it is stated."
    )
    if outcomes:
        caption += (
            " Bars: wins, ties and losses, from left to right. The dot is the win rate in percent, with ties "
            "as the protocol counts them."
        )
    if categories:
        panels.append(categories_panel("categories", "MT-Bench grades by category", categories))
        caption += (
            " Radar: grades from 0 in the middle to 10; a category has ten questions, so small differences "
            "are chance."
        )
    if controlled:
        panels.append(controlled_panel("controlled", "Win rate and length", controlled))
        caption += (
            " Win rate and length: the win rate as it is, and as it would be with answers as long as the "
            "baseline's. Below the dashed line, length has helped."
        )
    return FigureBlock("Evaluation", caption, panels, *evaluation_table(evaluations))


def _outcomes(evaluations: Sequence[Evaluated]) -> dict[str, list[Outcomes]]:
    """Rows by the title of their panel: a protocol and a baseline."""
    found: dict[str, list[Outcomes]] = {}
    for one in evaluations:
        wins, ties, losses = (one.number(key) for key in ("wins", "ties", "losses"))
        if wins is not None and ties is not None and losses is not None and wins + ties + losses > 0:
            title = f"{one.protocol} against {one.baseline}" if one.baseline else one.protocol
            row = Outcomes(one.name, one.index, wins, ties, losses, one.number("win_rate"), one.interval())
            found.setdefault(title, []).append(row)
    return found


def _categories(evaluations: Sequence[Evaluated]) -> list[Categories]:
    """Fewer than three categories make no radar."""
    found = []
    for one in evaluations:
        given = one.results.get("categories")
        if isinstance(given, Mapping):
            grades = {
                name: grade for name in given if (grade := Evaluated("", 0, given).number(name)) is not None
            }
            if len(grades) > 2:
                found.append(Categories(one.name, one.index, grades))
    return found


def _controlled(evaluations: Sequence[Evaluated]) -> list[Controlled]:
    return [
        Controlled(one.name, one.index, plain, one.interval(), controlled, controlled_interval(one))
        for one in evaluations
        if (plain := one.number("win_rate")) is not None
        and (controlled := one.number("length_controlled_win_rate")) is not None
    ]


def _change_figure(records: Sequence[RunRecord]) -> FigureBlock | None:
    chosen = [_change(record, "eval_logps/chosen") for record in records]
    rejected = [_change(record, "eval_logps/rejected") for record in records]
    if not any(line.finite() for line in chosen + rejected):
        return None
    limits = value_range(chosen + rejected)
    caption = (
        "How far the log-probability of the held-out responses has moved since the first evaluation, "
        "averaged over pairs (nats per response). Both panels have the same scale. Training steps are not "
        "drawn: each sees other pairs, and pairs differ by more than training moves them."
    )
    return FigureBlock(
        "Likelihood of chosen and rejected responses",
        caption + _missing(chosen + rejected),
        [
            steps_panel("chosen", "Chosen, change of log-prob", chosen, limits),
            steps_panel("rejected", "Rejected, change of log-prob", rejected, limits),
        ],
    )


def _change(record: RunRecord, metric: str) -> RunLine:
    series = record.series(metric)
    start = series[0][1] if series else 0.0
    return RunLine(record.name, record.index, [(step, value - start) for step, value in series])


def _margin_figure(records: Sequence[RunRecord]) -> FigureBlock | None:
    margins = [
        RunLine(
            record.name,
            record.index,
            record.series("eval_rewards/margins"),
            record.series("rewards/margins"),
        )
        for record in records
    ]
    accuracies = [_accuracy(record) for record in records]
    panels = []
    if any(line.finite() for line in margins):
        panels.append(steps_panel("margin", "Margin", margins, value_range(margins)))
    if any(line.finite() for line in accuracies):
        panels.append(steps_panel("accuracy", "Held-out accuracy", accuracies, (0.0, 1.0), baseline=0.5))
    if not panels:
        return None
    caption = (
        "Margin: implicit reward of chosen less that of rejected; points are held-out evaluations, faint "
        "lines the training batches. Accuracy: share of held-out pairs with a positive margin; the dashed "
        "line is a coin toss. An evaluation at which every pair is tied, as a model is with itself before "
        "its first step, ranks nothing and is not drawn."
    )
    return FigureBlock("Margin and accuracy", caption + _missing(margins), panels)


def _accuracy(record: RunRecord) -> RunLine:
    """Held-out accuracy where there is something to rank: a margin of exactly zero is a tie of all pairs."""
    tied = {step for step, margin in record.series("eval_rewards/margins") if margin == 0.0}
    points = [point for point in record.series("eval_rewards/accuracies") if point[0] not in tied]
    return RunLine(record.name, record.index, points)


def _missing(lines: Sequence[RunLine]) -> str:
    """A sentence on the runs with nothing to draw, and on values that are no numbers."""
    absent = dict.fromkeys(line.name for line in lines if not line.held_out)
    broken = dict.fromkeys(
        line.name for line in lines if any(not math.isfinite(value) for _, value in line.held_out)
    )
    text = ""
    if absent:
        text += f" No held-out evaluation: {', '.join(absent)}."
    if broken:
        text += f" Values that are not numbers are left out: {', '.join(broken)}."
    return text


def _reward_figure(records: Sequence[RunRecord], rewards: Mapping[str, SampleRewards]) -> FigureBlock | None:
    measured = [(record, rewards[record.name]) for record in records if record.name in rewards]
    if not measured:
        return None
    before = list(dict.fromkeys(pair.before for _, pair in measured))
    rows = [RewardRow("before", None, *before[0])] if len(before) == 1 else []
    for record, pair in measured:
        if len(before) > 1:
            rows.append(RewardRow("before", None, *pair.before))
        rows.append(RewardRow(record.name, record.index, *pair.after))
    caption = (
        "Mean reward of responses sampled on held-out prompts, with 95% intervals. Intervals that overlap "
        "widely mean that more prompts are needed to tell the models apart."
    )
    panel = rewards_panel("rewards", "Reward of sampled responses", rows)
    return FigureBlock("Rewards of sampled responses", caption, [panel])


def _gap_figure(records: Sequence[RunRecord]) -> FigureBlock | None:
    priors = [(record, record.prior) for record in records if record.prior]
    if not priors:
        return None
    panels = [
        gap_panel(
            f"gap{record.index}",
            f"{record.name}: {format_number(record.training_pairs, 0)} training pairs",
            record.index,
            prior["histogram"],
            prior["mean_gap"],
        )
        for record, prior in priors
    ]
    caption = (
        "How much better the chosen response of each training pair is by its reward. The prior multiplies "
        "the rejected score by this gap: at 1 the pair counts as without a prior, near 0 only its chosen "
        "response is learned."
    )
    warnings = [f" {record.name}: {prior['warning']}" for record, prior in priors if prior.get("warning")]
    return FigureBlock("Prior gap", caption + "".join(warnings), panels)


def _reliability_figure(records: Sequence[RunRecord]) -> FigureBlock | None:
    priors = [
        (record, pairs, prior)
        for record in records
        for split, pairs in {"train": "training pairs", "evaluation": "held-out pairs"}.items()
        # Summaries of earlier versions have a prior and no reliability.
        if (prior := (record.summary.get(split) or {}).get("prior")) and prior.get("reliability")
    ]
    if not priors:
        return None
    panels = [
        reliability_panel(
            f"reliability{place}",
            f"{record.name}: {pairs}",
            record.index,
            prior["reliability"]["bins"],
        )
        for place, (record, pairs, prior) in enumerate(priors)
    ]
    caption = (
        "A gap δ states the probability (1 + δ) / 2 that the chosen response is better. Points: for pairs of "
        "about the same stated probability (of the response that the prior favours), the share whose label "
        "favours it too, before negative gaps are dealt with; equal rewards agree by half. Above them the "
        "number of pairs. On the dashed line the probabilities are true, above it too timid, below it too "
        "bold; the expected calibration error (ECE) is the mean distance from it. Intervals are 95% "
        "(Wilson), with pairs taken as independent."
    )
    if any(_agrees_throughout(prior["reliability"]) for _, _, prior in priors):
        caption += (
            " Where no label contradicts the prior, the pairs may have been built from the same scores, and "
            "agreement and calibration then say nothing."
        )
    heads = ["Run", "Pairs", "Agreement", "ECE", "Gaps under 0.05", "Gaps over 0.95", "Negative gaps"]
    rows = [[record.name, *_reliability_cells(pairs, prior)] for record, pairs, prior in priors]
    return FigureBlock("Prior against the labels", caption, panels, heads, rows)


def _agrees_throughout(reliability: Mapping[str, Any]) -> bool:
    # Every pair that is no tie agrees by 1, every tie by a half.
    most = 1 - reliability["ties"] / reliability["pairs"] / 2
    return math.isclose(reliability["agreement"]["share"], most)


def _reliability_cells(pairs: str, prior: Mapping[str, Any]) -> list[str]:
    """The cells of a prior's row; both ends of the gap are shares of the pairs that remain."""
    reliability = prior["reliability"]
    agreement = reliability["agreement"]
    ends = [share_interval(prior[key], prior["pairs"]) for key in ("share_below_05", "share_above_95")]
    done = {"drop": "dropped", "swap": "swapped", "clip": "clipped to 0", "error": "none allowed"}
    return [
        f"{format_number(reliability['pairs'], 0)} {pairs.removesuffix(' pairs')}",
        format_number(agreement["share"], 2, interval=(agreement["low"], agreement["high"])),
        format_number(reliability["expected_calibration_error"], 3),
        *(format_number(end.share, 2, interval=(end.low, end.high)) for end in ends),
        f"{format_number(prior['negative'], 0)}, {done[prior['negative_gap']]}",
    ]
