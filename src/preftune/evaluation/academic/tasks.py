"""Academic tasks by lm-evaluation-harness: a model against the one it was tuned from, on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.errors import InputError
from preftune.evaluation.files import write_lines
from preftune.evaluation.resampling import VerdictCounts, difference, mean
from preftune.evaluation.verdicts import Results
from preftune.storage.files import write_json

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

NO_FILTER = "none"


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        name: what we call it.
        harness: the harness's task, or group of tasks.
        metric: of a single item, which is averaged.
        filter: by which the answer is read out of the model's text.
        shots: examples in the prompt; None leaves the harness's.
    """

    name: str
    harness: str
    metric: str
    filter: str = NO_FILTER
    shots: int | None = None


TASKS = {
    task.name: task
    for task in (
        Task("ifeval", "ifeval", "prompt_level_strict_acc"),
        Task("gpqa", "gpqa_main_zeroshot", "acc_norm"),
        Task("mmlu", "mmlu", "acc", shots=5),
        Task("hellaswag", "hellaswag", "acc_norm", shots=10),
        Task("truthfulqa", "truthfulqa_mc2", "acc"),
        Task("gsm8k", "gsm8k", "exact_match", "flexible-extract", shots=5),
    )
}
"""Six tasks of the kind that MaPPO reports (arXiv 2507.21183).

That its tables have IFEval, MMLU and HellaSwag is confirmed; check the others, and every setting, against the
paper before you put figures beside its own. Metrics and shots are our choice, after the Open LLM
Leaderboards; but GSM8K takes the last number of an answer, since chat models do not keep to its format.
"""


@dataclass(frozen=True)
class AcademicOptions:
    """How tasks are run.

    Attributes:
        limit: only the first items of each task; of each subtask where it is a group.
        batch_size: sequences at a time, or "auto".
        device: as torch names it; the harness chooses unless given.
        chat_template: ask through the model's chat template, examples as earlier turns.
        include: folder of the user's own tasks, as the harness's YAML.
        seed: of the examples and the resamples.
    """

    limit: int | None = None
    batch_size: str = "1"
    device: str | None = None
    chat_template: bool = False
    include: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class TaskScores:
    """One model on one task.

    Attributes:
        values: the metric of each item.
        hashes: of each item, to see that two runs had the same.
        versions: of the task and its subtasks.
        shots: examples that the prompts had.
        harness: version of lm-eval.
    """

    values: Mapping[str, float]
    hashes: Mapping[str, str]
    versions: Mapping[str, Any]
    shots: int
    harness: str

    @property
    def tally(self) -> VerdictCounts:
        """In percent, for resampling."""
        return {item: (100 * value, 1.0) for item, value in self.values.items()}


def find_task(specification: str) -> Task:
    """A task by our name, or any of the harness as `NAME:METRIC` or `NAME:METRIC:FILTER`.

    Raises:
        InputError: it is neither.
    """
    if specification in TASKS:
        return TASKS[specification]
    name, *parts = specification.split(":")
    if not name or len(parts) not in (1, 2) or not all(parts):
        raise InputError(
            f"--task {specification}: it must be one of {', '.join(TASKS)}, or a task of lm-eval as "
            "NAME:METRIC or NAME:METRIC:FILTER, such as arc_challenge:acc_norm"
        )
    return Task(name, name, parts[0], parts[1] if len(parts) == 2 else NO_FILTER)


def evaluate_academic(
    model: str, baseline: str, tasks: Sequence[Task], settings: AcademicOptions, output: Path
) -> list[Results]:
    """Run both models on every task, and write the files.

    The folder gets `results.json` and `items.jsonl`, after every task anew.

    Args:
        model: folder or hub name.
        baseline: folder or hub name of the one it is compared with.
        tasks: from `find_task`.
        settings: how.
        output: folder.

    Returns:
        For each task the model's average in percent with its interval over items, the baseline's, and the
        difference with a paired interval.

    Raises:
        InputError: lm-eval is not installed, a task or metric does not exist, or a model cannot be loaded.
    """
    manager = _manager(tasks, settings)
    models = [_load(name, settings) for name in (model, baseline)]
    results: list[Results] = []
    rows: list[Mapping[str, Any]] = []
    for task in tasks:
        ours, theirs = (_run(loaded, task, settings, manager) for loaded in models)
        results.append(_compare(task, model, baseline, ours, theirs, settings))
        for name, run in ((model, ours), (baseline, theirs)):
            rows += [
                {"task": task.name, "item": item, "model": name, task.metric: value}
                for item, value in run.values.items()
            ]
        write_lines(output / "items.jsonl", rows)
        write_json(output / "results.json", results)
    return results


def _manager(tasks: Sequence[Task], settings: AcademicOptions) -> "TaskManager":
    """What knows the tasks; everything that can be wrong about them is found before a model is loaded."""
    if settings.limit is not None and settings.limit < 1:
        raise InputError(f"--limit {settings.limit} must be >= 1: set a number from 1 on")
    if not settings.batch_size.isdecimal() and not settings.batch_size.startswith("auto"):
        raise InputError(f"--batch-size {settings.batch_size} must be a number >= 1, or auto")
    if settings.include is not None and not settings.include.is_dir():
        raise InputError(f"--include {settings.include} must be an existing folder: correct the path")
    manager = _task_manager(settings.include)
    for task in tasks:
        if task.harness not in manager.all_tasks:
            raise InputError(
                f"--task {task.harness}: lm-eval knows no such task; `lm_eval ls tasks` lists them, and "
                "--include adds a folder"
            )
    return manager


@cache
def _task_manager(include: Path | None) -> "TaskManager":
    """Reading the names of all tasks takes seconds."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError(
            "academic tasks need lm-evaluation-harness, which is not installed: it is "
            "preftune's extra `academic` (in a clone: pip install '.[academic]')"
        ) from None
    return TaskManager(include_path=None if include is None else str(include))


def _load(name: str, settings: AcademicOptions) -> "LM":
    from lm_eval.models.huggingface import HFLM

    device = {} if settings.device is None else {"device": settings.device}
    try:
        return HFLM(pretrained=name, batch_size=settings.batch_size, trust_remote_code=False, **device)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be loaded as a causal language model: {error}") from error


def _run(model: "LM", task: Task, settings: AcademicOptions, manager: "TaskManager") -> TaskScores:
    from importlib.metadata import version

    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model,
        tasks=[task.harness],
        num_fewshot=task.shots,
        limit=settings.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=settings.chat_template,
        task_manager=manager,
        random_seed=settings.seed,
        numpy_random_seed=settings.seed,
        torch_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
    )
    samples = {
        f"{name}/{sample['doc_id']}": sample
        for name, own in found["samples"].items()
        for sample in own
        if sample["filter"] == task.filter
    }
    if not samples or any(task.metric not in sample for sample in samples.values()):
        raise InputError(
            f"--task {task.harness}: it has no {task.metric} by filter {task.filter}: {_offered(found)}"
        )
    return TaskScores(
        {item: float(sample[task.metric]) for item, sample in samples.items()},
        {item: sample["doc_hash"] for item, sample in samples.items()},
        found["versions"],
        max(found["n-shot"].values()),
        version("lm-eval"),
    )


def _offered(found: Mapping[str, Any]) -> str:
    """Metrics and filters of a task's items, as they are written after its name."""
    own = [sample for samples in found["samples"].values() for sample in samples]
    offers = {f"{metric}:{sample['filter']}" for sample in own for metric in sample["metrics"]}
    return f"choose METRIC:FILTER from {', '.join(sorted(offers))}"


def _compare(
    task: Task, model: str, baseline: str, ours: TaskScores, theirs: TaskScores, settings: AcademicOptions
) -> Results:
    assert ours.hashes == theirs.hashes, f"{task.harness} gave the two models other items"
    own, compared = mean(ours.tally, settings.seed), difference(ours.tally, theirs.tally, settings.seed)
    return {
        "protocol": "academic",
        "category": task.name,
        "model": model,
        "baseline": baseline,
        "task": task.harness,
        "metric": task.metric,
        "filter": task.filter,
        "shots": ours.shots,
        "chat_template": settings.chat_template,
        "harness": f"lm-eval {ours.harness}",
        "versions": dict(ours.versions),
        "n": compared.prompts,
        "average": own.value,
        **own.results(),
        "baseline_average": mean(theirs.tally, settings.seed).value,
        "difference": {
            "to": baseline,
            **compared.results("average"),
        },
    }
