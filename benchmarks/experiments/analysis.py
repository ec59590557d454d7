"""The pages of the protocol: JSON, tables and figures from whatever cells are finished."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sections import markdown_table

from experiments.cells import SETTINGS_OF
from experiments.drawing import draw
from experiments.gathering import Json, gather, settings_of
from experiments.sizes import Sizes
from preftune.storage.files import write_json, write_whole

TITLES = {
    "a": "(a) The demo's verifier",
    "b": "(b) Graded responses of published models",
    "c": "(c) Harmlessness, with toxicity and reading grade",
    "c-groups": "(c) The auxiliary term on all eight responses or the pair",
    "d-a": "(d) Rounds, from (a)",
    "d-b": "(d) Rounds, from (b)",
}
POINTS = {"kept": "At the tuned point", "long": "After four times the tuned steps"}
MISSING_SHOWN = 10
EXPLAINED = "value_explained_variance"


def write_all(parts: Sequence[str], tables: Sequence[str], sizes: Sizes, pages: Path) -> None:
    """Write `results-SIZES.md`, and for each setting a JSON file and a figure beside it."""
    pages.mkdir(parents=True, exist_ok=True)
    texts = [f"# Results of the protocol, {sizes.name}", about(sizes)]
    for name in [name for part in parts for name in SETTINGS_OF[part]]:
        found = gather(settings_of([name])[0], tables, parts, sizes)
        if found["cells"] == 0:
            continue
        stem = f"{name}-{sizes.name}"
        write_json(pages / f"{stem}.json", found)
        texts += [f"## {TITLES[name]}", missing_line(found)]
        if "judge" in found:
            texts.append(judge_line(found["judge"]))
        if draw(pages / f"{stem}.svg", found):
            texts.append(
                f"![Gain against learning rate and steps, and differences on test prompts]({stem}.svg)"
            )
        texts += section(found)
        texts.append(f"Figures: [{stem}.json]({stem}.json).")
    path = pages / f"results-{sizes.name}.md"
    write_whole(path, "\n\n".join(texts) + "\n")
    print(f"{path} has the tables of what is finished")


def about(sizes: Sizes) -> str:
    """What was run."""
    return (
        "Written by `make experiments`, by the [protocol](protocol.md): "
        f"{sizes.pairs_per_step} pairs a step, "
        f"learning rates {', '.join(f'{rate:g}' for rate in sizes.rates)}, "
        f"{', '.join(map(str, sizes.steps))} steps, {sizes.seeds} test seeds, "
        f"{sizes.test_samples} samples a prompt. Intervals are 95%, over prompts and seeds."
    )


def missing_line(found: Json) -> str:
    """Which cells are not there."""
    missing = found["missing"]
    if not missing:
        return f"All {found['cells']} cells are finished."
    shown = ", ".join(f"`{name}`" for name in missing[:MISSING_SHOWN])
    more = f" and {len(missing) - MISSING_SHOWN} more" if len(missing) > MISSING_SHOWN else ""
    share = f"{len(missing)} of {found['cells']} cells are missing"
    return f"**{share}**: {shown}{more}. A comparison takes the seeds that both methods have, two or more."


def judge_line(accuracy: Json) -> str:
    """How often the judge ranks as the scores do."""
    shares = [
        f"{interval(row['accuracy'], 2)} over {name} of {row['prompts']} prompts"
        for name, row in accuracy.items()
        if row["accuracy"]
    ]
    return f"The judge ranks test responses as the scores do: {'; '.join(shares)}."


def section(found: Json) -> list[str]:
    """The tables of a setting."""
    parts = []
    if found["search"]:
        parts += ["**Search, on validation prompts**", search_table(found["search"])]
    for variation, points in found["comparisons"].items():
        for point, title in POINTS.items():
            if points.get(point):
                suffix = "" if variation == "as it is" else f", {variation}"
                parts += [f"**{title}{suffix}**", test_table(points[point])]
    return parts


def search_table(rows: Json) -> str:
    """Kept points, gains and widths."""
    titles = ("method", "learning rate", "steps", "gain there", "range that keeps 90%", "factor")
    cells = []
    for arm, row in rows.items():
        best = max(point["gain"] for point in row["gains"])
        mark = " (edge of the grid)" if row["at_edge"] else ""
        found = row["width"]
        span = "nothing gained" if found is None else f"{found['low']:.1e} to {found['high']:.1e}"
        factor = "" if found is None else f"{'at least ' if found['is_open'] else ''}{found['factor']:.1f}"
        cells.append([arm, f"{row['rate']:g}{mark}", str(row["steps"]), f"{best:+.3f}", span, factor])
    return markdown_table(titles, cells)


def test_table(rows: Json) -> str:
    """Every arm with its difference to its counterpart."""
    titles = (
        *(
            "method",
            "seeds",
            "reward",
            "difference",
            "p, Holm",
            "verdict",
            "win rate against the start",
            "KL, nats",
        ),
        *(
            "log p of chosen",
            "accuracy",
            "tokens",
            "distinct 1, 2",
            "grade",
            "toxicity",
            "value explains",
            "gain left",
        ),
    )
    return _without_empty(titles, [_test_row(arm, row) for arm, row in rows.items()])


def _test_row(arm: str, row: Json) -> list[str]:
    differences = row.get("differences", {})
    left = row.get("share_left")
    return [
        arm,
        str(len(row["reward"]["by_seed"])),
        interval(row["reward"], 3),
        "; ".join(
            f"{'' if figure == 'reward' else f'{figure} '}{interval(found, 3, '+')} to {found['to']}"
            for figure, found in differences.items()
        ),
        "; ".join(f"{found['p_holm']:.3f} ({found['p']:.3f} alone)" for found in differences.values()),
        "; ".join(found["verdict"] for found in differences.values()),
        interval(row["win_rate"], 2),
        interval(row["kl"], 1) if "kl" in row else "",
        f"{fmean(row['chosen_logp_change']):+.1f}" if "chosen_logp_change" in row else "",
        f"{fmean(row['accuracy']):.2f}" if "accuracy" in row else "",
        f"{row['tokens']['mean']:.0f}" if "tokens" in row else "",
        f"{fmean(row['distinct_1']):.2f}, {fmean(row['distinct_2']):.2f}",
        interval(row["grade"], 1) if "grade" in row else "",
        interval(row["toxicity"], 3) if "toxicity" in row else "",
        f"{fmean(row[EXPLAINED]):.2f}" if EXPLAINED in row else "",
        "" if left is None else f"{left:.0%}",
    ]


def _without_empty(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    used = [place for place in range(len(titles)) if any(row[place] for row in rows)]
    return markdown_table([titles[place] for place in used], [_taken(row, used) for row in rows])


def _taken(row: Sequence[str], places: Iterable[int]) -> list[str]:
    return [row[place] for place in places]


def interval(found: Any, digits: int, sign: str = "") -> str:
    """A mean and its interval."""
    mean, low, high = (f"{found[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
