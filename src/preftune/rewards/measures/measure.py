"""What a measure is, and how a function becomes one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, TypeVar

from preftune.objectives.options import Option, parameter_options

Goal = Literal["maximise", "minimise"]
TextMeasure = Callable[[Sequence[str]], list[float]]
"""Texts to a finite number for each."""
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Measure:
    """Something that can be measured of a text.

    Attributes:
        function: of a text and options to a number, or of options alone to a `TextMeasure`.
        summary: one line for people.
        range: lowest and highest number; None where there is none.
        goal: what is wanted of it unless said; None where that must be said.
    """

    function: Callable[..., Any]
    summary: str
    range: tuple[float | None, float | None]
    goal: Goal | None

    @property
    def options(self) -> Mapping[str, Option]:
        """Its settings by name."""
        return parameter_options(self.function)

    @property
    def needs_tokenizer(self) -> bool:
        """Whether `build` takes the policy's tokenizer."""
        return "tokenizer" in signature(self.function).parameters

    def build(self, **options: Any) -> TextMeasure:
        """The measure, with its options."""
        if "text" in signature(self.function).parameters:
            return lambda texts: [self.function(text, **options) for text in texts]
        measure: TextMeasure = self.function(**options)
        return measure


MEASURES: dict[str, Measure] = {}
"""Every built-in measure by its name."""


def built_in(summary: str, extent: tuple[float | None, float | None], goal: Goal | None) -> Callable[[F], F]:
    """Let a configuration name a function as a measure; see `Measure`.

    Its options are its parameters with the hint `Annotated[type, rule, help]`.
    """

    def register(function: F) -> F:
        MEASURES[function.__name__] = Measure(function, summary, extent, goal)
        return function

    return register
