"""From `key=value,value` overrides to the points of a sweep."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from preftune.errors import InputError

T = TypeVar("T")

WEIGHTS = "reward_sum.weights"
"""The key whose values are mappings from rewards to weights."""
LONGEST_NAME = 120
"""Characters of a folder's name, well below what file systems allow."""

_OPENING, _CLOSING = "[{", "]}"
# A quote inside a word, as in it's, opens nothing.
_TOKENS = re.compile(r"""(?<!\w)'(?:[^']|'')*'|(?<!\w)"(?:[^"\\]|\\.)*"|.""", re.DOTALL)

NOT_SWEPT: dict[str, str] = {
    "model": "all points are compared with one starting model",
    "output": "every point gets a folder of its own inside it",
    "rewards": "all points are compared by the same rewards; sweep objective.auxiliary.weight, or "
    "reward_sum.weights='{a: 1, b: 0},{a: 0, b: 1}'",
    "data.chat_template_kwargs": "all points are asked the same prompts",
    "data.max_prompt_length": "all points are asked the same prompts",
    "data.evaluation": "all points are compared on the same prompts",
    "data.evaluation_split": "all points are compared on the same prompts",
}
"""Keys that must be the same for every point, and why."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        values: what was set of each swept key, as it was written.
        overrides: every override of the run, in the order given.
    """

    values: dict[str, str]
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        """The swept values alone, for figures."""
        return ", ".join(self.values.values())

    @property
    def name(self) -> str:
        """Folder of the run: `key=value[,key=value]`, with a hash where that is no safe name."""
        text = ",".join(f"{key}={value}" for key, value in self.values.items())
        safe = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)
        if safe == text and len(safe) <= LONGEST_NAME:
            return safe
        # Two values may look alike once they are safe or cut.
        return f"{safe[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Shard:
    """A share of a sweep's runs, for several processes or machines.

    Attributes:
        number: from 1 to `count`.
        count: shards there are.
    """

    number: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether it is shard K of K, which has no more runs than any other."""
        return self.number == self.count

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `I/K`.

        Raises:
            InputError: it is not two whole numbers with 1 <= I <= K.
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise InputError(
                f"--shard {text} must be I/K with 1 <= I <= K: use, for example, --shard 1/2 and --shard 2/2"
            )
        return shard

    def of(self, runs: Sequence[T]) -> list[T]:
        """Every `count`-th run.

        Raises:
            InputError: there are fewer runs than shards, and this one is left without.
        """
        share = list(runs[self.number - 1 :: self.count])
        if not share:
            raise InputError(
                f"--shard {self.number}/{self.count}: the sweep has {len(runs)} runs; use at most as many "
                "shards"
            )
        return share


def sweep_points(overrides: Sequence[str]) -> list[Point]:
    """All combinations of the swept values; what has one value applies to every point.

    Values are separated by commas; those inside brackets, braces and quotes belong to the value.

    Raises:
        InputError: nothing is swept, a value is empty or a key is swept twice or must not be.
    """
    choices = [_choices(override) for override in overrides]
    swept = [options[0].partition("=")[0] for options in choices if len(options) > 1]
    if not swept:
        raise InputError("nothing is swept; give a key several values, such as objective.beta=0.1,0.3")
    for key, times in Counter(swept).items():
        if times > 1:
            raise InputError(f"{key} is swept {times} times; give all its values at once, such as {key}=1,2")
        _check_key(key)
    points = []
    for chosen in product(*choices):
        pairs = zip(chosen, choices, strict=True)
        values = [override.partition("=")[::2] for override, options in pairs if len(options) > 1]
        points.append(Point(dict(values), chosen))
    return points


def _choices(override: str) -> list[str]:
    """The override once for each of its values."""
    key, _, value = override.partition("=")
    values = _split(value)
    if len(values) == 1:
        return [override]
    if "" in values:
        raise InputError(
            f"'{override}' has an empty value between its commas; remove a comma, or quote a text that has "
            f"commas, such as {key}='\"a, b\"'"
        )
    return [f"{key}={each}" for each in values]


def _split(value: str) -> list[str]:
    """Cut at the commas that stand outside brackets, braces and quotes."""
    parts = [""]
    depth = 0
    for token in _TOKENS.findall(value):
        depth += (token in _OPENING) - (token in _CLOSING)
        if token == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def _check_key(key: str) -> None:
    for fixed, reason in NOT_SWEPT.items():
        inside = f"{key}.".startswith(f"{fixed}.")
        around = f"{fixed}.".startswith(f"{key}.")
        if inside or around:
            raise InputError(f"{key} cannot be swept: {reason}; give it one value")
