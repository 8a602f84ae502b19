"""Two workers under torchrun, on device cpu: one last step for both, exit codes, and who writes the failure file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chain.conftest import ROOT, in_train_environment, write_tiny_run
from train.launch import ONE_HOST

pytestmark = pytest.mark.server


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path) -> Any:
    """Start two workers; `moments` says what happens to which worker, and in which step."""
    return starter(".venv-train", tiny_model, tmp_path)


def starter(environment: str, tiny_model: Path, tmp_path: Path) -> Any:
    write_tiny_run(tiny_model, tmp_path)
    (tmp_path / "output").mkdir()

    def started(steps: int = 30, **moments: list[Any]) -> subprocess.Popen[str]:
        words = ["-m", "train.workers", *ONE_HOST, "--nproc_per_node=2", "-m", "tests.chain.two_workers"]
        fixed = "--per_device_train_batch_size 4 --logging_steps 1 --block_size 24 --report_to none --device cpu"
        fixed += " --optim adamw_torch --disable_tqdm true --learning_rate 5e-3"
        return subprocess.Popen(
            [
                *(ROOT / environment / "bin" / "python", "-u", *words),
                *(json.dumps({rank.removeprefix("worker"): what for rank, what in moments.items()}), *fixed.split()),
                *("--model_name_or_path", str(tiny_model), "--train_file", str(tmp_path / "train.jsonl")),
                *("--output_dir", str(tmp_path / "c"), "--export_dir", str(tmp_path / "exported")),
                *("--metrics_dir", str(tmp_path / "k"), "--max_steps", str(steps)),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "USE_TORCH_XLA": "0",
                "SAGEMAKER_BASE_DIR": str(tmp_path),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return started


def ended(child: subprocess.Popen[str]) -> str:
    try:
        return child.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        raise AssertionError(f"it hangs:\n{child.communicate()[0][-3000:]}") from None


def last_steps(out: str) -> list[int]:
    """The last step of each worker."""
    done = re.findall(r"worker (\d) has done step (\d+)", out)  # both write to one pipe: lines may run together
    return [max(int(step) for who, step in done if who == rank) for rank in ("0", "1")]


@pytest.mark.parametrize(
    "moments",
    [
        {"worker0": [4, "term"], "worker1": [6, "term"]},
        {"worker0": [6, "term"], "worker1": [4, "term"]},
        {"worker1": [5, "term"]},
    ],
    ids=["first worker first", "second worker first", "second worker alone"],
)
def test_a_signal_in_different_steps_stops_both_after_the_same(
    start: Any, tmp_path: Path, moments: dict[str, list[Any]]
) -> None:
    child = start(**moments)
    out = ended(child)
    assert child.returncode == 143, out[-3000:]
    first, second = last_steps(out)
    assert first == second < 12
    assert [p.parent.name for p in tmp_path.glob("c/checkpoint-*/complete.json")] == [f"checkpoint-{first}"]
    assert out.count(f"stopped by signal 15 after step {first}; checkpoint saved") == 2
    assert not (tmp_path / "output" / "failure").exists()
    assert not (tmp_path / "exported").exists()


def test_a_signal_in_the_last_steps_changes_nothing(start: Any) -> None:
    child = start(steps=8, worker1=[6, "term"])
    out = ended(child)
    assert child.returncode == 0, out[-3000:]
    assert last_steps(out) == [8, 8]
    assert "artifact written" in out


def test_torchrun_outlives_the_signal_that_the_whole_group_gets(start: Any, tmp_path: Path) -> None:
    """As the entrypoint sends it; torchrun itself would end with a traceback and 1."""
    group_signal(start(steps=400), tmp_path)


def group_signal(child: subprocess.Popen[str], tmp_path: Path) -> None:
    assert child.stdout is not None
    seen = ""
    while "has done step 3" not in seen:
        line = child.stdout.readline()
        assert line, seen[-3000:]
        seen += line
    os.killpg(child.pid, signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(child.pid, signal.SIGTERM)  # a second one changes nothing
    out = seen + ended(child)
    assert child.returncode == 143, out[-3000:]
    assert "torchrun: signal 15; waiting for the workers" in out
    assert "Traceback" not in out
    assert len(list(tmp_path.glob("c/checkpoint-*/complete.json"))) == 1


def test_a_worker_that_fails_leaves_the_reason_and_its_exit_code(start: Any, tmp_path: Path) -> None:
    child = start(worker1=[3, "raise"])
    ended(child)
    assert child.returncode == 1
    text = (tmp_path / "output" / "failure").read_text()
    assert text.startswith("AlgorithmError: RuntimeError: the second worker is out of luck, exit code 1 (worker 1)\n")
    assert "in on_step_begin" in text
    assert len(text) <= 1024


def test_a_worker_that_is_killed_gives_137_and_the_other_says_who_it_was(start: Any, tmp_path: Path) -> None:
    child = start(worker1=[3, "kill"])
    out = ended(child)
    assert child.returncode == 137
    said = "TrainingError: step 4: lost the host algo-1"  # what both are called where no host has a name
    assert said in out, out[-3000:]
    assert said in (tmp_path / "output" / "failure").read_text()


def test_two_workers_have_the_loss_curve_of_one(start: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Batches of 4 on two workers are a batch of 8 on one: the same rows, the same steps, the same weights."""
    child = start(steps=12)
    out = ended(child)
    assert child.returncode == 0, out[-3000:]
    alone = "--per_device_train_batch_size 8 --logging_steps 1 --block_size 24 --report_to none --device cpu"
    alone += " --optim adamw_torch --disable_tqdm true --learning_rate 5e-3 --max_steps 12"
    more = ["--model_name_or_path", str(tiny_model), "--train_file", str(tmp_path / "train.jsonl")]
    more += [f"--{name}={tmp_path / 'one' / name}" for name in ("output_dir", "export_dir", "metrics_dir")]
    in_train_environment("-m", "train.run_clm", *alone.split(), *more)
    two, one = losses(tmp_path / "k"), losses(tmp_path / "one" / "metrics_dir")
    assert len(one) == len(two) == 12
    assert max(abs(a - b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)) < 2e-3
    assert one[0][0] - one[-1][0] > 0.5, "it learns"
    assert (tmp_path / "exported" / "manifest.json").is_file()


def losses(folder: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]
