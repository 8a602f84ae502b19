"""Ctrl-C, TERM and KILL at chosen moments: nothing is left, the record says where things stand, the next one goes on.

`make kill-matrix` runs many more cells (tests/kill_matrix.py); these few are the ones that break first.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.chain.conftest import ROOT, write_tiny_run
from tests.chain.test_chain import harness, left_over

pytestmark = pytest.mark.server


def started(*words: str, cwd: Path, until: str, timeout: float = 180) -> subprocess.Popen[str]:
    """The harness, running, as soon as it has said `until`."""
    child = subprocess.Popen(
        [ROOT / ".venv" / "bin" / "harness", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    seen, end = "", time.monotonic() + timeout
    while until not in seen:
        line = child.stderr.readline()
        assert line, f"ended before it said {until!r}:\n{seen}"
        assert time.monotonic() < end, seen
        seen += line
    return child


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_run(tiny_model, tmp_path, steps=200)
    monkeypatch.setenv("HARNESS_RUNS_DIR", str(tmp_path / ".runs"))
    return tmp_path


def steps(folder: Path, count: int) -> None:
    file = folder / "tiny.toml"
    file.write_text(file.read_text().replace("max_steps = 200", f"max_steps = {count}"))


@pytest.mark.left_behind(("process", "training job", "local SageMaker"), "Ctrl-C", "the command, with a checkpoint")
def test_ctrl_c_in_training_checkpoints_and_run_goes_on(folder: Path) -> None:
    child = started("run", "tiny.toml", cwd=folder, until="loss")
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=150)
    assert child.returncode == 130, err
    assert "error: interrupted; training stands at step" in err
    assert "Traceback" not in err
    assert left_over(folder) == []
    record = next((folder / ".runs").glob("tiny-*"))
    assert f"hint: go on: harness run {record.name}" in err
    assert json.loads((record / "job.json").read_text())["status"] == "Stopped"
    done = harness("run", record.name, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"]["tuned"] == 1.0
    assert "resuming from checkpoint-" in (record / "logs" / "train.log").read_text()
    assert left_over(folder) == []


@pytest.mark.left_behind("process", "KILL", "the job itself, when it ends; `harness down`")
def test_a_job_whose_harness_was_killed_goes_on_until_it_is_stopped(folder: Path) -> None:
    steps(folder, 600)  # not over before two commands have started, however busy the machine is
    child = started("train", "tiny.toml", cwd=folder, until="loss")
    child.kill()
    child.communicate()
    assert left_over(folder) != [], "server and container outlive the harness"
    run_id = next((folder / ".runs").glob("tiny-*")).name
    assert json.loads(harness("ps", "--json", cwd=folder).stdout)[0]["training"] == "Training"
    down = harness("down", cwd=folder)
    assert down.returncode == 0, down.stderr
    assert f"training job {run_id}: stopping, with time for its checkpoint" in down.stderr
    assert down.stdout.strip() == f"deleted: {run_id}"
    assert left_over(folder) == []
    again = harness("train", run_id, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / ".runs" / run_id / "job.json").read_text())["name"] == f"{run_id}-r2"
    assert "resuming from checkpoint-" in (folder / ".runs" / run_id / "logs" / "train.log").read_text()


def test_a_job_that_is_stopped_after_its_last_step_has_trained(folder: Path) -> None:
    """It is Stopped, as SageMaker says, and nothing is trained again."""
    steps(folder, 10)
    rows = folder / "validation.jsonl"
    rows.write_text("\n".join([*rows.read_text().splitlines()] * 1500))  # so that the evaluation takes a while
    child = started("train", "tiny.toml", cwd=folder, until="loss")
    run_id = next((folder / ".runs").glob("tiny-*")).name
    log, end = folder / ".runs" / run_id / "logs" / "train.log", time.monotonic() + 120
    while "train_runtime" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.05)
    child.kill()
    child.communicate()
    down = harness("down", cwd=folder)
    assert down.returncode == 0, down.stderr
    job = json.loads((folder / ".runs" / run_id / "job.json").read_text())
    assert (job["name"], job["status"], job["trained"]) == (run_id, "Stopped", True), log.read_text()
    again = harness("train", run_id, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "\nartifact: s3://" in again.stderr, again.stderr
    assert json.loads((folder / ".runs" / run_id / "job.json").read_text())["name"] == run_id
    assert harness("deploy", run_id, cwd=folder).returncode == 0
    harness("down", cwd=folder)
    assert left_over(folder) == []


@pytest.mark.left_behind("endpoint", "Ctrl-C", "the command, on this machine")
def test_term_while_an_endpoint_starts_leaves_nothing(folder: Path) -> None:
    steps(folder, 20)
    assert harness("train", "tiny.toml", cwd=folder).returncode == 0
    child = started("deploy", cwd=folder, until="Creating")
    time.sleep(1)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=150)
    assert child.returncode == 143, err
    assert left_over(folder) == []
    assert json.loads(harness("ps", "--json", cwd=folder).stdout)[0]["endpoints"] == []
    assert harness("deploy", cwd=folder).returncode == 0
    harness("down", cwd=folder)
    assert left_over(folder) == []


def test_two_commands_on_one_run(folder: Path) -> None:
    child = started("train", "tiny.toml", cwd=folder, until="Training")
    try:
        run_id = next((folder / ".runs").glob("tiny-*")).name
        second = harness("down", run_id, cwd=folder)
        assert second.returncode == 7
        assert f"error: run {run_id} is held by `harness train` (process {child.pid})" in second.stderr
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=150)
    assert left_over(folder) == []
