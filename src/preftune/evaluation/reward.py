"""Mean reward of a model's answers under whatever `preftune score` takes, alone or against a baseline."""

from collections.abc import Sequence
from pathlib import Path

from preftune.data.groups import Group, Response
from preftune.evaluation.files import write_lines
from preftune.evaluation.model_outputs import ModelOutputs, check_complete, write_responses
from preftune.evaluation.models import Generation, ModelOrOutputs
from preftune.evaluation.questions import Question
from preftune.evaluation.resampling import difference, mean, tally
from preftune.evaluation.verdicts import Rating, Results
from preftune.rewards.scoring import Answer, score_missing, scored_content
from preftune.rewards.sources import Scoring
from preftune.serving.asking import hash_of
from preftune.storage.files import write_json
from preftune.storage.processes import Processes
from preftune.storage.shards import Shards


def evaluate_reward(
    generation: Generation,
    model: ModelOrOutputs,
    baseline: ModelOrOutputs | None,
    scoring: Scoring,
    output: Path,
) -> list[Results]:
    """Answer, score the first answer to every question, and write the files.

    The folder gets `answers.jsonl`, `items.jsonl` and `results.json`. Finished scores are kept there, and the
    same call goes on.

    Args:
        generation: what is asked, and how it is answered.
        model: whose answers are scored.
        baseline: another, for the difference.
        scoring: from `resolve_source`.
        output: folder.

    Returns:
        The figures: the mean reward with its interval over prompts; with a baseline, its mean and the
        difference on the same prompts.
    """
    questions = generation.questions
    models = [generation.outputs(one) for one in (model, baseline) if one is not None]
    for each in models:
        check_complete(each, questions)
    write_responses(output / "answers.jsonl", questions, models[0])
    scores = [_score(questions, each, scoring, output, generation.progress) for each in models]
    ratings = [
        [
            Rating(question.key, score, category=question.category)
            for question, score in zip(questions, own, strict=True)
        ]
        for own in scores
    ]
    rows = (
        {
            "question": rating.question,
            "model": each.model,
            "category": rating.category,
            scoring.name: rating.rating,
        }
        for each, own in zip(models, ratings, strict=True)
        for rating in own
    )
    write_lines(output / "items.jsonl", rows)
    results = _figures([each.model for each in models], ratings, scoring.name)
    write_json(output / "results.json", [results])
    return [results]


def _figures(models: Sequence[str], ratings: Sequence[Sequence[Rating]], reward: str) -> Results:
    """Of a model, and of its baseline where there is one."""
    tallies = [tally(own) for own in ratings]
    own_mean = mean(tallies[0])
    results: Results = {
        "protocol": "reward",
        "model": models[0],
        "baseline": models[1] if len(models) > 1 else None,
        "reward": reward,
        "n": len(ratings[0]),
        "mean_reward": own_mean.value,
        **own_mean.results(),
    }
    if len(models) > 1:
        compared = difference(tallies[0], tallies[1])
        results["baseline_mean_reward"] = mean(tallies[1]).value
        results["difference"] = {"to": models[1], **compared.results("mean_reward")}
    return results


def _score(
    questions: Sequence[Question], answers: ModelOutputs, scoring: Scoring, output: Path, progress: bool
) -> list[float]:
    groups = [
        Group(
            question.opening,
            (Response(({"role": "assistant", "content": answers[question][0]},)),),
            (),
            row,
            dict(question.row or {}),
            frozenset(),
        )
        for row, question in enumerate(questions)
    ]
    shards = Shards(output / "scores", hash_of([scored_content(groups), repr(scoring.content)])[:12])
    title = f"{scoring.name} of {answers.model}"
    score_missing(
        scoring.scorer,
        [Answer(group, 0) for group in groups],
        shards,
        Processes(),
        title=title,
        progress=progress,
    )
    return shards.in_order(len(groups))
