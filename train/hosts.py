"""Device cpu over several hosts: gradients averaged with gloo, and the name of the host that went away.

transformers is left to think that it is alone: its wrapper for several processors runs the model's forward, and our
own loss does not. Rows are shared out by train/order.py; gradients and losses are averaged here, after the last batch
of a step. Every host evaluates all rows; the first one saves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from containers.contract import Paths, read_training_input
from train.failure import TrainingError

WORLD = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")
TIMEOUT = timedelta(minutes=10)  # of one collective: longer than an evaluation that another host has not ended
ASKED = 5.0  # seconds in which a host says that it is still there


class Workers:
    """The hosts of this job; one by itself where there is no process group."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1
        self.store: Any = None
        if self.size > 1:
            self.store = dist.PrefixStore("neuron-harness/hosts", dist.distributed_c10d._get_default_store())
            self.store.set(f"name/{self.rank}", read_training_input(Paths.from_environment()).resources.current_host)

    def average_(self, step: int, tensors: list[torch.Tensor]) -> None:
        """Put the mean over all hosts into each tensor. Raises TrainingError naming the hosts that are gone."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:
            raise TrainingError(f"step {step}: {self._gone()}: {' '.join(str(error).split())[:120]}") from None
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor) / self.size)
            start += tensor.numel()

    def same(self, what: str, value: str) -> None:
        """Raises TrainingError unless every host says the same."""
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        if len(set(values)) > 1:
            said = ", ".join(f"{self._name(rank)}: {found}" for rank, found in enumerate(values))
            raise TrainingError(f"the hosts of this job differ in {what} ({said})")

    def _name(self, rank: int) -> str:
        with suppress(RuntimeError):
            return bytes(self.store.get(f"name/{rank}")).decode()
        return f"host {rank + 1}"

    def _gone(self) -> str:
        """Who does not answer any more, by name."""
        try:
            self.store.set(f"here/{self.rank}", "1")
            deadline, missing = time.monotonic() + ASKED, list(range(self.size))
            while missing and time.monotonic() < deadline:
                missing = [rank for rank in missing if not self.store.check([f"here/{rank}"])]
                time.sleep(0.2)
            names = [self._name(rank) for rank in missing]
        except RuntimeError:  # the first host keeps the store
            names = ["the first one"]
        return f"lost the host{'s' if len(names) > 1 else ''} {', '.join(names) or 'that ended without a word'}"


def join() -> None:
    """The process group of torchrun's workers, where this is one of several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=TIMEOUT)


@contextmanager
def alone() -> Iterator[None]:
    """torchrun's variables out of the environment: what is built inside takes itself for the only worker."""
    hidden = {name: os.environ.pop(name) for name in WORLD if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
