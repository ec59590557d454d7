"""Several models beside one another: what a page shows of rounds or of a sweep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.measuring.samples import SampleRewards, SideBySide
from preftune.measuring.tradeoff import SweepPoint

PROMPTS_SHOWN = 3


@dataclass(frozen=True)
class ModelComparison:
    """Runs, and what their models answered.

    Attributes:
        title: heading of the page.
        runs: run folder by the name to show.
        rewards: rewards of sampled responses, by a name of `runs`.
        samples: prompts with the answers of several models.
        notes: short paragraphs on how to read the page.
        points: the models as points of a sweep, by the names of `runs`, and the starting model as START.
    """

    title: str
    runs: Mapping[str, Path]
    rewards: Mapping[str, SampleRewards]
    samples: Sequence[SideBySide]
    notes: Sequence[str]
    points: Sequence[SweepPoint]


@dataclass(frozen=True)
class Pages:
    """What writes pages, for those who may not know how.

    Attributes:
        run: the page of a run folder.
        comparison: the page of a comparison, at a path.
    """

    run: Callable[[Path], None]
    comparison: Callable[[Path, ModelComparison], None]


NO_PAGES = Pages(run=lambda folder: None, comparison=lambda path, comparison: None)


def side_by_side(answers: Mapping[str, Sequence[Mapping[str, Any]]], rewards: str) -> list[SideBySide]:
    """Prompts evenly over those that all models were asked, and the first response to each: not picked.

    A model may have been asked fewer: with a control text after it, a prompt can become too long.

    Args:
        answers: rows with `prompt` and `responses` by the model's name; the first model's order counts.
        rewards: the column of the responses' rewards, which need not be there.
    """
    rows = {name: {_key(row["prompt"]): row for row in own} for name, own in answers.items()}
    first = next(iter(rows.values()))
    asked = [prompt for prompt in first if all(prompt in own for own in rows.values())]
    shown = []
    for key in asked[:: max(1, len(asked) // PROMPTS_SHOWN)][:PROMPTS_SHOWN]:
        prompt = first[key]["prompt"]
        texts = {
            name: (own[key]["responses"][0], own[key][rewards][0] if rewards in own[key] else None)
            for name, own in rows.items()
        }
        shown.append(SideBySide(prompt if isinstance(prompt, str) else prompt[-1]["content"], texts))
    return shown


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else repr([sorted(message.items()) for message in prompt])
