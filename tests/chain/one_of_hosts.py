"""One host of a job, up to the moment when its workers have met: `python -m tests.chain.one_of_hosts`.

The real wait for names, the real torchrun with the real command line; in the place of run_clm stands this file, whose
workers form a group over gloo, since XLA:CPU has none. SAGEMAKER_BASE_DIR names the host's own resourceconfig.json.
"""

from __future__ import annotations

import json
import os
import socket
import sys

WAIT = 60.0  # seconds for the names


def host() -> None:
    """As the entrypoint and train.launch do it one after the other."""
    from containers import entrypoint
    from containers.contract import Paths, read_training_input
    from train import launch

    who = read_training_input(Paths.from_environment()).resources
    entrypoint.wait_for_hosts(who, WAIT)
    words = launch.command([], os.environ, who.ordered_hosts, who.current_host)
    words[words.index("train.run_clm")] = "tests.chain.one_of_hosts"
    sys.stdout.flush()
    os.execvpe(words[0], words, {**os.environ, **launch.early_environment(who, os.environ)})


def worker() -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    met = {"rank": dist.get_rank(), "total": int(total), "master": os.environ["MASTER_ADDR"]}
    # In one write: both workers have one pipe.
    os.write(1, f"met {json.dumps({**met, 'host': socket.gethostname()})}\n".encode())
    dist.destroy_process_group()


if __name__ == "__main__":
    worker() if os.environ.get("TORCHELASTIC_RUN_ID") else host()
