"""run_clm as one of two workers on device cpu: `python -m train.workers … -m tests.chain.two_workers MOMENTS ARGS`.

MOMENTS is JSON: {rank: [step, what]}; when that worker has done that step, what happens to it: "term" sends it
SIGTERM, "raise" fails, "kill" sends it SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback

from train import run_clm
from train.devices import cpu


class Moment(TrainerCallback):
    def __init__(self, moments: dict[str, list[Any]]) -> None:
        self.step, self.what = moments.get(str(torch.distributed.get_rank()), [0, ""])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step and self.what:
            if self.what == "raise":
                raise RuntimeError("the second worker is out of luck")
            os.kill(os.getpid(), signal.SIGTERM if self.what == "term" else signal.SIGKILL)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        time.sleep(0.02)
        print(f"worker {torch.distributed.get_rank()} has done step {state.global_step}", flush=True)


def main() -> int:
    moments, *argv = sys.argv[1:]
    made = cpu.trainer

    def with_moments(**given: Any) -> Any:
        return made(**{**given, "callbacks": [Moment(json.loads(moments)), *given["callbacks"]]})

    cpu.trainer = with_moments
    return run_clm.guarded(argv)


if __name__ == "__main__":
    sys.exit(main())
