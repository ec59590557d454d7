"""What may differ between two sides: the rules of `allowances.toml`."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("allowances.toml")


@dataclass(frozen=True)
class Rule:
    """Names keys of files by globs, and says why they may differ.

    Attributes:
        reason: why.
        files: on the file's path in the run's folder.
        keys: on the key in the file.
        runs: on the run's name.
        since: the commit that made the difference; none where no second run of a commit repeats the value.
    """

    reason: str
    files: tuple[str, ...]
    keys: tuple[str, ...] = ("*",)
    runs: tuple[str, ...] = ("*",)
    since: str = ""

    def names(self, run: str, file: str, key: str) -> bool:
        """Whether it is about this key."""
        pairs = ((run, self.runs), (file, self.files), (key, self.keys))
        return all(any(fnmatchcase(name, glob) for glob in globs) for name, globs in pairs)


def read_rules(has: Callable[[str], bool], path: Path = FILE) -> list[Rule]:
    """The rules that hold against a base.

    Args:
        has: whether the base has a commit, so that the difference that it made is no excuse any more.
        path: the file.

    Raises:
        TypeError: a rule has a key that is unknown.
    """
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["rule"]
    lists: list[dict[str, Any]] = [
        {key: tuple(one) if isinstance(one, list) else one for key, one in row.items()} for row in rows
    ]
    rules = [Rule(**row) for row in lists]
    return [rule for rule in rules if not rule.since or not has(rule.since)]
