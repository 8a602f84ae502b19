"""Workers meet on a host whose own name resolves to nothing, as in a SageMaker container.

Alone, and with others whose names resolve late; in network, host name and mount namespaces of their own, with torch
2.1.2 and the trainer's torch.

Needs `unshare`, and root or the right to make user namespaces; fails without, since nothing else shows this.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from containers.contract import Paths, Resources, TrainingInput, write_training_input
from tests.chain import namespace
from tests.neuron.test_neuron import ROOT, arguments, environment, read, work  # noqa: F401 (`work` is a fixture)

pytestmark = [pytest.mark.neuron, pytest.mark.timeout(300)]
LOOPBACK = "127.0.0.1 localhost\n"
ENDS = 150  # seconds; a group that does not form waits for minutes


def laid_down(base: Path, hosts: tuple[str, ...], current: str, given: dict[str, str] | None = None) -> Path:
    """The configuration files of one host of a job."""
    who = Resources(current, hosts, "ml.trn1.2xlarge")
    write_training_input(Paths(base), TrainingInput(given or {}, (), who))
    return base


def start(venv: str, names: Path, command: list[str], **env: str) -> subprocess.Popen[str]:
    words = namespace.words(ROOT / venv / "bin" / "python", names, *command)
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(child: subprocess.Popen[str]) -> str:
    try:
        return child.communicate(timeout=ENDS)[0]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        raise AssertionError(f"the workers do not meet:\n{child.communicate()[0][-2000:]}") from None


def met(output: str) -> list[dict[str, Any]]:
    return sorted((json.loads(found) for found in re.findall(r"met (\{.*?\})", output)), key=lambda one: one["rank"])


@pytest.mark.parametrize("venv", [".venv-neuron", ".venv-train"])
def test_one_host_whose_name_resolves_to_nothing(tmp_path: Path, venv: str) -> None:
    names = tmp_path / "hosts"
    names.write_text(LOOPBACK)
    base = laid_down(tmp_path / "ml", ("algo-1",), "algo-1")
    python = str(ROOT / venv / "bin" / "python")
    command = [python, "-m", "tests.chain.one_of_hosts"]
    child = start(venv, names, command, SAGEMAKER_BASE_DIR=str(base), NEURON_RT_NUM_CORES="2")
    output = ended(child)
    assert child.returncode == 0, output[-3000:]
    master = {"total": 2, "master": "127.0.0.1", "host": "aws"}
    assert met(output) == [{"rank": rank, **master} for rank in (0, 1)]


@pytest.mark.parametrize("venv", [".venv-neuron", ".venv-train"])
def test_two_hosts_whose_names_resolve_late(tmp_path: Path, venv: str) -> None:
    """Neither finds the other, nor itself, at first; the names come when both have said that they wait."""
    names = tmp_path / "hosts"
    names.write_text(LOOPBACK)
    hosts = ("algo-1", "algo-2")
    bases = [laid_down(tmp_path / host, hosts, host) for host in hosts]
    python = str(ROOT / venv / "bin" / "python")
    both = " & ".join(f"SAGEMAKER_BASE_DIR={base} {python} -m tests.chain.one_of_hosts" for base in bases)
    child = start(venv, names, ["sh", "-c", f"{both} & wait"], NEURON_RT_NUM_CORES="1")
    assert child.stdout is not None
    watch = threading.Timer(ENDS, os.killpg, (child.pid, signal.SIGKILL))
    watch.start()
    lines: list[str] = []
    while sum("waiting for algo-1, algo-2 to resolve" in line for line in lines) < 2:
        line = child.stdout.readline()
        assert line, "".join(lines)[-3000:]
        lines.append(line)
    assert not met("".join(lines))
    names.write_text(LOOPBACK + "127.0.0.1 algo-1\n127.0.0.1 algo-2\n")
    output = "".join(lines) + ended(child)
    watch.cancel()
    assert [one["rank"] for one in met(output)] == [0, 1], output[-3000:]
    assert {(one["total"], one["master"]) for one in met(output)} == {(2, "algo-1")}


def test_the_containers_own_way_trains_on_such_a_host(tmp_path: Path, work: Path) -> None:  # noqa: F811
    """entrypoint, torchrun, the real NeuronTrainer on XLA:CPU: a job from its configuration files to its artifact."""
    names = tmp_path / "hosts"
    names.write_text(LOOPBACK)
    words = arguments(work, tmp_path, "neuron", max_steps=2)
    given = {key[2:]: value for key, value in zip(words[::2], words[1::2], strict=True)}
    for owned in ("output_dir", "export_dir", "metrics_dir"):
        del given[owned]
    base = laid_down(tmp_path / "ml", ("algo-1",), "algo-1", given)
    child = start(
        ".venv-neuron",
        names,
        [str(ROOT / ".venv-neuron" / "bin" / "python"), "-m", "containers.entrypoint", "train"],
        PYTHONPATH=f"{ROOT / 'tests' / 'neuron' / 'shim'}:{ROOT}",
        PJRT_DEVICE="CPU",
        NEURON_COMPILE_CACHE_URL=str(tmp_path / "cache"),
        SAGEMAKER_BASE_DIR=str(base),
    )
    output = ended(child)
    run = read(child.returncode, output, tmp_path).good()
    assert "artifact written" in run.output
    assert (base / "model" / "manifest.json").is_file()
