"""Mixed load on one endpoint for a while, and what it leaves behind: `make soak`, or with --minutes N.

Eight clients at once: answers, streams, readers that are slow, readers that leave, requests that are refused, several
prompts in one request, sampled and greedy. Every few seconds the memory of all the endpoint's processes is counted.
Afterwards, with nobody there, handles, threads and slots have to be where they were, and memory must have grown by
less than 1 MB a minute since the warm-up.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from harness.paths import python_of
from tests.server.endpoint import Endpoint

ROOT = Path(__file__).resolve().parent.parent.parent
CLIENTS = 8
WARM_UP = 0.3  # of the time: buffers, the JVM's heap and its compiled code grow to what they need
SLOPE = 1.0  # MB a minute
OPTIONS = {"OPTION_N_POSITIONS": "512", "OPTION_MAX_BATCH_SIZE": "6", "SERVING_PROMETHEUS": "true"}
# The JVM's heap grows to its bound in minutes; a bound below a laptop's quarter of memory shows leaks sooner.
OPTIONS["JAVA_OPTS"] = "-Xms256m -Xmx256m -XX:+AlwaysPreTouch"


def one(endpoint: Endpoint, chance: random.Random, seen: Counter[str]) -> None:
    kind = chance.choice(["answer", "stream", "slow", "leaves", "refused", "several", "chat", "garbage"])
    text = "".join(chance.choice("red blue warm? ") for _ in range(chance.randint(1, 300)))
    parameters = {"max_new_tokens": chance.randint(1, 120), "do_sample": chance.random() < 0.5, "top_p": 0.9}
    body: dict[str, Any] = {"inputs": text, "parameters": parameters}
    wanted = 200
    if kind in ("stream", "slow", "leaves"):
        body["stream"] = True
    elif kind == "refused":
        body, wanted = {"inputs": text, "parameters": {"max_new_tokens": 5000}}, 422
    elif kind == "several":
        body["inputs"] = [text, "q", text[::-1]]
    elif kind == "chat":
        body = {"prompt": text, "max_tokens": 20, "n": 2}
    raw = b"\xff{" if kind == "garbage" else json.dumps(body).encode()
    wanted = 400 if kind == "garbage" else wanted
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=120)
    try:
        connection.request("POST", "/invocations", raw, {"Content-Type": "application/json"})
        response = connection.getresponse()
        seen[f"{kind} {response.status}"] += 1
        assert response.status == wanted, (kind, response.status, response.read()[:200])
        if kind == "leaves":
            response.read1(100)
            return
        while response.read1(65536):
            if kind == "slow":
                time.sleep(0.05)
    finally:
        connection.close()


def client(endpoint: Endpoint, number: int, until: float, seen: Counter[str], failures: list[str]) -> None:
    chance = random.Random(number)
    while time.monotonic() < until:
        try:
            one(endpoint, chance, seen)
        except Exception as error:  # noqa: BLE001 (counted; the soak fails by it)
            failures.append(f"{type(error).__name__}: {error}")


def counted(endpoint: Endpoint) -> dict[str, float]:
    root = psutil.Process(endpoint.handle.pid)
    family = [root, *root.children(recursive=True)]
    return {
        "memory_mb": sum(p.memory_info().rss for p in family) / 2**20,
        "handles": sum(p.num_fds() for p in family),
        "threads": sum(p.num_threads() for p in family),
        "processes": len(family),
    }


def gauge(endpoint: Endpoint, name: str) -> float:
    text = endpoint.request("GET", "/metrics").body.decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


def slope(samples: list[tuple[float, float]]) -> float:
    """Units a minute, by the line through the medians of the first and the last third (Tukey's resistant line)."""
    third = len(samples) // 3
    (x1, y1), (x2, y2) = (
        tuple(statistics.median(s[i] for s in part) for i in (0, 1)) for part in (samples[:third], samples[-third:])
    )
    return (y2 - y1) / (x2 - x1) * 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [python_of("serve"), "-m", "tests.server.models", folder, "llama"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        with Endpoint(Path(folder) / "llama", OPTIONS) as endpoint:
            return soak(endpoint, args.minutes)


def soak(endpoint: Endpoint, minutes: float) -> int:
    seen: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(20):  # threads and handles as they are in use
        one(endpoint, random.Random(number), seen)
    time.sleep(2)
    before = counted(endpoint)
    began = time.monotonic()
    until = began + 60 * minutes
    clients = [
        threading.Thread(target=client, args=(endpoint, n, until, seen, failures), daemon=True)
        for n in range(CLIENTS)
    ]
    for thread in clients:
        thread.start()
    samples = []
    while time.monotonic() < until:
        time.sleep(2)
        samples.append((time.monotonic() - began, counted(endpoint)["memory_mb"]))
    for thread in clients:
        thread.join(150)
    deadline = time.monotonic() + 90  # idle threads of the server's pools end after a minute
    while time.monotonic() < deadline:
        time.sleep(5)
        endpoint.ping()
        after = counted(endpoint)
        if after["threads"] <= before["threads"] + 4 and after["handles"] <= before["handles"] + 4:
            break
    settled = [s for s in samples if s[0] >= WARM_UP * 60 * minutes]
    one(endpoint, random.Random(0), seen)  # the gauges are written at the end of a request
    found = {
        "minutes": minutes,
        "requests": dict(sorted(seen.items())),
        "failures": failures[:5],
        "before": before,
        "after": after,
        "memory_mb_a_minute": round(slope(settled), 2),
        "slots_in_use": gauge(endpoint, "serve_slots_in_use"),
        "waiting": gauge(endpoint, "serve_sequences_waiting"),
    }
    found["pass"] = bool(
        not failures
        and found["memory_mb_a_minute"] < SLOPE
        and after["handles"] <= before["handles"] + 4
        and after["threads"] <= before["threads"] + 4
        and after["processes"] == before["processes"]
        and found["slots_in_use"] == found["waiting"] == 0
    )
    print(json.dumps(found, indent=2))
    return 0 if found["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
