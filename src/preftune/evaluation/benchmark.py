"""What a benchmark is to the core: these classes hold everything that is particular to one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from preftune.evaluation.judging import Item, Judgment, Submission
from preftune.evaluation.length_control import OFFICIAL
from preftune.evaluation.model_outputs import ModelOutputs
from preftune.evaluation.published import Repository
from preftune.evaluation.questions import Question
from preftune.evaluation.resampling import VerdictCounts, tally
from preftune.evaluation.verdicts import Recording, Results, Verdict
from preftune.serving.replies import Reply


@dataclass(frozen=True)
class BenchmarkOptions:
    """What decides how a benchmark judges.

    Attributes:
        prompts: the judge's, as files.
        compares: whether there is a baseline.
        log_probs: whether verdicts are weighed by log-probabilities, where the benchmark does that.
    """

    prompts: Sequence[Path] = ()
    compares: bool = False
    log_probs: bool = True


@dataclass(frozen=True)
class RescoreOptions:
    """What `preftune evaluate rescore` can be told; see its help.

    Attributes:
        difficulty: CSV file of the instructions' difficulties.
        instructions: the evaluation set in the difficulties' order.
        by_position: match difficulties by position, as upstream does.
        mode: of the length control.
        baseline: its name, where files do not say it.
        against: a model of these files that the others are compared with.
        upstream_intervals: state upstream's intervals too.
        answers: files of model outputs, for style control.
        style: features to control; None for all.
        seed: of the resamples.
    """

    difficulty: Path | None = None
    instructions: Path | None = None
    by_position: bool = False
    mode: str = OFFICIAL
    baseline: str | None = None
    against: str | None = None
    upstream_intervals: bool = False
    answers: Sequence[Path] = ()
    style: Sequence[str] | None = None
    seed: int = 0


class Rescorer(ABC):
    """How recorded verdicts of a benchmark become figures.

    Attributes:
        own_options: fields of `RescoreOptions` that other benchmarks refuse.
    """

    own_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: RescoreOptions) -> None:
        """Keep the options."""
        self.options = options

    @abstractmethod
    def read(self, path: Path) -> list[Recording]:
        """The verdicts on every model in a file.

        Raises:
            InputError: the file has another shape.
        """

    @abstractmethod
    def figures(self, recording: Recording) -> Results:
        """Every figure of a model.

        Raises:
            InputError: no verdict could be read.
        """

    def count(self, recording: Recording) -> VerdictCounts:
        """Verdicts by prompt, as the main figure counts them."""
        return tally(recording.verdicts)

    def add_joint_figures(  # noqa: B027  nothing unless a benchmark has some
        self, recordings: Sequence[Recording], results: Sequence[Results]
    ) -> None:
        """Add to the results what follows from all models together."""

    def add_to_difference(  # noqa: B027  nothing unless a benchmark has some
        self, figures: Results, ours: Results, theirs: Results
    ) -> None:
        """Add to the difference of two models what follows from their figures alone."""


class Benchmark(ABC):
    """How model outputs are asked for and judged, and the files that record it.

    Attributes:
        name: as on the command line.
        version: of the requests that are made; replies to another version's are not used.
        most_prompts: files that the judge's prompt may stand in; 0 if the prompt is ours.
        needs_baseline: whether it cannot do without.
        weighs_verdicts: whether verdicts are weighed by the judge's log-probabilities.
        compares: whether answers are compared with a baseline's; else each is graded.
        turns: of a conversation; what a question has beyond is not asked.
        caveats: why the figures cannot be compared with others'; empty if they can.
        answers_file: name of the file of model outputs.
        judgments_file: name of the file of judgments, in upstream's shape.
        answer_tokens: longest answer, unless the user says otherwise.
        reply_tokens: of a judge's reply, likely, for cost estimates.
        repository: the benchmark's own files; None if it has none.
        rescorer: reads recorded verdicts; None where none are published.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    most_prompts: ClassVar[int] = 0
    needs_baseline: ClassVar[bool] = True
    weighs_verdicts: ClassVar[bool] = False
    compares: bool = True
    turns: ClassVar[int] = 1
    answers_file: ClassVar[str] = "answers.jsonl"
    judgments_file: ClassVar[str] = "judgments.jsonl"
    answer_tokens: ClassVar[int] = 1024
    reply_tokens: ClassVar[int] = 1
    repository: ClassVar[Repository | None] = None
    rescorer: ClassVar[type[Rescorer] | None] = None

    @classmethod
    @abstractmethod
    def build(cls, options: BenchmarkOptions) -> "Benchmark":
        """The benchmark, with its judge prompts read.

        Raises:
            InputError: they are not what the benchmark's judge is shown.
        """

    @property
    def caveats(self) -> tuple[str, ...]:
        """See the class."""
        return ()

    def temperature(self, question: Question) -> float:
        """Of an answer, unless the user says otherwise; greedy where the benchmark does not say."""
        return 0.0

    def baseline_of(self, question: Question) -> str | None:
        """Name of the model whose outputs upstream compares with; None if the user chooses."""
        return None

    @abstractmethod
    def write_answers(self, path: Path, questions: Sequence[Question], answers: ModelOutputs) -> None:
        """Write model outputs in upstream's shape."""

    @abstractmethod
    def items(self, submission: Submission) -> list[Item]:
        """All verdicts to be found."""

    @abstractmethod
    def verdict(self, submission: Submission, item: Item, reply: Reply | None) -> Verdict:
        """What the reply says; an invalid verdict where it says none. No reply: the item had no request."""

    @abstractmethod
    def figures(self, submission: Submission, judgments: Sequence[Judgment]) -> list[Results]:
        """The results, most often one.

        Raises:
            InputError: no verdict could be read.
        """

    @abstractmethod
    def rows(self, submission: Submission, judgments: Sequence[Judgment]) -> list[Mapping[str, Any]]:
        """The judgments in upstream's shape."""
