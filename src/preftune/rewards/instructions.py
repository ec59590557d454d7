"""A verifier of checkable instructions: the share of them that a response follows.

An instruction is a mapping from a check to its argument, such as `{"max_words": 30}`. Keys whose value is
None are ignored, because Arrow tables give every row the union of all keys.
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
    """How well the response follows each instruction, in [0, 1], averaged over instructions.

    The score of a response with w < 5 distinct words is multiplied by w / 5, so that an empty response
    scores 0.

    Raises:
        InputError: an instruction names an unknown check, or there are no instructions.
    """
    checks = [
        (name, argument)
        for instruction in instructions
        for name, argument in instruction.items()
        if argument is not None
    ]
    if not checks:
        raise InputError(f"instructions={list(instructions)} is empty: give at least one instruction")
    for name, _ in checks:
        if name not in CHECKS:
            raise InputError(f"instruction '{name}' is unknown: use one of {', '.join(CHECKS)}")
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
        prompts: unused; the instructions are enough.
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
    """1 up to the limit, then falling linearly to 0 at twice the limit."""
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
    """1 if the text ends with a question mark (ignoring closing quotes), 0.5 if there is one elsewhere."""
    del wanted
    if response.rstrip(" \n\t\"'\u201d\u2019)*").endswith("?"):
        return 1.0
    return 0.5 if "?" in response else 0.0


def _no_digits(response: str, wanted: bool) -> float:
    """1 without numbers in digits; every number costs 0.25."""
    del wanted
    return max(0.0, 1 - COST_OF_A_NUMBER * len(re.findall(r"\d+", response)))


def _first_word(response: str, wanted: str) -> float:
    """1 / k if the k-th word is the first to equal the wanted word, ignoring case; 0 if no word does."""
    words = _words(response.lower())
    return 1 / (words.index(wanted.lower()) + 1) if wanted.lower() in words else 0.0


def _lower_case(response: str, wanted: bool) -> float:
    """1 without capital letters; every word with one costs 0.1."""
    del wanted
    capitalised = sum(word != word.lower() for word in _words(response))
    return max(0.0, 1 - COST_OF_A_CAPITALISED_WORD * capitalised)


def _json_keys(response: str, keys: Sequence[str]) -> float:
    """0.5 for one JSON object (a code fence around it is allowed), and 0.5 times the share of wanted keys.

    Other text earns 0.25 times the share of the keys that it has in double quotes.
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
