"""What may differ between two sides, and what is named otherwise: the tables of `allowances.toml`."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

FILE = Path(__file__).with_name("allowances.toml")


@dataclass(frozen=True)
class Rule:
    """Names keys of files by globs, and says why they may differ.

    Attributes:
        file: on the file's path in the run's folder.
        reason: why.
        key: on the key in the file.
        run: on the run's name.
    """

    file: str
    reason: str
    key: str = "*"
    run: str = "*"

    def names(self, run: str, file: str, key: str) -> bool:
        """Whether it is about this key."""
        return fnmatchcase(run, self.run) and fnmatchcase(file, self.file) and fnmatchcase(key, self.key)

    def __str__(self) -> str:
        return f"{self.run}: {self.file} {self.key} ({self.reason})"


@dataclass(frozen=True)
class Allowances:
    """All tables.

    Attributes:
        volatile: what no second run repeats.
        wanted: differences that the working tree is meant to have.
        arguments: from a flag or word of the base's command lines to the working tree's.
        keys: from a dotted key of the base's configurations to the working tree's.
        files: from a regular expression on the base's files to the working tree's path.
        fields: from a regular expression on the base's keys in files to the working tree's.
    """

    volatile: tuple[Rule, ...] = ()
    wanted: tuple[Rule, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    def volatile_keys(self, run: str, file: str) -> list[str]:
        """Globs of the keys of this file that do not count."""
        return [rule.key for rule in self.volatile if rule.names(run, file, rule.key)]

    def wanted_rule(self, run: str, file: str, key: str) -> Rule | None:
        """The first rule that wants this difference."""
        return next((rule for rule in self.wanted if rule.names(run, file, key)), None)

    def renamed_file(self, file: str) -> str:
        """The working tree's name of a file of the base."""
        return _substituted(file, self.files)

    def renamed_key(self, file: str, key: str) -> str:
        """The working tree's name of a key of the base; configurations follow `keys` too."""
        if fnmatchcase(file, "*config.yaml"):
            key = self.keys.get(key, key)
        return _substituted(key, self.fields)


def read_allowances(path: Path = FILE) -> Allowances:
    """Read the tables.

    Raises:
        TypeError: a table or a rule has a key that is unknown.
    """
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    volatile, wanted = (_rules(content.pop(name, ())) for name in ("volatile", "wanted"))
    return Allowances(volatile, wanted, **content)


def _rules(rows: Iterable[Mapping[str, str]]) -> tuple[Rule, ...]:
    return tuple(Rule(**row) for row in rows)


def _substituted(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name
