"""How long `harness plan` takes: python -m benchmarks.plan_time. Median of ten with a warm cache; wall and CPU time.

CPU time is the figure to compare on a busy machine: wall time there measures the neighbours.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time

COMMAND = [sys.executable, "-m", "harness", "plan", "tinyllama-imdb"]


def main() -> None:
    subprocess.run(COMMAND, stdout=subprocess.DEVNULL, check=True)  # fills the cache
    wall, cpu = [], []
    for _ in range(10):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(COMMAND, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - started)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    load = os.getloadavg()[0]
    print(f"wall {statistics.median(wall):.2f} s, CPU {statistics.median(cpu):.2f} s, load average {load:.1f}")


if __name__ == "__main__":
    main()
