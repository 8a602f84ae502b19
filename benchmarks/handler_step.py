"""What a step costs in the handler itself, by stage, with an engine that costs nothing: 32 streams in 32 slots.

    .venv-serve/bin/python benchmarks/handler_step.py MODEL [--vocabulary 32000]

DJL's own floor is 1.1 ms a rolling step at 32 slots (docs/decisions/002); what the handler adds is to stay below
2 ms, since a step of a small model on Inferentia2 takes a few. Processor time of the handler's thread, so that other
load does not count; the engine's logits are made beforehand. MODEL is a model directory, for its tokenizer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from transformers import AutoTokenizer  # noqa: E402

from serve import generator as generator_module, sampling  # noqa: E402
from serve.generator import Generator  # noqa: E402
from serve.metrics import Metrics  # noqa: E402
from serve.protocols import Context, parse  # noqa: E402
from serve.rolling import Deadlines, Frame, Part, RollingBatch  # noqa: E402
from serve.scheduler import Scheduler, Step, shapes  # noqa: E402

SLOTS, STEPS = 32, 200
BUDGET_MS = 2.0


class Free:
    """Logits that were made before; a peak at another likely token each step."""

    ends: frozenset[int] = frozenset()
    repetition_penalty = 1.0
    prompt_logprobs = False
    description = "free"

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self.tokenizer, self.shapes = tokenizer, shapes(1024, SLOTS)
        chance = np.random.default_rng(0)
        self.rows = []
        for _ in range(4):
            row = (chance.normal(size=(SLOTS, vocabulary)) * 2.5).astype(np.float32)
            # As a language model's: a few hundred tokens that can follow at all, and noise far below.
            row[:, chance.integers(0, vocabulary, 300)] += chance.uniform(8, 14, size=(SLOTS, 300)).astype(np.float32)
            self.rows.append(row)
        self.count = 0

    def forward(self, step: Step) -> np.ndarray:
        self.count += 1
        return self.rows[self.count % 4][: len(step.sampled)]

    def forward_all(self, prompts: list[tuple[int, ...]]) -> list[np.ndarray]:
        raise NotImplementedError


class Stages:
    """Processor time of calls, by name; a call inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = [0.0]

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            self._inside.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                took = time.thread_time() - began
                self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inside.pop()
                self._inside[-1] += took

        return wrapped


def measure(folder: Path, vocabulary: int, parameters: dict[str, Any]) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = Free(tokenizer, min(vocabulary, len(tokenizer)))
    context = Context(n_positions=1024, max_sequences=SLOTS, vocabulary=len(tokenizer))
    batch = RollingBatch(
        Generator(engine),
        lambda body, content_type, accept: parse(body, content_type, context, accept),
        Deadlines(1e9, 1e9),
        Metrics(write=lambda _: None, announce=lambda _: None),
    )
    stages = Stages()
    asked = {"inputs": "What is this?", "stream": True, "parameters": {"max_new_tokens": 900, **parameters}}
    part = Part(json.dumps(asked).encode(), {"content-type": "application/json"})
    batch.step(SLOTS, [part] * SLOTS)
    while len(batch.generator.scheduler._seated) < SLOTS or any(
        not s.running for s in batch.generator.scheduler._seated.values()
    ):
        batch.step(SLOTS, [])
    scheduler: Scheduler = batch.generator.scheduler
    scheduler.step = stages.timed("scheduler", scheduler.step)  # type: ignore[method-assign]
    scheduler.advance = stages.timed("scheduler", scheduler.advance)  # type: ignore[method-assign]
    engine.forward = stages.timed("engine", engine.forward)  # type: ignore[method-assign]
    choose, generator_module.sampling.choose = sampling.choose, stages.timed("sampling", sampling.choose)
    for job in batch.generator.jobs.values():
        job.text.push = stages.timed("text", job.text.push)  # type: ignore[method-assign]
        job.text.take = stages.timed("text", job.text.take)  # type: ignore[method-assign]
    batch.generator.step = stages.timed("generator", batch.generator.step)  # type: ignore[method-assign]
    step = stages.timed("frames", batch.step)
    encode = stages.timed("encoding", encoded)
    for _ in range(STEPS):
        encode(step(SLOTS, []))
    generator_module.sampling.choose = choose
    found = {name: round(1000 * seconds / STEPS, 3) for name, seconds in stages.seconds.items() if name != "engine"}
    return {**found, "all": round(sum(found.values()), 3)}


def encoded(frames: list[Frame]) -> bytearray:
    """What Output.binary_encode and send do (djl_python 0.34), which is not installed here."""
    message = bytearray()
    for frame in frames:
        for text in ("data", frame.data.decode(), "last", str(frame.last)):
            raw = text.encode()
            message += len(raw).to_bytes(4, "big")
            message += raw
    return message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--vocabulary", type=int, default=32000, help="TinyLlama's")
    args = parser.parse_args()
    for name, parameters in {
        "greedy": {},
        "sampled, top_p 0.9": {"do_sample": True, "top_p": 0.9},
        "sampled, top_k 50, penalty": {"do_sample": True, "top_k": 50, "repetition_penalty": 1.1},
    }.items():
        found = measure(args.model, args.vocabulary, parameters)
        print(f"{name}: {found} ms a step; budget {BUDGET_MS}", flush=True)


if __name__ == "__main__":
    main()
