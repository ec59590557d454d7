"""Which of N scored responses to a prompt become pairs."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from preftune.data.groups import Text
from preftune.data.rules import suggest
from preftune.errors import InputError

Indices = list[tuple[int, int]]
"""Pairs as (chosen, rejected); equal scores never make one."""
PairRule = Callable[[Sequence[float], int, np.random.Generator], Indices]
"""From scores, how many pairs are wanted, and a source of chance."""


def best_worst(scores: Sequence[float], _count: int, _random: np.random.Generator) -> Indices:
    """Prefer the best response over the worst; among equals the first. Nothing where all are equal."""
    if max(scores) == min(scores):
        return []
    return [(scores.index(max(scores)), scores.index(min(scores)))]


def best_random(scores: Sequence[float], _count: int, random: np.random.Generator) -> Indices:
    """Prefer the best response, among equals the first, over any that scored lower, all as likely."""
    lower = [index for index, score in enumerate(scores) if score < max(scores)]
    return [(scores.index(max(scores)), int(random.choice(lower)))] if lower else []


def all_pairs(scores: Sequence[float], _count: int, _random: np.random.Generator) -> Indices:
    """Prefer every response over every one that scored lower."""
    places = range(len(scores))
    return [(i, j) for i in places for j in places if scores[i] > scores[j]]


def max_margin_topk(scores: Sequence[float], count: int, random: np.random.Generator) -> Indices:
    """Of all pairs the `count` with the largest differences; among equal ones the first of `all_pairs`."""
    pairs = all_pairs(scores, count, random)
    return sorted(pairs, key=lambda pair: scores[pair[1]] - scores[pair[0]])[:count]


PAIR_RULES: dict[str, PairRule] = {
    "best_worst": best_worst,
    "best_random": best_random,
    "max_margin_topk": max_margin_topk,
    "all_pairs": all_pairs,
}
COUNTED_RULES = frozenset({"max_margin_topk"})
"""Those that ask how many pairs are wanted."""


@dataclass(frozen=True)
class Pairing:
    """How pairs are chosen among the scored responses of a group.

    Attributes:
        rule: a name in `PAIR_RULES`.
        per_prompt: pairs of a group at most, for the rules in `COUNTED_RULES`.
        seed: decides what a rule leaves to chance, together with the group's texts: the same group gives the
            same pairs wherever it stands.
        length_penalty: taken off a score for each character of its response before the rule sees it, as in
            RLHF Workflow (arXiv 2405.07863). The responses keep their scores.

    Raises:
        InputError: there is no such rule, or it lacks `per_prompt`.
    """

    rule: str = "best_worst"
    per_prompt: int | None = None
    seed: int = 0
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in PAIR_RULES:
            raise InputError(
                f"data.pair_rule={self.rule}: there is no such rule{suggest(self.rule, list(PAIR_RULES))}. "
                f"Rules: {', '.join(PAIR_RULES)}."
            )
        if self.rule in COUNTED_RULES and self.per_prompt is None:
            raise InputError(
                f"data.pair_rule={self.rule} takes a number of pairs: set data.pairs_per_prompt=NUMBER"
            )

    def choose(self, prompt: Text, contents: Sequence[Text], scores: Sequence[float]) -> Indices:
        """Pairs as (chosen, rejected); none where all scores, with their penalty, are equal."""
        text = json.dumps([prompt, list(contents)], sort_keys=True, default=str).encode()
        random = np.random.default_rng([self.seed, *hashlib.sha256(text).digest()])
        penalised = [
            score - self.length_penalty * _characters(content)
            for score, content in zip(scores, contents, strict=True)
        ]
        return PAIR_RULES[self.rule](penalised, self.per_prompt or 1, random)


def _characters(content: Text) -> int:
    return len(content) if isinstance(content, str) else sum(len(message["content"]) for message in content)
