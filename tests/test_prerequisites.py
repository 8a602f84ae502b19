"""What a machine lacks is told before anything takes time: half an environment, a small or full disk, a port."""

from __future__ import annotations

import errno
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from harness import bootstrap
from harness.errors import Busy, MissingPrerequisite
from harness.executors import process
from harness.local.endpoints import container as hosting
from harness.local.jobs import runner as training
from harness.local.jobs.runner import JobEnvironment, TrainingRunner
from harness.local.store.objects import ObjectStore
from harness.run import inputs, steps

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("made", "said"), [(False, "is not set up"), (True, "is half installed")])
def test_half_an_environment_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool, said: str
) -> None:
    python = tmp_path / ".venv-train" / "bin" / "python"
    if made:
        python.parent.mkdir(parents=True)
        python.touch()
    monkeypatch.setattr(process, "environment_of", lambda role: python.parent.parent)
    with pytest.raises(MissingPrerequisite) as error:
        process.check_environment("train")
    (problem,) = error.value.problems
    assert problem.what == f"the environment .venv-train {said}"
    assert problem.hint == "run: harness setup"


def test_a_small_disk_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_file = tmp_path / "x.toml"
    run_file.write_text('name = "x"\n[model]\nid = "a/b"\n[data]\nid = "c/d"\n')
    run = steps.start(run_file)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 1000))
    with pytest.raises(MissingPrerequisite, match=r"0.0 GB of disk are free, training needs up to 0.2 GB"):
        inputs.check_disk(run.record, tmp_path)


def test_a_disk_that_fills_while_packing_fails_the_job_and_keeps_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {
        "TrainingJobName": "j",
        "OutputDataConfig": {"S3OutputPath": "s3://b/o"},
        "ResourceConfig": {"InstanceCount": 1},
    }
    store = ObjectStore(tmp_path / "s3")
    runner = TrainingRunner(request, store, tmp_path / "job", tmp_path / "log", lambda _: None, JobEnvironment())
    for folder in (runner.paths.model, runner.paths.output_data):
        folder.mkdir(parents=True)
    (runner.paths.model / "manifest.json").write_text("{}")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training, "pack", full)
    job = runner.upload()
    assert (job.status, job.failure_reason) == (
        "Failed",
        "ClientError: Artifact upload failed: no space left on the disk",
    )
    assert (runner.paths.model / "manifest.json").exists()


def test_a_taken_port_is_told_with_its_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(Busy, match=f"port {port} is taken") as error:
            hosting.claim_port(port)
    assert "has it" in error.value.problems[0].why
    assert hosting.claim_port(hosting.free_port()) > 0


def test_a_free_port_is_none_that_the_kernel_gives_to_a_connection() -> None:
    # An endpoint listens seconds after its port was chosen; a busy machine's connections had taken it by then.
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        assert given.getsockname()[1] >= lowest
    assert all(hosting.FIRST_PORT <= hosting.free_port() < lowest for _ in range(50))


def test_prerequisites_are_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.platform, "python_version_tuple", lambda: ("3", "10", "1"))
    monkeypatch.setattr(bootstrap.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(bootstrap.shutil, "which", lambda tool: None)
    told = [problem.what for problem in bootstrap.prerequisites([])]
    assert len(told) == 4
    assert any("aarch64" in what for what in told)
    assert "git is not on PATH" in told
