"""Academic tasks through lm-evaluation-harness, on a task of our own that needs no network."""

import builtins
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.errors import InputError
from preftune.evaluation.academic.tasks import (
    TASKS,
    AcademicOptions,
    Task,
    TaskScores,
    _compare,
    _task_manager,
    evaluate_academic,
    find_task,
)

CommandLine = Callable[..., tuple[int, str]]
QUESTIONS = [
    {"question": f"What follows {place}?", "choices": [" a roof", " bread", " the rain"], "answer": place % 3}
    for place in range(8)
]
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 3
"""


# The harness reads the names of all its tasks first: 14,000 files.
needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs preftune[academic]")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task, and its data beside it."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "tiny_choice.yaml").write_text(TASK.format(file=data))
    return folder


@pytest.fixture
def tuned(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Another model of the same shape."""
    folder = tmp_path / "tuned"
    transformers.set_seed(7)
    config = transformers.AutoConfig.from_pretrained(tiny_model_dir)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


def right_by_likelihood(folder: Path) -> list[bool]:
    """For each question, whether the right choice is the likeliest, by the model without the harness."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)

    def log_prob(question: str, choice: str) -> float:
        prompt = tokenizer(question, add_special_tokens=False).input_ids
        whole = tokenizer(question + choice, add_special_tokens=False).input_ids
        assert whole[: len(prompt)] == prompt
        with torch.no_grad():
            log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(log_probs[place - 1, whole[place]]) for place in range(len(prompt), len(whole)))

    found = []
    for row in QUESTIONS:
        scores = [log_prob(row["question"], choice) for choice in row["choices"]]
        found.append(scores.index(max(scores)) == row["answer"])
    return found


@pytest.mark.slow
@needs_harness
def test_both_models_answer_the_same_items(
    preftune: CommandLine, tasks: Path, tuned: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The command's averages and difference are those of the choices that each model finds likeliest."""
    ours, theirs = right_by_likelihood(tuned), right_by_likelihood(tiny_model_dir)
    output = tmp_path / "out"
    arguments = ["--model", str(tuned), "--baseline", str(tiny_model_dir), "--output", str(output)]
    arguments += ["--task", "tiny_choice:acc", "--include", str(tasks), "--device", "cpu"]
    code, errors = preftune("evaluate", "academic", *arguments)
    assert code == 0, errors
    (found,) = json.loads((output / "results.json").read_text())
    assert found["average"] == pytest.approx(100 * sum(ours) / 8)
    assert found["baseline_average"] == pytest.approx(100 * sum(theirs) / 8)
    assert found["difference"]["average"] == pytest.approx(100 * (sum(ours) - sum(theirs)) / 8)
    assert found["difference"]["better"] == sum(a > b for a, b in zip(ours, theirs, strict=True))
    assert found["difference"]["worse"] == sum(a < b for a, b in zip(ours, theirs, strict=True))
    assert (found["n"], found["shots"], found["versions"]) == (8, 0, {"tiny_choice": 3})
    rows = [json.loads(line) for line in (output / "items.jsonl").read_text().splitlines()]
    assert [row["acc"] for row in rows] == [float(right) for right in ours + theirs]


@pytest.mark.slow
@needs_harness
def test_a_metric_that_a_task_lacks_is_named(tasks: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """A metric or filter that the items do not have is refused with those that they have."""
    task = find_task("tiny_choice:exact_match")
    with pytest.raises(InputError, match="choose METRIC:FILTER from acc:none, acc_norm:none"):
        evaluate_academic(
            str(tiny_model_dir),
            str(tiny_model_dir),
            [task],
            AcademicOptions(limit=1, include=tasks, device="cpu"),
            tmp_path / "out",
        )


def run(values: list[float], name: str = "gsm8k") -> TaskScores:
    """A run with these values of its items."""
    keyed = {f"{name}/{place}": value for place, value in enumerate(values)}
    return TaskScores(keyed, dict.fromkeys(keyed, "hash"), {name: 3}, 5, "0.4")


def compare(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """The results of two runs of a task."""
    return _compare(TASKS["gsm8k"], "tuned", "base", run(ours), run(theirs), AcademicOptions())


def test_interval_of_the_difference_is_paired() -> None:
    """A model that is right on one item of ten more has a difference of 10, with a narrow interval.

    Items 0 to 49 are right for both and 50 to 59 only for the first, of 100: 60% against 50%. Paired, the
    standard error is that of a share of 0.1, sqrt(0.09 / 100) = 3 points, so the interval ends near 10 ± 5.9;
    unpaired it would be sqrt(0.24 + 0.25) = 7 points, ± 13.7, and hold 0.
    """
    found = compare([1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50)
    low, high = found["difference"]["interval"]
    assert found["difference"]["average"] == pytest.approx(10)
    assert low == pytest.approx(10 - 5.9, abs=1.5)
    assert high == pytest.approx(10 + 5.9, abs=1.5)
    assert (found["difference"]["better"], found["difference"]["worse"]) == (10, 0)
    assert found["difference"]["p_value"] == pytest.approx(2 / 2**10)


@pytest.mark.slow
@needs_harness
def test_the_six_tasks_exist_in_the_harness(tasks: Path) -> None:
    """Every task of the table is one that the installed harness knows."""
    assert {task.harness for task in TASKS.values()} <= set(_task_manager(tasks).all_tasks)


def test_a_task_is_named_by_us_or_by_the_harness() -> None:
    """Our names stand for metric and shots; any other task states its metric, and its filter if any."""
    assert find_task("mmlu").shots == 5
    assert find_task("arc_easy:acc") == Task("arc_easy", "arc_easy", "acc")
    assert find_task("gsm8k:exact_match:strict-match").filter == "strict-match"
    for wrong in ("arc_easy", "arc_easy:", ":acc", "a:b:c:d"):
        with pytest.raises(InputError, match="NAME:METRIC"):
            find_task(wrong)


@pytest.mark.slow
@needs_harness
def test_a_task_that_does_not_exist_is_named(tasks: Path, tmp_path: Path) -> None:
    """A task that the harness lacks is refused before a model is loaded: neither model exists."""
    task = Task("x", "no_such_task", "acc")
    with pytest.raises(InputError, match="knows no such task"):
        evaluate_academic("no-such-model", "nor-this", [task], AcademicOptions(include=tasks), tmp_path)


def test_mistakes_are_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    """With models that do not exist, the first complaint is about the options."""
    mistakes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"limit": 0}, "--limit 0"),
        ({"batch_size": "many"}, "--batch-size many"),
        ({"include": tmp_path / "none"}, "existing folder"),
    )
    task = TASKS["gsm8k"]
    for options, message in mistakes:
        with pytest.raises(InputError, match=message):
            evaluate_academic("no-such-model", "nor-this", [task], AcademicOptions(**options), tmp_path)


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where lm-eval is not installed, the message says what to install."""
    real = builtins.__import__

    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "lm_eval":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"extra `academic` \(in a clone: pip install '\.\[academic\]'\)"):
        evaluate_academic("a", "b", [TASKS["gsm8k"]], AcademicOptions(), tmp_path)
