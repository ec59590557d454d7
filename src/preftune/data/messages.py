"""Messages in any of the field's writings become messages with `role` and `content`."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.data.groups import Message, Text
from preftune.data.rules import BadRow

ROLES: dict[str, str] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function_response", "function"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
"""Names of roles, in lower case, and the name that chat templates know. Other roles stay as they are."""

CALLING_ROLES = frozenset({"function_call", "tool_call"})
"""Roles whose text is a call of a tool, as JSON (ShareGPT)."""

WRITINGS = (("role", "content"), ("from", "value"))
"""Keys of a message: OpenAI's and ShareGPT's."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Where messages hold what the model thought before it answered."""

WEIGHT = "loss_weight"
"""Key of a message where the data says whether it is trained; responses keep it apart."""

WEIGHTS = (WEIGHT, "weight")
WHOLE = "a message is trained in full (weight 1) or not at all (weight 0): round the weight to one of the two"
KEPT = ("tool_calls", "tool_call_id", "name", *REASONING)

HALF = re.compile(r"[\ud800-\udfff]")
"""Half a surrogate pair; a whole pair is one character to Python."""

TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
"""How a turn begins in hh-rlhf and Nectar."""


def as_content(
    value: Any, column: str, notes: Counter[str] | None = None, *, reads_json: bool = True
) -> Text:
    """Text, or messages, of a cell: text, a message, a list of messages, or either as JSON.

    Args:
        value: of the cell.
        column: for messages.
        notes: counts what was done, for the report.
        reads_json: whether text that is messages as JSON is read as messages.

    Raises:
        BadRow: it is none of these.
    """
    notes = Counter() if notes is None else notes
    if isinstance(value, str):
        found = messages_in_json(value) if reads_json else None
        if found is None:
            return whole(value, column)
        notes[f"`{column}`: JSON text read as messages"] += 1
        value = found
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise BadRow("missing_field", column, value)
    messages = tuple(as_message(item, column, notes) for item in value)
    whole(json.dumps(messages, ensure_ascii=False, default=str), column)
    return messages


def whole(text: str, column: str) -> str:
    """The text.

    Raises:
        BadRow: it holds half a surrogate pair, which no tokenizer reads.
    """
    if half := HALF.search(text):
        said = text[max(half.start() - 20, 0) : half.end() + 20]
        raise BadRow(
            "missing_field", column, said, "it has half a surrogate pair (a cut emoji): repair the text"
        )
    return text


def structured(value: Any) -> Any:
    """A list or a mapping that a cell holds as JSON text, as CSV files do; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # such as ten thousand brackets
        return value


def as_message(item: Any, column: str, notes: Counter[str]) -> Message:
    """One message, with a weight under `loss_weight` where the data gives one.

    Raises:
        BadRow: it has no role or no content, or a part or a call that cannot be read.
    """
    writing = _writing(item)
    if writing is None:
        why = "every message must have a text under `role` and under `content` (or `from` and `value`)"
        raise BadRow("missing_field", column, item, why)
    role, content = item[writing[0]], item[writing[1]]
    name = role.strip().lower()
    message: Message = {"role": ROLES.get(name, role), "content": ""}
    calls = item.get("tool_calls") or item.get("function_call")
    if name in CALLING_ROLES:
        calls, content = content, ""
    if calls := _calls(calls, column):
        message["tool_calls"] = calls
    message |= {key: item[key] for key in KEPT if key != "tool_calls" and item.get(key) not in (None, "")}
    message["content"] = _text(content, column, is_optional=bool(calls))
    weight = next((item[key] for key in WEIGHTS if item.get(key) is not None), None)
    if weight is not None:
        message[WEIGHT] = weight
    read = {*writing, *KEPT, *WEIGHTS, "function_call"}
    for key in item:
        if key not in read and item[key] is not None:
            notes[f"messages of `{column}`: key `{key}` not read"] += 1
    return message


def split_weights(messages: Sequence[Message], column: str) -> tuple[tuple[Message, ...], list[bool] | None]:
    """The messages without their weights, and which of them are trained; None where none has a weight.

    Raises:
        BadRow: a weight is neither 0 nor 1, or a message that the model did not write has weight 1.
    """
    plain = tuple({key: value for key, value in message.items() if key != WEIGHT} for message in messages)
    if all(WEIGHT not in message for message in messages):
        return plain, None
    trained = []
    for message in messages:
        weight = message.get(WEIGHT, float(message["role"] == "assistant"))
        if weight not in (0, 1):
            raise BadRow("bad_weight", column, weight, WHOLE)
        if weight and message["role"] != "assistant":
            why = f"only the model's own messages are trained, and this one is of the {message['role']}"
            raise BadRow("bad_weight", column, weight, why)
        trained.append(bool(weight))
    return plain, trained


def is_blank(text: Text) -> bool:
    """Whether nothing is said: no text, no call, no reasoning."""
    if isinstance(text, str):
        return not text.strip()
    return not any(
        message["content"].strip() or any(message.get(key) for key in ("tool_calls", *REASONING))
        for message in text
    )


def transcript(text: Any) -> list[Message] | None:
    """Messages of "Human: ... Assistant: ..." turns, each after an empty line; None for any other value."""
    if not isinstance(text, str) or not text.startswith("\n\nHuman:") or "\n\nAssistant:" not in text:
        return None
    return turns(TRANSCRIPT_TURN.split(text)[1:])


def turns(parts: Sequence[str]) -> list[Message]:
    """Messages of roles and texts that take turns."""
    return [
        {"role": ROLES[role.lower()], "content": text.strip()}
        for role, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def as_tools(value: Any, column: str) -> tuple[Mapping[str, Any], ...]:
    """JSON schemas of tools, from a list or its JSON text.

    Raises:
        BadRow: it is neither.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str):
        value = _parsed(value, "bad_tools", column)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise BadRow("bad_tools", column, value)
    whole(json.dumps(value, ensure_ascii=False, default=str), column)
    return tuple(_without_nulls(tool) for tool in value)


def _writing(item: Any) -> tuple[str, str] | None:
    if not isinstance(item, Mapping):
        return None
    for role, content in WRITINGS:
        if isinstance(item.get(role), str) and content in item:
            return role, content
    return None


def messages_in_json(text: str) -> list[Any] | None:
    """Messages that a cell holds as JSON text; None where it is any other text."""
    found = structured(text)
    items = found if isinstance(found, list) else [found]
    return items if items and all(map(_writing, items)) else None


def _text(content: Any, column: str, *, is_optional: bool) -> str:
    """The text of a message's content: text, or a list of parts of text."""
    if isinstance(content, str):
        return content
    if content is None and is_optional:
        return ""
    if not isinstance(content, list | tuple):
        raise BadRow("missing_field", column, content, "a message's content must be text or parts of text")
    texts = []
    for part in content:
        given = part if isinstance(part, Mapping) else {"type": type(part).__name__}
        kind = given.get("type", "text")
        text = next((given[key] for key in ("text", "value") if isinstance(given.get(key), str)), None)
        if kind != "text" or text is None:
            why = f"a content part of the type {kind!r} cannot be trained; parts of the type 'text' can"
            raise BadRow("missing_field", column, part, why)
        texts.append(text)
    return "".join(texts)


def _calls(calls: Any, column: str) -> list[dict[str, Any]]:
    """Calls of tools as chat templates read them: a name, and arguments as a mapping."""
    if isinstance(calls, str) and calls.strip():
        calls = _parsed(calls, "bad_tools", column)
    result = []
    calls = [calls] if isinstance(calls, Mapping) else calls or []
    # What is no list is no call either, and the loop says so.
    for call in calls if isinstance(calls, list | tuple) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            why = 'a call must have a name and arguments: {"name": ..., "arguments": {...}}'
            raise BadRow("bad_tools", column, call, why)
        arguments = function.get("arguments")
        # Columns of Arrow give every mapping all keys; those that are null were not written.
        arguments = (
            _parsed(arguments, "bad_tools", column)
            if isinstance(arguments, str)
            else _without_nulls(arguments)
        )
        if arguments is not None and not isinstance(arguments, Mapping):
            raise BadRow("bad_tools", column, arguments, "a call's arguments must be a mapping")
        named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        result.append(
            {
                "type": "function",
                **named,
                "function": {"name": function["name"], "arguments": arguments or {}},
            }
        )
    return result


def _parsed(text: str, rule: str, column: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(rule, column, text, f"it is not valid JSON ({error})") from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value
