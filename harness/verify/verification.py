"""`harness verify`: whether what could not be tried without hardware works, step by step, here or on SageMaker."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from harness import record as records
from harness.errors import HarnessError, Interrupted, InvalidInput, JobFailed, MissingPrerequisite
from harness.interrupts import shielded
from harness.paths import runs_dir
from harness.reporter import Reporter
from harness.run import platforms, steps
from harness.run.platforms import DEFAULT, NAMES, Target
from harness.run.steps import Run
from harness.sagemaker.client import RunClient
from harness.spec import checks, plan as plans, stacks
from harness.spec.profile import LOCAL
from harness.verify import jobs as verify_jobs
from harness.verify.bench import FAILED, NOT_HERE, NOT_RUN, PASSED, Bench, Budget, Result, Wrong
from harness.verify.jobs import DEVICES, Jobs
from harness.verify.steps import ALL, Step


def neuron_here() -> bool:
    """Whether this host's driver has a device."""
    return any(Path("/dev").glob("neuron[0-9]*"))


def choose(device: str, platform: str) -> str:
    """The device asked for, or the one that is there. Raises InvalidInput, MissingPrerequisite where it is not."""
    if platform and platform not in NAMES:
        raise InvalidInput(f"--platform {platform}", hint=" or ".join(NAMES))
    here = "neuron" if platform == "sagemaker" or neuron_here() else "cpu"
    chosen = device or here
    if chosen not in DEVICES:
        raise InvalidInput(f"--device {chosen}", hint=f"one of {', '.join(DEVICES)}")
    if chosen == "neuron" and here != "neuron":
        raise MissingPrerequisite(
            "there is no Neuron device here", "no /dev/neuron0", "run it on a trn1 or inf2 host"
        )
    if chosen != "neuron" and platform == "sagemaker":
        raise InvalidInput(f"--device {chosen} on SageMaker", "it would cost money to learn nothing of Neuron")
    return chosen


def planned(device: str, share: float = 1.0) -> Jobs:
    """The jobs as they would be sent, without a record. The account is the local one until a profile names yours."""
    from harness.assets import tiny

    stack = stacks.get(stacks.DEFAULT)
    file = checks.load(tiny.write(runs_dir() / "verify", verify_jobs.RUN_FILE), stack)
    return verify_jobs.make(plans.make(file, stack, LOCAL, records.new_id(file.name)), device, share)


def target_of(platform: str) -> Target:
    """Where the jobs go; training and serving in one region, whatever the profile says of another."""
    target = platforms.choose(platform)
    return replace(target, profile=replace(target.profile, serve_region="", serve_bucket=""))


def start(device: str, share: float = 1.0, target: Target = DEFAULT) -> tuple[Run, Jobs]:
    """Model, data and run file, checked and planned; a record like any run's, but never the newest run."""
    from harness.assets import tiny

    run = steps.start(tiny.write(runs_dir() / "verify", verify_jobs.RUN_FILE), target=target)
    jobs = verify_jobs.make(run.plan, device, share)
    run.record.write_text("plan.json", jobs.plan.to_json() + "\n")
    run.record.set_aside("verify")
    return replace(run, plan=jobs.plan), jobs


def carry_out(run: Run, jobs: Jobs, device: str, reporter: Reporter, budget: Budget | None = None) -> Bench:
    """Every step in order, whatever came of the others; results and what the containers have to work with.

    Whatever ends it, nothing of it runs on. Raises Interrupted, and MissingPrerequisite, InvalidInput or Refused
    where no job could be run at all.
    """
    try:
        with steps.working_on(run.record, "verify", reporter) as client:
            bench = Bench(run, jobs, client, device, reporter, budget or Budget())
            try:
                platforms.check(client, run.file, run.plan)
                for image in ("train", "serve"):
                    bench.host(image)
                for step in ALL:
                    bench.results.append(_carry_out(step, bench))
                    reporter.say(f"{step.name}: {bench.results[-1].status}")
            finally:
                left_behind = _clear(client, reporter)
            bench.left_behind = left_behind
    except Interrupted as error:
        raise Interrupted(error.signum, hint="nothing runs on; it starts anew: harness verify") from None
    return bench


def _clear(client: RunClient, reporter: Reporter) -> str:
    """Stop jobs, delete endpoint and objects: the report is all that is wanted of them. What failed, or ""."""
    try:
        with shielded():
            for name in client.down():
                reporter.say(f"stopped or deleted: {name}")
            client.forget()
    except HarnessError as error:
        reporter.say(f"clearing up failed: {error}")
        return str(error)
    return ""


def _carry_out(step: Step, bench: Bench) -> Result:
    if bench.device not in step.devices:
        return Result(step.name, NOT_HERE, "", 0.0)
    if any(r.name == step.needs and r.status != PASSED for r in bench.results):
        return Result(step.name, NOT_RUN, f"needs {step.needs}", 0.0)
    started = time.monotonic()
    try:
        status, figure = PASSED, step.do(bench)
    except Wrong as error:
        status, figure = FAILED, str(error)
    except HarnessError as error:
        problem = error.problems[0]
        status, figure = FAILED, f"{problem.what}: {problem.why}" if problem.why else problem.what
    return Result(step.name, status, figure, time.monotonic() - started)


def failure(bench: Bench) -> JobFailed | None:
    """What the command ends with where a step failed or could not be tried, or where something was left behind."""
    bad = [r.name for r in bench.results if r.status in (FAILED, NOT_RUN)]
    if bench.left_behind:
        what = f"clearing up failed: {bench.left_behind}"
        return JobFailed(what, hint=f"repeat: harness down {bench.run.record.id}")
    return JobFailed(f"{len(bad)} of {len(bench.results)} steps did not pass: {', '.join(bad)}") if bad else None
