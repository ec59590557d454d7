"""Reading level of English text: Flesch's reading ease and the Flesch-Kincaid grade."""

import re
from functools import cache, lru_cache
from typing import Any

from preftune.rewards.measures.measure import built_in
from preftune.rewards.measures.words import sentences, words

VOWELS = re.compile(r"[aeiouy]+")
SILENT_E = re.compile(r"[^aeiouyl]e$|[aeiouy]le$|[^aeiouytd]ed$|[^aeiouycghlsxz]es$|[aeiouy]les$")


@built_in("Flesch-Kincaid grade: school years needed to read the text", (-3.4, None), "minimise")
def reading_grade(text: str) -> float:
    """0.39 words per sentence + 11.8 syllables per word - 15.59; 0 for a text without words.

    Source: J. P. Kincaid and others, "Derivation of new readability formulas for Navy enlisted personnel"
    (1975). The lowest grade is -3.4.
    """
    rates = _rates(text)
    return 0.39 * rates[0] + 11.8 * rates[1] - 15.59 if rates else 0.0


@built_in("Flesch reading ease: 60 to 70 is plain English, 0 to 30 for graduates", (None, 121.22), "maximise")
def reading_ease(text: str) -> float:
    """206.835 - 1.015 words per sentence - 84.6 syllables per word; 0 for a text without words.

    Source: R. Flesch, "A new readability yardstick" (1948). The highest value is 121.22; there is no lowest.
    """
    rates = _rates(text)
    return 206.835 - 1.015 * rates[0] - 84.6 * rates[1] if rates else 0.0


def _rates(text: str) -> tuple[float, float] | None:
    """Words per sentence and syllables per word; None for a text without words."""
    parts = sentences(text)
    found = [word for part in parts for word in words(part)]
    if not found:
        return None
    return len(found) / len(parts), sum(map(syllables, found)) / len(found)


@lru_cache(maxsize=100_000)
def syllables(word: str) -> int:
    """Syllables of an English word, at least one; a number counts as one.

    Hyphenation misses syllables that are never split at the end of a line (`o-pen`), and groups of vowels
    miss vowels that meet (`cre-ate`). Both rarely count too many, so the larger count is used.
    """
    parts = re.sub(r"['\u2019]", "", word.lower()).split("-")
    return sum(max(_hyphenated(part), _vowel_groups(part)) for part in parts)


def _vowel_groups(word: str) -> int:
    return max(1, len(VOWELS.findall(word)) - bool(SILENT_E.search(word)))


def _hyphenated(word: str) -> int:
    return len(_hyphenation().positions(word)) + 1


@cache
def _hyphenation() -> Any:
    import pyphen

    return pyphen.Pyphen(lang="en_US")
