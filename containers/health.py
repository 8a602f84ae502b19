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
from contextlib import contextmanager
from pathlib import Path

FOLDER_ENV = "NEURON_HARNESS_DRAIN"  # the server's scratch directory; set by the entrypoint, nowhere else
BEAT = 0.5  # seconds between two beats
SILENCE = 4.0  # seconds without one: the process is stopped or starved beyond use. With two looks, within 5 s
LOOK = 0.5  # seconds between two looks of PID 1
SHORTEST_LIMIT = 4.0  # seconds a step may take at least, for the same 5 s
SLOWER = 20  # how many times slower than the slowest step of the warm-up a step may be on a busy machine
_REASON = "start-failed"
_FORMAT = struct.Struct("ddd")  # last beat, begin of the step (0: none), its limit; by CLOCK_MONOTONIC of the host


class Pulse:
    """The handler's side."""

    def __init__(self, folder: Path, slowest_step: float = 0.0) -> None:
        """Begin to beat; a step may take twenty times `slowest_step` seconds, and 4 at least."""
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
    """PID 1's side: what is wrong with the handlers that were seen in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def problem(self) -> str:
        """One line, or the empty string while all is well or nothing is loaded yet."""
        now = time.monotonic()
        for path in sorted(self.folder.glob("pulse-*")):
            pid = path.name.partition("-")[2]
            if not pid.isdigit():
                continue
            beat, begun, limit = _FORMAT.unpack(path.read_bytes())
            if not _alive(int(pid)):
                return f"the handler process {pid} has died"
            if begun and now - begun > limit:
                return f"the engine hangs: its step has taken more than {limit:.0f} s"
            if now - beat > SILENCE:
                return f"the handler process {pid} has not given a sign of life for {SILENCE:.0f} s"
        return ""


def _alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
