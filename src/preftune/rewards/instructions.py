"""A verifier of checkable instructions: the share of them that a response keeps.

An instruction is a mapping from a check to its argument, such as `{"max_words": 30}`. Keys whose value is
None count as absent, because Arrow tables give every row the union of all keys.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from preftune.errors import InputError

Instruction = Mapping[str, Any]
Completion = str | Sequence[Mapping[str, Any]]

# A response of fewer distinct words answers nothing, whichever instructions it keeps.
MIN_DISTINCT_WORDS = 5
COST_OF_A_NUMBER = 0.25
COST_OF_A_CAPITALISED_WORD = 0.1


def instruction_score(response: str, instructions: Sequence[Instruction]) -> float:
    """The mean over the instructions of how well the response keeps each, in [0, 1].

    A response of fewer than five distinct words keeps only a part of its score: w / 5 for w of them, so that
    an empty response scores 0.

    Raises:
        InputError: an instruction names no known check, or there are none.
    """
    checks = [
        (name, argument)
        for instruction in instructions
        for name, argument in instruction.items()
        if argument is not None
    ]
    if not checks:
        raise InputError(f"instructions={list(instructions)}: at least one instruction is needed.")
    for name, _ in checks:
        if name not in CHECKS:
            raise InputError(f"instruction '{name}' is unknown: use one of {', '.join(CHECKS)}.")
    substance = min(1.0, len(set(_words(response.lower()))) / MIN_DISTINCT_WORDS)
    return substance * sum(CHECKS[name](response, argument) for name, argument in checks) / len(checks)


def instructions_kept(
    prompts: Sequence[object],
    completions: Sequence[Completion],
    instructions: Sequence[Sequence[Instruction]],
    **columns: object,
) -> list[float]:
    """`instruction_score` of every completion, as a reward function in TRL's signature.

    Args:
        prompts: unused; the instructions say all there is to check.
        completions: plain strings, or message lists whose contents are joined by line breaks.
        instructions: one list of instructions per completion.
        columns: other columns of the data, unused.
    """
    del prompts, columns
    texts = [_text(completion) for completion in completions]
    return [instruction_score(text, row) for text, row in zip(texts, instructions, strict=True)]


def _text(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message["content"]) for message in completion)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def _max_words(response: str, limit: int) -> float:
    """1 up to the limit, then falling in a line to 0 at twice the limit."""
    return min(1.0, max(0.0, 2 - len(response.split()) / limit))


def _mention(response: str, wanted: Sequence[str]) -> float:
    """The share of the wanted words that occur, in any case; "breads" mentions "bread"."""
    found = [re.search(rf"\b{re.escape(word)}", response, re.IGNORECASE) for word in wanted]
    return sum(match is not None for match in found) / len(wanted)


def _bullets(response: str, count: int) -> float:
    """1 for `count` lines that start with a bullet or a number; each more or less costs 1 / count."""
    found = len(re.findall(r"^\s*(?:[-*•]|\d+[.)])\s+\S", response, re.MULTILINE))
    return max(0.0, 1 - abs(found - count) / count)


def _end_with_question(response: str, wanted: bool) -> float:
    """1 if the last mark is a question mark (closing quotes aside), a half if there is one elsewhere."""
    del wanted
    if response.rstrip(" \n\t\"'\u201d\u2019)*").endswith("?"):
        return 1.0
    return 0.5 if "?" in response else 0.0


def _no_digits(response: str, wanted: bool) -> float:
    """1 without any number in digits; every number costs a quarter."""
    del wanted
    return max(0.0, 1 - COST_OF_A_NUMBER * len(re.findall(r"\d+", response)))


def _first_word(response: str, wanted: str) -> float:
    """1 / k if the wanted word, in any case, is first met as the k-th word; 0 if never."""
    words = _words(response.lower())
    return 1 / (words.index(wanted.lower()) + 1) if wanted.lower() in words else 0.0


def _lower_case(response: str, wanted: bool) -> float:
    """1 without any capital letter; every word with one costs a tenth."""
    del wanted
    capitalised = sum(word != word.lower() for word in _words(response))
    return max(0.0, 1 - COST_OF_A_CAPITALISED_WORD * capitalised)


def _json_keys(response: str, keys: Sequence[str]) -> float:
    """A half for one JSON object (a code fence around it is fine), and a half for the share of its keys.

    Text that is no JSON object earns a quarter for the share of the keys that it has in double quotes.
    """
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", response.strip())
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        return 0.5 + 0.5 * sum(key in parsed for key in keys) / len(keys)
    return 0.25 * sum(f'"{key}"' in response for key in keys) / len(keys)


CHECKS: dict[str, Callable[[str, Any], float]] = {
    "max_words": _max_words,
    "mention": _mention,
    "bullets": _bullets,
    "end_with_question": _end_with_question,
    "no_digits": _no_digits,
    "first_word": _first_word,
    "lower_case": _lower_case,
    "json_keys": _json_keys,
}
