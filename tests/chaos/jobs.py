"""200 small jobs and 20 endpoints, 8 at a time, on one local SageMaker: what is left afterwards, how fast it answers.

`make test-chaos`. Measures processes, threads, file descriptors, listening ports, memory and disk of the server
before and after, and DescribeTrainingJob all the while; exits with 1 where something is left or p99 is over 100 ms.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from harness.executors.process import scratch_of
from harness.local import control
from harness.local.service import prefix_of
from tests.emulator.conftest import client, start
from tests.emulator.requests import Requests

JOBS, ENDPOINTS, AT_ONCE = 200, 20, 8
P99 = 0.100  # seconds
JOB = "(B/'model/w').write_text('w'); (B/'checkpoints/c').write_text('c'); print('step=1 loss=0.5')"
FAILS = "sys.exit(3)"


def level(pid: int, state: Path) -> dict[str, int]:
    """What the server holds now."""
    server = psutil.Process(pid)
    return {
        "processes": len(server.children(recursive=True)),
        "threads": server.num_threads(),
        "file descriptors": server.num_fds(),
        "listening ports": sum(c.status == "LISTEN" for c in server.net_connections("tcp")),
        "scratch directories": sum(scratch_of(name).exists() for name in containers_of(state)),
        "files of jobs and endpoints": sum(1 for d in ("jobs", "endpoints") for _ in (state / d).glob("*/*")),
    }


def containers_of(state: Path) -> list[str]:
    """Names of the containers of all jobs and endpoints, as the workers give them."""
    jobs = [f"{prefix_of(state)}chaos-{number}" for number in range(JOBS)]
    return jobs + [f"{prefix_of(state)}us-west-2-chaos-{number}-1" for number in range(ENDPOINTS)]


def one_job(aws: Requests, number: int) -> str:
    name = f"chaos-{number}"
    kind = number % 10  # of ten one fails, one is stopped
    code = FAILS if kind == 0 else JOB + ("; time.sleep(30)" if kind == 1 else "")
    aws.sm.create_training_job(**aws.job(name, code, CheckpointConfig={"S3Uri": f"s3://local/chaos/{name}"}))
    if kind == 1:
        aws.until(name, lambda d: d["SecondaryStatus"] == "Training")
        aws.sm.stop_training_job(TrainingJobName=name)
    status = aws.ended(name, 120)["TrainingJobStatus"]
    wanted = {0: "Failed", 1: "Stopped"}.get(kind, "Completed")
    return "" if status == wanted else f"{name}: {status} instead of {wanted}"


def one_endpoint(aws: Requests, number: int) -> str:
    name = f"chaos-{number}"
    shown = aws.deploy(name)
    if shown["EndpointStatus"] != "InService":
        return f"{name}: {shown.get('FailureReason')}"
    aws.runtime.invoke_endpoint(EndpointName=name, Body=b"{}")
    aws.delete(name)
    return ""


def main() -> int:
    state = Path(tempfile.mkdtemp(prefix="chaos-"))
    server = start(state)
    aws = Requests(server, client)
    aws.run("warm")  # what is made once (moto's applications, threads of the pool) is not a leak
    aws.deploy("warm")
    aws.delete("warm")
    seconds: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            began = time.monotonic()
            aws.sm.describe_training_job(TrainingJobName="warm")
            seconds.append(time.monotonic() - began)
            time.sleep(0.02)

    before, began = level(server.pid, state), time.monotonic()
    asker = threading.Thread(target=ask)
    asker.start()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(one_job, aws, n) for n in range(JOBS)]
        endpoints = [pool.submit(one_endpoint, aws, n) for n in range(ENDPOINTS)]
        wrong = [text for future in [*jobs, *endpoints] if (text := future.result())]
    done.set()
    asker.join()
    took = time.monotonic() - began
    aws.close()
    time.sleep(2)  # connections of clients are let go of
    after = level(server.pid, state)
    memory = psutil.Process(server.pid).memory_info().rss / 1e6
    control.down(state)
    p99 = sorted(seconds)[int(len(seconds) * 0.99)]
    for name, value in before.items():
        print(f"{name}: {value} before, {after[name]} after")
        if after[name] > value:
            wrong.append(f"{name}: {after[name] - value} left")
    median = sorted(seconds)[len(seconds) // 2]
    print(f"{JOBS} jobs, {ENDPOINTS} endpoints in {took:.0f} s, {AT_ONCE} at a time; server {memory:.0f} MB resident")
    print(f"DescribeTrainingJob: {len(seconds)} calls, median {1000 * median:.1f} ms, p99 {1000 * p99:.1f} ms")
    if p99 >= P99:
        wrong.append(f"p99 is {1000 * p99:.0f} ms")
    for text in wrong:
        print(f"WRONG: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
