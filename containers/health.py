"""How PID 1 and the DJL handler agree on health: a handler that hangs or has died ends the container.

DJL answers /ping by itself: it says Healthy while a Python that died in idleness answers every request with 400
(docs/decisions/002), and waits for minutes for one that hangs. So each handler process keeps a file with three
numbers, and PID 1 looks at them: whoever made it, is it still alive, does it still beat, how long does its step take.
A container that has ended is what SageMaker replaces. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER_ENV = "NEURON_HARNESS_DRAIN"  # the server's scratch directory; set by the entrypoint, nowhere else
BEAT = 0.5  # seconds between two beats
LOOK = 0.5  # seconds between two looks of PID 1
LOOKS = 3  # in a row at which a late handler has no thread that is ready to run: then it is not starved, it hangs
SILENCE = 3.0  # seconds without a beat. With three looks, within 5 s
SHORTEST_LIMIT = 3.0  # seconds a step may take at least, for the same 5 s
STARVED = 60.0  # seconds beyond a limit after which it does not matter why: no answer comes in time any more
SLOWER = 20  # how many times slower than the slowest step of the warm-up a step may be on a busy machine
_REASON = "start-failed"
_FORMAT = struct.Struct("ddd")  # last beat, begin of the step (0: none), its limit; by CLOCK_MONOTONIC of the host


class Pulse:
    """The handler's side."""

    def __init__(self, folder: Path, slowest_step: float = 0.0) -> None:
        """Begin to beat; a step may take twenty times `slowest_step` seconds, and 3 at least."""
        self.limit = max(SHORTEST_LIMIT, SLOWER * slowest_step)
        self.path = folder / f"pulse-{os.getpid()}"
        whole = self.path.with_suffix(".new")
        whole.write_bytes(_FORMAT.pack(time.monotonic(), 0.0, self.limit))
        with whole.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FORMAT.size)
        os.replace(whole, self.path)  # PID 1 never sees half of it
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def _beat(self) -> None:
        while True:
            self._memory[:8] = struct.pack("d", time.monotonic())
            time.sleep(BEAT)

    @contextmanager
    def step(self) -> Iterator[None]:
        """The engine works inside this block."""
        self._memory[8:16] = struct.pack("d", time.monotonic())
        try:
            yield
        finally:
            self._memory[8:16] = struct.pack("d", 0.0)


def pulse(slowest_step: float = 0.0) -> Pulse | None:
    """A pulse where somebody looks at it, that is under our entrypoint."""
    folder = os.environ.get(FOLDER_ENV)
    return Pulse(Path(folder), slowest_step) if folder else None


def announce(line: str) -> None:
    """The handler's side: a line for the container's output as it is, without the prefix that DJL would give it."""
    folder = os.environ.get(FOLDER_ENV)
    if not folder:
        print(line, flush=True)
        return
    new = Path(folder) / f"line-{os.getpid()}-{time.monotonic_ns()}.new"
    new.write_text(line, encoding="utf-8")
    os.replace(new, new.with_suffix(".txt"))


def start_failed(error: Exception) -> None:
    """The handler's side: why the model cannot be served, in one line that PID 1 repeats at the end of the log."""
    folder = os.environ.get(FOLDER_ENV)
    if folder:
        text = " ".join(str(error).split()) or type(error).__name__
        (Path(folder) / _REASON).write_text(text, encoding="utf-8")


def why_not_started(folder: Path) -> str:
    """PID 1's side: what `start_failed` was told; empty if nothing."""
    path = folder / _REASON
    return path.read_text(encoding="utf-8") if path.is_file() else ""


class Watch:
    """PID 1's side: what is wrong with the handlers that were seen in `folder`.

    On a busy machine a healthy handler is late, too. What tells them apart: one that is starved has a thread that is
    ready to run; one that hangs, is stopped or waits for a dead device has none, look after look.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._still: dict[str, int] = {}  # pid -> looks in a row at which it was late and no thread was ready

    def lines(self) -> list[str]:
        """What the handlers have announced since the last look."""
        found = []
        for path in sorted(self.folder.glob("line-*.txt")):
            found.append(path.read_text(encoding="utf-8"))
            path.unlink()
        return found

    def problem(self) -> str:
        """One line, or the empty string while all is well or nothing is loaded yet."""
        now = time.monotonic()
        for path in sorted(self.folder.glob("pulse-*")):
            pid = path.name.partition("-")[2]
            if not pid.isdigit():
                continue
            beat, begun, limit = _FORMAT.unpack(path.read_bytes())
            states = _states(int(pid))
            if not states:
                return f"the handler process {pid} has died"
            hangs = now - begun - limit if begun else 0.0
            silent = now - beat - SILENCE
            late = max(hangs, silent)
            self._still[pid] = self._still.get(pid, 0) + 1 if late > 0 and "R" not in states else 0
            if self._still[pid] < LOOKS and late < STARVED:
                continue
            if hangs > 0:
                return f"the engine hangs: its step has taken {now - begun:.0f} s"
            return f"the handler process {pid} has not given a sign of life for {now - beat:.0f} s"
        return ""


def _states(pid: int) -> str:
    """The states of a process's threads, a letter each (man 5 proc); empty if it is gone or a zombie."""
    found = ""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    return found.replace("Z", "").replace("X", "")
