"""[evaluate] lm_eval: EleutherAI's program, unmodified, asks base and tuned model through the endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chain.conftest import ROOT, in_train_environment, write_tiny_run

pytestmark = pytest.mark.aws
PROGRAM = ROOT / ".venv-lmeval" / "bin" / "lm_eval"
TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["Yes", "No"]
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """The tiny task as lm-eval's, too; its tokenizer has no words that lm-eval's own tasks need."""
    assert PROGRAM.is_file(), "no .venv-lmeval: make test-aws sets it up"
    in_train_environment("-m", "tests.chain.make_tiny_model", str(tmp_path / "model-files"))
    path = write_tiny_run(tmp_path / "model-files", tmp_path)
    rows = [{"question": f"t{i} {w}: warm?", "gold": g} for i in range(12) for w, g in (("red", 0), ("blue", 1))]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tasks / "colours.yaml").write_text(TASK.format(rows=tasks / "rows.jsonl"))
    path.write_text(path.read_text() + '[evaluate]\nlm_eval = ["colours"]\nlm_eval_path = "tasks"\n')
    return path


def harness(folder: Path, *words: str, program: str = str(PROGRAM)) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LM_EVAL": program, "HF_HUB_OFFLINE": "1"}
    environment |= {"HARNESS_RUNS_DIR": str(folder / ".runs"), "HF_HOME": str(folder / "hub")}
    words = (sys.executable, "-m", "harness", *words)
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=800, check=False
    )


def test_base_and_tuned_model_do_a_task_of_lm_eval(run_file: Path) -> None:
    done = harness(run_file.parent, "run", str(run_file), "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["lm_eval"]["tuned"]["colours"]["acc"] == 1.0, "the tiny model learns red and blue by heart"
    assert result["lm_eval"]["base"]["colours"]["acc"] < 1.0
    report = next((run_file.parent / ".runs").glob("tiny-*/report.html")).read_text()
    assert "colours acc" in report


def test_what_cannot_be_done_is_said_before_anything_is_trained(run_file: Path) -> None:
    without = harness(run_file.parent, "run", str(run_file), program="no-such-program")
    assert (without.returncode, "lm-eval[api]" in without.stderr) == (4, True), without.stderr
    (run_file.parent / "tasks" / "colours.yaml").write_text("task: colours\noutput_type: nonsense\n")
    wrong = harness(run_file.parent, "run", str(run_file))
    assert wrong.returncode == 3, wrong.stderr
    assert "evaluate.lm_eval: colours cannot be done" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert not list((run_file.parent / ".runs").glob("*/job.json"))
