"""The format of a text: its length in tokens, a pattern, JSON."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from preftune.objectives.options import Constraint
from preftune.rewards.measures.measure import TextMeasure, built_in

if TYPE_CHECKING:
    import transformers


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


PATTERN = Constraint("a regular expression of Python", _is_pattern)
FENCE = re.compile(r"\A```[a-zA-Z]*\s*\n(.*)\n\s*```\Z", re.DOTALL)


@built_in("tokens of the response, by the policy's tokenizer", (0.0, None), None)
def length(tokenizer: "transformers.PreTrainedTokenizerBase") -> TextMeasure:
    """Count tokens without special ones, so that an empty text has none."""

    def count(texts: Sequence[str]) -> list[float]:
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return [float(len(tokens)) for tokens in ids]

    return count


@built_in("1 where a pattern is found, else 0", (0.0, 1.0), "maximise")
def regex(text: str, pattern: Annotated[str, PATTERN, "what to find"]) -> float:
    """1 where the pattern is found anywhere in the text, else 0."""
    return float(re.search(pattern, text) is not None)


@built_in("1 where the text is one JSON object or list, else 0", (0.0, 1.0), "maximise")
def valid_json(text: str) -> float:
    """1 if the whole text is one JSON object or list (a code fence around it is allowed), else 0."""
    fenced = FENCE.match(text.strip())
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return float(isinstance(value, dict | list))


def _refuse(constant: str) -> None:
    """Python accepts NaN and Infinity, which JSON does not allow."""
    raise ValueError(constant)
