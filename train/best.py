"""The best checkpoint instead of the last one, and an early end: by evaluations, the same on both devices.

transformers loads the best model back at the end, which a job with tensor parallelism cannot (optimum-neuron
0.0.28), so load_best_model_at_end is taken over: the checkpoint is chosen when the artifact is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from train.checkpoint import is_sealed


def take_over(run: Any, training: Any) -> None:
    """Keep load_best_model_at_end's meaning, keep transformers from doing it, and name the metric of an early end."""
    training.keep_best = bool(training.load_best_model_at_end)
    training.load_best_model_at_end = False
    if run.early_stopping_patience and training.metric_for_best_model is None:
        training.metric_for_best_model, training.greater_is_better = "loss", False


def metric_name(training: Any) -> str:
    """As the evaluation's metrics have it."""
    name = training.metric_for_best_model or "loss"
    return name if name.startswith("eval_") else f"eval_{name}"


class EarlyStop(TrainerCallback):
    """Ends training after `patience` evaluations in a row that were not better by more than `threshold`.

    Every worker has the same metrics, so all of them end after the same step. What was seen before a resume is in the
    checkpoint's history.
    """

    def __init__(self, patience: int, threshold: float) -> None:
        self.patience, self.threshold = patience, threshold
        self.seen: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        name = metric_name(args)
        self.seen = [
            row[name] for row in state.log_history if name in row and row.get("step", 0) <= state.global_step
        ]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if (value := (metrics or {}).get(metric_name(args))) is None or state.global_step >= state.max_steps:
            return
        self.seen.append(value)
        since = without_gain(self.seen, self.threshold, bool(args.greater_is_better))
        if since >= self.patience:
            control.should_training_stop = True
            control.should_save = True
            print(
                f"early stop after step {state.global_step}: {since} evaluations without a better "
                f"{metric_name(args)} than {max(self.seen) if args.greater_is_better else min(self.seen):.5g}",
                flush=True,
            )


def without_gain(values: list[float], threshold: float, greater: bool) -> int:
    """How many of the last values did not beat the best before them by more than `threshold`."""
    best, since = values[0], 0
    for value in values[1:]:
        gain = value - best if greater else best - value
        best, since = (value, 0) if gain > threshold else (best, since + 1)
    return since


def note(trainer: Any, metrics: dict[str, float]) -> None:
    """Let the evaluation after the last step count, too."""
    state, value = trainer.state, metrics.get(metric_name(trainer.args))
    if value is None or not getattr(trainer.args, "keep_best", False):
        return
    values = [v for v in (state.best_metric, value) if v is not None]
    if value == (max(values) if trainer.args.greater_is_better else min(values)):
        state.best_metric, state.best_model_checkpoint = value, f"checkpoint-{state.global_step}"


def checkpoint_of(trainer: Any) -> Path | None:
    """The best checkpoint, where it is asked for and is not what the model holds now."""
    best = trainer.state.best_model_checkpoint
    if not getattr(trainer.args, "keep_best", False) or best is None:
        return None
    folder = Path(trainer.args.output_dir) / Path(best).name
    value = trainer.state.best_metric
    if folder.name == f"checkpoint-{trainer.state.global_step}":
        print(f"best: the last step, {metric_name(trainer.args)} {value:.5g}", flush=True)
        return None
    if not is_sealed(folder):
        print(f"best: {folder.name} is not complete, the last step is exported", flush=True)
        return None
    print(f"best: {folder.name}, {metric_name(trainer.args)} {value:.5g}, is exported", flush=True)
    return folder
