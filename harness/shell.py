"""The one place where the harness starts a helper program and waits for it.

Jobs and endpoints are not helpers: the executors start and stop those.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import MissingPrerequisite


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    hint: str = "",
    apart: bool = False,
) -> str:
    """Run `argv` without a shell and return its standard output; `apart` from our terminal, whose Ctrl-C ends it not.

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
            start_new_session=apart,
        )
    except subprocess.TimeoutExpired:
        raise MissingPrerequisite(f"no end after {timeout:.0f} s: {printed}", hint=hint) from None
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
) -> str:
    """Run `argv` without a shell, its output on our standard error as it comes; returns that output.

    Raises MissingPrerequisite where the program is absent or ends with another code than 0. An interruption ends it.
    """
    command = [os.fspath(a) for a in argv]
    if shutil.which(command[0]) is None:
        raise MissingPrerequisite(f"{command[0]} is not on this machine", f"needed for: {shlex.join(command)}", hint)
    shown: list[str] = []
    with subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                sys.stderr.write(line)
                shown.append(line)
        except BaseException:
            child.terminate()
            raise
    if child.returncode != 0:
        why = "; ".join(line.strip() for line in shown[-8:] if line.strip())[-800:]
        raise MissingPrerequisite(f"exit code {child.returncode}: {shlex.join(command)}", why, hint)
    return "".join(shown)


def detach(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a server that outlives this process: in a session of its own, its output added to `log`."""
    with log.open("ab") as handle:
        child = subprocess.Popen(
            argv,
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


_detached: list[subprocess.Popen[bytes]] = []  # kept, because a Popen that is dropped complains about a living child
