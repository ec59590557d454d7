"""What the page shows of sampled responses, beside what the run folders hold."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SampleRewards:
    """Rewards of responses sampled on held-out prompts, before and after training.

    Attributes:
        before, after: mean, low and high end of the 95% interval.
    """

    before: tuple[float, float, float]
    after: tuple[float, float, float]


@dataclass(frozen=True)
class SideBySide:
    """One held-out prompt with what each model answered.

    Attributes:
        prompt: the prompt.
        answers: response and reward by model name; None if there is no reward.
    """

    prompt: str
    answers: dict[str, tuple[str, float | None]]
