"""Control texts: what follows the prompt and says whether the response behind it is good."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from preftune.data.groups import Group

if TYPE_CHECKING:
    import transformers

ControlTexts = Mapping[bool, str]
"""The text in front of a response, by the response's label."""

MARK = "{# the control text that responses are conditioned on #}"
"""Stands in a chat template before what `set_control` added."""


def split_by_label(group: Group) -> list[Group]:
    """A group for each label that its responses have, desirable first; without pairs, and what has none."""
    by_label = {
        label: tuple(response for response in group.responses if response.label is label)
        for label in (True, False)
    }
    return [replace(group, responses=found, pairs=()) for found in by_label.values() if found]


def set_control(tokenizer: "transformers.PreTrainedTokenizerBase", text: str) -> None:
    """Let the chat template's generation prompt end with a control text, in place of an earlier one.

    Whoever asks through the template then conditions on the text without knowing of it. Empty text takes an
    earlier one away. Where there is no single template, nothing changes.
    """
    if not isinstance(tokenizer.chat_template, str):
        return
    template = tokenizer.chat_template.partition(MARK)[0]
    if text:
        literal = json.dumps(text, ensure_ascii=False)
        # Jinja leaves a last newline of the template out, which now is not its last.
        template = template.removesuffix("\n") + MARK
        template += f"{{% if add_generation_prompt %}}{{{{ {literal} }}}}{{% endif %}}"
    tokenizer.chat_template = template
