"""The one place where the harness starts a helper program and waits for it.

Jobs and endpoints are not helpers: the executors start and stop those.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from harness.errors import MissingPrerequisite

Child = subprocess.Popen[bytes]
"""What `detach` has started."""


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    hint: str = "",
    new_session: bool = False,
) -> str:
    """Run `argv` without a shell and return its standard output. Ctrl-C does not reach it in a `new_session`.

    Raises MissingPrerequisite where the program is absent, runs longer than `timeout` seconds, or ends with
    another code than 0; the last lines it wrote are the reason.
    """
    command = [os.fspath(a) for a in argv]
    printed = shlex.join(command)
    if shutil.which(command[0]) is None:
        raise MissingPrerequisite(f"{command[0]} is not on this machine", f"needed for: {printed}", hint)
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=new_session,
        )
    except subprocess.TimeoutExpired:
        raise MissingPrerequisite(f"timed out after {timeout:.0f} s: {printed}", hint=hint) from None
    if done.returncode != 0:
        tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-8:]
        why = "; ".join(line.strip() for line in tail if line.strip())[-800:]
        raise MissingPrerequisite(f"exit code {done.returncode}: {printed}", why, hint)
    return done.stdout


def show(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """Run `argv` without a shell, its output on our standard error as it comes.

    Raises MissingPrerequisite where the program is absent or ends with another code than 0. An interruption ends it.
    """
    show_all([argv], cwd=cwd, env=env, hint=hint)


def show_all(
    argvs: Sequence[Sequence[str | os.PathLike[str]]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """`show` for several at the same time, line by line; each is let end before the first failure is raised."""
    commands = [[os.fspath(a) for a in argv] for argv in argvs]
    for command in commands:
        if shutil.which(command[0]) is None:
            what = f"{command[0]} is not on this machine"
            raise MissingPrerequisite(what, f"needed for: {shlex.join(command)}", hint)
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            )
            for command in commands
        ]
        with ThreadPoolExecutor(max(len(children), 1)) as pool:
            try:
                shown = list(pool.map(_show_lines, children))
            except BaseException:
                for child in children:
                    child.terminate()
                raise
    for command, child, lines in zip(commands, children, shown, strict=True):
        if child.returncode != 0:
            why = "; ".join(line.strip() for line in lines if line.strip())[-800:]
            raise MissingPrerequisite(f"exit code {child.returncode}: {shlex.join(command)}", why, hint)


def _show_lines(child: subprocess.Popen[str]) -> list[str]:
    """Its output on our standard error; the last lines."""
    last: deque[str] = deque(maxlen=8)
    assert child.stdout is not None
    for line in child.stdout:
        sys.stderr.write(line)
        last.append(line)
    return list(last)


def detach(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Child:
    """Start a server that outlives this process: in a session of its own, its output added to `log`."""
    with log.open("ab") as handle:
        child = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
        )
    _detached.append(child)
    return child


def reap() -> None:
    """Take note of servers that were started here and have ended."""
    _detached[:] = [child for child in _detached if child.poll() is None]


_detached: list[Child] = []  # kept, because a Popen that is dropped complains about a living child
