"""One line of metrics.jsonl per log event: what the report draws and SageMaker's MetricDefinitions read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

SHOWN = ("loss", "eval_loss", "eval_perplexity", "grad_norm", "learning_rate", "tokens_per_second", "mfu")
MAX_EXPONENT = 700.0  # exp of more is no double


@dataclass(frozen=True)
class Work:
    """What a step does, for speeds: `tokens` that are not padding (the data's mean) of `positions` in a step over all
    workers, arithmetic operations a token, and how many a second the devices could do together (0: not known)."""

    tokens: float
    positions: int
    flops_per_token: float
    peak_flops: float

    @property
    def filled(self) -> float:
        """Share of the positions that are not padding."""
        return self.tokens / self.positions


class MetricsCallback(TrainerCallback):
    """Appends {"step", "seconds", "loss", ...} to `path` and prints a plain line for the job's log.

    With `work` a training row has `tokens_per_second` (without padding), `filled`, `mfu` and `seconds_left`; time of
    evaluations and checkpoints is left out of the first three. `compilations` is how many graphs the device has
    compiled so far; a row has it where the device compiles any.
    """

    def __init__(
        self, path: Path, compilations: Callable[[], int | None] = lambda: None, work: Work | None = None
    ) -> None:
        self.path, self.compilations, self.work = path, compilations, work
        self.started = self.mark = time.monotonic()
        self.busy, self.steps, self.paused = 0.0, 0, False
        path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume the file has the steps before it too, from the checkpoint's own history."""
        self.mark = time.monotonic()
        if state.is_world_process_zero:
            with self.path.open("w", encoding="utf-8") as handle:
                handle.writelines(line(row) for row in state.log_history)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.paused:
            self.mark, self.paused = time.monotonic(), False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        self.busy, self.mark, self.steps = self.busy + now - self.mark, now, self.steps + 1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.paused = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.paused = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        if "eval_loss" in numbers:
            numbers["eval_perplexity"] = math.exp(min(numbers["eval_loss"], MAX_EXPONENT))
        if "loss" in numbers:
            numbers |= self._speeds(state)
        row = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 2), **numbers}
        if (count := self.compilations()) is not None:
            row["compilations"] = count
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(line(row))
        shown = " ".join(f"{k}={numbers[k]:.5g}" for k in SHOWN if k in numbers)
        if shown:
            left = f" left={duration(numbers['seconds_left'])}" if "seconds_left" in numbers else ""
            print(f"step={state.global_step}/{state.max_steps} {shown}{left}", flush=True)

    def _speeds(self, state: Any) -> dict[str, float]:
        """Since the last log line."""
        if self.work is None or not self.steps or self.busy <= 0:
            return {}
        each = self.busy / self.steps
        rate = self.work.tokens / each
        found = {"tokens_per_second": round(rate, 1), "filled": round(self.work.filled, 4)}
        if self.work.peak_flops:
            # Padding is computed as well, and not counted: what does not train is no use of the device.
            found["mfu"] = round(rate * self.work.flops_per_token / self.work.peak_flops, 4)
        found["seconds_left"] = round(each * max(0, state.max_steps - state.global_step), 1)
        self.busy, self.steps = 0.0, 0
        return found


def line(row: dict[str, Any]) -> str:
    """One JSON object with the numbers of a row; null for what is none, which JSON does not know."""
    numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
    return json.dumps({k: v if math.isfinite(v) else None for k, v in numbers.items()}, allow_nan=False) + "\n"


def duration(seconds: float) -> str:
    """1h02m, 3m20s or 40s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 60}m{whole % 60:02}s" if whole >= 60 else f"{whole}s"


def flops_per_token(parameters: int, trained: int, looked_up: int) -> float:
    """6 for each parameter that is multiplied with: 2 forward, 4 backward, of which 2 are its own gradient
    (https://arxiv.org/abs/2001.08361, section 2.1). A frozen one has 4; `looked_up` of an input embedding that is no
    output layer as well have none. Counts are of the whole model, before it is cut."""
    multiplied = parameters - looked_up
    return 4.0 * multiplied + 2.0 * min(trained, multiplied)
