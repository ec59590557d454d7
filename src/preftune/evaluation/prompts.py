"""Judge prompts: read from files, since upstream's texts are upstream's; filled in one pass."""

import re
from collections.abc import Mapping

from preftune.data.groups import Message
from preftune.errors import InputError

PLACE = re.compile(r"\{(\w+)\}")


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Put values into their `{name}`; whatever else is in braces stays, in the values too."""
    return PLACE.sub(lambda found: values.get(found[1], found[0]), template)


def check_places(template: str, names: set[str], source: str) -> None:
    """Raise an InputError where a template lacks one of the places."""
    missing = names - set(PLACE.findall(template))
    if missing:
        places = ", ".join(f"{{{name}}}" for name in sorted(missing))
        raise InputError(
            f"--judge-prompt {source} has no {places}, so the judge "
            "would not see it: give the benchmark's own file, or write the places in"
        )


def chat_messages(text: str, source: str) -> tuple[Message, ...]:
    """The messages of a ChatML text, without white space around them.

    Raises:
        InputError: it is no ChatML.
    """
    blocks = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, re.DOTALL)
    if not blocks:
        raise InputError(
            f"--judge-prompt {source} is not ChatML: it needs <|im_start|>user, a line break, the text and "
            "<|im_end|>"
        )
    return tuple({"role": role, "content": content.strip()} for role, content in blocks)
