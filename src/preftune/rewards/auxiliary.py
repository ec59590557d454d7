"""Auxiliary rewards: what a designer wants of a response, independent of the annotators' preference.

R = sum_k w_k R_k (HPO, arXiv 2405.17956), where R_k is a measurement turned into a reward by its goal.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat, cast

import numpy as np
from jaxtyping import Float64

from preftune.data.groups import Text
from preftune.data.rules import shorten, suggest
from preftune.errors import InputError
from preftune.objectives.imports import REFERENCE
from preftune.objectives.options import Constraint, Option, check_options, is_finite_number, one_of
from preftune.rewards.functions import (
    DatasetColumns,
    RewardFunction,
    call_function,
    check_function,
    function_name,
    import_function,
)
from preftune.rewards.measures import MEASURES, Goal, TextMeasure

if TYPE_CHECKING:
    import transformers

COLUMN_PREFIX = "column:"
Where = Callable[[int], str]
"""Names a completion by its place, for messages."""
Measuring = Callable[[Sequence[Any], Sequence[Any], DatasetColumns], Iterable[Any]]
"""Prompts, completions (text or lists of messages) and columns to a number for each completion."""


@dataclass(frozen=True)
class AuxiliaryReward:
    """One auxiliary reward R_k, built by `auxiliary_rewards`.

    Attributes:
        name: its name in the configuration and in reports.
        measure: what measures.
        weight: w_k.
        goal: whether a higher or a lower measurement is better; None if there is a target.
        target: lowest and highest ideal measurement.
        column: the column of the data that holds the measurement, if there is one.
        clip: measurements are clipped to this range; None does not clip.
    """

    name: str
    measure: Measuring
    weight: float = 1.0
    goal: Goal | None = "maximise"
    target: tuple[float, float] | None = None
    column: str | None = None
    clip: tuple[float, float] | None = None

    def reward(self, measurement: float) -> float:
        """R_k: the clipped measurement, its negative, or the negative of its distance to the target."""
        if self.clip:
            measurement = min(max(measurement, self.clip[0]), self.clip[1])
        if self.target:
            low, high = self.target
            return -max(low - measurement, measurement - high, 0.0)
        return measurement if self.goal == "maximise" else -measurement

    def measurements(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        columns: DatasetColumns,
        where: Where = "completion {}".format,
    ) -> list[float]:
        """The raw measurement of every completion.

        Args:
            prompts: one for each completion.
            completions: the texts to measure.
            columns: other columns of the data, with a value for each completion.
            where: names a completion in messages.

        Raises:
            InputError: the measure raises an error, or does not return one finite number for each completion.
        """
        if self.column and self.column not in columns:
            raise InputError(
                f"reward {self.name!r} reads the column {self.column!r}, which only responses of the data "
                "have: remove this reward to measure other text"
            )
        if not completions:
            return []
        asked, answers = list(map(_as_data, prompts)), list(map(_as_data, completions))
        span = f"{where(0)} to {where(len(answers) - 1)}"
        try:
            found = list(self.measure(asked, answers, columns))
        except (Exception, SystemExit) as error:
            place = self._first_failure(asked, answers, columns)
            raise InputError(
                f"reward {self.name!r} failed at {span if place is None else where(place)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if len(found) != len(answers):
            raise InputError(
                f"reward {self.name!r} returned {len(found)} numbers for {len(answers)} completions "
                f"({span}): return one for each"
            )
        numbers = []
        for place, value in enumerate(found):
            if (number := _finite(value)) is None:
                raise InputError(
                    f"reward {self.name!r} returned {shorten(value)} at {where(place)}: return a finite "
                    "number"
                )
            numbers.append(number)
        return numbers

    def _first_failure(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: DatasetColumns
    ) -> int | None:
        """Index of the completion that fails, by bisection; None if the measure fails only on several."""

        def fails(low: int, high: int) -> bool:
            part = {name: values[low:high] for name, values in columns.items()}
            try:
                list(self.measure(prompts[low:high], completions[low:high], part))
            except (Exception, SystemExit):
                return True
            return False

        low, high = 0, len(completions)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fails(low, middle) else (middle, high)
        return low if fails(low, high) else None


def _as_data(text: Text) -> str | list[dict[str, str]]:
    """Messages in the form of the data."""
    return text if isinstance(text, str) else [dict(message) for message in text]


def _finite(value: object) -> float | None:
    """A number of any library as a float; None if the value is not a finite number."""
    try:
        number = float(value) if isinstance(value, SupportsFloat) else math.nan
    except (ArithmeticError, RuntimeError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def combine(
    rewards: Sequence[AuxiliaryReward], measurements: Mapping[str, Float64[np.ndarray, "responses"]]
) -> Float64[np.ndarray, "responses"]:
    """R = sum_k w_k R_k of every response, from its raw measurements by reward (at least one)."""
    weighted = [
        reward.weight * np.array([reward.reward(float(value)) for value in measurements[reward.name]])
        for reward in rewards
    ]
    return np.asarray(np.sum(weighted, axis=0, dtype=np.float64))


# --- from a configuration ---


def auxiliary_rewards(
    section: Mapping[str, Any],
    tokenizer: "transformers.PreTrainedTokenizerBase | None" = None,
) -> tuple[AuxiliaryReward, ...]:
    """The rewards of a configuration's section `rewards`.

    Args:
        section: options by the reward's name. The option `measure` is a name in `MEASURES`, `column:NAME` or
            `module:function`; without it, the reward's name is the measure.
        tokenizer: the policy's, for measures that count tokens.

    Raises:
        InputError: a name, an option or its value is wrong, or a model or function cannot be loaded.
    """
    return tuple(resolve_reward(f"rewards.{name}", name, section[name], tokenizer) for name in section)


def resolve_reward(
    path: str,
    name: str,
    options: Any,
    tokenizer: "transformers.PreTrainedTokenizerBase | None",
) -> AuxiliaryReward:
    """One reward from its options; `path` is their key, for messages.

    Raises:
        InputError: as `auxiliary_rewards`.
    """
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise InputError(
            f"{path}={options!r} must be a mapping of options: set it, for example, to {{weight: 1.0}}"
        )
    own = options.get("measure")
    source = function_name(own) if callable(own) else str(options.get("measure", name))
    if not callable(own):
        _check_source(path, source)
    known = MEASURES[source].options if source in MEASURES else {}
    check_reward_options(path, source, options, {**OF_EVERY_REWARD, **known})
    goal, target = _aim(path, source, options)
    clip = options.get("clip")
    return AuxiliaryReward(
        name,
        _of_function(check_function(own))
        if callable(own)
        else _measure(path, source, {key: options[key] for key in known if key in options}, tokenizer),
        float(options.get("weight", 1.0)),
        goal,
        target,
        source.removeprefix(COLUMN_PREFIX) if source.startswith(COLUMN_PREFIX) else None,
        (float(clip[0]), float(clip[1])) if clip else None,
    )


def _check_source(path: str, source: str) -> None:
    is_column = source.startswith(COLUMN_PREFIX) and source != COLUMN_PREFIX
    if source not in MEASURES and not is_column and not REFERENCE.fullmatch(source):
        raise InputError(
            f"{path}: there is no measure {source!r}{suggest(source, list(MEASURES))}. Set measure to one of "
            f"{', '.join(MEASURES)}, to column:NAME for a column of the data, or to module:function"
        )


def check_reward_options(
    path: str, source: str, options: Mapping[str, Any], known: Mapping[str, Option]
) -> None:
    """Hold options against what a source takes; `path` is where they stand, for messages.

    Raises:
        InputError: an option is unknown, has a wrong value or is missing.
    """
    try:
        check_options(options, known, source, f"{path}.")
    except ValueError as error:
        raise InputError(str(error)) from None


def _aim(
    path: str, source: str, options: Mapping[str, Any]
) -> tuple[Goal | None, tuple[float, float] | None]:
    """The goal or the target."""
    if "target" in options:
        target = options["target"]
        low, high = (target, target) if is_finite_number(target) else target
        return None, (float(low), float(high))
    goal = options.get("goal", MEASURES[source].goal if source in MEASURES else "maximise")
    if goal is None:
        raise InputError(
            f"{path}: {source} has no default goal: set {path}.target to a number or [low, high], or "
            f"{path}.goal to maximise or minimise"
        )
    return cast(Goal, goal), None


def _measure(
    path: str,
    source: str,
    options: Mapping[str, Any],
    tokenizer: "transformers.PreTrainedTokenizerBase | None",
) -> Measuring:
    """What AuxiliaryReward calls: a column, a built-in measure or the user's function."""
    if source.startswith(COLUMN_PREFIX):
        return lambda _, completions, columns: columns[source.removeprefix(COLUMN_PREFIX)]
    try:
        if source not in MEASURES:
            return _of_function(import_function(source))
        built_in = MEASURES[source]
        if built_in.needs_tokenizer and tokenizer is None:
            raise InputError(
                "this measure counts tokens and needs a tokenizer: give one (`preftune score`: --tokenizer)"
            )
        tokens = {"tokenizer": tokenizer} if built_in.needs_tokenizer else {}
        return _of_text(built_in.build(**tokens, **options))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error.__cause__


def _of_function(function: RewardFunction) -> Measuring:
    return lambda prompts, completions, columns: call_function(function, prompts, completions, columns)


def _of_text(text_measure: TextMeasure) -> Measuring:
    return lambda prompts, completions, columns: text_measure([_plain(text) for text in completions])


def _plain(completion: str | list[dict[str, str]]) -> str:
    """Text unchanged; of messages, the text that the model wrote."""
    if isinstance(completion, str):
        return completion
    return "\n".join(
        message["content"] for message in completion if message["role"] not in ("user", "system")
    )


def _is_band(value: object) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(map(is_finite_number, value)) and value[0] <= value[1]
    return False


BAND = Constraint("[low, high] with low <= high", _is_band)

OF_EVERY_REWARD: Mapping[str, Option] = {
    "measure": Option(
        None,
        Constraint(
            "a measure's name, or a function", lambda value: isinstance(value, str) or callable(value)
        ),
        "what is measured (the name)",
    ),
    "weight": Option(
        1.0,
        Constraint("a finite number that is not 0", lambda value: is_finite_number(value) and value != 0),
        "w_k",
    ),
    "goal": Option(None, one_of("maximise", "minimise"), "the measure's own"),
    "target": Option(
        None,
        Constraint(f"a number, or {BAND.text}", lambda value: is_finite_number(value) or _is_band(value)),
        "instead of a goal",
        instead_of="goal",
    ),
    "clip": Option(None, BAND, "measurements beyond count as these (none)"),
}
"""Options that go with any measure."""
