"""A language model behind an OpenAI-compatible endpoint, asked by many requests at a time."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from preftune.data.rules import shorten
from preftune.errors import InputError
from preftune.serving.asking import Keep, Request, hash_of
from preftune.serving.client import RETRIES, address, require_key, without_key
from preftune.serving.prices import Budget, Price, Usage, most_prompt_tokens
from preftune.serving.replies import Reply

WAITS = (1.0, 4.0)
"""Seconds before asking again where what came was no chat completion."""


@dataclass(frozen=True)
class Limits:
    """How an endpoint is asked.

    Attributes:
        concurrency: requests at the same time.
        requests_per_minute: at most, evenly spaced; None is no limit.
        timeout: seconds until a request without a reply is given up.
        retries: of a request that the endpoint refused as busy (429), failed (5xx) or left without a reply,
            each after a longer wait.
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 180.0
    retries: int = RETRIES

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
    """

    client: Any
    failure: InputError | None = None
    underway: int = 0
    settled: asyncio.Condition = field(default_factory=asyncio.Condition)
    start: float = 0.0


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
    ) -> None:
        """Check that there is a key; nothing is asked yet.

        Args:
            model: its name at the endpoint.
            limits: how it is asked.
            options: parameters of every request, over those of the protocol; None leaves one out.
            price: of its tokens.
            budget: what may be spent, by this and by others.

        Raises:
            InputError: there is no key, or a limit and no price.
        """
        require_key(model)
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
        self.identity = hash_of([address(), model, self._options])

    def reply(self, requests: Sequence[Request], keep: Keep) -> None:
        """Ask as many at a time as the limits allow; see `Respondent`."""
        asyncio.run(self._reply(requests, keep))

    async def _reply(self, requests: Sequence[Request], keep: Keep) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        waiting = iter(enumerate(requests))
        limits = self.limits
        http = DefaultAsyncHttpxClient(follow_redirects=False, timeout=limits.timeout)
        async with AsyncOpenAI(
            max_retries=limits.retries, timeout=limits.timeout, http_client=http
        ) as client:
            run = _Run(client)

            async def work() -> None:
                for index, request in waiting:
                    if run.failure:
                        return
                    try:
                        keep(index, await self._paid(run, request))
                    except InputError as error:
                        run.failure = run.failure or error

            await asyncio.gather(*(work() for _ in range(min(limits.concurrency, len(requests)))))
        if run.failure:
            raise run.failure

    async def _paid(self, run: _Run, request: Request) -> Reply:
        """The reply, once there is money for it and its turn has come."""
        parameters = self.parameters(request)
        worst = self._worst(request, parameters)
        async with run.settled:
            while not self.budget.fits(worst):
                if not run.underway:
                    raise self._too_dear(worst)
                await run.settled.wait()
            self.budget.reserve(worst)
            run.underway += 1
        cost = 0.0
        try:
            await self._turn(run)
            if run.failure:
                raise run.failure
            reply = await self._asked(run.client, request, parameters)
            cost = self._cost(reply, worst)
            self.usage.add(reply, cost if self.price else None)
            self._check(reply, request)
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

    async def _asked(self, client: Any, request: Request, parameters: Mapping[str, Any]) -> Reply:
        from openai import OpenAIError

        trouble = ""
        for wait in (*WAITS, None):
            started = time.monotonic()
            try:
                completion = await client.chat.completions.create(
                    model=self.name, messages=list(request.messages), **parameters
                )
            except OpenAIError as error:
                raise self._failed(request, str(error)) from None
            except ValueError as error:
                trouble = f"it is no JSON ({error})"
            else:
                choices = getattr(completion, "choices", None)
                trouble = f"it is no chat completion: {shorten(without_key(str(completion)), 200)}"
                # A server may send any JSON at all.
                with suppress(AttributeError, KeyError, IndexError, TypeError):
                    if choices and choices[0].message is not None:
                        return _read(completion, time.monotonic() - started)
            if wait is not None:
                await asyncio.sleep(wait)
        raise self._failed(request, f"the reply cannot be read, {trouble}")

    def _check(self, reply: Reply, request: Request) -> None:
        if request.top_log_probs and not reply.log_probs:
            raise InputError(
                f"{self.name}: {request.name}: the reply has no log-probabilities though they were asked "
                "for, and the protocol weighs its verdicts by them: ask a server that gives them, or pass "
                "--without-log-probs for plain verdicts, whose figures are not comparable with others'"
            )

    def parameters(self, request: Request) -> dict[str, Any]:
        """What is sent besides model and messages."""
        own: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        if request.top_log_probs:
            own |= {"logprobs": True, "top_logprobs": request.top_log_probs}
        return {name: value for name, value in (own | self._options).items() if value is not None}

    def _worst(self, request: Request, parameters: Mapping[str, Any]) -> float:
        """The most that a request can cost; 0 where nothing is counted."""
        if self.price is None:
            return 0.0
        longest = [parameters[name] for name in ("max_tokens", "max_completion_tokens") if name in parameters]
        if not longest and self.budget.max_cost is not None:
            raise InputError(
                f"--max-cost: {self.name} is asked without max_tokens, so nothing bounds what a reply costs: "
                "give max_completion_tokens"
            )
        return self.price.of(most_prompt_tokens(request.messages), max(longest, default=0))

    def _cost(self, reply: Reply, worst: float) -> float:
        """What a reply cost. A server that does not count tokens is taken to have used as many as it may."""
        if self.price is None:
            return 0.0
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            return worst
        return self.price.of(reply.prompt_tokens, reply.completion_tokens)

    def _failed(self, request: Request, why: str) -> InputError:
        hint = " If it gives no log-probabilities, pass --without-log-probs." if request.top_log_probs else ""
        return InputError(
            f"{self.name} at {address()}: {request.name}: {without_key(why).rstrip('.')}. Replies so far "
            f"are kept: start again once it is settled.{hint}"
        )

    def _too_dear(self, worst: float) -> InputError:
        return InputError(
            f"--max-cost {self.budget.max_cost:g}: {self.budget.spent:.4g} is spent and the next request to "
            f"{self.name} may cost {worst:.4g}. Replies so far are kept: start again with more, and it asks "
            "for the rest"
        )


def _read(completion: Any, seconds: float) -> Reply:
    choice, usage = completion.choices[0], completion.usage
    log_probs = getattr(choice.logprobs, "content", None)
    text = choice.message.content or ""
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, completion_tokens = (count if isinstance(count, int) else None for count in counts)
    return Reply(
        # Half of a surrogate pair, such as a cut emoji, is no text that can be written.
        text=without_key(text).encode("utf-8", "replace").decode(),
        finish_reason=str(choice.finish_reason or ""),
        log_probs=[token.to_dict() for token in log_probs] if log_probs else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        seconds=round(seconds, 3),
    )
