"""Rules of the options of measures and of whatever else scores."""

from collections.abc import Mapping
from typing import Annotated, Any

from preftune.models.content import Precision
from preftune.objectives.options import Constraint, one_of


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


COUNT = Constraint("a whole number >= 1", lambda value: type(value) is int and value >= 1)
MODEL = Constraint("a folder or hub name", _is_text)
COLUMN = Constraint("a column's name", _is_text)
LABEL = Constraint(
    "an output's number or name", lambda value: _is_text(value) or (type(value) is int and value >= 0)
)
LABEL_NAME = Constraint("a label of the model", _is_text)
SETTINGS = Constraint(
    "a mapping, as {enable_thinking: false}",
    lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value),
)

TemplateSettings = Annotated[Mapping[str, Any] | None, SETTINGS, "passed to its chat template"]
ScoringPrecision = Annotated[
    Precision | None, one_of("fp32", "bf16"), "of weights and products (bf16 where fast)"
]
