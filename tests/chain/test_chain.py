"""The whole chain on a tiny model: run file, trainer, artifact, real DJL engine, invocation, measurement."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from harness.local import control
from tests.emulator.left_over import containers
from tests.test_readme import blocks

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.server


def harness(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".venv" / "bin" / "harness", *words],
        cwd=cwd,
        env={**os.environ, "HARNESS_RUNS_DIR": str(cwd / ".runs"), **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def blocks_with_endpoint() -> list[str]:
    """The README's lines that need an endpoint."""
    found = [text for _, tag, text in blocks(ROOT) if tag == "run-with-endpoint"]
    assert found
    return "".join(found).splitlines()


def left_over(folder: Path) -> list[str]:
    """Of the local SageMaker whose state is below `folder`: containers that still live, and the server itself."""
    state = folder / ".local"
    server = control.find(state)
    return [*containers(state), *([f"server {server.pid}"] if server else [])]


@pytest.mark.left_behind(("process", "training job", "endpoint"), "success", "the command")
def test_run_trains_serves_measures_and_takes_everything_down(tiny_run: Path) -> None:
    done = harness("run", str(tiny_run), "--json", cwd=tiny_run.parent)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["score"]["tuned"] == 1.0, "the tiny model learns red and blue by heart"
    assert result["score"]["base"] < 0.5
    low, high = result["score"]["over_base_ci95"]
    assert 0 < low <= result["score"]["over_base"] <= high
    assert result["unparsable"]["tuned"] == 0
    assert {"train", "deploy_base", "evaluate_base", "deploy_tuned", "evaluate_tuned", "total"} <= set(
        result["seconds"]
    )
    assert result["peak_rss_mb"] > 200
    assert result["versions"]["transformers"] == "4.48.1"
    record = next((tiny_run.parent / ".runs").glob("tiny-*"))
    assert json.loads((record / "result.json").read_text()) == result
    assert set(result["latency"]) == {"base", "tuned"}
    assert all(0 < one["p50"] <= one["p95"] and one["requests"] == 2 for one in result["latency"].values())
    assert result["tokens_per_second"] > 0
    assert result["cost"] == ""  # nothing of this machine is billed
    assert "<svg" in (record / "report.html").read_text()
    assert left_over(tiny_run.parent) == []


def test_verbs_one_by_one(tiny_run: Path) -> None:
    folder = tiny_run.parent
    trained = harness("train", str(tiny_run), cwd=folder)
    assert trained.returncode == 0, trained.stderr
    run_id = trained.stdout.strip()
    deployed = harness("deploy", run_id, cwd=folder)
    assert deployed.returncode == 0, deployed.stderr
    assert deployed.stdout.strip() == f"{run_id}-tuned"
    try:
        asked = harness("invoke", "x red: warm?", "--max-new-tokens", "2", cwd=folder)
        assert (asked.returncode, asked.stdout.strip()) == (0, "Yes"), asked.stderr
        too_long = harness("invoke", "red " * 120, cwd=folder)
        assert too_long.returncode == 6
        assert "exceeds n_positions 120" in too_long.stderr
        assert "Traceback" not in too_long.stderr
    finally:
        down = harness("down", run_id, cwd=folder)
    assert down.stdout.strip() == f"deleted: {run_id}-tuned"
    assert left_over(folder) == []
    assert harness("down", run_id, cwd=folder).stdout.strip() == "nothing to delete"
    gone = harness("invoke", "x", cwd=folder)
    assert gone.returncode == 8
    assert f"start one: harness deploy {run_id}" in gone.stderr


MEASURES = {
    "label_likelihood": 'measure = "label_likelihood"',
    "exact_match": 'measure = "exact_match"\nmax_new_tokens = 3',
    "scorer": 'measure = "scorer"\nscorer = "score.py"',
}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_run_is_measured_as_its_file_says(tiny_run: Path, measure: str) -> None:
    tiny_run.write_text(f"{tiny_run.read_text()}\n[evaluate]\n{MEASURES[measure]}\n")
    (tiny_run.parent / "score.py").write_text(
        "def score(prompt, completion, answer):\n    return completion in answer\n"
    )
    done = harness("run", str(tiny_run), "--json", cwd=tiny_run.parent)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["score"]["measure"] == measure
    assert result["score"]["tuned"] == 1.0
    assert result["score"]["base"] < 1.0
    assert result["verdict"].startswith("the tuned model is better than "), result["verdict"]
    page = (next((tiny_run.parent / ".runs").glob("tiny-*")) / "report.html").read_text()
    assert "The tuned model is better than" in page


def test_a_scorer_that_does_not_work_is_told_before_anything_is_trained(tiny_run: Path) -> None:
    tiny_run.write_text(f"{tiny_run.read_text()}\n[evaluate]\n{MEASURES['scorer']}\n")
    (tiny_run.parent / "score.py").write_text("def score(prompt, completion, answer):\n    return answer.score")
    done = harness("run", str(tiny_run), cwd=tiny_run.parent)
    assert done.returncode == 3
    assert "AttributeError: 'str' object has no attribute 'score'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Training" not in done.stderr
    assert left_over(tiny_run.parent) == []


@pytest.mark.left_behind(("process", "local SageMaker"), "failure", "the command")
def test_a_job_that_fails_says_why(tiny_run: Path) -> None:
    text = tiny_run.read_text().replace("block_size = 24", "block_size = 4")
    tiny_run.write_text(text)
    done = harness("train", str(tiny_run), cwd=tiny_run.parent)
    assert done.returncode == 5
    assert "block_size 4: no example fits (64 are longer, the shortest has" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_over(tiny_run.parent) == []


def test_a_kept_endpoint_streams_and_answers_a_file_of_prompts(tiny_run: Path) -> None:
    folder = tiny_run.parent
    done = harness("run", str(tiny_run), "--keep", cwd=folder)
    assert done.returncode == 0, done.stderr
    try:
        listed = json.loads(harness("ps", "--json", cwd=folder).stdout)
        assert [e["status"] for e in listed[0]["endpoints"]] == ["InService"]
        assert listed[0]["training"] == "Completed"
        assert listed[0]["score"] == 1.0
        streamed = harness("invoke", "x blue: warm?", "--stream", "--max-new-tokens", "3", cwd=folder)
        assert streamed.stdout == "No\n", streamed.stderr
        (folder / "prompts.txt").write_text("a red: warm?\n\nb blue: warm?\n")
        many = harness("invoke", "--file", "prompts.txt", "--json", "--max-new-tokens", "2", cwd=folder)
        assert [json.loads(line)["generated_text"] for line in many.stdout.splitlines()] == ["Yes", "No"]
        again = harness("run", listed[0]["run"], cwd=folder)
        assert again.stdout == done.stdout.rsplit("\n", 2)[0] + "\n", "a finished run shows its result again"
        logs = harness("logs", "--endpoint", "tuned", cwd=folder)
        assert "handler ready: engine cpu" in logs.stdout
        for line in blocks_with_endpoint():
            ran = subprocess.run(
                line.replace(".venv/bin/harness", str(ROOT / ".venv/bin/harness")),
                shell=True,
                cwd=folder,
                env={**os.environ, "HARNESS_RUNS_DIR": str(folder / ".runs")},
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, (line, ran.stderr)
            assert ran.stdout, line
    finally:
        harness("down", cwd=folder)
    assert left_over(folder) == []


def test_missing_jars_fail_and_do_not_skip(tiny_run: Path, tmp_path: Path) -> None:
    """With a launcher that is not there, the chain stops with the reason."""
    trained = harness("train", str(tiny_run), cwd=tiny_run.parent)
    done = harness("deploy", trained.stdout.strip(), cwd=tiny_run.parent, DJL_SERVING=str(tmp_path / "none"))
    assert done.returncode == 4
    assert "DJL_SERVING" in done.stderr
    assert left_over(tiny_run.parent) == []
