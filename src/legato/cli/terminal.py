"""Where words go: answers to standard output, everything else to standard error.

Knows: colours and when not to use them, progress bars for what takes over a second. Does not know: models, commands.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE_S = 0.8  # work that ends sooner shows no bar
LABEL_WIDTH = 48  # beside a bar, in 80 columns


class Terminal:
    """Standard output and error of one command."""

    def __init__(self, color: str = "auto") -> None:
        self.color = color

    def styled(self) -> bool:
        """Whether standard error takes colours."""
        return self.color == "always" or (self.color == "auto" and sys.stderr.isatty())

    def styled_output(self) -> bool:
        """The same of standard output."""
        return self.color == "always" or (self.color == "auto" and sys.stdout.isatty())

    def dim(self, text: str) -> None:
        self._err(f"\x1b[2m{text}\x1b[0m" if self.styled() else text)

    def note(self, text: str) -> None:
        """A word on what was done instead, or on what to know."""
        self._err(f"\x1b[33mnote:\x1b[0m {text}" if self.styled() else f"note: {text}")

    def say(self, text: str) -> None:
        self._err(text)

    def answer(self, text: str, end: str = "") -> None:
        """A piece of the answer, at once."""
        sys.stdout.write(text + end)
        sys.stdout.flush()

    def json(self, value: Mapping[str, Any]) -> None:
        """One object on one line."""
        sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()

    def bar(self, patience: float = PATIENCE_S) -> Bar:
        return Bar(self, patience)

    def _err(self, text: str) -> None:
        sys.stdout.flush()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Bar:
    """A bar on standard error for work that takes longer than `patience` seconds; on a pipe, one line instead.

    It is a `weights.catalog.Report`: start, advance, done; after `done` it may be started again.
    """

    def __init__(self, terminal: Terminal, patience: float) -> None:
        self._terminal, self._patience = terminal, patience
        self._total = self._done = 0
        self._text, self._started = "", 0.0
        self._running = self._shown = False
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def start(self, total: int, text: str) -> None:
        """Begins work of `total` units; 0: unknown, or something else draws a bar."""
        self.done()
        self._total, self._done, self._text, self._started = total, 0, text, time.monotonic()
        self._running = True
        self._show_if_due()

    def advance(self, n: int) -> None:
        self._done += n
        self._show_if_due()
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self._done)

    def done(self) -> None:
        """Takes the bar away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None
        self._running = self._shown = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.done()

    def _show_if_due(self) -> None:
        finished = self._total and self._done >= self._total
        if not self._running or self._shown or finished or time.monotonic() - self._started < self._patience:
            return
        self._shown = True
        if not sys.stderr.isatty() or not self._total:
            self._terminal.say(self._text + " ...")
            return
        label = self._text
        if len(label) > LABEL_WIDTH:  # a bar would cut it
            self._terminal.say(label)
            label = label.partition(":")[0][:LABEL_WIDTH]
        self._bars = _bars(color=self._terminal.styled())
        self._task = self._bars.add_task(label, total=self._total, completed=self._done)
        self._bars.start()


def _bars(color: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, no_color=not color)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
