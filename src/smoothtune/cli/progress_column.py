"""A column of text beside a progress bar."""

from __future__ import annotations

from rich.progress import Task, TextColumn
from rich.text import Text

from smoothtune.terminal_text import printable


class PlainColumn(TextColumn):
    """Shows its text as it is: no markup, nothing that a terminal would obey."""

    def render(self, task: Task) -> Text:
        """See `TextColumn.render`."""
        return Text(printable(self.text_format.format(task=task)), style=self.style, justify=self.justify)
