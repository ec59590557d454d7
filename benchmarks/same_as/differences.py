"""What two commits may differ in, with the reason."""

from dataclasses import dataclass

VOLATILE_KEYS: dict[str, str] = {
    "seconds": "time",
    "started": "time",
    "*seconds*": "time",
    "*runtime*": "time",
    "*per_second*": "time",
    "*preparation_time*": "time",
    "peak_rss_mb": "memory of the process",
    "total_flos": "an estimate of the Trainer's",
    "commit": "the commit itself",
    "best_model_checkpoint": "a path",
    "latency*": "time",
    "date*": "time",
    "created*": "time",
}
"""JSON keys that are not compared, by pattern."""
NOT_COMPARED: dict[str, str] = {
    "cache/*": "made again from the same inputs; its files are named by content",
    "*.log": "what a verb wrote for people",
    "*timing.jsonl": "time",
    "*report.html": "it shows times",
    "inputs": "the same on both sides",
    "*/.lock": "empty",
    "*trainer_state.json": "its log holds times; metrics.jsonl is compared",
    "*/training_args.bin": "of the Trainer",
}
"""Files that are not compared, by pattern."""


@dataclass(frozen=True)
class Wanted:
    """A difference that a change makes on purpose.

    Attributes:
        run: pattern of the run's name.
        file: pattern of the file.
        key: pattern of the path of keys in a JSON file.
        reason: why.
    """

    run: str
    file: str
    key: str
    reason: str


WANTED: tuple[Wanted, ...] = ()
"""Empty again once the commit that made a difference is what others are compared with."""
