"""Whose a model card is: one that preftune has written is replaced, one of the user's stays as it is."""

import re
from hashlib import sha256
from pathlib import Path

from preftune.errors import InputError

CARD_FILE = "README.md"
"""The card's name in a model's folder, and on the hub."""
_SEAL = re.compile(r"<!-- preftune ([0-9a-f]{64}) -->\n")
_EMPTY_FORM = "[More Information Needed]"
"""Stands in the cards that peft and transformers leave for somebody to fill in."""


def seal(text: str) -> str:
    """The card with a last line by which a later call sees that nobody has changed it."""
    text = text.rstrip("\n") + "\n"
    return f"{text}\n<!-- preftune {sha256(text.encode()).hexdigest()} -->\n"


def is_replaceable(text: str) -> bool:
    """Whether a card is preftune's own, unchanged, or a form that nobody has filled in."""
    body, _, last = text.rstrip("\n").rpartition("\n\n")
    found = _SEAL.fullmatch(last + "\n")
    if found:
        return found[1] == sha256(f"{body}\n".encode()).hexdigest()
    return not text.strip() or _EMPTY_FORM in text


def check_card(folder: Path, key: str) -> None:
    """Check that a folder has no card of the user's, which a new one would replace.

    Args:
        folder: where a model is saved.
        key: what names the folder, for the message.

    Raises:
        InputError: it has one.
    """
    card = folder / CARD_FILE
    if card.exists() and not is_replaceable(card.read_text(encoding="utf-8", errors="replace")):
        raise InputError(
            f"{key}: {card} is a model card that preftune did not write, or that was changed since: a saved "
            "model brings its own, so move it, or give another folder"
        )
