"""What a job with several cores a model, or with ZeRO-1, needs put right.

optimum-neuron 0.0.28 makes a model's optimizer and weights anew when it cuts them, and two things stay behind with
the old ones; and its shards are saved into directories that may not be there yet. Seen by running it on two processes
(tests/nxd); nothing of Neuron is imported here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.consolidate import ADAPTER, MODEL


def make_directories(folder: Path, adapters: bool) -> None:
    """Where shards will be saved in `folder`: by every worker, before any of them writes.

    neuronx-distributed lets the first worker of the job make them while the others go on, who fail where that takes
    longer than putting a state_dict together (trainer/checkpoint.py, save_checkpoint): the job ends in its first
    checkpoint, or after its last step. On the other hosts of a job nobody makes them.
    """
    for part in ("model", "optim"):
        (folder / (ADAPTER if adapters else MODEL) / part).mkdir(parents=True, exist_ok=True)


def let_schedule_reach(optimizer: Any, scheduler: Any) -> bool:
    """Have `scheduler` set the learning rate of the optimizer that really steps; whether that had to be done.

    Upstream makes the optimizer anew (distributed/base.py, optimizer_for_mp; accelerate/accelerator.py,
    _prepare_optimizer_for_zero_1), while the schedule was made for the one before: the logged learning rate falls,
    the one that is used never changes.
    """
    real = optimizer
    while not isinstance(getattr(real, "optimizer", None), (type(None), list)):
        real = real.optimizer  # accelerate's wrapper
    if scheduler is None or scheduler.optimizer is real or scheduler.optimizer is optimizer:
        return False
    scheduler.optimizer = real
    # It was made for a stand-in with one group of weights; there are two, with weight decay and without.
    for name in ("base_lrs", "lr_lambdas", "_last_lr", "min_lrs"):
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and values:
            values += [values[-1]] * (len(real.param_groups) - len(values))
    for group, rate in zip(real.param_groups, scheduler.get_last_lr()):  # noqa: B905 (3.10: one rate a group)
        group["lr"] = rate
        group.setdefault("initial_lr", rate)
    return True


def mark_norms(model: Any) -> int:
    """Mark the weights of norms for the sum of their gradients over the cores of a model; how many were marked.

    With sequence parallelism each core's norms see its own part of every row. Upstream marks their weights and then,
    for a model that is loaded lazily, makes new ones without the mark (distributed/base.py, parallelize): each core
    would go on with its own part of the gradient, and the copies of one weight drift apart.
    """
    marked = 0
    for module in model.modules():
        if type(module).__name__.endswith("Norm"):
            for weight in module.parameters(recurse=False):
                if not getattr(weight, "sequence_parallel_enabled", False):
                    weight.sequence_parallel_enabled = True
                    marked += 1
        elif type(module).__name__ == "RowParallelLinear" and getattr(module, "sequence_parallel_enabled", False):
            # Its bias is added after the rows have been shared out again.
            bias = getattr(module, "bias", None)
            if bias is not None and not getattr(bias, "sequence_parallel_enabled", False):
                bias.sequence_parallel_enabled = True
                marked += 1
    return marked
