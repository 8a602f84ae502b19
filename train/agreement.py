"""One last step for all workers of a job: a signal reaches each of them in another moment, perhaps in another step.

A worker that stopped alone would leave the others waiting in a collective until the job is killed. So the first
worker names the step, through the key-value store that the process group was built with: on the host, since an
all-reduce of a flag would be one more graph to compile on Trainium. Nobody waits for anybody between steps: on XLA
a worker that waits with a graph not yet sent would keep the others from getting there.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

# How far ahead the first worker names the step: more than any other may be ahead of it. Every step has collectives,
# and torch_xla sends no graph before the last one has ended, so one step; up to three executions may be queued in the
# Neuron runtime (NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS in train/launch.py), and a step is at least two.
AHEAD = 3
LEAVE_WAIT = 20.0  # seconds; torchrun kills the others 30 s after the first worker ended


class Agreement:
    """`store` is a torch.distributed Store, or None where there is one worker."""

    def __init__(self, store: Any, rank: int = 0, world: int = 1) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.last = 0  # the step that all stop after; 0 while there is none
        self.signum = 0
        self._asked = False

    @classmethod
    def of_this_job(cls) -> Agreement:
        """Through the process group, if there is one with several workers."""
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls(None)
        # The group's own store: also on backend xla, where nothing else connects the hosts of all workers.
        store = dist.PrefixStore("neuron-harness/stop", dist.distributed_c10d._get_default_store())
        return cls(store, dist.get_rank(), dist.get_world_size())

    def after_step(self, step: int, received: int) -> int:
        """The signal that all stop by after this step, or 0. `received` is what reached this worker."""
        if self.store is None:
            return received
        if not self.last:
            self._ask(step, received)
        if not self.last or step < self.last:
            return 0
        if step > self.last:
            print(f"worker {self.rank}: step {self.last} was to be the last, this one is at {step}", flush=True)
        return self.signum

    def _ask(self, step: int, received: int) -> None:
        # add(key, 0) reads a number, 0 where there is none, in one round trip and without waiting.
        if self.rank != 0:
            if received and not self._asked:
                self.store.add("asked", received)
                self._asked = True
            self.last = int(self.store.add("last", 0))
            self.signum = int(self.store.add("signum", 0)) if self.last else 0
        elif received or self.store.add("asked", 0):
            self.signum = received or 15  # several may have added theirs
            self.store.add("signum", self.signum)
            self.last = step + AHEAD
            self.store.add("last", self.last)

    def at_end(self, received: int) -> int:
        """After the last step: the signal that the first worker knows of, the same for all; waits for its word."""
        if self.store is None:
            return received
        if self.rank == 0:
            self.store.set("end", str(self.signum or received))
        return int(self.store.get("end"))

    def leave(self) -> None:
        """Wait until all workers are here, but not for long: the first to end with a failure ends the others."""
        if self.store is None:
            return
        deadline = time.monotonic() + LEAVE_WAIT
        with suppress(RuntimeError):  # the store went with its worker
            there = int(self.store.add("leaving", 1))
            while there < self.world and time.monotonic() < deadline:
                time.sleep(0.1)
                there = int(self.store.add("leaving", 0))
