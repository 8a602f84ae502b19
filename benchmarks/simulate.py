"""How the scheduler would do on Inferentia2, without one: a discrete-event simulation with published step times.

    .venv/bin/python benchmarks/simulate.py [--json FILE]

It runs serve/scheduler.py itself, the code that the handler runs, on a clock that a cost model moves. Beside it:

static    first come, first served, in batches: a batch begins when the engine is idle, with whoever waits (up to the
          number of slots), and ends when its longest answer ends
removed   continuous batching as DJL Serving's Neuron handler did it until November 2025
          (djl_python/rolling_batch/neuron_rolling_batch.py, 0.34): every request that has come is read before the
          next token of anybody, in order of arrival

Step times (docs/serving.md has the table and its sources). AWS publishes output tokens per second of Llama-2-7B in
bf16 on 24 cores of inf2.48xlarge: 156.1 at batch 1, 725.8 at batch 8, so a token graph of s slots takes 5.75 + 0.66 s
milliseconds, whoever is in them; beyond 8 slots that is a straight line continued. Reading a prompt is not published
for it. Llama-2-70B's time to first token there is 745 ms; taken by parameters, and for a context of 2,048 tokens,
that is 36 us a token, and one graph execution at least. The order of the policies depends little on these numbers;
the sizes do.

Arrivals are Poisson; prompts and answers have lognormal lengths (medians 180 and 120 tokens, sigma 0.9), as chat
traffic roughly has. Every policy sees the same arrivals.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from serve.scheduler import Scheduler, Sequence, fit, shapes  # noqa: E402

N_POSITIONS = 2048
SLOTS = (4, 8, 16, 32, 64)
REQUESTS = 1500


@dataclass(frozen=True)
class Costs:
    """Seconds: a token graph of s slots takes base + slot * s; a prompt of a bucket of n tokens token * n."""

    base: float = 5.75e-3
    slot: float = 0.66e-3
    token: float = 36e-6

    def decode(self, slots: int) -> float:
        return self.base + self.slot * slots

    def prefill(self, bucket: int) -> float:
        return max(self.base, self.token * bucket)


@dataclass
class Asked:
    at: float
    prompt: int
    answer: int
    tokens: list[float] = field(default_factory=list)
    """When each token came."""


def traffic(rate: float, seed: int, count: int = REQUESTS) -> list[Asked]:
    chance, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += chance.expovariate(rate)
        prompt = min(max(1, round(chance.lognormvariate(5.2, 0.9))), N_POSITIONS // 2)
        answer = min(max(1, round(chance.lognormvariate(4.8, 0.9))), N_POSITIONS - prompt)
        found.append(Asked(now, prompt, answer))
    return found


def ours(asked: list[Asked], slots: int, costs: Costs, **policy: float) -> float:
    """Seconds of slots in use times slots, by serve/scheduler.py; fills in the times of tokens."""
    return continuous(asked, slots, costs, Scheduler(shapes(N_POSITIONS, slots), **policy))


def removed(asked: list[Asked], slots: int, costs: Costs) -> float:
    """The scheduler without a budget for the stall and without overtaking does what the removed handler did."""
    return ours(asked, slots, costs, stall=float("inf"), overtake=0.0)


def continuous(asked: list[Asked], slots: int, costs: Costs, scheduler: Scheduler) -> float:
    # As after the warm-up.
    scheduler.costs.decode, scheduler.costs.token = costs.decode(slots), costs.prefill(128) / 128
    left, now, used = list(asked), 0.0, 0.0
    whose: dict[Sequence, Asked] = {}
    while left or whose:
        while left and left[0].at <= now:
            one = left.pop(0)
            sequence = Sequence((1,) * one.prompt, one.answer)
            whose[sequence] = one
            scheduler.submit(sequence, one.at)
        step = scheduler.step()
        if step is None:
            now = left[0].at
            continue
        seconds = costs.decode(slots) if step.kind == "decode" else costs.prefill(step.bucket)
        used += seconds * scheduler.seated
        now += seconds
        sampled = step.sampled
        scheduler.advance(step, [1] * len(sampled), seconds)
        for sequence in sampled:
            whose[sequence].tokens.append(now)
            if len(sequence.generated) == sequence.max_new_tokens:
                scheduler.release(sequence)
                del whose[sequence]
    return used


def static(asked: list[Asked], slots: int, costs: Costs) -> float:
    left, now, used = list(asked), 0.0, 0.0
    buckets = shapes(N_POSITIONS, slots).context_buckets
    while left:
        now = max(now, left[0].at)
        batch = [one for one in left[:slots] if one.at <= now]
        left = left[len(batch) :]
        # One graph reads all prompts of a batch, padded to the longest; it answers with everyone's first token.
        read = costs.prefill(fit(buckets, max(one.prompt for one in batch))) * len(batch)
        now += read
        used += read * len(batch)
        for n in range(max(one.answer for one in batch)):
            running = [one for one in batch if one.answer > n]
            if n:
                now += costs.decode(slots)
                used += costs.decode(slots) * len(running)
            for one in running:
                one.tokens.append(now)
    return used


POLICIES: dict[str, Callable[..., float]] = {"ours": ours, "removed": removed, "static": static}


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measured(policy: str, rate: float, slots: int, costs: Costs, seed: int = 1) -> dict[str, Any]:
    asked = traffic(rate, seed)
    used = POLICIES[policy](asked, slots, costs)
    began, ended = asked[0].at, max(one.tokens[-1] for one in asked)
    first = [one.tokens[0] - one.at for one in asked]
    gaps = [b - a for one in asked for a, b in pairwise(one.tokens)]
    return {
        "policy": policy,
        "rate": rate,
        "slots": slots,
        "tokens_per_second": round(sum(one.answer for one in asked) / (ended - began), 1),
        "slot_use": round(used / ((ended - began) * slots), 3),
        "ttft_p50_ms": round(1000 * statistics.median(first), 1),
        "ttft_p95_ms": round(1000 * percentile(first, 0.95), 1),
        "gap_p50_ms": round(1000 * statistics.median(gaps), 2),
        "gap_p99_ms": round(1000 * percentile(gaps, 0.99), 2),
        "longest_gap_ms": round(1000 * max(gaps), 1),
        # Of requests: the first token within a second, and 95 % of the others within 50 ms.
        "goodput": round(sum(_good(one) for one in asked) / len(asked), 3),
    }


def _good(one: Asked) -> bool:
    gaps = [b - a for a, b in pairwise(one.tokens)]
    return one.tokens[0] - one.at <= 1.0 and (not gaps or percentile(gaps, 0.95) <= 0.05)


def worth(costs: Costs, wanted: float = 0.95) -> dict[str, Any]:
    """The highest rate at which `wanted` of the requests are good, for each number of slots."""
    found = {}
    for slots in SLOTS:
        low, high = 0.0, 40.0
        while high - low > 0.25:
            rate = (low + high) / 2
            low, high = (rate, high) if measured("ours", rate, slots, costs)["goodput"] >= wanted else (low, rate)
        found[slots] = round(low, 2)
    best = max(found.values())
    return {"rate": found, "slots": min(slots for slots, rate in found.items() if rate >= 0.95 * best)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    costs = Costs()
    rows = [
        measured(policy, rate, slots, costs) for slots in (8, 32) for rate in (2.0, 4.0, 6.0) for policy in POLICIES
    ]
    names = list(rows[0])
    print(" ".join(f"{name:>17}" for name in names))
    for row in rows:
        print(" ".join(f"{row[name]!s:>17}" for name in names))
    slots = worth(costs)
    print("requests/s with 95 % good, by slots compiled:", slots["rate"], "-> worth compiling:", slots["slots"])
    if args.json:
        args.json.write_text(json.dumps({"costs": vars(costs), "rows": rows, "worth": slots}, indent=2) + "\n")


if __name__ == "__main__":
    main()
