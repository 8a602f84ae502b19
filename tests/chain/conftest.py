"""A tiny model and a run file around it, made once per session. What is missing fails; nothing is skipped."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

RUN = """
name = "tiny"
[model]
id = "./model"
[data]
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.jsonl"
labels = {{ warm = "Yes", cold = "No" }}
[train]
block_size = 24
per_device_train_batch_size = 8
max_steps = {steps}
learning_rate = 5e-3
logging_steps = 5
bf16 = true
{more}
[serve]
n_positions = 120
[compute]
startup_seconds = 120
"""


def in_train_environment(*words: str, timeout: float = 600) -> str:
    """Run `python <words>` in .venv-train; its output. A failure shows what it wrote."""
    done = subprocess.run(
        [ROOT / ".venv-train" / "bin" / "python", *words],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    in_train_environment("-m", "tests.chain.make_tiny_model", str(folder))
    return folder


@pytest.fixture
def tiny_run(tiny_model: Path, tmp_path: Path) -> Path:
    """A run file whose task the tiny model learns in a few seconds: red is warm, blue is cold."""
    return write_tiny_run(tiny_model, tmp_path)


def write_tiny_run(tiny_model: Path, folder: Path, steps: int = 60, more: str = "") -> Path:
    (folder / "model").symlink_to(tiny_model)
    for name, count in (("train", 64), ("validation", 8), ("test", 24)):
        rows = [("red", "Yes") if i % 2 else ("blue", "No") for i in range(count)]
        lines = [json.dumps({"prompt": f"{name[0]}{i} {w}: warm?", "completion": a}) for i, (w, a) in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    path = folder / "tiny.toml"
    path.write_text(RUN.format(steps=steps, more=more))
    return path
