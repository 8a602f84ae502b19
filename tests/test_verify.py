"""`harness verify` without its containers: requests, caps, what each step calls wrong, the report, docs/limits.md."""

from __future__ import annotations

import json
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from containers import host
from harness import record as records
from harness.assets import tiny
from harness.errors import EndpointFailed, Interrupted, InvalidInput, JobFailed, MissingPrerequisite, NotFound
from harness.estimate import cpu
from harness.run import steps
from harness.verify import jobs as verify_jobs, report as verify_report, steps as verify_steps, verification as verify
from harness.verify.verification import FAILED, NOT_HERE, NOT_RUN, PASSED, Bench, Budget, Result, Wrong

ROOT = Path(__file__).resolve().parent.parent
STEP_NAMES = [step.name for step in verify.ALL]


# -- docs/limits.md and the code


def test_each_row_of_the_limits_names_a_step_or_says_why_none_settles_it() -> None:
    rows = verify_report.limits()["names"]
    assert len(rows) > 100
    named: set[str] = set()
    for row in rows:
        if not row["settled_by"].startswith("none: "):
            assert set(row["settled_by"].split(", ")) <= set(STEP_NAMES), row["name"]
            named |= set(row["settled_by"].split(", "))
    assert sorted(named) == sorted(STEP_NAMES), "a step that settles nothing, or has another name there"
    settled = verify_report.settled_by()
    assert len(settled) > 80
    assert settled["torch_xla.debug.metrics.metric_data"] == {"compile-counts"}


def test_the_documented_steps_are_the_codes() -> None:
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    table = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")]
    assert [name.strip("`") for name in table][: len(STEP_NAMES)] == STEP_NAMES


# -- the model


def test_the_tiny_model_is_the_same_every_time_and_what_its_config_says(tmp_path: Path) -> None:
    paths = [tiny.write(tmp_path / name, "x") for name in ("a", "b")]
    model = [path.parent / "model" / "model.safetensors" for path in paths]
    assert model[0].read_bytes() == model[1].read_bytes()
    raw = model[0].read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    del header["__metadata__"]
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == tiny.shapes()
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(raw) - 8 - length
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


# -- the jobs


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    def made(device: str) -> Bench:
        run, jobs = verify.start(device)
        return Bench(run, jobs, SimpleNamespace(record=run.record), device, SimpleNamespace(say=lambda _: None))

    return made


@pytest.mark.parametrize("device", verify_jobs.DEVICES)
def test_every_job_is_a_request_that_botocore_takes(device: str) -> None:
    jobs = verify.planned(device)
    assert ["train", *jobs.others] == verify_jobs.names(device)
    operations = [operation for operation, _ in jobs.requests()]
    assert operations.count("CreateTrainingJob") == len(jobs.others) + 1
    assert operations.count("CreateEndpoint") == 1
    for name, request in jobs.others.items():
        assert request["StoppingCondition"]["MaxRuntimeInSeconds"] == verify_jobs.LIMITS[name]
        assert request["EnableNetworkIsolation"] is True


def test_on_neuron_the_jobs_compute_the_same_rows_on_one_core_and_on_two() -> None:
    jobs = verify.planned("neuron")
    train, tp2 = jobs.plan.create_training_job, jobs.others["tp2"]
    rows = [
        int(job["HyperParameters"]["per_device_train_batch_size"])
        * int(job["HyperParameters"].get("gradient_accumulation_steps", 1))
        for job in (train, tp2, jobs.others["reference"])
    ]
    assert rows == [4, 4, 4]
    assert train["Environment"] == {"NEURON_RT_NUM_CORES": "1"}
    assert tp2["Environment"] == {"NEURON_RT_NUM_CORES": "2"}
    assert jobs.others["prepare"]["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] == {
        "placeholder": "artifact_uri"
    }
    options = jobs.plan.tuned.create_model["PrimaryContainer"]["Environment"]
    assert jobs.others["prepare"]["Environment"] == options
    assert jobs.others["logits"]["Environment"] == options


def test_a_cap_shortens_every_job_and_one_that_is_too_small_is_refused() -> None:
    whole = verify_jobs.seconds("neuron")
    share = verify_jobs.share_of(3.0, 1.5, whole)
    capped = verify_jobs.seconds("neuron", share)
    assert sum(capped.values()) / 3600 * 1.5 <= 3.0
    assert capped["endpoint"] == whole["endpoint"], "the harness ends it, not the service"
    jobs = verify.planned("neuron", share)
    limits = {name: request["StoppingCondition"]["MaxRuntimeInSeconds"] for name, request in jobs.others.items()}
    limits["train"] = jobs.plan.create_training_job["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert limits == {name: seconds for name, seconds in capped.items() if name != "endpoint"}
    assert verify_jobs.share_of(100.0, 1.5, whole) == 1.0
    with pytest.raises(InvalidInput, match="cut off") as refused:
        verify_jobs.share_of(1.0, 1.5, whole)
    least = float(refused.value.problems[0].hint.split()[1])
    assert verify_jobs.share_of(least, 1.5, whole) == pytest.approx(verify_jobs.LEAST_SHARE, abs=0.01)


def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "neuron_here", lambda: False)
    assert verify.choose("", "") == verify.choose("", "local") == "cpu"
    with pytest.raises(MissingPrerequisite, match="no Neuron device"):
        verify.choose("neuron", "local")
    assert verify.choose("", "sagemaker") == "neuron"
    for device, platform in (("gpu", "local"), ("cpu", "sagemaker"), ("", "mars")):
        with pytest.raises(InvalidInput):
            verify.choose(device, platform)


def harness(*words: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / ".venv" / "bin" / "harness", "verify", "--platform", "sagemaker", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_nothing_goes_to_sagemaker_without_a_cap_and_the_plan_is_shown() -> None:
    done = harness("--plan", "--usd-per-hour", "2")
    assert done.returncode == 0, done.stderr
    assert "tp2" in done.stdout
    assert "at most 3.6 instance-hours, 7.17 USD at 2 USD an hour" in done.stdout
    done = harness("--usd-per-hour", "2")
    assert done.returncode == 3
    assert "error: --platform sagemaker needs --usd-per-hour and --max-cost" in done.stderr


# -- what it costs


def test_nothing_is_started_that_could_exceed_the_cap(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("neuron")
    one.budget = Budget(usd_per_hour=3.6, cap=1.9)  # a thousandth of a dollar a second
    sent: list[str] = []
    one.client.job = lambda request, known: sent.append(request["TrainingJobName"]) or ("", Path())
    one.job("host-train")  # 300 s at most
    one.run.record.write_json(f"jobs/{one.run.record.id}-host-train.json", {"billable_seconds": 60})
    one.run.record.write_json("job.json", {"billable_seconds": 100})
    assert one.billed() == 160.0
    with pytest.raises(JobFailed, match=r"job precompile was not started: the cap is 1\.90 USD") as refused:
        one.job("precompile")  # 1,800 s at most
    assert refused.value.problems[0].why == "0.16 USD are spent, it may take 1.80"
    one.budget.endpoint_seconds = 1640.0
    with pytest.raises(JobFailed, match="not started"):
        one.job("host-serve")
    assert len(sent) == 1
    one.budget = Budget()
    one.job("precompile")
    assert len(sent) == 2, "where an hour costs nothing, nothing is asked"


def test_an_endpoint_is_given_up_when_its_time_is_over(bench: Any) -> None:
    budget = Budget(usd_per_hour=1.0, cap=9.0)
    with pytest.raises(EndpointFailed, match="time is over"), budget.endpoint(seconds=0.0) as tick:
        tick()
    assert budget.endpoint_seconds > 0


def test_a_verification_is_never_the_newest_run(tmp_path: Path) -> None:
    run, _ = verify.start("cpu")
    with pytest.raises(NotFound, match="no run of yours") as refused:
        records.find(None)
    assert run.record.id in refused.value.problems[0].why
    mine = records.create("mine-20200101-000000-abcd", run.record.path / "run.toml", {})
    assert records.find(None) == mine
    assert records.find(run.record.id) == run.record


def test_how_long_it_takes_is_said_of_the_measured_model_alone(tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}')
    run, _ = verify.start("cpu")
    for model, lines in (("./model", 0), (cpu.MEASURED, 1)):
        said: list[str] = []
        file = run.file.model_copy(update={"model": run.file.model.model_copy(update={"id": model})})
        steps._say_estimate(rows, file, SimpleNamespace(say=said.append))  # type: ignore[arg-type]
        assert len(said) == lines, model


def test_what_clearing_up_failed_with_is_the_end_of_the_command(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("cpu")
    go(one, monkeypatch)
    assert verify.failure(one) is None
    one.left_behind = "still there: endpoint x in us-west-2"
    failed = verify.failure(one)
    assert failed is not None
    assert "still there" in str(failed)
    assert failed.problems[0].hint == f"repeat: harness down {one.run.record.id}"


# -- what the steps call wrong


def rows(losses: dict[int, float], counts: dict[int, int] | None = None, final: int = 0) -> list[dict[str, float]]:
    out: list[dict[str, float]] = []
    for step, loss in losses.items():
        out.append({"step": step, "loss": loss, **({"compilations": counts[step]} if counts else {})})
    if counts:
        out.append({"step": max(losses), "eval_loss": 1.0, "compilations": final or counts[max(losses)]})
    return out


FALLING = {step: 3.0 - 0.1 * step for step in range(1, 21)}
COUNTS = {step: (4, 5, 6)[min(step, 3) - 1] + (5 if step > 10 else step == 10) for step in range(1, 21)}


def test_compile_counts(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("xla-cpu")
    seen: list[Any] = []
    monkeypatch.setattr(Bench, "metrics", lambda self, name="": seen[-1])
    seen.append(rows(FALLING, COUNTS))
    assert "6 until step 9, 11 after an evaluation, 11 at the end" in verify_steps.compile_counts(one)
    for wrong in (
        rows(FALLING, {**COUNTS, 9: 7}),
        rows(FALLING, {**COUNTS, 20: 12}),
        rows(FALLING, COUNTS, final=12),
        rows(FALLING, COUNTS)[1:],
        rows(FALLING),
    ):
        seen.append(wrong)
        with pytest.raises(Wrong):
            verify_steps.compile_counts(one)


def test_training_that_does_not_learn_or_differs_is_wrong(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("xla-cpu")
    found = {"": rows(FALLING), "reference": rows(FALLING)}
    monkeypatch.setattr(Bench, "metrics", lambda self, name="": found[name])
    monkeypatch.setattr(Bench, "job", lambda self, name: Path())
    monkeypatch.setattr(verify_steps.steps, "train", lambda *_: None)
    assert "apart from device cpu by 0" in verify_steps.train(one)
    found["reference"] = rows({**FALLING, 20: 1.001})
    with pytest.raises(Wrong, match=r"0\.0005 is allowed"):
        verify_steps.train(one)
    found["reference"] = rows({k: v for k, v in FALLING.items() if k != 20})
    with pytest.raises(Wrong, match="losses at steps"):
        verify_steps.train(one)
    found[""] = found["reference"] = rows(dict.fromkeys(FALLING, 2.0))
    with pytest.raises(Wrong, match="does not learn"):
        verify_steps.train(one)
    found[""] = rows({**FALLING, 20: float("nan")})
    with pytest.raises(Wrong):
        verify_steps.train(one)


def test_evaluation_that_is_missing_or_no_number_is_wrong(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, found = bench("cpu"), [{"step": 10, "eval_loss": 2.0}, {"step": 20, "eval_loss": 1.0}]
    monkeypatch.setattr(Bench, "metrics", lambda self, name="": found)
    assert verify_steps.evaluation(one) == "loss 2.000 at step 10, 1.000 at step 20"
    found[1]["eval_loss"] = float("nan")
    with pytest.raises(Wrong):
        verify_steps.evaluation(one)
    del found[1]
    with pytest.raises(Wrong):
        verify_steps.evaluation(one)


HOST = {
    "driver": "2.18.12",
    "runtime": "2.22.14.0",
    "devices": 1,
    "cores": 2,
    "device_files": 1,
    "instance": "trn1.2xlarge",
    "kernel": "5.10",
    "python": "3.10.12",
    "processors": 8,
    "memory_gib": 31.0,
    "packages": {"torch": "2.1.2"},
}


def test_a_host_without_driver_runtime_or_cores_is_wrong(bench: Any) -> None:
    one = bench("neuron")
    one.hosts = {"train": HOST}
    assert verify_steps.driver_and_runtime(one) == "driver 2.18.12, runtime 2.22.14.0, 1 devices, 2 cores"
    for change in ({"driver": ""}, {"runtime": ""}, {"devices": 0, "cores": 0}, {"device_files": 0}, {"cores": 4}):
        one.hosts = {"train": {**HOST, **change}}
        with pytest.raises(Wrong):
            verify_steps.driver_and_runtime(one)


def test_host_facts_are_read_from_files(tmp_path: Path) -> None:
    assert (host.facts(tmp_path)["driver"], host.facts(tmp_path)["devices"]) == ("", 0)
    for core in ("neuron0/neuron_core0", "neuron0/neuron_core1", "neuron1/neuron_core0", "neuron1/neuron_core1"):
        (tmp_path / "sys/class/neuron_device" / core).mkdir(parents=True)
    for file, text in (("sys/module/neuron/version", "2.18.12\n"), ("opt/aws/neuron/lib/libnrt.so.2.22.14.0", "")):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    (tmp_path / "opt/aws/neuron/lib/libnrt.so.1").write_text("")
    found = host.facts(tmp_path)
    assert [found[k] for k in ("driver", "devices", "cores", "runtime")] == ["2.18.12", 2, 4, "2.22.14.0"]


# -- going through the steps, and the report


def go(bench: Bench, monkeypatch: pytest.MonkeyPatch, **outcomes: Any) -> dict[str, str]:
    """Status by step, where each step does what `outcomes` says: a figure, or an exception to raise."""

    def does(name: str) -> Any:
        def step(_: Bench) -> str:
            outcome = outcomes.get(name.replace("-", "_"), "fine")
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return step

    for step in verify.ALL:
        bench.results.append(verify._carry_out(replace(step, do=does(step.name)), bench))
    return {r.name: r.status for r in bench.results}


def test_what_a_device_cannot_do_never_counts_as_passed(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("cpu")
    found = go(one, monkeypatch)
    assert [name for name, status in found.items() if status == NOT_HERE] == [
        *("driver-and-runtime", "compile-counts", "tp2-save", "prepare")
    ]
    assert verify.failure(one) is None
    assert set(go(bench("neuron"), monkeypatch).values()) == {PASSED}


def test_a_failure_is_told_and_what_needs_it_is_not_run(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("neuron")
    found = go(one, monkeypatch, train=JobFailed("training job x ended as Failed", "out of memory"))
    assert found["train"] == FAILED
    assert found["driver-and-runtime"] == PASSED
    assert {found[name] for name in STEP_NAMES[2:]} == {NOT_RUN}
    failed = verify.failure(one)
    assert failed is not None
    assert failed.exit_code == 5
    assert "7 of 8 steps did not pass: train, compile-counts" in str(failed)
    one = bench("neuron")
    assert go(one, monkeypatch, logits=Wrong("0.2 apart | much"))["logits"] == FAILED
    with pytest.raises(Interrupted):
        go(bench("cpu"), monkeypatch, serve=Interrupted(15))


def test_the_report_says_what_is_settled_on_neuron_alone(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = {}
    for device in ("cpu", "neuron"):
        one = bench(device)
        one.hosts = {"train": HOST, "serve": HOST}
        go(one, monkeypatch, logits=Wrong("0.2 apart | much\nmore"), serve="InService in 9 s")
        reports[device] = verify_report.markdown(one)
    assert "| logits | fail | 0.2 apart \\| much more |" in reports["neuron"]
    assert "| driver-and-runtime | pass | fine |" in reports["neuron"]
    settled = reports["neuron"].partition("Settled: ")[2]
    assert "`neuron_parallel_compile`" in settled
    assert "forward(start_ids=)" not in settled, "it needs serve and logits, and logits failed"
    assert "Neuron driver 2.18.12, runtime 2.22.14.0" in reports["neuron"]
    assert "| driver-and-runtime | not on this device |" in reports["cpu"]
    table = reports["cpu"].partition("| step |")[2].splitlines()[2:]
    steps = [line for line in table if line.startswith("| ")]
    assert len(steps) == len(STEP_NAMES)
    assert all(" | 0 of " in line for line in steps)
    assert "Nothing of Neuron is settled by this device" in reports["cpu"]
    # A verdict for each claim of the README.
    claims = reports["neuron"].partition("What the README claims:")[2]
    assert "- fine-tunes an open LLM on Trainium: **shown**" in claims
    assert "- answers there what it answers here: **refuted**: logits (0.2 apart" in claims
    assert all(f"- {claim}: **" in claims for claim in verify_report.CLAIMS)
    on_cpu = reports["cpu"].partition("What the README claims:")[2]
    assert "**shown**" not in on_cpu and "no Neuron device" in on_cpu
    for line in reports["neuron"].splitlines():
        assert line.count("|") - line.count("\\|") in (0, 4, 6), line


def test_results_for_a_script() -> None:
    assert verify_report.as_json([Result("train", PASSED, "20 steps", 1.26)]) == [
        {"step": "train", "status": "pass", "figure": "20 steps", "seconds": 1.3}
    ]
