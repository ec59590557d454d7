"""`preftune evaluate run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preftune.cli.evaluate import app

if TYPE_CHECKING:
    from preftune.evaluation.cost_estimate import CostEstimate

ASKING = "Asking an endpoint"


@app.command()
def run(
    protocol: Annotated[
        str,
        typer.Argument(help="alpaca_eval, arena_hard, mt_bench, head_to_head or reward.", show_default=False),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder or hub name, openai:NAME, or a file of answers.")
    ],
    questions: Annotated[Path, typer.Option(help="The questions: the benchmark's file, or prompts.")],
    output: Annotated[Path, typer.Option(help="Folder for answers, verdicts and results.json.")],
    judge: Annotated[
        str | None, typer.Option(metavar="JUDGE", help="judge:NAME at an endpoint, or local:MODEL here.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Model to compare with, named as --model. Repeatable."),
    ] = None,
    judge_prompt: Annotated[
        list[Path] | None, typer.Option(help="The benchmark's judge prompt. Repeatable.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="Reference answers that the judge sees (mt_bench).")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="SPEC", help="A source of `preftune score` (reward).")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Only the first N questions.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens; by default the benchmark's.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of the answers; by default the benchmark's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of answers sampled here.")] = 0,
    attempts: Annotated[int, typer.Option(help="Most requests until a reply has a verdict.")] = 3,
    without_log_probs: Annotated[
        bool,
        typer.Option("--without-log-probs", help="Plain verdicts for alpaca_eval; they are not comparable."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print calls, tokens and cost; send no request.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer for --dry-run; without it, 4 characters count as one token.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Stop before this call spends more.", rich_help_panel=ASKING)
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT", help="Price of a million tokens of the judge.", rich_help_panel=ASKING
        ),
    ] = None,
    answer_price: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT", help="Price of a million tokens of openai: models.", rich_help_panel=ASKING
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Concurrent requests.", rich_help_panel=ASKING)] = 8,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="At most.", rich_help_panel=ASKING)
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds until a request times out.", rich_help_panel=ASKING)
    ] = 180.0,
    retries: Annotated[
        int,
        typer.Option(
            help="Retries of a request that fails, each after a longer wait.", rich_help_panel=ASKING
        ),
    ] = 6,
    judge_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A parameter of the judge's requests; null removes one. Repeatable.",
            rich_help_panel=ASKING,
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of kept replies; by default $PREFTUNE_CACHE.")
    ] = None,
) -> None:
    """Answer a benchmark's questions, have a judge compare or grade the answers, and sum up.

    - `alpaca_eval` and `arena_hard` compare with a --baseline and take upstream's --judge-prompt
    - `mt_bench` grades two turns, or compares them if there is a --baseline; needs --references
    - `head_to_head` compares two models on any prompts, always in both orders
    - `reward` needs no judge: the mean of a --reward, and the difference to a --baseline

    Endpoint and key stand in OPENAI_BASE_URL and OPENAI_API_KEY. Every reply is kept: the same call, after it
    was stopped or again, asks only for what is missing.
    """
    import preftune
    from preftune.api.evaluate import Scores
    from preftune.cli.tables import print_scores

    found = preftune.evaluate(
        protocol,
        model,
        questions,
        output,
        judge=judge,
        baseline=baseline or (),
        judge_prompts=judge_prompt or (),
        references=references,
        reward=reward,
        n=n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        attempts=attempts,
        log_probs=not without_log_probs,
        max_cost=max_cost,
        price=price,
        answer_price=answer_price,
        concurrency=concurrency,
        requests_per_minute=requests_per_minute,
        timeout=timeout,
        retries=retries,
        judge_options=judge_option or (),
        cache=cache,
        dry_run=dry_run,
        tokenizer=tokenizer,
    )
    if isinstance(found, Scores):
        print_scores(found)
    else:
        _print_estimates(found, tokenizer)


def _print_estimates(estimates: "Sequence[CostEstimate]", tokenizer: str | None) -> None:
    """Print a line for everyone who would be asked."""
    from rich.console import Console
    from rich.table import Column, Table

    from preftune.api.evaluate import CHARACTERS_PER_TOKEN

    table = Table(
        Column("who", overflow="fold"),
        *("calls", "known", "prompt tokens", "reply tokens", "cost", "calls a minute", "minutes"),
    )
    for one in estimates:
        rate, minutes = one.calls_per_minute, one.minutes
        table.add_row(
            one.respondent,
            str(one.calls),
            str(one.known),
            str(one.prompt_tokens),
            str(one.completion_tokens),
            "" if one.cost is None else f"{one.cost:.2f}",
            "" if rate is None else f"{rate:.0f}",
            "" if minutes is None else f"{minutes:.0f}",
        )
    console = Console()
    console.print(table)
    counted = (
        f"by the tokenizer of {tokenizer}" if tokenizer else f"as {CHARACTERS_PER_TOKEN} characters each"
    )
    console.print(f"Tokens are counted {counted}. Nothing was asked.")
    for one in estimates:
        if one.calls_per_minute is not None:
            how = "the median of the replies that are known" if one.is_measured else "assumed"
            console.print(f"{one.respondent}: {one.seconds:.1f} seconds a call, {how}.")
