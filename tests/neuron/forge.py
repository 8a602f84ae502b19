"""Runs of tests.neuron.drive in one process that has imported everything and forks: imports take twice as long as
twenty steps. `python -m tests.neuron.forge`, in .venv-neuron on the stand-in.

Reads a JSON line for each run ({"name", "folder", "words", "environment"}), has two at a time, and writes
{"name", "code"} when one has ended; its output is in <folder>/output.txt. Nothing of XLA is started before the fork:
a child is in every respect a worker that torchrun has just started.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.neuron import drive, units

AT_ONCE = 2  # the cores of the machine that this was measured on


def worker_environment() -> dict[str, str]:
    """What torchrun tells the only worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ones = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"), "1")
    zeros = dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "TORCHELASTIC_RESTART_COUNT"), "0")
    return {**ones, **zeros, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "forge"}


def run(job: dict[str, Any]) -> int:
    """In the child: everything that the run prints goes to its own file."""
    os.environ.update({**worker_environment(), **job["environment"]})
    file = os.open(Path(job["folder"]) / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    try:
        return units.main() if job["words"] == ["units"] else drive.main(job["words"])
    except BaseException:  # noqa: BLE001 (a worker's end)
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    waiting: list[dict[str, Any]] = []
    running: dict[int, str] = {}
    print(json.dumps({"name": "ready", "code": 0}), flush=True)
    going_on, partial = True, b""
    while going_on or waiting or running:
        if going_on and select.select([0], [], [], 0.02)[0]:
            read = os.read(0, 1 << 20)
            going_on = bool(read)
            *lines, partial = (partial + read).split(b"\n")
            waiting += [json.loads(line) for line in lines]
        while waiting and len(running) < AT_ONCE:
            job = waiting.pop(0)
            pid = os.fork()
            if pid == 0:
                os._exit(run(job))
            running[pid] = job["name"]
        pid, status = os.waitpid(-1, os.WNOHANG) if running else (0, 0)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps({"name": running.pop(pid), "code": code}), flush=True)


if __name__ == "__main__":
    main()
