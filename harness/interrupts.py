"""Ctrl-C and TERM: the first one ends the command in order, a second one changes nothing.

A signal becomes an `Interrupted` exception, except inside `shielded()`, where it waits until the block is done:
what must not be torn in two (a start and its record, a deletion) is put into such a block.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _State:
    received = 0  # the first signal
    raised = False
    depth = 0  # of shielded blocks


def install() -> None:
    """Take over the signals; called once by the command line."""

    def handler(signum: int, _frame: FrameType | None) -> None:
        if _State.received:
            return
        _State.received = signum
        _raise_if_due()

    for signum in _SIGNALS:
        signal.signal(signum, handler)


def _raise_if_due() -> None:
    if _State.received and not _State.raised and _State.depth == 0:
        _State.raised = True
        raise Interrupted(_State.received)


def deaf() -> None:
    """From here on signals change nothing: the work is over, and Python gives up its handlers while it ends."""
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


def requested() -> int:
    """The signal that was received, or 0: for loops inside a shielded block that may end early."""
    return _State.received
