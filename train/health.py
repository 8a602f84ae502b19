"""A wrong training is not a success: losses, gradients and weights that are not finite, and steps that do not end.

A checkpoint is published only after its weights are known to be finite; the losses before it are then finite too,
since a loss of nan or inf makes every weight nan in the same step.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from train import failure
from train.failure import EXIT_HUNG, TrainingError

REMEDY = "lower learning_rate, or raise warmup_steps, or look for damaged rows in the data"
BACKSTOP = 60  # seconds after the limit in which Python itself must have ended the process
FIRST_STEPS = 3  # graphs are compiled in them
COMPILING = 4  # times the limit holds until they are done


class NonFinite(TrainingError):
    """A loss, the gradient or a weight is nan or infinite."""


def require_finite(step: int, what: str, value: float) -> None:
    """Raises NonFinite unless `value` is finite. `step` counts from 1."""
    if not math.isfinite(value):
        raise NonFinite(f"step {step}: {what} is {value}: {REMEDY}")


def require_finite_weights(step: int, weights: Mapping[str, Any]) -> None:
    """Raises NonFinite naming the first tensors that hold nan or inf."""
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        shown = ", ".join(bad[:2]) + (f" and {len(bad) - 2} more" if len(bad) > 2 else "")
        raise NonFinite(f"step {step}: the weights hold nan or inf ({shown}): {REMEDY}")


class Watchdog(TrainerCallback):
    """Ends the process with the stacks of all threads if nothing happens for `limit` seconds; 0 is never.

    What counts as something is the end of a step, a batch of an evaluation, a log line, a checkpoint. A collective
    whose other end is gone waits for ever, and AWS bills it.
    """

    def __init__(self, limit: float, end: Callable[[int], Any] = os._exit) -> None:
        self.limit, self.end = limit, end
        self.last, self.steps = time.monotonic(), 0
        self.running = threading.Event()

    def allowed(self) -> float:
        """Seconds until the next thing has to happen."""
        return self.limit * (COMPILING if self.steps < FIRST_STEPS else 1)

    def _beat(self) -> None:
        self.last = time.monotonic()
        # In C, so that it works while a library holds the interpreter's lock.
        faulthandler.dump_traceback_later(self.allowed() + BACKSTOP, exit=True)

    def _watch(self) -> None:
        while self.running.is_set():
            silent = time.monotonic() - self.last
            if silent > self.allowed():
                self._bite(silent)
            time.sleep(min(1.0, self.limit / 4))

    def _bite(self, silent: float) -> None:
        sys.stdout.flush()
        faulthandler.dump_traceback(file=sys.stdout, all_threads=True)
        error = TrainingError(
            f"nothing happened for {silent:.0f} s after step {self.steps} (hang_timeout): stacks of all threads above"
        )
        print(f"Hung: {error}", flush=True)
        failure.leave(error, EXIT_HUNG)
        self.end(EXIT_HUNG)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.limit <= 0 or self.running.is_set():
            return
        self._beat()
        self.running.set()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        self._happened()

    def _happened(self, *args: Any, **kwargs: Any) -> None:
        if self.running.is_set():
            self._beat()

    on_substep_end = on_prediction_step = on_evaluate = on_log = on_save = on_step_begin = _happened

    def stop(self) -> None:
        """Nothing is watched any more; what follows the training may take its time."""
        self.running.clear()
        faulthandler.cancel_dump_traceback_later()
