"""`harness verify` as jobs of the local SageMaker: small programs leave what the real jobs would.

The first tests have device neuron's eight steps; the last one runs what a machine without such a device can.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import record as records
from harness.errors import Interrupted
from harness.local.control import Server
from harness.run import platforms
from harness.sagemaker import jobs as remote_jobs, resources
from harness.sagemaker.client import RunClient
from harness.spec.profile import LOCAL
from harness.verify import report as verify_report, steps as verify_steps, verification as verify
from harness.verify.jobs import Jobs
from harness.verify.verification import FAILED, NOT_RUN, PASSED, Bench, Budget
from tests.emulator.requests import IMAGE, Requests
from tests.test_verify import COUNTS, FALLING, HOST, rows

ROOT = Path(__file__).resolve().parent.parent.parent
PRICE = 3.6  # a thousandth of a dollar a second
EVALUATED = [{"step": 10, "eval_loss": 2.0, "compilations": COUNTS[10]}]
METRICS = [*rows(FALLING, COUNTS)[:-1], *EVALUATED, {"step": 20, "eval_loss": 1.0, "compilations": COUNTS[20]}]
WRITE = "(B/'output/data/{}').write_text({!r})"
MODEL = "[(B/'model'/f).write_text('{}') for f in ('model.safetensors', 'config.json', 'tokenizer.json')]"
GRAPHS = "n=B/'model/neuron'; n.mkdir(); (n/'a.neff').write_text('graph'); (n/'compile_key.json').write_text('{}')"
LOGITS = {"engine": "neuron", "dtype": "bf16", "difference": 0.01, "allowed": 0.05, "tokens_equal": 19, "rows": 19}


def lines(values: list[dict[str, float]]) -> str:
    return "\n".join(json.dumps(value) for value in values)


CODE = {
    "host-train": WRITE.format("host.json", json.dumps(HOST)),
    "host-serve": WRITE.format("host.json", json.dumps(HOST)),
    "train": f"{MODEL}; {WRITE.format('metrics.jsonl', lines(METRICS))}",
    "reference": WRITE.format("metrics.jsonl", lines(METRICS)),
    "precompile": "print('compiled')",
    "tp2": f"{MODEL}; {WRITE.format('metrics.jsonl', lines(METRICS))}",
    "prepare": f"{MODEL}; {GRAPHS}",
    "logits": WRITE.format("logits.json", json.dumps(LOGITS)),
}


class Case:
    """A verification whose jobs are small programs, on a platform sagemaker that is the local one."""

    def __init__(self, server: Server, requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, made = verify.start("neuron")
        self.requests, self.id, self.said = requests, self.run.record.id, list[str]()
        self.jobs = self.with_programs(made, CODE)
        profile = server.answering(LOCAL)

        def images() -> dict[str, str]:
            return {"train_image": IMAGE, "serve_image": IMAGE}

        self.platform = RunClient(self.run.record, profile, self.say, images)

        @contextmanager
        def opened(*_: Any, **__: Any) -> Iterator[RunClient]:
            yield self.platform

        monkeypatch.setattr(platforms, "opened", opened)

    def with_programs(self, jobs: Jobs, code: dict[str, str]) -> Jobs:
        def program(name: str, request: dict[str, Any]) -> dict[str, Any]:
            of_ours = self.requests.job(request["TrainingJobName"], code[name])
            kept = ("Tags", "StoppingCondition", "OutputDataConfig", "InputDataConfig")
            return {**of_ours, **{k: request[k] for k in kept if k in request}}

        others = {name: program(name, request) for name, request in jobs.others.items()}
        plan = replace(jobs.plan, create_training_job=program("train", jobs.plan.create_training_job))
        return Jobs(plan, others)

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, *_: Any) -> None: ...

    def carry_out(self, budget: Budget | None = None, **code: str) -> Bench:
        jobs = self.with_programs(self.jobs, {**CODE, **{k.replace("_", "-"): v for k, v in code.items()}})
        run = replace(self.run, plan=jobs.plan)
        return verify.carry_out(run, jobs, "neuron", self, budget or Budget(PRICE, 100.0))  # type: ignore[arg-type]

    def created(self) -> list[str]:
        """The jobs that were really made, in order."""
        found = [line for line in self.run.record.ledger() if line["event"] == "created"]
        return [line["name"].removeprefix(f"{self.id}-") for line in found if line["kind"] == "training-job"]

    def left(self) -> list[str]:
        """Everything of the run that costs money."""
        aws = self.platform.aws
        named = [n for kind in resources.DELETION for n in resources.named(aws, kind, self.id, LOCAL.region)]
        for job in resources.named(aws, "training-job", self.id, LOCAL.region):
            status = self.requests.sm.describe_training_job(TrainingJobName=job)["TrainingJobStatus"]
            named += [job] if status in resources.RUNNING_JOB else []
        objects = self.requests.s3.list_objects_v2(Bucket=LOCAL.bucket, Prefix=f"runs/{self.id}/")
        return named + [o["Key"] for o in objects.get("Contents", [])]


@pytest.fixture
def case(server: Server, requests: Requests, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(server, requests, monkeypatch)


def statuses(bench: Bench) -> dict[str, str]:
    return {result.name: result.status for result in bench.results}


@pytest.mark.emulator
def test_all_steps_are_jobs_and_nothing_is_left(case: Case) -> None:
    bench = case.carry_out()
    assert [(r.name, r.figure) for r in bench.results if r.status != PASSED] == []
    assert len(bench.results) == 8
    assert verify.failure(bench) is None
    order = ["host-train", "host-serve", case.id, "reference", "precompile", "tp2", "prepare", "logits"]
    assert case.created() == order
    assert case.left() == []
    text = verify_report.markdown(bench)
    assert "driver 2.18.12, runtime 2.22.14.0, 1 devices, 2 cores" in text
    assert "1 graphs" in text
    assert bench.billed() >= 8
    assert f"{bench.billed():.0f} s of jobs were billed" in text
    # The record keeps what the report was made from.
    folder = case.run.record.path
    assert (folder / "trained" / "output" / "data" / "metrics.jsonl").is_file()
    assert (folder / "jobs" / f"{case.id}-tp2" / "model" / "model.safetensors").is_file()
    assert (folder / "logs" / f"{case.id}-precompile.log").read_text() == "compiled\n"


@pytest.mark.emulator
def test_the_cap_holds_back_what_it_does_not_cover(case: Case) -> None:
    """Each second costs 0.001: training takes 1.80 at most, the host jobs before it took a few seconds."""
    bench = case.carry_out(Budget(PRICE, 1.0))
    waiting = ("compile-counts", "evaluation", "tp2-save", "prepare", "serve", "logits")
    assert statuses(bench) == {
        "driver-and-runtime": PASSED,
        "train": FAILED,
        **dict.fromkeys(waiting, NOT_RUN),
    }
    assert bench.results[1].figure.startswith("job train was not started: the cap is 1.00 USD: 0.0")
    assert case.created() == ["host-train", "host-serve"]
    assert case.left() == []


@pytest.mark.emulator
def test_what_a_job_says_wrong_is_in_the_report(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_steps, "LOG_SECONDS", 0)
    wrong = json.dumps({**LOGITS, "difference": 0.5})
    failing = "(B/'output/failure').write_text('NCC_EBVF030: too many instructions'); sys.exit(1)"
    bench = case.carry_out(logits=WRITE.format("logits.json", wrong), tp2=failing, prepare=MODEL)
    bad = {r.name: r.figure for r in bench.results if r.status != PASSED}
    assert list(bad) == ["tp2-save", "prepare", "serve", "logits"]
    assert bad["serve"] == "the endpoint did not take the prepared graphs"
    assert "NCC_EBVF030" in bad["tp2-save"]
    assert "0 graphs" in bad["prepare"]
    assert "by 0.5 of the largest (allowed 0.05)" in bad["logits"]
    assert case.left() == []


@pytest.mark.emulator
def test_an_interruption_stops_the_job_that_runs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    save = remote_jobs.Jobs._save_job

    def interrupted(self: Any, base: str, name: str, status: str, secondary: str, job: Any = None) -> None:
        save(self, base, name, status, secondary, job)
        if base.endswith("-tp2") and secondary == "Training":
            raise Interrupted(15)

    monkeypatch.setattr(remote_jobs.Jobs, "_save_job", interrupted)
    with pytest.raises(Interrupted, match="interrupted") as error:
        case.carry_out(tp2="time.sleep(50)")
    assert "nothing runs on" in error.value.problems[0].hint
    assert f"stopped or deleted: {case.id}-tp2" in case.said
    assert case.left() == []


@pytest.mark.aws
@pytest.mark.timeout(1500)
def test_the_command_on_platform_local(tmp_path: Path) -> None:
    """The real trainer and server with the tiny model, from nothing to nothing."""
    command = [ROOT / ".venv" / "bin" / "harness", "verify", "--platform", "local", "--device", "cpu"]
    env = {**os.environ, "HARNESS_RUNS_DIR": str(tmp_path / ".runs")}
    done = subprocess.run(
        [*command, "--usd-per-hour", "1.5", "--max-cost", "4"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    for step in ("train", "evaluation", "serve", "logits"):
        assert f"| {step} | pass |" in done.stdout
    assert "platform local" in done.stdout
    assert "s of jobs were billed" in done.stdout
    assert "stopped the local SageMaker" in done.stderr
    assert "135 M" not in done.stderr
    assert [record.id for record in records.all_records()] == []  # of this process: the command's are elsewhere
    (run,) = [p.parent for p in (tmp_path / ".runs").glob("verify-*/verify.md")]
    assert (run / "verify.md").read_text().strip() == done.stdout.strip()


@pytest.mark.aws
@pytest.mark.timeout(1500)
def test_a_signal_ends_the_command_with_nothing_left(tmp_path: Path) -> None:
    command = [ROOT / ".venv" / "bin" / "harness", "verify", "--platform", "local", "--device", "cpu"]
    env = {**os.environ, "HARNESS_RUNS_DIR": str(tmp_path / ".runs")}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line.strip())
            if line.startswith("Training:"):
                process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
    assert code == 128 + signal.SIGTERM, said
    (run,) = [p.parent for p in (tmp_path / ".runs").glob("verify-*/ledger.jsonl")]
    assert f"stopped or deleted: {run.name}" in said
    assert f"objects of s3://local/runs/{run.name}/" in "".join(said)
    assert "stopped the local SageMaker" in said
    assert "nothing runs on" in said[-1]
