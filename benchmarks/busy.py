"""OpenMP's spinning on a quiet and on a busy machine: what containers/entrypoint.py sets GOMP_SPINCOUNT by.

    make setup && .venv/bin/python benchmarks/busy.py

A loop of small matrix products and pointwise steps, as a decoder's layers are, in bf16 on all cores. Each setting of
libgomp's GOMP_SPINCOUNT runs in processes of its own, alternating, once with nothing else and once beside one busy
process for each core. Median milliseconds of a loop; foreign load is what other processes of the machine used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness.paths import python_of  # noqa: E402

LOOP = """
import time, torch
torch.manual_seed(0)
x = torch.randn(256, 576, dtype=torch.bfloat16)
pairs = [(torch.randn(576, 1536).bfloat16(), torch.randn(1536, 576).bfloat16()) for _ in range(15)]
def loop():
    h = x
    for up, down in pairs:
        h = torch.nn.functional.silu(h @ up) @ down
        h = h * torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + 1).to(h.dtype) + x
loop()
times = []
for _ in range(20):
    begin = time.perf_counter()
    loop()
    times.append(time.perf_counter() - begin)
print(sorted(times)[10])
"""
BUSY = "while True: pass"


def cpu_seconds() -> float:
    """Of all processes since the machine started, idle and waiting left out."""
    values = [int(v) for v in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")


def median(setting: str) -> float:
    """Seconds of a loop in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    if setting != "default":
        env["GOMP_SPINCOUNT"] = setting
    done = subprocess.run([python_of("train"), "-c", LOOP], env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=["default", "10000", "1000"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    found: dict[str, dict[str, list[float]]] = {s: {"quiet": [], "busy": []} for s in args.settings}
    before, begin, own = cpu_seconds(), time.monotonic(), os.times()
    for _ in range(args.rounds):
        for setting in args.settings:
            found[setting]["quiet"].append(median(setting))
            others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(cores)]
            try:
                found[setting]["busy"].append(median(setting))
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    now = os.times()
    ours = now.children_user + now.children_system - own.children_user - own.children_system
    foreign = (cpu_seconds() - before - ours) / (time.monotonic() - begin)
    table = {s: {k: round(1e3 * statistics.median(v), 1) for k, v in kinds.items()} for s, kinds in found.items()}
    for setting, row in table.items():
        print(f"{setting:>8}: quiet {row['quiet']} ms, busy {row['busy']} ms, {row['busy'] / row['quiet']:.1f} times")
    print(f"foreign load {foreign:.2f} cores")
    if args.json:
        print(json.dumps({"settings": table, "foreign_load": round(foreign, 2)}))


if __name__ == "__main__":
    main()
