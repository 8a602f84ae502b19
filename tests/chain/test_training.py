"""The trainer: equal losses with less arithmetic, and checkpoints that survive TERM, KILL and damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.chain.conftest import ROOT, in_train_environment, write_tiny_run

pytestmark = pytest.mark.server


@pytest.fixture
def data(tiny_model: Path, tmp_path: Path) -> Path:
    write_tiny_run(tiny_model, tmp_path)
    return tmp_path / "train.jsonl"


def test_the_cpu_devices_losses_are_transformers_own(tiny_model: Path, data: Path) -> None:
    assert (
        in_train_environment("-m", "tests.chain.losses_equal", str(tiny_model), str(data)).count("agree within") == 2
    )


def test_our_own_loss_is_model_forwards_for_every_proven_family_and_used_for_no_other() -> None:
    out = in_train_environment("-m", "tests.chain.own_loss", timeout=200)
    assert out.count("own loss and gradients equal model.forward's") == 17
    assert out.count("takes model.forward's loss") == 8


def test_a_step_of_eight_rows_is_the_same_however_it_is_cut() -> None:
    out = in_train_environment("-m", "tests.chain.accumulation_equal", timeout=200)
    assert out.count("equals 8 x 1 within") == 8
    assert "label smoothing has an effect" in out


def test_ten_rounds_of_three_terms_each_change_no_loss(tiny_model: Path, data: Path) -> None:
    out = in_train_environment("-m", "tests.chain.resume_rounds", str(tiny_model), str(data), "10", "1", timeout=280)
    assert out.count("24 losses and the weights are equal") == 10


def trainer(
    model: Path, data: Path, base: Path, *more: str, program: str = "", call: str = "main"
) -> subprocess.Popen[str]:
    """run_clm in a process of its own; `program` is run before it, in the same process."""
    code = f"import sys\nfrom train import run_clm\n{program}\nsys.exit(run_clm.{call}(sys.argv[1:]))"
    fixed = "--per_device_train_batch_size 4 --logging_steps 1 --block_size 24 --report_to none --optim adamw_torch"
    return subprocess.Popen(
        [
            *(ROOT / ".venv-train" / "bin" / "python", "-u", "-c", code, *fixed.split()),
            *("--model_name_or_path", str(model), "--train_file", str(data), "--device", "cpu"),
            *("--output_dir", str(base / "c"), "--export_dir", str(base / "m"), "--metrics_dir", str(base / "k")),
            *("--disable_tqdm", "true", *more),
        ],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


SLOW = """
import time
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler
class Slow(TrainerCallback):
    def on_step_begin(self, *a, **k): time.sleep(0.2)
original = CallbackHandler.__init__
CallbackHandler.__init__ = lambda self, callbacks, *a, **k: original(self, [*callbacks, Slow()], *a, **k)
"""


@pytest.mark.left_behind("half-written file", "Ctrl-C", "the job: what it writes is whole")
def test_term_saves_within_30_seconds_and_exits_143(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    child = trainer(tiny_model, data, tmp_path, "--max_steps", "400", program=SLOW)
    assert child.stdout is not None
    seen = ""
    while "step=3/" not in seen:
        line = child.stdout.readline()
        assert line, seen
        seen += line
    begin = time.monotonic()
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGTERM)  # a second one changes nothing
    out, _ = child.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    assert child.returncode == 143
    assert "checkpoint saved" in out
    assert "Traceback" not in out
    assert len(list((tmp_path / "c").glob("checkpoint-*/complete.json"))) == 1
    assert not (tmp_path / "m").exists(), "an unfinished run leaves no artifact"


# The optimizer is the last big file; the process dies before it is written.
KILL = """
import os, signal, torch
save = torch.save
def kill_at_second(obj, path, *a, **k):
    if str(path).endswith("optimizer.pt") and "checkpoint-10" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return save(obj, path, *a, **k)
torch.save = kill_at_second
"""
SAVING = ("--max_steps", "15", "--save_strategy", "steps", "--save_steps", "5", "--save_total_limit", "2")


@pytest.mark.left_behind("half-written file", "KILL", "the next start of the job, from the checkpoint before")
def test_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    whole = trainer(tiny_model, data, tmp_path / "whole", *SAVING)
    killed = trainer(tiny_model, data, tmp_path, *SAVING, program=KILL)
    killed.communicate(timeout=120)
    whole.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "c" / "checkpoint-10").is_dir()
    again = trainer(tiny_model, data, tmp_path, *SAVING)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert "checkpoint-10: its writing was interrupted, passed over" in out
    assert "resuming from checkpoint-5" in out
    assert losses(tmp_path) == losses(tmp_path / "whole")


def losses(base: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (base / "k" / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_damaged_and_foreign_checkpoints_are_refused_with_the_reason(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    trainer(
        tiny_model, data, tmp_path, "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"
    ).communicate(timeout=120)
    first, second = tmp_path / "c" / "checkpoint-2", tmp_path / "c" / "checkpoint-4"
    whole = (second / "model.safetensors").read_bytes()
    (second / "model.safetensors").write_bytes(whole[:1000])
    script = """
import sys
from pathlib import Path
from train import checkpoint
import json
folder = Path(sys.argv[1])
run = json.loads((folder / "checkpoint-2" / "complete.json").read_text())["run"]
for change in ({}, {"learning_rate": "0.5"}, {"tensor_parallel_size": "2"}):
    try:
        found, notes = checkpoint.latest(folder, {**run, **change})
        print("found", found.name, notes)
    except checkpoint.CheckpointError as error:
        print("refused", error)
"""
    out = in_train_environment("-c", script, str(tmp_path / "c"))
    assert f"found checkpoint-2 ['checkpoint-4: model.safetensors has 1000 bytes instead of {len(whole)}" in out
    assert "refused checkpoint-4 is another run's (learning_rate 5e-05 there, 0.5 here)" in out
    assert "refused checkpoint-4 is another run's (tensor_parallel_size 1 there, 2 here)" in out
    (first / "optimizer.pt").unlink()
    out = in_train_environment("-c", script, str(tmp_path / "c"))
    assert "refused no usable checkpoint" in out
    assert "optimizer.pt is missing" in out


def test_trackers_write_beside_the_metrics_and_missing_ones_are_refused(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    words = [
        "--device",
        "cpu",
        "--model_name_or_path",
        str(tiny_model),
        "--train_file",
        str(data),
        "--block_size",
        "24",
    ]
    words += ["--max_steps", "2", "--logging_steps", "1", "--optim", "adamw_torch", "--disable_tqdm", "true"]
    words += [f"--{name}={tmp_path / name}" for name in ("output_dir", "export_dir", "metrics_dir")]
    in_train_environment("-m", "train.run_clm", *words, "--report_to", "tensorboard")
    script = """
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print([event.step for event in events.Scalars("train/loss")])
"""
    assert "[1, 2]" in in_train_environment("-c", script, str(tmp_path / "metrics_dir" / "tensorboard"))
    call = "import sys; from train import run_clm; sys.exit(run_clm.guarded(sys.argv[1:]) - 3)"
    out = in_train_environment("-c", call, *words, "--report_to", "wandb")
    assert "ArgumentError: report_to wandb: its package is not in this image, which has tensorboard" in out
    assert "RUN pip install wandb" in out
