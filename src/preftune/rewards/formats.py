"""The format of a text: its length in tokens, a pattern, JSON."""

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import transformers

FENCE = re.compile(r"\A```[a-zA-Z]*\s*\n(.*)\n\s*```\Z", re.DOTALL)


def token_counts(
    tokenizer: "transformers.PreTrainedTokenizerBase",
) -> Callable[[Sequence[str]], list[float]]:
    """Count tokens without special tokens, so that an empty text has 0."""

    def count(texts: Sequence[str]) -> list[float]:
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return [float(len(tokens)) for tokens in ids]

    return count


def matches(text: str, pattern: str) -> float:
    """1 if the pattern occurs anywhere in the text, else 0."""
    return float(re.search(pattern, text) is not None)


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
