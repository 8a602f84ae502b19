"""containers/health.py and timeouts.py: what PID 1 sees of a handler, and which limit fires first."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from containers import contract, entrypoint, health, timeouts
from serve.options import ServeOptions, to_environment
from tests.test_supervise import start_serve

# Stands in for djl-serving: a handler that does as told after its first steps.
HANDLER = """#!{python}
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from containers import health
pulse = health.pulse(slowest_step=0.0)
for _ in range(3):
    with pulse.step():
        time.sleep(0.05)
health.announce('{{"totals": 1}}')
time.sleep(1.0)
what = "WHAT"
if what == "hang":
    with pulse.step():
        time.sleep(60)
if what == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
if what == "die":
    if os.fork():
        time.sleep(60)  # the server lives on; its handler, which has a pulse of its own, does not
    pulse = health.pulse()
    os._exit(1)
time.sleep(3 if what == "live" else 60)
"""


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("hang", 70, "the engine hangs: its step has taken "),
        ("stop", 70, "has not given a sign of life for "),
        ("die", 70, "has died; this container ends, so that it is replaced"),
        ("live", 0, '{"totals": 1}'),
    ],
)
def test_a_handler_that_hangs_or_dies_ends_the_container(
    root: Path, tmp_path: Path, what: str, code: int, said: str
) -> None:
    child = start_serve(root, tmp_path, HANDLER.replace("WHAT", what))
    out, _ = child.communicate(timeout=60)
    assert child.returncode == code, out
    assert said in out
    assert ("this container ends" in out) == (code == 70)
    assert '{"totals": 1}' in out.splitlines(), "as it is, at the beginning of a line"


def test_nothing_is_wrong_before_a_handler_has_loaded_and_while_it_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = health.Watch(tmp_path)
    assert watch.problem() == ""
    monkeypatch.setenv(health.FOLDER_ENV, str(tmp_path))
    pulse = health.pulse(slowest_step=3.0)
    assert pulse is not None
    assert pulse.limit == 60.0
    with pulse.step():
        assert watch.problem() == ""
    assert watch.problem() == ""


def test_a_process_that_is_gone_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / f"pulse-{child.pid}").write_bytes(struct.pack("ddd", 0.0, 0.0, 0.0))
    assert health.Watch(tmp_path).problem() == f"the handler process {child.pid} has died"


def test_a_starved_handler_is_not_taken_for_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are late; the starved one's thread is ready to run whenever one looks."""
    spins = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    sleeps = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        time.sleep(1.0)
        for child, late, wrong in ((spins, 10, False), (sleeps, 10, True), (spins, 100, True)):
            for path in tmp_path.glob("pulse-*"):
                path.unlink()
            now = time.monotonic()
            (tmp_path / f"pulse-{child.pid}").write_bytes(struct.pack("ddd", now, now - late, 3.0))
            watch = health.Watch(tmp_path)
            assert any("hangs" in watch.problem() for _ in range(health.LOOKS)) == wrong
    finally:
        spins.kill()
        sleeps.kill()
        spins.wait()
        sleeps.wait()


def test_why_it_did_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.why_not_started(tmp_path) == ""
    monkeypatch.setenv(health.FOLDER_ENV, str(tmp_path))
    health.start_failed(ValueError("a\nb"))
    assert health.why_not_started(tmp_path) == "a b"
    health.start_failed(ValueError())
    assert health.why_not_started(tmp_path) == "ValueError"


@given(st.integers(1, 59), st.integers(1, 479), st.sampled_from(["", "1", "100000"]))
def test_the_handlers_deadlines_come_before_every_limit_of_djls(answer: int, stream: int, image: str) -> None:
    """Whatever the image or the request sets for DJL itself."""
    env = {
        **to_environment(ServeOptions(answer_timeout=answer, stream_timeout=stream)),
        **(
            {"OPTION_PREDICT_TIMEOUT": image, "SERVING_RETRY_THRESHOLD": image, "PREDICT_TIMEOUT": image}
            if image
            else {}
        ),
    }
    made = entrypoint.serving_environment(env, Path("/scratch"))
    longest = max(answer, stream)
    read = timeouts.chunked_read(env)
    assert longest + 30 < read < int(made["OPTION_PREDICT_TIMEOUT"])
    assert made["SERVING_RETRY_THRESHOLD"] == "0"
    assert int(made["OPTION_MODEL_LOADING_TIMEOUT"]) >= contract.MAX_STARTUP_WINDOW
    assert answer < contract.INVOCATION_TIMEOUT
    assert stream < contract.STREAM_TIMEOUT


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [
        ("cpu", {}, {"SERVING_MAX_WORKERS": "1", "OPTION_MAX_ROLLING_BATCH_SIZE": "160"}),
        ("cpu", {"OPTION_REPLICAS": "2", "OPTION_MAX_BATCH_SIZE": "4"}, {"SERVING_MIN_WORKERS": "2"}),
        ("", {"OPTION_REPLICAS": "2"}, {"SERVING_MAX_WORKERS": "1"}),  # on Neuron it is one a group of cores
        ("cpu", {"OPTION_MAX_BATCH_SIZE": "5000"}, {"OPTION_MAX_ROLLING_BATCH_SIZE": "900"}),
        ("cpu", {"OPTION_REPLICAS": "two", "OPTION_MAX_BATCH_SIZE": "-1"}, {"SERVING_MAX_WORKERS": "1"}),
        ("cpu", {"OPTION_ROLLING_BATCH": "auto"}, {"OPTION_ROLLING_BATCH": "custom"}),  # trap B
        ("cpu", {"SERVING_WAIT_MODEL_LOADING": "false"}, {"SERVING_WAIT_MODEL_LOADING": "true"}),  # trap G
    ],
)
def test_what_djl_serving_is_told(device: str, given: dict[str, str], expected: dict[str, str]) -> None:
    env = {**given, **({contract.DEVICE_ENV: device} if device else {})}
    made = entrypoint.serving_environment(env, Path("/scratch"))
    assert expected.items() <= made.items()
    workers = int(made["SERVING_MAX_WORKERS"])
    (threads,) = [int(o.rpartition("=")[2]) for o in made["JAVA_OPTS"].split() if "parallelism" in o]
    assert threads > workers * int(made["OPTION_MAX_ROLLING_BATCH_SIZE"]), "a thread for each reply (decision 002)"
    if device == "cpu" and workers == 2:
        assert int(made["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)


def test_an_endpoint_binds_every_interface_whatever_port_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(contract.PORT_ENV, "9000")
    paths = contract.Paths(tmp_path)
    assert "http://0.0.0.0:9000" in entrypoint.serving_config(paths, contract.serving_port())
    monkeypatch.setenv(contract.LOOPBACK_ENV, "1")
    assert "http://127.0.0.1:9000" in entrypoint.serving_config(paths, contract.serving_port())
