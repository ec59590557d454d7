"""What a run would ask and cost, found by going through it with stand-ins for what is not known yet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from preftune.serving.asking import Interview, Request, Respondent
from preftune.serving.endpoint import Endpoint
from preftune.serving.replies import Reply

CHARACTERS_PER_TOKEN = 4
"""Of English text; AlpacaEval's judge prompts have 4.9."""
LATENCY = 0.5
"""Seconds until a reply begins, where nothing was measured."""
TOKENS_PER_SECOND = 50
"""Of a reply, where nothing was measured."""

CountTokens = Callable[[str], int]


def estimated_tokens(text: str) -> int:
    """A count without a tokenizer."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def token_counter(tokenizer: str | None) -> CountTokens:
    """A model's own tokenizer; without one, an estimate from the characters.

    Raises:
        InputError: there is no such tokenizer.
    """
    if tokenizer is None:
        return estimated_tokens
    from preftune.models import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    return lambda text: len(loaded(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class CostEstimate:
    """What one respondent would be asked.

    Attributes:
        respondent: its name.
        calls: to make.
        known: replies that the cache has, which are free.
        prompt_tokens: of the calls.
        completion_tokens: likely ones, of all replies.
        cost: None if the price is not known.
        seconds: of a call.
        is_measured: whether they are the median of what the cache holds; else assumed.
        calls_per_minute: that concurrency and rate limit allow; None for a model in this process.
    """

    respondent: str
    calls: int
    known: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    seconds: float
    is_measured: bool
    calls_per_minute: float | None

    @property
    def minutes(self) -> float | None:
        """Of all calls."""
        return self.calls / self.calls_per_minute if self.calls_per_minute else None


@dataclass
class DryRun:
    """Stands for a client: gives what the cache knows and a stand-in for the rest, and asks nobody.

    Attributes:
        client: whose place it takes.
        stand_in: what an unknown reply is taken to be.
        count: tokens of a text.
        reply_tokens: of an unknown reply; None counts the stand-in's.
        calls: what would have been asked.
        known: replies that the cache had.
        seconds: that known replies took.
    """

    client: Interview
    stand_in: str
    count: CountTokens = estimated_tokens
    reply_tokens: int | None = None
    calls: list[Request] = field(default_factory=list)
    known: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def respondent(self) -> Respondent:
        """Who would be asked."""
        return self.client.respondent

    def ask(self, requests: Sequence[Request], title: str) -> list[Reply]:
        """Known replies and stand-ins."""
        by_key = {self.client.key(request): request for request in requests}
        unknown = [request for key, request in by_key.items() if key not in self.client.cache]
        self.calls += unknown
        self.known += len(requests) - len(unknown)
        replies = [self.client.cache.get(self.client.key(request)) for request in requests]
        self.seconds += [reply.seconds for reply in replies if reply and reply.seconds]
        return [reply or Reply(self.stand_in) for reply in replies]

    def estimate(self) -> CostEstimate:
        """Of all that was asked so far."""
        prompt = sum(self.count(message["content"]) for request in self.calls for message in request.messages)
        of_each = self.count(self.stand_in) if self.reply_tokens is None else self.reply_tokens
        completion = sum(min(of_each, request.max_tokens) for request in self.calls)
        assumed = LATENCY + of_each / TOKENS_PER_SECOND
        seconds = median(self.seconds) if self.seconds else assumed
        cost = rate = None
        if isinstance(self.respondent, Endpoint):
            price, limits = self.respondent.price, self.respondent.limits
            cost = price.of(prompt, completion) if price else None
            rate = min(limits.concurrency * 60 / seconds, limits.requests_per_minute or float("inf"))
        return CostEstimate(
            self.respondent.name,
            len(self.calls),
            self.known,
            prompt,
            completion,
            cost,
            seconds,
            bool(self.seconds),
            rate,
        )
