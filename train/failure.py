"""How the trainer fails: what is one line, with which exit code, and the failure file of several workers."""

from __future__ import annotations

import os
import traceback

from containers.contract import MAX_FAILURE_REASON, Paths

EXIT_INPUT = 3  # data, checkpoints or arguments that cannot be trained with; said before the first step
EXIT_TRAINING = 4  # the training itself went wrong: losses or weights that are no numbers
EXIT_HUNG = 5  # a step did not end


class TrainingError(RuntimeError):
    """The training went wrong and no bug did it; one line with the reason and what to do."""


def exit_code(error: BaseException) -> int:
    """Of a worker that ends with `error`; 1 where it is one that nobody expected."""
    if isinstance(error, TrainingError):
        return EXIT_TRAINING
    # By name: their modules need not be imported to fail. SignatureError is a DataError.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return EXIT_INPUT if kinds & {"ArgumentError", "CheckpointError", "DataError", "LoraError"} else 1


def leave(error: BaseException, code: int) -> None:
    """Under torchrun, write the failure file, unless another worker has: torchrun hides why a worker failed.

    The exception comes first, then where it was: SageMaker shows the first 1,024 characters. Without torchrun the
    entrypoint makes the file from the output's end.
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
