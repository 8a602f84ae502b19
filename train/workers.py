"""torchrun, twice mended: `python -m train.workers` in the place of `python -m torch.distributed.run`.

torchrun takes a SIGTERM for its own end and gives its workers 30 s before it kills them, which is a quarter of the
time that SageMaker gives; and whatever a worker ended with, torchrun ends with 1. Here the signal is the workers'
business, and the exit code is theirs.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from containers.contract import EXIT_INTERRUPTED, EXIT_TERMINATED


def main(argv: list[str]) -> int:
    """Run torchrun with `argv`; the exit code is the first failed worker's, 128 + n for signal n."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not hasattr(api, "_terminate_process_handler"):
        raise RuntimeError("torchrun handles signals in another way than 2.1 to 2.13: see train/workers.py")
    api._terminate_process_handler = _leave_it_to_the_workers
    try:
        run.main(argv)
    except ChildFailedError as error:
        return exit_code(error.failures)
    return 0


def _leave_it_to_the_workers(signum: int, _frame: FrameType | None) -> None:
    """The entrypoint signals its process group; newer versions of torch start workers outside of it."""
    print(f"torchrun: signal {signum}; waiting for the workers", flush=True)
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, path.read_text().split()):
            with suppress(ProcessLookupError):
                if os.getpgid(pid) != os.getpgid(0):
                    os.kill(pid, signum)


def exit_code(failures: dict[int, Any]) -> int:
    """Of what ended first and was no stop; 143 or 130 where every worker was stopped."""
    first = sorted(failures.values(), key=lambda failure: failure.timestamp)
    codes = [f.exitcode if f.exitcode >= 0 else 128 - f.exitcode for f in first]
    stopped = (EXIT_TERMINATED, EXIT_INTERRUPTED)
    return int(next((code for code in codes if code not in stopped), codes[0] if codes else 1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
