"""What a judged benchmark is, to the code that runs one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from preftune.evaluation.answers import Answers
from preftune.evaluation.judging import Case, Contest, Judgment
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Results, Verdict
from preftune.serving.replies import Reply


@runtime_checkable
class Benchmark(Protocol):
    """How answers are asked for and judged, and the files that record it."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def version(self) -> str:
        """Of the requests that are made; replies to another version's are not used."""
        ...

    @property
    def compares(self) -> bool:
        """Whether answers are compared with a baseline's; else each is graded."""
        ...

    @property
    def turns(self) -> int:
        """Of a conversation; what a question has beyond is not asked."""
        ...

    @property
    def caveats(self) -> tuple[str, ...]:
        """Why the figures cannot be compared with others'; empty where they can."""
        ...

    @property
    def answers_file(self) -> str:
        """Name of the file of answers."""
        ...

    @property
    def judgments_file(self) -> str:
        """Name of the file of verdicts, in upstream's shape."""
        ...

    @property
    def answer_tokens(self) -> int:
        """Longest answer, unless the user says otherwise."""
        ...

    @property
    def reply_tokens(self) -> int:
        """Of a judge's reply, likely, for estimates."""
        ...

    def temperature(self, question: Question) -> float:
        """Of an answer, unless the user says otherwise."""
        ...

    def write_answers(self, path: Path, questions: Sequence[Question], answers: Answers) -> None:
        """Write answers in upstream's shape."""
        ...

    def cases(self, contest: Contest) -> list[Case]:
        """All verdicts to be found."""
        ...

    def verdict(self, contest: Contest, case: Case, reply: Reply | None) -> Verdict:
        """What the reply says; an invalid verdict where it says none. No reply: the case had no request."""
        ...

    def figures(self, contest: Contest, judgments: Sequence[Judgment]) -> list[Results]:
        """The results, most often one.

        Raises:
            InputError: no verdict could be read.
        """
        ...

    def rows(self, contest: Contest, judgments: Sequence[Judgment]) -> list[Mapping[str, Any]]:
        """The judgments in upstream's shape."""
        ...
