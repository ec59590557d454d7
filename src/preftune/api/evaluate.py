"""`preftune.evaluate` and `preftune.rescore`: benchmarks, asked or recomputed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.api.run import Run
from preftune.errors import InputError
from preftune.evaluation.benchmark import RescoreOptions
from preftune.evaluation.cost_estimate import CHARACTERS_PER_TOKEN as CHARACTERS_PER_TOKEN
from preftune.evaluation.cost_estimate import CostEstimate, token_counter
from preftune.evaluation.models import Asking, parse_options
from preftune.evaluation.rescoring import read_recordings, rescore_recordings, write_items
from preftune.evaluation.running import estimate_cost, run_benchmark
from preftune.evaluation.setup import RunOptions, judged, rewarded
from preftune.evaluation.table import REWARD
from preftune.evaluation.tables import as_csv, as_markdown
from preftune.evaluation.verdicts import Results
from preftune.serving.endpoint import Limits
from preftune.serving.prices import Budget, Price
from preftune.storage.files import MODEL_FOLDER, write_json, write_whole

if TYPE_CHECKING:
    import pandas as pd

ModelOrRun = str | Path | Run
"""A folder, a hub name, `openai:NAME`, a file of answers, or a finished run."""


@dataclass(frozen=True)
class Scores:
    """Figures of a benchmark.

    Attributes:
        results: what `results.json` holds: one entry for each model.
        folder: where results, answers and verdicts were written; None if they were not.
    """

    results: Sequence[Results]
    folder: Path | None = field(default=None)

    @property
    def table(self) -> "pd.DataFrame":
        """The results as a pandas table, a row for each model."""
        import pandas as pd

        return pd.DataFrame(list(self.results))

    @property
    def warnings(self) -> list[str]:
        """What must be known before the figures are used."""
        said = [f"{one['model']}: {warning}" for one in self.results for warning in one.get("warnings", ())]
        said += [
            f"{one['model']}: not comparable: {one['not_comparable_because']}"
            for one in self.results
            if not one.get("comparable", True)
        ]
        return said + [
            f"{one['model']}: {one['recomputed_otherwise']} of {one['recomputed']} recorded verdicts are not "
            "what the judge's text says; the recorded ones count"
            for one in self.results
            if one.get("recomputed_otherwise")
        ]


def evaluate(
    benchmark: str,
    model: ModelOrRun,
    questions: str | Path,
    output: str | Path,
    *,
    judge: str | None = None,
    baseline: ModelOrRun | Sequence[ModelOrRun] = (),
    judge_prompts: Sequence[str | Path] = (),
    references: str | Path | None = None,
    reward: str | None = None,
    n: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    attempts: int = 3,
    log_probs: bool = True,
    max_cost: float | None = None,
    price: str | None = None,
    answer_price: str | None = None,
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    timeout: float = 180.0,
    retries: int = 6,
    judge_options: Sequence[str] = (),
    cache: str | Path | None = None,
    dry_run: bool = False,
    tokenizer: str | None = None,
) -> "Scores | list[CostEstimate]":
    """Answer a benchmark's questions, have a judge compare or grade the answers, and sum up.

    Every reply is kept: the same call, after it was stopped or again, asks only for what is missing.

    Args:
        benchmark: "alpaca_eval", "arena_hard", "mt_bench", "head_to_head" or "reward".
        model: what is evaluated.
        questions: the benchmark's file, or prompts.
        output: folder for answers, verdicts and results.
        judge: "judge:NAME" at an endpoint, or "local:MODEL".
        baseline: what it is compared with; several, where the benchmark takes several.
        judge_prompts: the benchmark's judge prompts.
        references: right answers that the judge is shown (MT-Bench).
        reward: what `preftune.score` takes, for the benchmark "reward".
        n: only the first n questions.
        max_new_tokens: longest answer, in tokens; the benchmark's unless given.
        temperature: of the answers; the benchmark's unless given.
        seed: of answers sampled here.
        attempts: replies asked for until one holds a verdict.
        log_probs: whether alpaca_eval reads verdicts from log-probabilities.
        max_cost: stop before this call spends more.
        price: the judge's, "IN,OUT" for a million tokens.
        answer_price: the same of models named by `openai:`.
        concurrency: requests at the same time.
        requests_per_minute: at most.
        timeout: seconds until a request is given up.
        retries: of a request that fails, each after a longer wait.
        judge_options: "KEY=VALUE" of the judge's requests; null leaves one out.
        cache: folder of replies; `$PREFTUNE_CACHE` unless given.
        dry_run: return a cost estimate for everyone who would be asked, and ask nobody.
        tokenizer: counts tokens for a dry run; else four characters are one.

    Raises:
        InputError: something does not exist, or does not fit the benchmark.
    """
    asking = Asking(
        Limits(concurrency, requests_per_minute, timeout, retries),
        Budget(max_cost),
        Price.parse("--price", price) if price else None,
        Price.parse("--answer-price", answer_price) if answer_price else None,
        parse_options(judge_options),
        seed,
    )
    baselines = [baseline] if isinstance(baseline, str | Path | Run) else baseline
    options = RunOptions(
        protocol=benchmark,
        model=_name(model),
        questions=Path(questions),
        judge=judge,
        baselines=tuple(map(_name, baselines)),
        judge_prompts=tuple(map(Path, judge_prompts)),
        references=None if references is None else Path(references),
        reward=reward,
        n=n,
        max_tokens=max_new_tokens,
        temperature=temperature,
        attempts=attempts,
        log_probs=log_probs,
        cache=None if cache is None else Path(cache),
    )
    folder = Path(output)
    if benchmark == REWARD:
        if dry_run:
            raise InputError(
                "--dry-run estimates the benchmarks' judge, which reward does not ask: leave it out"
            )
        results = rewarded(options, asking, folder)
    else:
        evaluation = judged(options, asking)
        if dry_run:
            return list(estimate_cost(evaluation, token_counter(tokenizer)))
        results = run_benchmark(evaluation, folder)
    write_whole(folder / "results.csv", as_csv(results))
    write_whole(folder / "results.md", as_markdown(results))
    return Scores(results, folder)


def _name(model: ModelOrRun) -> str:
    return str(model.folder / MODEL_FOLDER) if isinstance(model, Run) else str(model)


def rescore(
    benchmark: str,
    files: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    csv: str | Path | None = None,
    markdown: str | Path | None = None,
    items: str | Path | None = None,
    **settings: Any,
) -> Scores:
    """Compute every figure from recorded verdicts; no judge is asked.

    Args:
        benchmark: "alpaca_eval", "arena_hard" or "mt_bench".
        files: what the benchmarks' own tools write, or `evaluate`.
        output: JSON file to write: one entry for each file and model.
        csv: CSV file to write.
        markdown: Markdown file to write.
        items: JSONL file to write: every verdict.
        **settings: fields of `preftune.evaluation.benchmark.RescoreOptions`, such as `difficulty`.

    Raises:
        InputError: a file or a setting cannot be used.
    """
    chosen = RescoreOptions(**settings)
    recordings = read_recordings(benchmark, [Path(file) for file in files], chosen)
    results = rescore_recordings(benchmark, recordings, chosen)
    if output is not None:
        write_json(Path(output), results)
    if csv is not None:
        write_whole(Path(csv), as_csv(results))
    if markdown is not None:
        write_whole(Path(markdown), as_markdown(results))
    if items is not None:
        write_items(Path(items), recordings)
    return Scores(results)
