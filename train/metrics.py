"""One line of metrics.jsonl per log event: what the report draws and SageMaker's MetricDefinitions read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class MetricsCallback(TrainerCallback):
    """Appends {"step", "seconds", "loss", ...} to `path` and prints a plain line for the job's log.

    `compilations` is how many graphs the device has compiled so far; a row has it where the device compiles any.
    """

    def __init__(self, path: Path, compilations: Callable[[], int | None] = lambda: None) -> None:
        self.path, self.compilations = path, compilations
        self.started = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume the file has the steps before it too, from the checkpoint's own history."""
        with self.path.open("w", encoding="utf-8") as handle:
            for row in state.log_history:
                handle.write(json.dumps({k: v for k, v in row.items() if isinstance(v, (int, float))}) + "\n")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        row = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 2), **numbers}
        if (count := self.compilations()) is not None:
            row["compilations"] = count
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        shown = " ".join(f"{k}={v:.5g}" for k, v in numbers.items() if k in ("loss", "eval_loss", "learning_rate"))
        if shown:
            print(f"step={state.global_step}/{state.max_steps} {shown}", flush=True)
