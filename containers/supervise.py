"""Runs one command as PID 1 should: output copied, signals passed on to its process group, every zombie reaped.

Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from containers.drain import Drain
from containers.health import LOOK, Watch
from containers.secretsmanager import hide

EXIT_UNWELL = 70  # EX_SOFTWARE of sysexits.h: the server was ended because its handler hung or had died
TAIL_LINES = 60  # enough for a traceback through transformers
LAST_OUTPUT = 2.0  # seconds for what is still in the pipe of a command that has ended
TICK = 0.1  # seconds between two looks at a drain or a deadline; without either nothing is polled


class Supervisor:
    """From its construction on TERM and INT are its own: Linux ignores them for a PID 1 without handlers.

    With a `watch` the command is killed when that finds something wrong; the code is then EXIT_UNWELL.
    A signal goes to the command's whole process group, at once or, with a `drain`, when what is in progress has been
    answered. What has not ended `kill_after` seconds later is killed.
    """

    def __init__(self, kill_after: float, drain: Drain | None = None, watch: Watch | None = None) -> None:
        self.kill_after, self.drain, self.watch = kill_after, drain, watch
        self._look_at = 0.0
        self.stopping = 0  # the signal that was received
        self._launched = self._forwarded = False
        self._kill_at = float("inf")
        self._child: subprocess.Popen[bytes] | None = None
        self._wakeup, wakeup_write = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(wakeup_write, False)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes the loop up; nothing else
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)

    def _stop(self, signum: int, _frame: FrameType | None) -> None:
        if not self._launched:
            sys.exit(128 + signum)
        self.stopping, self._forwarded = signum, False
        if self.drain is not None:
            self.drain.begin()

    def run(
        self, command: list[str], cwd: Path, env: Mapping[str, str], secrets: tuple[bytes, ...] = ()
    ) -> tuple[int, list[str]]:
        """Run `command` to its end; its exit code (128 + n for signal n, 127 where there is no such program) and its
        last lines. `secrets` are left out of both its output and those lines."""
        self._launched = True
        try:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own, so that every descendant gets the signal
            )
        except OSError as error:
            print(f"entrypoint: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            return 127, []
        assert child.stdout is not None
        self._child = child
        output = _Output(child.stdout.fileno(), secrets)
        code = None
        while code is None:
            watched = [self._wakeup] if output.ended else [self._wakeup, output.fd]
            ready, _, _ = select.select(watched, [], [], TICK if self.stopping else LOOK if self.watch else None)
            if output.fd in ready:
                output.copy()
            if self._wakeup in ready:
                with suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
            self._pass_on()
            code = self._reap()
            if code is None and self._unwell():
                self._signal_group(child, signal.SIGKILL)  # nothing it could still answer; a hanging one ignores TERM
                self._wait_for(child)
                code = EXIT_UNWELL
        child.returncode = code  # so that Popen does not wait for it as well
        self._child = None
        self._signal_group(child, signal.SIGKILL)  # workers that it left behind
        output.copy_rest(LAST_OUTPUT)
        child.stdout.close()
        return code, list(output.tail)

    def _pass_on(self) -> None:
        if not self.stopping:
            return
        assert self._child is not None
        if not self._forwarded and (self.drain is None or self.drain.done()):
            self._forwarded = True
            self._kill_at = time.monotonic() + self.kill_after
            self._signal_group(self._child, self.stopping)
        elif time.monotonic() > self._kill_at:
            self._kill_at = float("inf")
            print(f"entrypoint: still there after {self.kill_after:.0f} s; killed", file=sys.stderr, flush=True)
            self._signal_group(self._child, signal.SIGKILL)

    def _unwell(self) -> bool:
        """Whether the watch finds something wrong, which is then said; looked at now and then."""
        if self.watch is None or self._forwarded or time.monotonic() < self._look_at:
            return False  # once it was told to end, its handler may
        self._look_at = time.monotonic() + LOOK
        for line in self.watch.lines():
            print(line, flush=True)
        problem = self.watch.problem()
        if problem:
            print(f"entrypoint: {problem}; this container ends, so that it is replaced", file=sys.stderr, flush=True)
        return bool(problem)

    @staticmethod
    def _wait_for(child: subprocess.Popen[bytes]) -> None:
        with suppress(ChildProcessError):
            os.waitpid(child.pid, 0)

    def _reap(self) -> int | None:
        """Wait for everything that has ended, orphans too; the command's exit code if it is among them."""
        assert self._child is not None
        code = None
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._child.pid:
                    ended = os.waitstatus_to_exitcode(status)
                    code = ended if ended >= 0 else 128 - ended
        return code

    @staticmethod
    def _signal_group(child: subprocess.Popen[bytes], signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # it ended in this moment
            os.killpg(child.pid, signum)


class _Output:
    """The command's output: passed on as it comes, the last lines kept."""

    def __init__(self, fd: int, secrets: tuple[bytes, ...] = ()) -> None:
        self.fd, self.ended, self.secrets = fd, False, secrets
        self._held = b""  # the beginning of what may be a secret, whose rest has not come yet
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._partial = b""
        os.set_blocking(fd, False)

    def copy(self) -> bool:
        """What is there now; whether there was anything."""
        try:
            piece = os.read(self.fd, 65536)
        except BlockingIOError:
            return False
        if not piece:
            self.ended = True
        if self.secrets:
            piece = self._without_secrets(piece)
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        *lines, self._partial = (self._partial + piece).split(b"\n")
        self._partial = self._partial[-4096:]  # a progress bar never ends its line
        if self.ended and self._partial:
            lines.append(self._partial)
        self.tail.extend(line.decode(errors="replace").rstrip() for line in lines)
        return True

    def _without_secrets(self, piece: bytes) -> bytes:
        piece = hide(self._held + piece, self.secrets)
        most = 0 if self.ended else min(len(piece), len(self.secrets[0]) - 1)  # the first one is the longest
        held = next((n for n in range(most, 0, -1) if any(s.startswith(piece[-n:]) for s in self.secrets)), 0)
        self._held = piece[len(piece) - held :]
        return piece[: len(piece) - held]

    def copy_rest(self, wait: float) -> None:
        """Up to the end of the pipe, `wait` seconds at most: a descendant in another group may hold it open."""
        deadline = time.monotonic() + wait
        while not self.ended and time.monotonic() < deadline:
            if not self.copy():
                select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
        if self._partial and not self.ended:
            self.tail.append(self._partial.decode(errors="replace").rstrip())
