"""Verbs that the page starts: processes of their own, so that a run outlives the page, as one of a shell does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness import shell
from harness.paths import runs_dir
from harness.record import Record

LOGS = ".ui"  # below the records; not a record itself
KEPT_LINES = 12


@dataclass(frozen=True)
class Command:
    """A verb that was started here. `words` are what a user would type behind `harness`."""

    words: tuple[str, ...]
    log: Path
    process: shell.Child

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def exit_code(self) -> int | None:
        return self.process.poll()

    def last_lines(self) -> list[str]:
        """The end of what it printed."""
        with suppress(FileNotFoundError):
            return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-KEPT_LINES:]
        return []


def start(words: Sequence[str]) -> Command:
    """`harness <words>` in a session of its own."""
    folder = runs_dir() / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{len(list(folder.iterdir())):04d}-{words[0]}.log"
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    process = shell.detach([sys.executable, "-m", "harness", *words], log, environment)
    return Command(tuple(words), log, process)


def interrupt(record: Record) -> bool:
    """Ctrl-C for whatever command holds the run, here or in a shell; whether one did.

    Work on this machine is stopped in order with a checkpoint; what AWS runs goes on.
    """
    holder = record.holder()
    if holder is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(holder.pid, signal.SIGINT)
        return True
    return False
