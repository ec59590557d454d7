"""A language model behind an OpenAI-compatible endpoint, asked by many requests at a time."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyio.from_thread import start_blocking_portal

from preftune.errors import InputError
from preftune.serving.asking import Keep, Request, hash_of
from preftune.serving.client import Fault, Server
from preftune.serving.prices import TOKENS_OF_A_MESSAGE, Budget, Price, Usage
from preftune.serving.replies import Reply

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

SLOW = 600.0
"""Seconds for a reply of which nobody said how long it may take."""
FIRST_WAIT, LAST_WAIT = 0.5, 8.0
"""Seconds before a request is sent again, doubled each time, where the server asks for no wait."""


@dataclass(frozen=True)
class Limits:
    """How an endpoint is asked.

    Attributes:
        concurrency: requests at the same time.
        requests_per_minute: at most, evenly spaced; None is no limit.
        timeout: seconds from sending a request to the last byte of its reply.
        retries: of a request that the endpoint refused as busy (429), failed (5xx) or left without a reply,
            each after a longer wait; of a reply that cannot be read at most 2.
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 180.0
    retries: int = 6

    def __post_init__(self) -> None:
        """Check the numbers."""
        rate = self.requests_per_minute
        rules = {
            "concurrency": (self.concurrency >= 1, "at least 1"),
            "requests-per-minute": (rate is None or rate > 0, "above 0"),
            "timeout": (self.timeout > 0, "above 0 seconds"),
            "retries": (self.retries >= 0, "at least 0"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                value = getattr(self, name.replace("-", "_"))
                raise InputError(f"--{name} {value}: it must be {rule}")


@dataclass
class _Run:
    """What the workers of one call share.

    Attributes:
        client: openai's.
        failure: the first; who sees it starts nothing more.
        underway: requests that were sent and are not back.
        settled: told whenever one is back.
        start: when the next request may be sent.
        logged: kinds of faults that the log has.
    """

    client: "openai.AsyncOpenAI"
    failure: Exception | None = None
    underway: int = 0
    settled: asyncio.Condition = field(default_factory=asyncio.Condition)
    start: float = 0.0
    logged: set[str] = field(default_factory=set)


class Endpoint:
    """A model whose endpoint and key stand in OPENAI_BASE_URL and OPENAI_API_KEY. See `Respondent`."""

    repeats_itself = False

    def __init__(
        self,
        model: str,
        limits: Limits | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        price: Price | None = None,
        budget: Budget | None = None,
        title: str | None = None,
    ) -> None:
        """Check that there is a key; nothing is asked yet.

        Args:
            model: its name at the endpoint.
            limits: how it is asked.
            options: parameters of every request, over those of the protocol; None leaves one out.
            price: of its tokens.
            budget: what may be spent, by this and by others.
            title: what messages call it; its name unless given.

        Raises:
            InputError: key or address cannot be used, or there is a budget and no price.
        """
        self._title = title or model
        self._server = Server(self._title)
        if budget and budget.max_cost is not None and price is None:
            raise InputError(
                f"--max-cost {budget.max_cost:g} needs the price of {model}: give what a million tokens "
                "cost, as PROMPT,COMPLETION"
            )
        self.name = model
        self.limits = limits or Limits()
        self.price = price
        self.budget = budget or Budget()
        self.usage = Usage()
        self._options = dict(options or {})
        self.identity = hash_of([self._server.address, model, self._options])

    def server_version(self) -> str:
        """What the server says it is; see `Server.version`."""
        with start_blocking_portal() as portal:
            return portal.call(self._server.version)

    def reply(self, requests: Sequence[Request], keep: Keep) -> None:
        """Ask as many at a time as the limits allow; see `Respondent`. Ctrl-C ends it at once."""
        # In a thread of its own: a notebook's has a loop already, and no signal interrupts `keep` there.
        with start_blocking_portal() as portal:
            portal.call(self._reply, requests, keep)

    async def _reply(self, requests: Sequence[Request], keep: Keep) -> None:
        waiting = iter(enumerate(requests))
        async with self._server.connect() as client:
            run = _Run(client)

            async def work() -> None:
                for index, request in waiting:
                    asked: Request | None = request
                    while asked and not run.failure:
                        try:
                            asked = keep(index, await self._paid(run, asked))
                        except Exception as error:
                            # Those under way are waited for and kept before it is raised.
                            run.failure = run.failure or error
                    if run.failure:
                        return

            await asyncio.gather(*(work() for _ in range(min(self.limits.concurrency, len(requests)))))
        if run.failure:
            raise run.failure

    async def _paid(self, run: _Run, request: Request) -> Reply:
        """The reply, once there is money for it and its turn has come."""
        parameters = self.parameters(request)
        worst = self._worst(request, parameters)
        async with run.settled:
            while not self.budget.reserve(worst):
                if not run.underway:
                    raise InputError(
                        f"--max-cost {self.budget.max_cost:g}: {self.budget.spent:.4g} is spent and the next "
                        f"request to {self.name} may cost {worst:.4g}. What is finished is kept: start again "
                        "with more, and it asks for the rest"
                    )
                await run.settled.wait()
            run.underway += 1
        cost = 0.0
        try:
            await self._turn(run)
            if run.failure:
                raise run.failure
            reply = await self._asked(run, request, parameters)
            cost = self._cost(reply, worst)
            self.usage.add(reply, cost if self.price else None)
            if request.top_log_probs and not reply.log_probs:
                raise InputError(
                    f"{self._title}: {request.name}: the reply has no log-probabilities though they were "
                    "asked for, and the protocol weighs its verdicts by them: ask a server that gives them, "
                    "or pass --without-log-probs for plain verdicts, whose figures are not comparable with "
                    "others'"
                )
            return reply
        finally:
            self.budget.settle(worst, cost)
            run.underway -= 1
            async with run.settled:
                run.settled.notify_all()

    async def _turn(self, run: _Run) -> None:
        """Wait until the rate allows a request."""
        if self.limits.requests_per_minute is None:
            return
        now = time.monotonic()
        start, run.start = run.start, max(run.start, now) + 60 / self.limits.requests_per_minute
        await asyncio.sleep(max(0.0, start - now))

    async def _asked(self, run: _Run, request: Request, parameters: Mapping[str, Any]) -> Reply:
        """The reply, after as many tries as it takes and the limits allow."""
        path = "/chat/completions" if request.prompt is None else "/completions"
        given = {"messages": list(request.messages)} if request.prompt is None else {"prompt": request.prompt}
        body = {"model": self.name, **given, **parameters}
        tried = 0
        while True:
            try:
                return await self._server.post(run.client, path, body, self.limits.timeout)
            except Fault as fault:
                if run.failure or tried >= min(fault.more_tries, self.limits.retries):
                    raise self._failed(request, fault, tried + 1) from None
                wait = fault.wait
                if wait is None:
                    wait = min(FIRST_WAIT * 2**tried, LAST_WAIT) * random.uniform(0.75, 1.0)
                if fault.fix not in run.logged:
                    run.logged.add(fault.fix)
                    logger.warning("%s: %s; asking again in %.1f seconds", self._title, fault.why, wait)
            tried += 1
            await asyncio.sleep(wait)

    def parameters(self, request: Request) -> dict[str, Any]:
        """What is sent besides model and messages."""
        own: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        if request.top_log_probs:
            own |= {"logprobs": True, "top_logprobs": request.top_log_probs}
        own.update(request.options or {}, **self._options)
        return {name: value for name, value in own.items() if value is not None}

    def _worst(self, request: Request, parameters: Mapping[str, Any]) -> float:
        """The most that a request can cost; 0 where nothing is counted."""
        if self.price is None:
            return 0.0
        asked = [message["content"] for message in request.messages]
        texts = asked if request.prompt is None else [request.prompt]
        longest = [parameters[name] for name in ("max_tokens", "max_completion_tokens") if name in parameters]
        if not longest and self.budget.max_cost is not None:
            raise InputError(
                f"--max-cost: {self.name} is asked without max_tokens, so nothing bounds what a reply costs: "
                "give max_completion_tokens"
            )
        # No tokenizer makes more of a text: a token is at least a byte.
        most = sum(len(text.encode("utf-8", "replace")) + TOKENS_OF_A_MESSAGE for text in texts)
        return self.price.of(most, max(longest, default=0))

    def _cost(self, reply: Reply, worst: float) -> float:
        """What a reply cost. A server that does not count tokens is taken to have used as many as it may."""
        if self.price is None:
            return 0.0
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            return worst
        return self.price.of(reply.prompt_tokens, reply.completion_tokens)

    def _failed(self, request: Request, fault: Fault, tries: int) -> InputError:
        asked = f"asked {tries} times, " if tries > 1 else ""
        hint = " If it gives no log-probabilities, pass --without-log-probs." if request.top_log_probs else ""
        return InputError(
            f"{self._title} at {self._server.address}: {request.name}: {asked}{fault.why}. {fault.fix}. "
            f"What is finished is kept: start again once it is settled.{hint}"
        )
