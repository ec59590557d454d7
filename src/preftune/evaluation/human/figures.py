"""What people chose: win rate, agreement, and each rater's habits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from preftune.errors import InputError
from preftune.evaluation.files import read_json
from preftune.evaluation.human.agreement import cohen_kappa, fleiss_kappa, observed_agreement, shared_items
from preftune.evaluation.human.page import BASELINE, MODEL, Key, read_key
from preftune.evaluation.resampling import decided_by_prompt, sign_test
from preftune.evaluation.verdicts import Results

LEFT, TIE, RIGHT = CHOICES = ("left", "tie", "right")
PREFERENCES = {MODEL: 1.0, BASELINE: 0.0, TIE: 0.5}


@dataclass(frozen=True)
class Rater:
    """One rater's answers.

    Attributes:
        name: as given on the page.
        choices: by item: left, tie or right.
    """

    name: str
    choices: Mapping[str, str]

    def verdicts(self, key: Key) -> dict[str, str]:
        """Who won, by prompt: MODEL, BASELINE or TIE."""
        return {
            key.items[item][0]: _winner(choice, key.items[item][1]) for item, choice in self.choices.items()
        }


def score_page(key_path: Path, answers: Sequence[Path], seed: int = 0) -> Results:
    """The figures of one page.

    A prompt counts once, by the mean over its raters; a tie is half a win. Win rates are in percent; interval
    and sign test are over prompts.

    Args:
        key_path: the page's key.
        answers: one file a rater, as the page saves it.
        seed: of the resamples.

    Raises:
        InputError: a file is of another page or shape, or two are of one rater.
    """
    key = read_key(key_path)
    raters = [_read_rater(path, key) for path in answers]
    names = [rater.name for rater in raters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(twice)} rated twice: give one file for each rater")
    verdicts = [rater.verdicts(key) for rater in raters]
    prompts = _preferences(verdicts) | dict.fromkeys(key.identical, 0.5)
    given = [verdict for rater in verdicts for verdict in rater.values()]
    return {
        "protocol": "human",
        "model": key.model,
        "baseline": key.baseline,
        **decided_by_prompt({prompt: (preference, 1.0) for prompt, preference in prompts.items()}, seed),
        "identical": len(key.identical),
        "ratings": len(given),
        "tie_rate": given.count(TIE) / len(given),
        "agreement": _agreement(verdicts),
        "raters": {rater.name: _habits(rater, own) for rater, own in zip(raters, verdicts, strict=True)},
        "warnings": [
            f"{rater.name} rated {len(rater.choices)} of {len(key.items)} pairs"
            for rater in raters
            if len(rater.choices) < len(key.items)
        ],
    }


def _winner(choice: str, left: str) -> str:
    if choice == TIE:
        return TIE
    return left if choice == LEFT else (BASELINE if left == MODEL else MODEL)


def _preferences(verdicts: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """For each prompt the mean over its raters."""
    prompts = dict.fromkeys(prompt for rater in verdicts for prompt in rater)
    return {
        prompt: fmean(PREFERENCES[rater[prompt]] for rater in verdicts if prompt in rater)
        for prompt in prompts
    }


def _agreement(verdicts: Sequence[Mapping[str, str]]) -> Results | None:
    """Of all raters on the prompts that all rated; None for a single one."""
    if len(verdicts) < 2:
        return None
    kappa = (
        {"cohen_kappa": cohen_kappa(*verdicts)}
        if len(verdicts) == 2
        else {"fleiss_kappa": fleiss_kappa(verdicts)}
    )
    return {"n": len(shared_items(verdicts)), "share": observed_agreement(verdicts), **kappa}


def _habits(rater: Rater, verdicts: Mapping[str, str]) -> Results:
    """`left_share` is of the decided pairs: each model is on the left of half of all, so 1/2 is no lean."""
    choices = list(rater.choices.values())
    left, right = choices.count(LEFT), choices.count(RIGHT)
    return {
        "n": len(choices),
        "win_rate": 100 * fmean(PREFERENCES[verdict] for verdict in verdicts.values()),
        "tie_rate": choices.count(TIE) / len(choices),
        "left_share": left / (left + right) if left + right else None,
        "left_p": sign_test(left, right),
    }


def _read_rater(path: Path, key: Key) -> Rater:
    content: Any = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("answers"), dict):
        raise InputError(f"{path} holds no answers: give the file that the page saves")
    if content.get("page") != key.page:
        raise InputError(
            f"{path} answers page {content.get('page')}, and the key is of page {key.page}: give the key "
            "that was written with the page"
        )
    answers = content["answers"]
    for item, choice in answers.items():
        if item not in key.items or choice not in CHOICES:
            raise InputError(
                f"{path}: {item} = {choice!r}: items are those of the key, and their values one of "
                f"{', '.join(CHOICES)}"
            )
    if not answers:
        raise InputError(f"{path} has no ratings: rate at least one item")
    return Rater(str(content.get("rater") or path.stem), answers)
