"""Where preftune keeps what it can make again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$PREFTUNE_CACHE`, or `~/.cache/preftune`."""
    return Path(os.environ.get("PREFTUNE_CACHE", "~/.cache/preftune")).expanduser()
