"""The failure file of a job with several workers: the first one that fails writes it, since torchrun hides why."""

from __future__ import annotations

import os
import traceback

from containers.contract import MAX_FAILURE_REASON, Paths


def leave(error: BaseException, code: int) -> None:
    """Under torchrun, write the failure file, unless another worker has: the exception first, then where it was.

    SageMaker shows the first 1,024 characters. Without torchrun the entrypoint makes it from the output's end.
    """
    path = Paths.from_environment().failure
    if not os.environ.get("TORCHELASTIC_RUN_ID") or not path.parent.is_dir():  # by hand, not in a container
        return
    rank = os.environ.get("RANK", "0")
    message = " ".join(str(error).split())[: MAX_FAILURE_REASON // 2]
    head = f"AlgorithmError: {type(error).__name__}: {message}, exit code {code} (worker {rank})\n"
    where = "".join(traceback.format_tb(error.__traceback__))  # its end tells most
    try:
        with path.open("x", encoding="utf-8") as handle:
            handle.write((head + where[len(head) - MAX_FAILURE_REASON :])[:MAX_FAILURE_REASON])
    except FileExistsError:
        pass  # the first failure is the cause of the others
