"""Ctrl-C and TERM: the first one ends the command in order.

A signal becomes an `Interrupted` exception, except inside `shielded()`, where it waits until the block is done:
what must not be torn in two (a start and its record, a deletion) is put into such a block.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _State:
    first = 0  # the first signal
    count = 0
    raised = False
    depth = 0  # of shielded blocks


def install() -> None:
    """Take over the signals; called once by the command line. A second signal raises nothing."""

    def handler(signum: int, _frame: FrameType | None) -> None:
        _State.count += 1
        _State.first = _State.first or signum
        _raise_if_due()

    for signum in _SIGNALS:
        signal.signal(signum, handler)


def _raise_if_due() -> None:
    if _State.first and not _State.raised and _State.depth == 0:
        _State.raised = True
        raise Interrupted(_State.first)


def ignore_signals() -> None:
    """Signals have no effect from here on: the work is done, and Python gives up its handlers while it ends."""
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def shielded() -> Iterator[None]:
    """Signals that arrive inside are raised after it, unless it ends with another exception."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
    _raise_if_due()


def repeated(within: float) -> bool:
    """Wait up to `within` seconds for a second signal after the first; whether one came."""
    deadline = time.monotonic() + within
    while _State.count < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return _State.count > 1
