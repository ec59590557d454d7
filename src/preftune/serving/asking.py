"""Asking language models: what is asked, what comes back, and that nothing is asked twice."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from preftune.data.groups import Message
from preftune.serving.prices import Usage
from preftune.serving.replies import Reply, ReplyCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One thing to ask.

    Attributes:
        name: names it in messages, such as "question 81, turn 2".
        messages: the chat so far.
        max_tokens: longest reply.
        temperature: of sampling; 0 is greedy.
        top_log_probs: how many alternatives the reply must give the log-probability of, at each token; 0 asks
            for no log-probabilities.
        labels: the texts that may be the reply, where it is one of a few. A model in this process replies
            with the likeliest of them and says how likely each is.
        attempt: how often this has been asked before.
        prompt: text to continue, in place of messages; None where there is none.
        options: parameters besides, such as a seed.
    """

    name: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float
    top_log_probs: int = 0
    labels: tuple[str, ...] = ()
    attempt: int = 0
    prompt: str | None = None
    options: Mapping[str, Any] | None = None


Keep = Callable[[int, Reply], Request | None]
"""Takes the reply to the request of that index, as soon as it is there; what to ask in its place, or None."""


@runtime_checkable
class Respondent(Protocol):
    """Whoever is asked: a judge, or the model whose answers are judged.

    Attributes:
        name: the model's, as results call it.
        identity: what decides the replies besides the request: endpoint, model and settings, or the weights.
        repeats_itself: whether asking again without randomness gives the same reply.
        usage: what it was asked so far in this process.
    """

    name: str
    identity: str
    repeats_itself: bool
    usage: Usage

    def reply(self, requests: Sequence[Request], keep: Keep) -> None:
        """Reply to every request, in any order.

        Raises:
            InputError: it cannot be reached, or what it says is no reply. Those that were under way are kept.
        """
        ...


@runtime_checkable
class Interviewer(Protocol):
    """Gets replies from a respondent."""

    @property
    def respondent(self) -> Respondent:
        """Who is asked."""
        ...

    def ask(self, requests: Sequence[Request], title: str) -> list[Reply]:
        """The replies, in order."""
        ...


@dataclass(frozen=True)
class Interview:
    """Asks through the cache: what is known is not asked, what is new is kept at once.

    Attributes:
        respondent: who is asked.
        cache: replies of all runs.
        version: of the protocol; another version asks anew.
        progress: show a bar.
    """

    respondent: Respondent
    cache: ReplyCache
    version: str
    progress: bool = False

    def ask(self, requests: Sequence[Request], title: str) -> list[Reply]:
        """The replies, in order.

        Args:
            requests: what to ask. Equal ones are asked once.
            title: what this is, for the log and the bar.

        Raises:
            InputError: see `Respondent.reply`.
        """
        keys = [self.key(request) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.cache}
        known = len(requests) - len(missing)
        logger.info("%s: %d of %d are known, asking %s", title, known, len(requests), self.respondent.name)
        if missing:
            from rich.progress import Progress

            places = list(missing)
            with Progress(disable=not self.progress) as bar:
                task = bar.add_task(title, total=len(requests), completed=known)

                def keep(index: int, reply: Reply) -> None:
                    self.cache.add(places[index], reply)
                    bar.advance(task)

                try:
                    self.respondent.reply(list(missing.values()), keep)
                finally:
                    logger.info("%s: %s", self.respondent.name, self.respondent.usage.summary())
            troubles = Counter(trouble for key in places if (trouble := self.cache[key].trouble))
            for trouble, count in troubles.items():
                logger.warning("%s: %d of %d new replies are %s", title, count, len(places), trouble)
        return [self.cache[key] for key in keys]

    def key(self, request: Request) -> str:
        """A hash of all that decides the reply."""
        fields = asdict(request)
        # Its name is for people.
        del fields["name"]
        asked = {name: value for name, value in fields.items() if value is not None}
        return hash_of([self.respondent.identity, self.version, asked])


def hash_of(content: Any) -> str:
    """A hash of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
