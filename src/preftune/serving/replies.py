"""Replies that were paid for, kept for good: one append-only file a respondent."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What a language model said.

    Attributes:
        text: the message, without special tokens.
        finish_reason: why it ended: "stop", "length", or what else the server calls it.
        log_probs: OpenAI's `logprobs.content`: for every token `token`, `logprob` and its `top_logprobs`;
            None where there are none.
        prompt_tokens: as the server counts them; None where it does not say.
        completion_tokens: the same of the reply.
        seconds: from asking to the reply.
    """

    text: str
    finish_reason: str = "stop"
    log_probs: list[dict[str, Any]] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0

    @property
    def trouble(self) -> str:
        """Why there is less text than was asked for; empty where nothing is odd."""
        if self.finish_reason == "content_filter":
            return "held back by the endpoint's content filter"
        if self.text:
            return ""
        return "empty, cut by max_tokens" if self.finish_reason == "length" else "empty"


class ReplyCache(dict[str, Reply]):
    """Replies by the hash of all that decided them, and the file that has each on a line.

    Lines are only ever added, each in one write, so that several runs may share the file. One that was cut
    when its process died is no JSON and is passed over.
    """

    def __init__(self, path: Path | None) -> None:
        """Read what is there; the file is made with the first reply. None keeps replies in memory alone."""
        super().__init__()
        self.path = path
        self._cut = False
        if path and path.exists():
            content = path.read_bytes()
            self._cut = not content.endswith(b"\n") and bool(content)
            for line in content.split(b"\n"):
                try:
                    row: Mapping[str, Any] = json.loads(line)
                    self[row["key"]] = Reply(**row["reply"])
                except (ValueError, KeyError, TypeError):
                    continue

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply; it is in the file when this returns."""
        self[key] = reply
        if self.path is None:
            return
        line = json.dumps({"key": key, "reply": asdict(reply)}, ensure_ascii=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            # Ends the line that an earlier process may have left cut.
            file.write(b"\n" * self._cut + line.encode("utf-8", errors="backslashreplace"))
        self._cut = False
