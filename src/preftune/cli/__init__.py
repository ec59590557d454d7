"""The command line: one file per verb.

A verb parses its arguments, calls `preftune.api` and prints. May import every package; only
`python -m preftune` imports it.
"""

import logging
import sys
import warnings

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from preftune import __version__
from preftune.cli import evaluate_academic, evaluate_fetch, evaluate_human, evaluate_run  # noqa: F401  # register
from preftune.cli.demo import demo
from preftune.cli.evaluate import app as evaluate
from preftune.cli.inspect import inspect
from preftune.cli.iterate import iterate, score_samples
from preftune.cli.merge import merge
from preftune.cli.methods import methods
from preftune.cli.push import push
from preftune.cli.sample import sample
from preftune.cli.score import score
from preftune.cli.sweep import sweep
from preftune.cli.train import train
from preftune.cli.waiting import let_threads_sleep
from preftune.errors import InputError, NotFiniteError
from preftune.storage.processes import leave_processes

app = typer.Typer(
    help="Preference tuning for language models when you know more than 'A beats B'.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(inspect)
# Flags of other programs come to the overrides, whose error says what they are here.
app.command(context_settings={"ignore_unknown_options": True})(train)
app.command()(methods)
app.command()(sample)
app.command()(score)
app.command()(sweep)
app.command()(iterate)
app.command(hidden=True)(score_samples)
app.command()(merge)
app.add_typer(evaluate, name="evaluate")
app.command()(push)
app.command()(demo)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        typer.echo(f"preftune {__version__}")
        raise typer.Exit


PATH_ERRORS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What a wrong path on the command line becomes."""


def main() -> None:
    """Run a verb; bad input is one message and exit code 2, training that lost its numbers exit code 1."""
    let_threads_sleep()
    errors = Console(stderr=True)
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("preftune").setLevel(logging.INFO)
    # Of how peft calls transformers: a user can do nothing about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    try:
        app()
    except InputError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except NotFiniteError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except PATH_ERRORS as error:
        if error.filename is None:
            raise
        reason = f"{error.filename}: {error.strerror}; check the path"
        errors.print(f"[bold red]error:[/] {escape(reason)}", soft_wrap=True)
        sys.exit(2)
    finally:
        leave_processes()
