"""Runs the jobs of tests.nxd.record, each as two cores: `python -m tests.nxd.cases` in .venv-neuron.

Everything is imported once, and each core is a fork: imports take longer than five steps. A JSON line in for each
job, one out when it has ended: its exit codes, and the modules of ours that it had loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.nxd import cores

ROOT = Path(__file__).resolve().parent.parent.parent
WORLD = 2


def free_port() -> int:
    """A port; the one after it is for the exchange."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        try:
            second.bind(("127.0.0.1", first.getsockname()[1] + 1))
        except OSError:
            return free_port()
        return int(first.getsockname()[1])


def slow_directories() -> None:
    """On the first worker a directory takes a while, as on a busy host or a network's file system."""
    from neuronx_distributed.trainer.checkpoint_storage import FilesysCheckpointStorage as Storage

    make = Storage.create_dir

    def slowly(self: Any, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.5 if os.environ["RANK"] == "0" else 0)
        make(self, *args, **kwargs)

    Storage.create_dir = slowly


def without(part: str) -> None:
    """Take one of our corrections out again."""
    from train import parallel
    from train.devices import neuron

    if part == "masked_cross_entropy":
        neuron.masked_cross_entropy = neuron._every_position
    elif part != "none":
        assert hasattr(parallel, part), part
        setattr(parallel, part, lambda *_: 0)


def core(job: dict[str, Any], rank: int, port: int) -> int:
    """One core of a job, in its own process."""
    ones = {"WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "GROUP_WORLD_SIZE": 1, "ROLE_WORLD_SIZE": WORLD}
    zeros = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "ROLE_RANK": rank, "TORCHELASTIC_RESTART_COUNT": 0}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "nxd"}
    os.environ.update({name: str(value) for name, value in {**ones, **zeros, **where}.items()})
    file = os.open(Path(job["folder"]) / f"output.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    try:
        cores.install()
        from train import run_clm

        without(job["without"])
        slow_directories()
        code = run_clm.guarded(job["words"])
    except BaseException:  # noqa: BLE001 (a worker's end)
        traceback.print_exc()
        code = 1
    finally:
        if rank == 0:
            loaded = sorted(
                str(Path(str(module.__file__)).relative_to(ROOT))
                for name, module in list(sys.modules.items())
                if name.partition(".")[0] in ("train", "containers") and getattr(module, "__file__", None)
            )
            (Path(job["folder"]) / "modules.json").write_text(json.dumps(loaded))
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def run(job: dict[str, Any]) -> list[int]:
    if job["checkpoint"]:
        source = Path(job["checkpoint"])
        shutil.copytree(source, Path(job["folder"]) / "checkpoints" / source.name)
    port = free_port()
    pids = []
    for rank in range(WORLD):
        pid = os.fork()
        if pid == 0:
            os._exit(core(job, rank, port))
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def main() -> None:
    cores.prepare()
    import train.devices.neuron
    import train.run_clm  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        codes = run(job)
        modules = json.loads((Path(job["folder"]) / "modules.json").read_text())
        print(json.dumps({"name": job["name"], "codes": codes, "modules": modules}), flush=True)


if __name__ == "__main__":
    main()
