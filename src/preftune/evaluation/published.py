"""Where a benchmark publishes its files: pinned to a commit, with their checksums."""

from dataclasses import dataclass

APACHE = "Apache-2.0"


@dataclass(frozen=True)
class PublishedFile:
    """One file of a benchmark.

    Attributes:
        name: where it is written, under the benchmark's folder.
        path: in the repository.
        sha256: of its content.
        bytes: its size.
        licence: of its content.
    """

    name: str
    path: str
    sha256: str
    bytes: int
    licence: str = APACHE


@dataclass(frozen=True)
class Repository:
    """A public repository at one commit, and the files taken from it.

    Attributes:
        name: OWNER/NAME.
        commit: its full hash.
        files: taken from it; sizes and checksums are those at the commit.
    """

    name: str
    commit: str
    files: tuple[PublishedFile, ...]
