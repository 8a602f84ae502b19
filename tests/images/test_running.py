"""The images running: stops, hosts, networks, limits; and that nothing is left after success, failure and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

from containers import contract
from containers.contract import Paths, Resources, TrainingInput
from harness.executors import docker as executor
from harness.executors.spec import ContainerSpec, Handle
from harness.local import control
from harness.local.endpoints.container import free_port
from tests.chain.conftest import write_tiny_run
from tests.images.conftest import HARNESS, ROOT, docker, left_over

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
READY = 120  # seconds for a container to do its first thing


@pytest.fixture
def started() -> Iterator[list[Handle]]:
    """Handles put into it are removed, also when the test fails."""
    handles: list[Handle] = []
    yield handles
    for handle in handles:
        executor.remove(handle)


def wait_for(log: Path, word: str) -> str:
    deadline = time.monotonic() + READY
    text = ""
    while word not in text:
        assert time.monotonic() < deadline, text[-3000:]
        time.sleep(0.1)
        text = log.read_text(errors="replace") if log.exists() else ""
    return text


def train_spec(image: str, folder: Path, model: Path, **hyperparameters: str) -> ContainerSpec:
    paths = Paths(folder / "ml")
    given = {"model_name_or_path": "/opt/ml/input/data/model", "block_size": "24", "max_steps": "100000"}
    given |= {
        "logging_steps": "1",
        "report_to": "none",
        "disable_tqdm": "true",
        "save_strategy": "no",
        **hyperparameters,
    }
    contract.write_training_input(paths, TrainingInput(given, ("model", "train")))
    docker(
        "run", "--rm", "-v", f"{model}:/from:ro", "-v", f"{paths.data}:/to", image, "cp", "-rL", "/from", "/to/model"
    )
    (paths.channel("train")).mkdir(exist_ok=True)
    rows = [json.dumps({"prompt": f"t{i} red: warm?", "completion": "Yes"}) for i in range(64)]
    (paths.channel("train") / "train.jsonl").write_text("\n".join(rows))
    return ContainerSpec("t-train", "train", "train", paths.base, folder / "train.log", network=False, image=image)


def serve_spec(image: str, folder: Path, model: Path) -> ContainerSpec:
    (folder / "ml").mkdir()
    (folder / "ml" / "model").symlink_to(model)
    return ContainerSpec(
        "t-serve",
        "serve",
        "serve",
        folder / "ml",
        folder / "serve.log",
        environment={"OPTION_N_POSITIONS": "8000", "OPTION_MAX_BATCH_SIZE": "8"},
        network=False,
        image=image,
        port=free_port(),
    )


def test_a_training_container_that_is_stopped_saves_a_checkpoint_and_ends_with_143(
    built: dict[str, str], tiny_model: Path, tmp_path: Path, started: list[Handle]
) -> None:
    spec = train_spec(built["train"], tmp_path, tiny_model)
    handle = executor.start(spec)
    started.append(handle)
    wait_for(spec.log, "step=5/")
    begin = time.monotonic()
    code = executor.stop(handle, contract.TRAIN_STOP_WAIT)
    assert time.monotonic() - begin < 30
    assert code == 143
    assert list((spec.base / "checkpoints").glob("checkpoint-*"))
    assert contract.read_failure(Paths(spec.base)) == ""


def test_a_failing_job_has_its_exit_code_log_and_failure_file(
    built: dict[str, str], tiny_model: Path, tmp_path: Path, started: list[Handle]
) -> None:
    spec = train_spec(built["train"], tmp_path, tiny_model, block_size="-1")
    handle = executor.start(spec)
    started.append(handle)
    deadline = time.monotonic() + READY
    while executor.poll(handle) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert executor.remove(handle) not in (None, 0, -1, 137, 143)
    assert contract.read_failure(Paths(spec.base))
    assert spec.log.read_text()


def ready(spec: ContainerSpec) -> urllib3.HTTPConnectionPool:
    pool = urllib3.HTTPConnectionPool("127.0.0.1", spec.port, maxsize=16, retries=False)
    deadline = time.monotonic() + READY
    while True:
        assert time.monotonic() < deadline, spec.log.read_text()[-3000:]
        try:
            if pool.request("GET", "/ping", timeout=2).status == 200:
                return pool
        except urllib3.exceptions.HTTPError:
            time.sleep(0.1)


def ask(pool: urllib3.HTTPConnectionPool, tokens: int) -> int:
    """The status of one request, whose answer is whole; 0 where the connection broke or was refused."""
    body = {"inputs": ["t1 red: warm?"] * 8, "parameters": {"max_new_tokens": tokens}}
    try:
        answer = pool.request("POST", "/invocations", json=body, timeout=60)
    except urllib3.exceptions.HTTPError:
        return 0
    json.loads(answer.data)
    return answer.status


def test_a_serving_container_that_is_stopped_answers_what_is_in_progress(
    built: dict[str, str], tiny_model: Path, tmp_path: Path, started: list[Handle]
) -> None:
    spec = serve_spec(built["serve"], tmp_path, tiny_model)
    handle = executor.start(spec)
    started.append(handle)
    pool = ready(spec)
    assert ask(pool, 2) == 200
    with ThreadPoolExecutor(5) as threads:
        # Four requests of eight prompts each: more than are worked on at once, and seconds of work.
        answers = [threads.submit(ask, pool, 1500) for _ in range(4)]
        time.sleep(0.15)
        begin = time.monotonic()
        stopped = threads.submit(executor.stop, handle, contract.SERVE_STOP_WAIT)
        later = []  # requests that come while it stops
        while not stopped.done():
            later.append(ask(pool, 1))
            time.sleep(0.02)
        seconds = time.monotonic() - begin
        statuses = sorted(a.result() for a in answers)
    assert seconds < 30
    assert stopped.result() == 143
    assert set(statuses) <= {200, 503}, statuses
    assert 200 in statuses
    # Answered until TERM is there, then refused, then the server has gone; never in another order.
    assert 503 in later, later
    assert [k for k, _ in groupby(later)] in ([200, 503], [503], [200, 503, 0], [503, 0]), later


def test_only_8080_listens_and_the_model_is_read_only(
    built: dict[str, str], tiny_model: Path, tmp_path: Path, started: list[Handle]
) -> None:
    spec = serve_spec(built["serve"], tmp_path, tiny_model)
    before = {p.name: p.stat().st_mtime_ns for p in tiny_model.iterdir()}
    handle = executor.start(spec)
    started.append(handle)
    assert ask(ready(spec), 2) == 200
    # /proc/net/tcp*: state 0A listens; the port is hexadecimal.
    tables = docker("exec", handle.id, "cat", "/proc/net/tcp", "/proc/net/tcp6").splitlines()
    rows = [line.split() for line in tables if ":" in line and "local" not in line]
    resolver = {r[1] for r in rows if r[3] == "0A" and r[1].startswith("0B00007F:")}  # docker's own, 127.0.0.11
    assert {int(r[1].split(":")[1], 16) for r in rows if r[3] == "0A" and r[1] not in resolver} == {8080}
    text = docker("exec", handle.id, "touch", "/opt/ml/model/x", check=False)
    assert "Read-only file system" in text
    assert {p.name: p.stat().st_mtime_ns for p in tiny_model.iterdir()} == before
    published = docker("port", handle.id).splitlines()
    assert [line.rpartition(" ")[2] for line in published] == [f"127.0.0.1:{spec.port}"]


def test_an_isolated_endpoint_reaches_nothing_outside(
    built: dict[str, str], tiny_model: Path, tmp_path: Path, started: list[Handle]
) -> None:
    # What can be reached from an image's build, whoever's network this is: the mirror that its packages came from.
    sources = docker(
        "run", "--rm", built["serve"], "sh", "-c", "cat /etc/apt/sources.list /etc/apt/sources.list.d/*", check=False
    )
    mirror = urlsplit(next(word for word in sources.split() if word.startswith("http")))
    host, port = mirror.hostname, mirror.port or (443 if mirror.scheme == "https" else 80)
    look_up = f"import socket; print(socket.getaddrinfo({host!r}, {port})[0][4][0])"
    address = docker("run", "--rm", built["serve"], "python3", "-c", look_up).splitlines()[-1]
    connect = f"import socket; socket.create_connection(({address!r}, {port}), timeout=4); print('connected')"
    assert "connected" in docker("run", "--rm", built["serve"], "python3", "-c", connect)
    handle = executor.start(serve_spec(built["serve"], tmp_path, tiny_model))
    started.append(handle)
    for program in (look_up, connect):
        text = docker("exec", handle.id, "python3", "-c", program, check=False)
        assert "Traceback" in text, text


RANKS = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
value = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(value)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: sum {value.item():.0f}", flush=True)
dist.barrier()  # or the last ones find the first one gone
dist.destroy_process_group()
"""
HOST = """#!/usr/bin/env python3
# What train/launch.py starts on device neuron, with a small program in run_clm's place.
import os, sys
from containers import entrypoint
from containers.contract import Paths, read_training_input
from train import launch
who = read_training_input(Paths.from_environment()).resources
entrypoint.wait_for_hosts(who, 60)
words = launch.command([], os.environ, who.ordered_hosts, who.current_host)
words = words[: words.index("train.run_clm") - 1] + ["/opt/ml/input/ranks.py"]
os.execvp(words[0], words)
"""


def test_hosts_of_a_job_find_each_other_by_name(built: dict[str, str], tmp_path: Path, started: list[Handle]) -> None:
    names = ("algo-1", "algo-10", "algo-2")  # in SageMaker's order; algo-1 is to lead, and algo-2 is second
    specs = []
    for name in names:
        paths = Paths(tmp_path / name)
        contract.write_training_input(paths, TrainingInput(resources=Resources(name, names, "ml.trn1.2xlarge")))
        (paths.base / "input" / "ranks.py").write_text(RANKS)
        (paths.base / "input" / "host").write_text(HOST)
        (paths.base / "input" / "host").chmod(0o755)
        specs.append(
            ContainerSpec(
                f"t-{name}",
                "train",
                "/opt/ml/input/host",
                paths.base,
                tmp_path / f"{name}.log",
                environment={"NEURON_RT_NUM_CORES": "1", "OMP_NUM_THREADS": "1"},
                network=False,
                image=built["train"],
                host=name,
                job="t-job",
            )
        )
    started.extend(executor.start(spec) for spec in specs)
    deadline = time.monotonic() + READY
    while any(executor.poll(h) is None for h in started) and time.monotonic() < deadline:
        time.sleep(0.2)
    logs = [spec.log.read_text() for spec in specs]
    assert [executor.poll(h) for h in started] == [0, 0, 0], logs
    for log, rank in zip(logs, (0, 2, 1), strict=True):
        assert f"rank {rank} of 3: sum 6" in log


def test_what_needs_more_than_its_memory_is_killed(
    built: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Handle]
) -> None:
    monkeypatch.setattr("harness.executors.docker.memory_limit", lambda: 200_000_000)
    paths = Paths(tmp_path)
    (paths.base / "input").mkdir()
    program = paths.base / "input" / "eat"
    program.write_text("#!/usr/bin/env python3\nb = bytearray(1_000_000_000)\nprint('ate it')\n")
    program.chmod(0o755)
    spec = ContainerSpec(
        "t-eat", "train", "/opt/ml/input/eat", paths.base, tmp_path / "log", network=False, image=built["train"]
    )
    started.append(executor.start(spec))
    deadline = time.monotonic() + READY
    while executor.poll(started[0]) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert executor.remove(started[0]) == 137
    assert "ate it" not in spec.log.read_text()


@pytest.mark.left_behind("container", "failure", "the local SageMaker")
def test_a_start_that_fails_leaves_nothing(built: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    import socket

    spec = serve_spec(built["serve"], tmp_path, tiny_model)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", spec.port))
        taken.listen()
        with pytest.raises(Exception, match="docker could not start the container"):
            executor.start(spec)
    assert left_over() == []


def run_harness(folder: Path, *words: str, start: Sequence[str] = HARNESS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*start, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HARNESS_RUNS_DIR": str(folder / "runs")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_whole_run_in_containers(built: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    child = run_harness(write_tiny_run(tiny_model, tmp_path).parent, "run", "--executor", "docker", "tiny.toml")
    out, _ = child.communicate(timeout=600)
    assert child.returncode == 0, out
    assert "after fine-tuning                100.0 %" in out
    record = next((tmp_path / "runs").glob("tiny-*"))
    assert json.loads((record / "platform.json").read_text())["executor"] == "docker"
    request = json.loads(next((record / "requests").glob("CreateTrainingJob-*")).read_text())
    assert request["AlgorithmSpecification"]["TrainingImage"] == built["train"]
    assert "step=60/60" in (record / "logs" / "train.log").read_text()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.left_behind("container", "Ctrl-C", "the command, with a checkpoint")
@pytest.mark.left_behind("container", "KILL", "the job itself, when it ends")
def test_an_interrupted_run_leaves_nothing_and_goes_on(
    built: dict[str, str], tiny_model: Path, tmp_path: Path, signum: int
) -> None:
    folder = write_tiny_run(tiny_model, tmp_path, steps=120).parent
    child = run_harness(folder, "train", "--executor", "docker", "tiny.toml")
    deadline = time.monotonic() + READY
    while (
        not (found := list((tmp_path / "runs").glob("tiny-*/logs/train.log")))
        or "step=5/" not in found[0].read_text()
    ):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.1)
    # The lines arrive while the job runs.
    run_id = found[0].parent.parent.name
    reader = threading.Thread(target=child.communicate)
    child.send_signal(signum)
    reader.start()
    reader.join(60)
    if signum == signal.SIGINT:
        assert child.returncode == 130
        assert left_over() == []
    going_on = run_harness(folder, "train", run_id)
    out, _ = going_on.communicate(timeout=300)
    assert going_on.returncode == 0, out
    assert "step=120/120" in found[0].read_text()
    jobs = sorted(p.name for p in (tmp_path / ".local" / "s3" / "local" / "runs" / run_id / "output").iterdir())
    # Stopped with a checkpoint, it goes on as a second attempt; whose harness was killed, it was followed to its end.
    assert jobs == ([run_id, f"{run_id}-r2"] if signum == signal.SIGINT else [run_id])


KILLED = """
# The local SageMaker, killed at the start of its nth container: by then the hosts' network is there.
import os, signal, sys
from harness.executors import docker
from harness.local.server import main
real, seen = docker._docker, []
def counting(*words, **more):
    seen.extend(word for word in words[:1] if word == "create")
    if len(seen) == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **more)
docker._docker = counting
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("nth", "left"), [(1, 1), (2, 2)])
@pytest.mark.left_behind(("container", "network"), "KILL", "the next command, when the local SageMaker was killed")
def test_killed_between_the_starts_of_several_hosts_it_leaves_nothing_for_long(
    built: dict[str, str], tiny_model: Path, tmp_path: Path, nth: int, left: int
) -> None:
    """At the first start the network is there, at the second a container; `down` finds them, a repeat too."""
    run_file = write_tiny_run(tiny_model, tmp_path, steps=5)
    run_file.write_text(run_file.read_text() + "train_instance_count = 2\n")
    state = tmp_path / ".local"
    server = run_harness(
        tmp_path, str(state), "--executor", "docker", start=[sys.executable, "-c", KILLED.format(nth=nth)]
    )
    while control.find(state) is None:
        assert server.poll() is None, server.communicate()
        time.sleep(0.1)
    child = run_harness(tmp_path, "train", "--executor", "docker", "tiny.toml")
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 10, out
    server.communicate(timeout=60)
    assert server.returncode == -signal.SIGKILL
    assert len(left_over()) == left
    run_id = next((tmp_path / "runs").glob("tiny-*")).name
    after = run_harness(tmp_path, *(["down", run_id] if nth == 1 else ["train", run_id]))
    out, _ = after.communicate(timeout=300)
    assert after.returncode == 0, out
    assert left_over() == []
    logs = list((state / "logs").glob(f"*/training-jobs/{run_id}-r2/attempt-1-algo-*.log"))
    assert len(logs) == (0 if nth == 1 else 2)
