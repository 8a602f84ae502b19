"""What the command line prints: lines and progress bars on a terminal, plain lines elsewhere.

Results go to standard output, everything about the way there to standard error, so that a script can read the
former. NO_COLOR and the terminal's width are Rich's business.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from harness.errors import Problem


class ConsoleReporter:
    """Reporter on standard error. One bar at a time: the steps of a run follow each other."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress: object | None = None
        self._label = ""
        self._printed = 0.0

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def progress(self, label: str, done: int, total: int) -> None:
        if self.console.is_terminal:
            self._bar(label, done, total)
        elif done >= total or time.monotonic() - self._printed > 10:
            # Without a terminal a line every ten seconds says enough.
            self._printed = time.monotonic()
            self.console.print(f"{label}: {done} of {total}", markup=False)

    def _bar(self, label: str, done: int, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        kind = label.split(",", maxsplit=1)[0]
        if not isinstance(self._progress, Progress) or self._label != kind:
            self.close()
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._progress.add_task(label, total=total)
            self._progress.start()
            self._label = kind
        assert isinstance(self._progress, Progress)
        self._progress.update(self._progress.task_ids[0], description=label, completed=done, total=total)
        if done >= total:
            self.close()
            self.say(f"{label}: {done} of {total}")

    def close(self) -> None:
        """End the bar, if there is one; the cursor comes back."""
        from rich.progress import Progress

        if isinstance(self._progress, Progress):
            self._progress.stop()
        self._progress = None


@contextmanager
def reporter() -> Iterator[ConsoleReporter]:
    """A reporter whose bar is ended however the block ends."""
    made = ConsoleReporter()
    try:
        yield made
    finally:
        made.close()


def write(text: str) -> None:
    """A piece of a result, without a line end."""
    sys.stdout.write(text)
    sys.stdout.flush()


def out(text: str) -> None:
    """One line of result on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """One line about the way to the result, on standard error."""
    sys.stderr.write(text + "\n")


def table(title: str, rows: Iterable[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """A table of results on standard output."""
    from rich.console import Console
    from rich.table import Table

    if title:
        out(title)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    Console(highlight=False).print(shown, markup=False)


def problems(found: Iterable[Problem]) -> None:
    """Every problem, as `error: what` with the reason and the remedy below it."""
    for problem in found:
        first, *rest = problem.lines()
        sys.stderr.write(f"error: {first}\n")
        for line in rest:
            sys.stderr.write(f"{line}\n")
