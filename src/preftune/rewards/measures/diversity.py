"""Lexical diversity and repetition of a text."""

from collections import Counter
from typing import Annotated

from preftune.rewards.measures.measure import built_in
from preftune.rewards.measures.words import words
from preftune.rewards.rules import COUNT


@built_in("different words over words, averaged over every window", (0.0, 1.0), "maximise")
def lexical_diversity(text: str, window: Annotated[int, COUNT, "words in a window"] = 50) -> float:
    """Different words over words, averaged over every run of `window` words; 0 for a text without words.

    The moving average does not fall with the length of the text, as a plain ratio does (M. Covington and
    J. McFall, "Cutting the Gordian knot: the moving-average type-token ratio", 2010). A text shorter than the
    window is one run, and scores higher because it is short.
    """
    found = [word.lower() for word in words(text)]
    if len(found) <= window:
        return len(set(found)) / len(found) if found else 0.0
    counts = Counter(found[:window])
    different = len(counts)
    for leaving, entering in zip(found, found[window:], strict=False):
        counts[entering] += 1
        counts[leaving] -= 1
        if not counts[leaving]:
            del counts[leaving]
        different += len(counts)
    return different / window / (len(found) - window + 1)


@built_in("share of runs of n words that stood in the text before", (0.0, 1.0), "minimise")
def repetition(text: str, n: Annotated[int, COUNT, "words in a run"] = 4) -> float:
    """Share of the runs of `n` words that stood in the text before; 0 where it has fewer than n words.

    The `seq-rep-n` of S. Welleck and others, arXiv 1908.04319: 1 - distinct runs / runs.
    """
    found = [word.lower() for word in words(text)]
    if n > len(found):
        return 0.0
    runs = list(zip(*(found[start:] for start in range(n)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
