"""A wrong training is no success, nothing is first tried at the end, and what a job has learned is not lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.chain.conftest import in_train_environment, write_tiny_run
from tests.chain.test_training import trainer

pytestmark = pytest.mark.server


@pytest.fixture
def data(tiny_model: Path, tmp_path: Path) -> Path:
    write_tiny_run(tiny_model, tmp_path)
    return tmp_path / "train.jsonl"


def ended(model: Path, data: Path, base: Path, *more: str, program: str = "") -> tuple[int, str]:
    """run_clm.guarded's exit code and output; `program` runs in the same process before it."""
    child = trainer(model, data, base, *more, program=program, call="guarded")
    out, _ = child.communicate(timeout=240)
    return child.returncode, out


SAVES = ("--save_strategy", "steps", "--save_steps", "1")


def test_a_learning_rate_that_ends_in_nan_fails_with_the_last_good_checkpoint(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    code, out = ended(tiny_model, data, tmp_path, "--max_steps", "9", "--learning_rate", "1e30", *SAVES)
    assert code == 4, out
    assert "TrainingError: step 2: the " in out
    assert "is nan: lower learning_rate" in out
    assert "the last good checkpoint is checkpoint-1" in out
    assert "Traceback" not in out
    assert not (tmp_path / "m" / "manifest.json").exists()
    for line in (tmp_path / "k" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


INFINITE_WEIGHT = """
from train.devices import cpu
step = cpu.AnswerLossTrainer.training_step
def spoilt(self, model, inputs, num_items_in_batch=None):
    loss = step(self, model, inputs)
    if self.state.global_step == 2:
        next(model.parameters()).data[0, 0] = float("inf")
        self.optimizer.step = lambda *a, **k: None
    return loss
cpu.AnswerLossTrainer.training_step = spoilt
"""


def test_weights_that_are_no_numbers_are_neither_saved_nor_exported(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    code, out = ended(tiny_model, data, tmp_path, "--max_steps", "3", *SAVES, program=INFINITE_WEIGHT)
    assert code == 4, out
    assert "step 3: the weights hold nan or inf (model.embed_tokens.weight)" in out
    assert "the last good checkpoint is checkpoint-2" in out
    base = tmp_path / "second"
    code, out = ended(tiny_model, data, base, "--max_steps", "3", "--save_strategy", "no", program=INFINITE_WEIGHT)
    assert code == 4, out
    assert not (base / "m" / "model.safetensors").exists()


HANG = """
import time
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler
class Hang(TrainerCallback):
    def on_step_begin(self, args, state, *a, **k):
        if state.global_step == 4: time.sleep(200)
original = CallbackHandler.__init__
CallbackHandler.__init__ = lambda self, callbacks, *a, **k: original(self, [*callbacks, Hang()], *a, **k)
"""


def test_a_step_that_does_not_end_is_ended_with_the_stacks_of_all_threads(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    code, out = ended(tiny_model, data, tmp_path, "--max_steps", "9", "--hang_timeout", "5", program=HANG)
    assert code == 5, out
    assert re.search(r"Hung: nothing happened for \d+ s after step 4 \(hang_timeout\)", out), out
    assert "in on_step_begin" in out


FAILING_EXPORT = """
from transformers import PreTrainedTokenizerFast
save, calls = PreTrainedTokenizerFast.save_pretrained, []
def full(self, *a, **k):
    calls.append(a)
    if len(calls) > {allowed}: raise OSError(28, "No space left on device")
    return save(self, *a, **k)
PreTrainedTokenizerFast.save_pretrained = full
"""


@pytest.mark.left_behind("half-written file", "failure", "nobody: the weights stay, and the message says where")
def test_a_failed_export_leaves_the_weights_and_says_where(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    code, out = ended(
        tiny_model, data, tmp_path, "--max_steps", "3", program=FAILING_EXPORT.format(allowed=1)
    )  # the rehearsal's call works
    assert code == 4, out
    where = tmp_path / "c" / "rescued" / "weights.safetensors"
    assert "the artifact could not be written (OSError: [Errno 28] No space left on device); the trained" in out
    assert f"weights are in {where}" in out
    script = "import sys; from safetensors.torch import load_file; print(len(load_file(sys.argv[1])))"
    assert int(in_train_environment("-c", script, str(where))) == 20
    assert not (tmp_path / "m" / "manifest.json").exists()


def test_what_could_not_be_saved_at_the_end_is_refused_before_the_first_step(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    code, out = ended(tiny_model, data, tmp_path, "--max_steps", "3", program=FAILING_EXPORT.format(allowed=0))
    assert code == 3, out
    assert "ArgumentError: the trained model could not be saved (OSError: [Errno 28] No space left" in out
    assert "step=" not in out
    assert [p.name for p in tmp_path.glob(".m.*")] == [], "nothing of the rehearsal stays"
    small = "import shutil; from collections import namedtuple\nD = namedtuple('D', 'total used free')\n"
    small += "shutil.disk_usage = lambda path: D(1 << 30, 1 << 30, 1000)"
    code, out = ended(tiny_model, data, tmp_path, "--max_steps", "3", program=small)
    assert code == 3, out
    assert "0.0 GB are free, 0.1 GB are needed for the artifact and checkpoints: free some" in out


def test_kill_at_random_steps_resumed_each_time_changes_nothing(tiny_model: Path, data: Path) -> None:
    """Plain, and with packing, LoRA and bf16 at once; `make test-chaos` has four kinds with ten kills each."""
    words = ("tests.chain.kill_rounds", str(tiny_model), str(data), "1", "5", "full", "bf16")
    assert in_train_environment("-m", *words, timeout=800).count("24 losses and the weights are equal") == 2


def test_lora_trains_what_it_says_and_leaves_adapter_and_merged_model(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    more = ("--max_steps", "8", "--learning_rate", "5e-3", "--use_peft", "true", "--lora_r", "4", "--bf16", "true")
    code, out = ended(tiny_model, data, tmp_path, *more)
    assert code == 0, out
    assert "8,192 of 100,864 parameters are trained (8.12%)" in out
    script = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, artifact = sys.argv[1:]
ids = torch.arange(5, 25)[None]
load = AutoModelForCausalLM.from_pretrained
with torch.no_grad():
    merged = load(artifact, torch_dtype="float32")(ids).logits
    adapted = PeftModel.from_pretrained(load(base, torch_dtype="float32"), artifact + "/adapter")(ids).logits
    plain = load(base, torch_dtype="float32")(ids).logits
print(float((merged - adapted).abs().max()), float((merged - plain).abs().max()))
"""
    apart, learned = map(float, in_train_environment("-c", script, str(tiny_model), str(tmp_path / "m")).split())
    assert apart < 0.02 * learned, (apart, learned)
    again = tmp_path / "checkpointed"
    code, out = ended(tiny_model, data, again, *more, "--gradient_checkpointing", "true")
    assert code == 0, out
    assert losses(again) == losses(tmp_path)
    code, out = ended(tiny_model, data, tmp_path / "x", *more, "--lora_target_modules", "query,dense")
    assert code == 3, out
    assert "linear layers of this model: down_proj, gate_proj, k_proj, lm_head" in out


def losses(base: Path) -> list[float]:
    rows = [json.loads(line) for line in (base / "k" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_resume_from_checkpoint_does_what_it_says(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    steps = ("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2")
    code, out = ended(tiny_model, data, tmp_path, *steps, "--resume_from_checkpoint", "true")
    assert code == 3, out
    assert "CheckpointError: resume_from_checkpoint is true and" in out
    assert "holds no checkpoint" in out
    assert ended(tiny_model, data, tmp_path, *steps)[0] == 0
    older = str(tmp_path / "c" / "checkpoint-2")
    code, out = ended(tiny_model, data, tmp_path, *steps, "--resume_from_checkpoint", older)
    assert code == 0, out
    assert "resuming from checkpoint-2" in out
    code, out = ended(tiny_model, data, tmp_path, *steps, "--resume_from_checkpoint", "false")
    assert code == 3, out
    assert "resume_from_checkpoint is false and" in out
