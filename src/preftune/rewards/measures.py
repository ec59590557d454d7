"""The built-in measures: one entry for each function from a text to a number."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from preftune.rewards.diversity import lexical_diversity, repetition
from preftune.rewards.formats import matches, token_counts, valid_json
from preftune.rewards.reading import reading_ease, reading_grade
from preftune.rewards.sentiment import sentiment
from preftune.rewards.toxicity import toxicity_classifier, toxicity_words

Goal = Literal["maximise", "minimise"]
TextMeasure = Callable[[Sequence[str]], list[float]]
"""From texts to a finite number for each."""


@dataclass(frozen=True)
class RewardOption:
    """A setting of a measure.

    Attributes:
        rule: the values it takes, in words.
        holds: whether a value is one of them.
        summary: one line of help, with the default.
        is_required: whether it must be set.
    """

    rule: str
    holds: Callable[[object], bool]
    summary: str
    is_required: bool = False


@dataclass(frozen=True)
class Measure:
    """A measure of a text.

    Attributes:
        summary: one line of help.
        range: lowest and highest number; None if there is no limit.
        goal: the default goal; None if the user must set one.
        build: from the options to the measure.
        options: its settings by name.
        needs_tokenizer: whether `build` takes the policy's tokenizer.
    """

    summary: str
    range: tuple[float | None, float | None]
    goal: Goal | None
    build: Callable[..., TextMeasure]
    options: Mapping[str, RewardOption] = field(default_factory=dict)
    needs_tokenizer: bool = False


def is_finite_number(value: object) -> bool:
    """Whether a value is an int or a finite float, and not a bool."""
    # isfinite raises an error for whole numbers that are too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def _each(measure: Callable[..., float]) -> Callable[..., TextMeasure]:
    """Turn a function of one text and its options into one of many texts."""

    def build(**options: Any) -> TextMeasure:
        return lambda texts: [measure(text, **options) for text in texts]

    return build


MEASURES: Mapping[str, Measure] = {
    "reading_grade": Measure(
        "Flesch-Kincaid grade: years of school needed to read the text",
        (-3.4, None),
        "minimise",
        _each(reading_grade),
    ),
    "reading_ease": Measure(
        "Flesch reading ease: 60 to 70 is plain English, 0 to 30 for graduates",
        (None, 121.22),
        "maximise",
        _each(reading_ease),
    ),
    "length": Measure(
        "tokens of the response, by the policy's tokenizer",
        (0.0, None),
        None,
        token_counts,
        needs_tokenizer=True,
    ),
    "toxicity_words": Measure(
        "share of sentences with a word from a short list of profanity and insults",
        (0.0, 1.0),
        "minimise",
        _each(toxicity_words),
    ),
    "toxicity": Measure(
        "probability of a label by a text classifier",
        (0.0, 1.0),
        "minimise",
        toxicity_classifier,
        {
            "model": RewardOption("a folder or hub name", _is_text, "the classifier", is_required=True),
            "label": RewardOption("a label of the model", _is_text, "its only one, or toxic or toxicity"),
        },
    ),
    "lexical_diversity": Measure(
        "distinct words / words, averaged over every window",
        (0.0, 1.0),
        "maximise",
        _each(lexical_diversity),
        {"window": RewardOption("a whole number >= 1", _is_count, "words in a window (50)")},
    ),
    "repetition": Measure(
        "share of runs of n words that occur earlier in the text",
        (0.0, 1.0),
        "minimise",
        _each(repetition),
        {"n": RewardOption("a whole number >= 1", _is_count, "words in a run (4)")},
    ),
    "regex": Measure(
        "1 if a pattern is found, else 0",
        (0.0, 1.0),
        "maximise",
        _each(matches),
        {
            "pattern": RewardOption(
                "a regular expression in Python's syntax", _is_pattern, "what to find", is_required=True
            )
        },
    ),
    "valid_json": Measure(
        "1 if the text is one JSON object or list, else 0", (0.0, 1.0), "maximise", _each(valid_json)
    ),
    "sentiment": Measure(
        "VADER's compound score, averaged over sentences", (-1.0, 1.0), "maximise", _each(sentiment)
    ),
}
"""All measures except `length`, `regex`, `valid_json` and `toxicity` expect English prose."""
