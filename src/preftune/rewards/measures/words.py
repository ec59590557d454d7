"""Words and sentences of an English text, as the measures count them."""

import re

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
LINE_MARK = re.compile(r"^[ \t]*(?:[-*+•>]|#+|\d+[.)])[ \t]+", re.MULTILINE)
SENTENCE_END = re.compile(
    r"\n+"
    # Does not match after a title, or before a small letter ("e.g. this").
    r"|(?<=[.!?…])(?<!\b(?:Mr|Ms|Dr|St)\.)(?<!\bMrs\.)[\"'\u201d\u2019)\]*_]*\s+(?![a-z])"
)


def words(text: str) -> list[str]:
    """Split text into words. Contractions, compounds and numbers are one word each.

    Source: R. Flesch, "A new readability yardstick" (1948).
    """
    return WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Split at `.`, `!`, `?` and line breaks; a sentence has at least one letter.

    A line break ends a sentence because responses are paragraphs and lists, and list items often have no full
    stop. Marks of lists, headings and quotations are removed.
    """
    parts = SENTENCE_END.split(LINE_MARK.sub("", text))
    return [part for part in parts if any(character.isalpha() for character in part)]
