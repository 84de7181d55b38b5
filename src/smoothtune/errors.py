"""The one error tree of smoothtune.

Every message says what was wrong, where (key path or file:line), what was got and what to do.
The command line catches `SmoothtuneError` once and exits with its `exit_code`; nothing here knows of printing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from smoothtune.terminal_text import printable

_SHOWN = 100


class SmoothtuneError(Exception):
    """Base of all errors that are reported to the user without a traceback."""

    exit_code = 1


class UsageError(SmoothtuneError):
    """A command or function was called with something it cannot take (exit code 2)."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `where` is a key path or `file:line`, `what` a sentence with what was got and what to do."""

    where: str
    what: str

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return printable(text, lines=True)


class ProblemsError(UsageError):
    """Several problems found in one reading, raised together; the text has the first hundred, and counts the rest."""

    def __init__(self, headline: str, problems: Iterable[Problem]) -> None:
        self.headline = headline
        self.problems = tuple(problems)
        more = len(self.problems) - _SHOWN
        rest = [f"  and {more:,} more"] if more > 0 else []
        super().__init__("\n".join([headline, *(f"  {problem}" for problem in self.problems[:_SHOWN]), *rest]))


class ConfigurationError(ProblemsError):
    """The experiment cannot be run as written (exit code 2)."""


class DataError(ProblemsError):
    """Data files cannot be read as the experiment says (exit code 2)."""


class ModelFileError(UsageError):
    """A model folder or encoder folder is missing, damaged or of another kind (exit code 2)."""


class TrainingError(SmoothtuneError):
    """Training could not go on (exit code 1)."""


class NotFiniteError(TrainingError):
    """A loss or a gradient was not finite, and would be again if the same steps were made again."""


class TerminatedError(SmoothtuneError):
    """The process was asked to end by SIGTERM (exit code 143)."""

    exit_code = 143


class OneProcessError(TrainingError):
    """Something befell this one of several processes of a run, so that each it befalls must say so (exit code 1)."""


class ElsewhereError(SmoothtuneError):
    """Another process of the run says what went wrong, so that this one need not; `exit_code` is that one's."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code
