"""The program: commands in one place, errors caught once. Imports no torch until a command needs it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from smoothtune import __version__
from smoothtune.cli.check import check
from smoothtune.cli.evaluate import evaluate
from smoothtune.cli.export import export
from smoothtune.cli.listing import list_things, schema, show
from smoothtune.cli.predict import predict
from smoothtune.cli.train import resume, train
from smoothtune.errors import ElsewhereError, SmoothtuneError
from smoothtune.terminal_text import printable

# The base of typer's errors about arguments, which comes from click or from typer's copy of it.
_ArgumentError: type[Exception] = typer.BadParameter.__mro__[1]


class _InterruptedError(SmoothtuneError):
    exit_code = 130


class _Program(TyperGroup):
    """Lets Ctrl-C reach `main`; by itself click exits without a word."""

    def make_context(self, *given: Any, **named: Any) -> Any:
        """The context of the program's own options."""
        with _arguments_shown():
            return super().make_context(*given, **named)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _arguments_shown():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _InterruptedError("interrupted") from None


@contextmanager
def _arguments_shown() -> Iterator[None]:
    """What a terminal would obey in arguments, such as names of files, is written out where an error repeats them."""
    try:
        yield
    except _ArgumentError as error:
        vars(error)["message"] = printable(str(vars(error)["message"]), lines=True)
        raise


app = typer.Typer(
    name="smoothtune",
    cls=_Program,
    help="Fine-tune one small text model on several labelled tasks at once, from plain files.",
    epilog="Begin with: smoothtune train demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command(short_help="Go on with a run that was ended.")(resume)
app.command()(evaluate)
app.command(short_help="Predict tasks for every row of a file.")(predict)
app.command(short_help="Export a task's LoRA and encoder for peft and transformers.")(export)
app.command(short_help="Report what is in the data and what is wrong with them.")(check)
app.command("list", short_help="List packaged experiments and all kinds.")(list_things)
app.command(short_help="Print an experiment as TOML.")(show)
app.command(short_help="Print the JSON Schema of an experiment.")(schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"smoothtune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Shows what the package logs, such as that something takes seconds once."""
    log, handler = logging.getLogger("smoothtune"), logging.StreamHandler()
    before = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _heed_no_more(code: object) -> None:
    """After Ctrl-C has ended the work: a second one, while Python takes itself down, would print a traceback."""
    if code == _InterruptedError.exit_code:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def main() -> None:
    """Run the program: exit 2 for usage and configuration, 1 for failure, 130 after Ctrl-C, 143 after SIGTERM."""
    # Threads that wait must sleep, not spin: beside any other busy process spinning makes torch several times slower.
    # Read once, when torch loads its OpenMP library, so it is set here.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        with _log_on_stderr():
            app()
    except ElsewhereError as error:
        sys.exit(error.exit_code)
    except SmoothtuneError as error:
        print(printable(f"smoothtune: {error}", lines=True), file=sys.stderr)
        _heed_no_more(error.exit_code)
        sys.exit(error.exit_code)
    except SystemExit as error:
        _heed_no_more(error.code)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
