"""containers/entrypoint.py: PID 1's behaviour, with programs of our own in the trainer's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from containers import contract, entrypoint
from containers.contract import Paths, TrainingInput


@pytest.fixture
def program(tmp_path: Path, root: Path) -> Path:
    """A directory with the real entrypoint and a trainer that the test writes."""
    folder = tmp_path / "program"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "__init__.py").touch()
    (folder / "containers").symlink_to(root / "containers")
    return folder


def start(program: Path, base: Path, trainer: str, *command: str) -> subprocess.Popen[str]:
    (program / "train" / "run_clm.py").write_text(trainer)
    # The entrypoint finds train/ beside its own resolved file, so the program directory is put first.
    launcher = (
        "import sys, pathlib; from containers import entrypoint; "
        f"entrypoint.PROGRAM = pathlib.Path({str(program)!r}); sys.exit(entrypoint.main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", launcher, *(command or ("train",))],
        cwd=program,
        env={**os.environ, contract.BASE_ENV: str(base), "PYTHONPATH": str(program)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_exit_code_and_output_of_the_trainer_are_passed_on(program: Path, tmp_path: Path) -> None:
    contract.write_training_input(Paths(tmp_path), TrainingInput({"max_steps": "3"}))
    child = start(program, tmp_path, "import sys; print('args', sys.argv[1:]); sys.exit(7)")
    out, _ = child.communicate(timeout=20)
    assert child.returncode == 7
    assert "'--max_steps', '3'" in out


def test_a_traceback_becomes_the_failure_reason_with_the_exception_first(program: Path, tmp_path: Path) -> None:
    start(program, tmp_path, "print('x' * 5000)\nraise ValueError('block_size is odd')").communicate(timeout=20)
    reason = contract.read_failure(Paths(tmp_path))
    assert reason.startswith("AlgorithmError: ValueError: block_size is odd, exit code 1")
    assert "Traceback" in reason
    assert len(reason) <= contract.MAX_FAILURE_REASON


def test_a_failure_file_of_the_trainer_is_kept(program: Path, tmp_path: Path) -> None:
    contract.write_training_input(Paths(tmp_path), TrainingInput())
    start(
        program,
        tmp_path,
        f"open({str(tmp_path / 'output/failure')!r}, 'w').write('mine'); raise SystemExit(1)",
    ).communicate(timeout=20)
    assert contract.read_failure(Paths(tmp_path)) == "mine"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_trainer_and_its_children(program: Path, tmp_path: Path, signum: int) -> None:
    trainer = """
import signal, subprocess, sys, time
# The default is set again because whoever starts the tests in the background has SIGINT ignored for all below.
grand = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL)"
grand += "; print('child up', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", grand])
def stop(*_):
    child.wait()
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
time.sleep(60)
"""
    child = start(program, tmp_path, trainer)
    assert child.stdout is not None
    seen = ""
    while "ready" not in seen or "child up" not in seen:
        seen += child.stdout.readline()
    begin = time.monotonic()
    child.send_signal(signum)
    out, _ = child.communicate(timeout=20)
    assert child.returncode == 143
    assert "saved" in out
    assert time.monotonic() - begin < 5
    assert not Paths(tmp_path).failure.exists()


def test_a_killed_trainer_reads_as_out_of_memory(program: Path, tmp_path: Path) -> None:
    child = start(program, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    child.communicate(timeout=20)
    assert child.returncode == 137
    assert "out of memory" in contract.read_failure(Paths(tmp_path))


def test_a_request_that_breaks_the_contract_never_starts_the_trainer(program: Path, tmp_path: Path) -> None:
    contract.write_training_input(Paths(tmp_path), TrainingInput({"output_dir": "/x"}))
    child = start(program, tmp_path, "print('started')")
    out, _ = child.communicate(timeout=20)
    assert child.returncode == entrypoint.EXIT_CONTRACT
    assert "started" not in out
    assert contract.read_failure(Paths(tmp_path)).startswith("ClientError: hyperparameter output_dir")


def test_anything_else_is_executed(program: Path, tmp_path: Path) -> None:
    child = start(program, tmp_path, "", "echo", "a  b", "$HOME")
    assert child.communicate(timeout=20)[0] == "a  b $HOME\n"
    child = start(program, tmp_path, "", "no-such-program")
    assert "no-such-program" in child.communicate(timeout=20)[0]
    assert child.returncode == 127


def test_serve_refuses_a_directory_without_weights(program: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    child = start(program, tmp_path, "", "serve")
    out, _ = child.communicate(timeout=20)
    assert child.returncode == entrypoint.EXIT_CONTRACT
    assert "it lacks weights (model.safetensors), a tokenizer (tokenizer.json)" in out


def test_the_servers_environment_keeps_what_the_request_says(tmp_path: Path) -> None:
    env = entrypoint.serving_environment(
        {"OPTION_ROLLING_BATCH": "custom", "JAVA_OPTS": "-Xmx1g", contract.DEVICE_ENV: "cpu"}, tmp_path
    )
    assert env["OPTION_ROLLING_BATCH"] == "custom"
    assert env["JAVA_OPTS"].startswith(f"-Xmx1g -Djava.io.tmpdir={tmp_path} ")
    assert env["OPTION_SERVE_ENGINE"] == "cpu"
    assert Path(env["OPTION_ENTRYPOINT"]).is_absolute()


@pytest.mark.parametrize(
    ("environment", "device"),
    [
        ({}, "*"),
        ({"NEURON_RT_VISIBLE_CORES": "4-5"}, "nc4"),
        ({"NEURON_RT_VISIBLE_CORES": "7"}, "nc7"),
        ({"NEURON_RT_VISIBLE_CORES": "4-5", contract.DEVICE_ENV: "cpu"}, "*"),
    ],
)
def test_the_server_loads_the_model_on_the_containers_own_cores(
    environment: dict[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NEURON_RT_VISIBLE_CORES", contract.DEVICE_ENV):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = entrypoint.serving_config(Paths(Path("/opt/ml")), 8080)
    assert f"load_models=model::Python:{device}=file:///opt/ml/model\n" in config


def test_a_credential_among_the_hyperparameters_is_in_no_line_of_the_log(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    given = {"hub_token": "hf_of_the_request", "max_steps": "3"}
    contract.write_training_input(Paths(tmp_path), TrainingInput(given))
    trainer = "import os, sys; print(sys.argv, os.environ['HF_TOKEN']); raise ValueError(sys.argv)"
    out, _ = start(program, tmp_path, trainer).communicate(timeout=20)
    assert "--hub_token ***" in out
    for text in (out, contract.read_failure(Paths(tmp_path))):
        assert "hf_of" not in text


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../config"])
def test_no_channel_is_a_directory_above_the_others(tmp_path: Path, name: str) -> None:
    with pytest.raises(contract.ContractError, match="is not a channel name"):
        Paths(tmp_path).channel(name)
