"""What asking costs: prices by the million tokens, a limit that is never passed, and what was used."""

from dataclasses import dataclass

from preftune.errors import InputError
from preftune.serving.replies import Reply

TOKENS_OF_A_MESSAGE = 64
"""More than a chat template adds to a message."""


@dataclass(frozen=True)
class Price:
    """Dollars, or any currency, for a million tokens.

    Attributes:
        prompt: of what is asked.
        completion: of what is replied.
    """

    prompt: float
    completion: float

    @classmethod
    def parse(cls, flag: str, text: str) -> "Price":
        """Read `PROMPT,COMPLETION`.

        Raises:
            InputError: these are not two numbers of at least 0.
        """
        try:
            prompt, completion = (float(part) for part in text.split(","))
        except ValueError:
            prompt = completion = -1.0
        if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
            raise InputError(
                f"{flag} {text}: it must be two numbers of at least 0, for a million tokens of prompt and "
                "of completion, such as 2.5,10"
            )
        return cls(prompt, completion)

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass
class Budget:
    """A limit on what is spent: a request is sent only where its worst case still fits.

    Attributes:
        max_cost: never passed; None is no limit.
        spent: so far.
        reserved: for requests under way.
    """

    max_cost: int | float | None = None
    spent: float = 0.0
    reserved: float = 0.0

    def __post_init__(self) -> None:
        """Check the limit."""
        if self.max_cost is not None and not self.max_cost >= 0:
            raise InputError(f"--max-cost {self.max_cost:g}: it must be at least 0")

    def reserve(self, worst: float) -> bool:
        """Set aside what a request may cost, where that fits beside those under way."""
        fits = self.max_cost is None or self.spent + self.reserved + worst <= self.max_cost
        self.reserved += worst if fits else 0.0
        return fits

    def settle(self, worst: float, cost: float) -> None:
        """The request is back, and has cost so much."""
        self.reserved -= worst
        self.spent += cost


@dataclass
class Usage:
    """What a respondent was asked in this process; what the cache knew is not in it.

    Attributes:
        requests: that were replied to.
        prompt_tokens: as the server counts them.
        completion_tokens: the same of the replies.
        cost: None where the price is not known.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def summary(self) -> str:
        """One line for the log."""
        cost = "" if self.cost is None else f", cost {self.cost:.4g}"
        return (
            f"{self.requests} replies in this call, {self.prompt_tokens} tokens of prompts and "
            f"{self.completion_tokens} of replies{cost}"
        )

    def add(self, reply: Reply, cost: float | None) -> None:
        """Count a reply."""
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost
