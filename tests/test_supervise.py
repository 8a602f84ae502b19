"""What PID 1 owes its container, with small programs in the trainer's and the server's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from containers import contract, drain, entrypoint
from containers.contract import ContractError, Paths, Resources

RUN = """
import sys
from pathlib import Path
from containers.supervise import Supervisor
code, tail = Supervisor(kill_after={kill_after}).run([sys.executable, "-c", {program!r}], Path("/"), {{}})
print("tail", tail[-1:], flush=True)
sys.exit(code)
"""


def supervise(root: Path, program: str, kill_after: float = 60) -> subprocess.Popen[str]:
    # Its own child reaper, as PID 1 is: orphans come to it (prctl PR_SET_CHILD_SUBREAPER, 36).
    text = "import ctypes; ctypes.CDLL(None).prctl(36, 1)\n" + RUN.format(program=program, kill_after=kill_after)
    return subprocess.Popen(
        [sys.executable, "-c", text], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def lines_until(child: subprocess.Popen[str], word: str) -> str:
    assert child.stdout is not None
    seen = ""
    while word not in seen:
        line = child.stdout.readline()
        assert line, seen
        seen += line
    return seen


def test_orphans_are_reaped(root: Path) -> None:
    program = """
import subprocess, sys, time
# A child that leaves a grandchild behind, which ends a moment later: whose zombie is it?
subprocess.run([sys.executable, "-c", "import os,subprocess; subprocess.Popen(['sleep', '0.2'])"])
print("orphan made", flush=True)
time.sleep(60)
"""
    child = supervise(root, program)
    lines_until(child, "orphan made")
    me = psutil.Process(child.pid)
    deadline = time.monotonic() + 10
    while len(me.children()) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [p.status() for p in me.children() if p.status() == psutil.STATUS_ZOMBIE] == []
    assert len(me.children()) == 1
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)
    assert child.returncode == 143


def test_what_does_not_end_is_killed_after_its_time(root: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
    child = supervise(root, stubborn + "time.sleep(60)", kill_after=0.3)
    lines_until(child, "up")
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=20)
    assert child.returncode == 137
    assert "still there after 0 s; killed" in out


def test_a_worker_left_behind_neither_hangs_nor_survives(root: Path) -> None:
    program = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); print('last')"
    begin = time.monotonic()
    out, _ = supervise(root, program).communicate(timeout=20)
    assert time.monotonic() - begin < 15
    assert "tail ['last']" in out
    worker = int(out.split()[0])
    deadline = time.monotonic() + 10
    while psutil.pid_exists(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(worker)


def test_output_without_a_line_end_is_passed_on_and_kept(root: Path) -> None:
    out, _ = supervise(root, "import sys; sys.stdout.write('no end'); sys.exit(5)").communicate(timeout=20)
    assert out == "no endtail ['no end']\n"


def test_term_before_the_program_is_started(root: Path) -> None:
    text = "import time\nfrom containers.supervise import Supervisor\nSupervisor(1)\nprint('up', flush=True)\n"
    child = subprocess.Popen([sys.executable, "-c", text + "time.sleep(60)"], cwd=root, stdout=-1, text=True)
    lines_until(child, "up")
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)
    assert child.returncode == 143


SERVER = """#!{python}
# Stands in for djl-serving: the handler works on one request from the start, until told, then until the end.
import sys, os, time, signal
sys.path.insert(0, {root!r})
from containers import drain
signal.signal(signal.SIGTERM, lambda *_: (print("server ends", flush=True), os._exit(143)))
held = drain.InProgress()
held.hold()
print("working", flush=True)
while not drain.stopping():
    time.sleep(0.02)
print("refuses new requests", flush=True)
time.sleep(0.7)
print("answered", flush=True)
held.let_go()
time.sleep(60)
"""


def fake_model(base: Path) -> Path:
    model = base / "model"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).write_text("{}")
    return base


def start_serve(root: Path, tmp_path: Path, server: str) -> subprocess.Popen[str]:
    launcher = tmp_path / "bin" / "djl-serving"
    launcher.parent.mkdir()
    launcher.write_text(server.format(python=sys.executable, root=str(root)))
    launcher.chmod(0o755)
    return subprocess.Popen(
        [sys.executable, "-m", "containers.entrypoint", "serve"],
        cwd=root,
        env={
            **os.environ,
            "PATH": f"{launcher.parent}:{os.environ['PATH']}",
            contract.BASE_ENV: str(fake_model(tmp_path / "base")),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_server_gets_term_when_the_request_in_progress_is_answered(root: Path, tmp_path: Path) -> None:
    child = start_serve(root, tmp_path, SERVER)
    lines_until(child, "working")
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=25)
    assert out.split("\n")[:3] == ["refuses new requests", "answered", "server ends"]
    assert child.returncode == 143


def test_a_server_that_asks_for_it_is_started_again(root: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    server = f"#!/bin/sh\necho x >>{count}\n[ $(wc -l <{count}) = 3 ] && exit 5\nexit 77\n"
    child = start_serve(root, tmp_path, server.replace("{", "{{").replace("}", "}}"))
    child.communicate(timeout=20)
    assert child.returncode == 5
    assert len(count.read_text().split()) == 3


def test_a_drain_has_an_end(tmp_path: Path) -> None:
    short = drain.Drain(tmp_path, limit=0.0)
    short.begin()
    assert short.done()
    long = drain.Drain(tmp_path, limit=60)
    long.begin()
    assert not long.done()  # idle, but not for long enough yet


def test_prepare_has_default_paths(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    model = str(paths.model)
    assert entrypoint.prepare_command(paths, [])[3:] == [model, model]
    paths.channel("model").mkdir(parents=True)
    assert entrypoint.prepare_command(paths, [])[3:] == [str(paths.channel("model")), model]
    assert entrypoint.prepare_command(paths, ["a", "b"])[3:] == ["a", "b"]


def test_late_names_are_waited_for_and_missing_ones_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(entrypoint, "_resolves", lambda host: asked.append(host) or asked.count(host) > 2)
    who = Resources(current_host="algo-2", hosts=("algo-1", "algo-10", "algo-2"))
    entrypoint.wait_for_hosts(who, wait=0.4)
    assert set(asked) == {"algo-1", "algo-10", "algo-2"}, "the own name as well: the first host opens its port at it"
    monkeypatch.setattr(entrypoint, "_resolves", lambda host: host != "algo-10")
    with pytest.raises(ContractError, match="no address: algo-10"):
        entrypoint.wait_for_hosts(who, wait=0.05)
    monkeypatch.setattr(entrypoint, "_resolves", lambda host: False)
    entrypoint.wait_for_hosts(Resources(), wait=0.05)  # alone: no name is needed
