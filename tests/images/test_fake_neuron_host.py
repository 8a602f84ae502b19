"""Platform `ec2` with real containers on a fake Neuron host: device files that are /dev/null by number.

The images have the names of those on the Deep Learning Containers and are the stand-ins, told to compute on the CPU.
So this shows what containers are given, and who has which cores when; nothing of the Neuron runtime. Network adapters
are left out: an engine without CAP_SYS_RESOURCE may not lift the limit on locked memory, which they need.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import contract
from harness.executors import neuron_host
from harness.images import build as images
from harness.images.build import Build
from tests.aws.fake_host import fake_host
from tests.chain.conftest import write_tiny_run
from tests.images.conftest import HARNESS, ROOT, docker, left_over

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]
READY = 120  # seconds for a container to train its first steps


@pytest.fixture
def as_if_real(built: dict[str, str]) -> Iterator[None]:
    """The stand-ins under the real images' names, with the device in the image, as a request would not say it."""
    names = []
    for role in images.ROLES:
        made = docker("create", built[role])
        name = Build().name(role)
        assert not docker("image", "ls", "--quiet", name), f"{name} is a real image, or left by an earlier test"
        docker("commit", "--change", f"ENV {contract.DEVICE_ENV}=cpu", made, name)
        docker("rm", made)
        names.append(name)
    yield
    for name in names:
        docker("image", "rm", "--force", name)


class Command(subprocess.Popen[bytes]):
    """A command of the harness; its output is in a file, which no amount of it fills up."""

    def __init__(self, words: tuple[str, ...], folder: Path, host: Path, output: Path) -> None:
        self.output = output
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HARNESS_RUNS_DIR": str(folder / "runs"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            neuron_host.FAKE: str(host),
        }
        with output.open("wb") as file:
            super().__init__([*HARNESS, *words], cwd=folder, env=env, stdout=file, stderr=subprocess.STDOUT)

    def ends(self, code: int, timeout: float = 400) -> str:
        """What it has written, once it has ended with `code`."""
        ended = self.wait(timeout)
        text = self.output.read_text(errors="replace")
        assert ended == code, text
        return text


class Shell:
    """Commands of the harness on a fake host, in one directory."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.folder, self.host = folder, fake_host(folder / "host", devices, nodes=True)
        self.commands: list[Command] = []

    def start(self, *words: str) -> Command:
        output = self.folder / f"output-{len(self.commands)}"
        self.commands.append(Command(words, self.folder, self.host, output))
        return self.commands[-1]

    def run(self, *words: str, code: int = 0) -> str:
        return self.start(*words).ends(code)

    def training(self, known: set[str]) -> tuple[Command, str]:
        """A new run that trains its first steps; the command and the run's id."""
        command = self.start("train", "--platform", "ec2", "tiny.toml")
        deadline = time.monotonic() + READY
        while time.monotonic() < deadline:
            for log in (self.folder / "runs").glob("tiny-*/logs/train.log"):
                if log.parent.parent.name not in known and "step=5/" in log.read_text(errors="replace"):
                    return command, log.parent.parent.name
            assert command.poll() is None, command.output.read_text()
            time.sleep(0.1)
        raise AssertionError("no step within the time")

    def end(self) -> None:
        """Whatever still runs, also when a test has failed."""
        for command in self.commands:
            command.terminate()
        for command in self.commands:
            command.wait(180)
        self.run("down", "--all")


def running(name: str) -> str:
    """The id of the container of a job or an endpoint; its label has the server's prefix before the name."""
    shown = docker("ps", "--no-trunc", "--format", '{{.ID}} {{.Label "NEURON_HARNESS_CONTAINER"}}').splitlines()
    (container,) = (line.split()[0] for line in shown if name in line.split()[-1])
    return container


def inside(name: str) -> tuple[list[str], dict[str, str]]:
    """Device files and the runtime's variables, as a program in the container sees them."""
    container = running(name)
    listing = docker("exec", container, "sh", "-c", "ls -d /dev/neuron* /dev/infiniband/* 2>/dev/null; true")
    devices = listing.split()
    for device in devices:
        docker("exec", container, "sh", "-c", f"echo x > {device}")  # the engine lets it be opened
    seen = docker("exec", container, "env").splitlines()
    return devices, dict(line.split("=", 1) for line in seen if line.startswith("NEURON_RT_"))


def cores(text: str, count: int) -> dict[str, str]:
    return {"NEURON_RT_VISIBLE_CORES": text, "NEURON_RT_NUM_CORES": str(count)}


def test_a_run_from_nothing_to_nothing(as_if_real: None, tiny_model: Path, tmp_path: Path) -> None:
    write_tiny_run(tiny_model, tmp_path)
    shell = Shell(tmp_path, 1)
    try:
        from_nothing_to_nothing(shell)
    finally:
        shell.end()


def from_nothing_to_nothing(shell: Shell) -> None:
    tmp_path = shell.folder
    out = shell.run("train", "--platform", "ec2", "tiny.toml")
    run_id = out.split()[-1]
    assert "a device tree without an accelerator" in out
    record = tmp_path / "runs" / run_id
    request = json.loads((record / "requests" / f"CreateTrainingJob-{run_id}.json").read_text())
    assert request["AlgorithmSpecification"]["TrainingImage"] == Build().name("train")
    assert (tmp_path / ".local-ec2" / "s3" / "local" / "runs" / run_id / "output").is_dir()

    assert shell.run("deploy").strip().endswith(f"{run_id}-tuned")
    # One core of the device is the endpoint's: no job fits beside it, another endpoint does.
    assert inside(f"{run_id}-tuned") == (["/dev/neuron0"], cores("0", 1))
    refusal = shell.run("train", "--platform", "ec2", "tiny.toml", code=7)
    assert f"by {run_id}-tuned" in refusal
    shell.run("deploy", "--base", run_id)
    assert inside(f"{run_id}-base") == (["/dev/neuron0"], cores("1", 1))
    assert "InService" in shell.run("ps")
    assert shell.run("invoke", "--run", run_id, "--max-new-tokens", "2", "x red: warm?").strip()
    assert "step=60/60" in shell.run("logs", run_id)
    shell.run("down", run_id)
    assert left_over() == []


def test_jobs_side_by_side_have_cores_of_their_own_and_a_kill_frees_them(
    as_if_real: None, tiny_model: Path, tmp_path: Path
) -> None:
    write_tiny_run(tiny_model, tmp_path, steps=100_000)
    shell = Shell(tmp_path, 2)
    first, one = shell.training(set())
    second, two = shell.training({one})
    try:
        assert inside(one) == (["/dev/neuron0"], cores("0-1", 2))
        assert inside(two) == (["/dev/neuron1"], cores("2-3", 2))
        assert f"by {one}, {two}" in shell.run("train", "--platform", "ec2", "tiny.toml", code=7)

        first.kill()
        first.wait()
        # Its container goes on and has its cores, whoever asks.
        assert f"by {one}, {two}" in shell.run("train", "--platform", "ec2", "tiny.toml", code=7)
        shell.run("down", one)
        third, three = shell.training({one, two})
        assert inside(three) == (["/dev/neuron0"], cores("0-1", 2))

        container = running(three)
        docker("kill", container)
        third.ends(5)
        fourth, four = shell.training({one, two, three})
        assert inside(four) == (["/dev/neuron0"], cores("0-1", 2))
        fourth.terminate()
        fourth.ends(143)
        assert second.poll() is None, "the job beside them has gone on"
    finally:
        shell.end()


def test_shared_memory_and_a_network_that_leads_nowhere(as_if_real: None, tiny_model: Path, tmp_path: Path) -> None:
    write_tiny_run(tiny_model, tmp_path, steps=100_000)
    shell = Shell(tmp_path, 1)
    command, run_id = shell.training(set())
    try:
        container = running(run_id)
        shared = int(docker("exec", container, "df", "--output=size", "-B1", "/dev/shm").split()[-1])
        assert shared > 1 << 30
        # Shut off, and yet the interface that resourceconfig.json names is there.
        assert "eth0" in docker("exec", container, "ls", "/sys/class/net").split()
        assert command.poll() is None
    finally:
        shell.end()


def test_verify_goes_through_the_images_on_the_host(as_if_real: None, tmp_path: Path) -> None:
    report = Shell(tmp_path, 1).run("verify", "--platform", "ec2", "--device", "cpu")
    assert "fail" not in report.partition("| step")[2], report
