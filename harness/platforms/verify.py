"""`harness verify`: the steps that tell whether what could not be tried without hardware works on this one.

Each step is a function that returns its figure in words, or raises Wrong. docs/limits.md names the step that settles
each of its rows. A step that this device cannot do says so, and never counts as passed.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import checks, invoke, plan as plans, record as records, report, stacks
from harness.errors import HarnessError, Interrupted, InvalidInput, JobFailed, MissingPrerequisite
from harness.paths import runs_dir
from harness.platforms import steps, verify_jobs
from harness.platforms.direct import Direct
from harness.platforms.steps import Run
from harness.platforms.verify_jobs import DEVICES, PREPARED, Jobs
from harness.profile import LOCAL
from harness.reporter import Reporter

PASSED, FAILED, NOT_HERE, NOT_RUN = "pass", "fail", "not on this device", "not run"
STEPS = 20
STILL = 5  # steps after which a new graph is one too many: docs/neuron-training.md saw 3
PROMPTS = ("v0 red:", "v1 blue:", "a longer question, of no sense: red or blue?")
# Largest difference of a loss from device cpu's. XLA:CPU computes in fp32, too (tests/neuron). neuronx-cc multiplies
# in bf16 unless told otherwise, 8 bits of mantissa; a guess until it was seen once.
LOSS_ALLOWED = {"xla-cpu": 5e-4, "neuron": 0.05}


class Wrong(Exception):
    """A step found something wrong; the message says what."""


@dataclass(frozen=True)
class Result:
    """A row of the report. `seconds` is the time the step took here, queueing included."""

    name: str
    status: str
    figure: str
    seconds: float


@dataclass
class Bench:
    """What the steps share."""

    run: Run
    jobs: Jobs
    platform: Direct
    device: str
    reporter: Reporter
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    prepared: str = ""
    results: list[Result] = field(default_factory=list)

    def job(self, name: str) -> Path:
        """Run the job called `name` to its end; the directory of what it left. Raises JobFailed."""
        known = {PREPARED: self.prepared}
        if "artifact_uri" in str(self.jobs.others[name]):
            known["artifact_uri"] = self.platform.artifact_uri()
        self.reporter.say(f"job {name}")
        artifact, folder = self.platform.job(self.jobs.others[name], known)
        if name == "prepare":
            self.prepared = artifact
        return folder

    def metrics(self, name: str = "") -> list[dict[str, float]]:
        """metrics.jsonl of the run's training job, or of another."""
        record = self.platform.record
        folder = record.path / "jobs" / f"{record.id}-{name}" if name else record.path / "job"
        return report.read_metrics(folder / "output" / "data")


def driver_and_runtime(bench: Bench) -> str:
    host = bench.hosts["train"]
    missing = [name for name in ("driver", "runtime", "devices", "device_files") if not host[name]]
    if missing:
        raise Wrong(f"not to be seen from inside the container: {', '.join(missing)}")
    if host["cores"] != 2 * host["devices"]:
        raise Wrong(f"{host['devices']} devices show {host['cores']} cores; train/launch.py counts two for each")
    return f"driver {host['driver']}, runtime {host['runtime']}, {host['devices']} devices, {host['cores']} cores"


def train(bench: Bench) -> str:
    steps.train(bench.run, bench.platform, bench.reporter)
    losses = _losses(bench.metrics(), "loss")
    figure = f"{STEPS} steps, loss {losses[1]:.3f} to {losses[STEPS]:.3f}"
    if not losses[STEPS] < 0.8 * losses[1]:
        raise Wrong(f"it does not learn: {figure}")
    if bench.device == "cpu":
        return figure
    bench.job("reference")
    apart = _apart(losses, _losses(bench.metrics("reference"), "loss"))
    return _within(f"{figure}; apart from device cpu by {apart:.2g}", apart, LOSS_ALLOWED[bench.device])


def compile_counts(bench: Bench) -> str:
    rows = [row for row in bench.metrics() if "compilations" in row]
    training = {int(row["step"]): int(row["compilations"]) for row in rows if "loss" in row}
    if sorted(training) != list(range(1, STEPS + 1)):
        raise Wrong(f"counts of {len(training)} steps instead of {STEPS}")
    # Upstream logs a step when the next graph is sent: step 10's row already has the evaluation's first.
    first = [training[step] for step in range(STILL, STEPS // 2)]
    second = [training[step] for step in range(STEPS // 2 + 1, STEPS + 1)]
    total = int(rows[-1]["compilations"])
    shown = ", ".join(str(training[step]) for step in range(1, STILL))
    figure = (
        f"{shown} in the first steps, {first[0]} until step 9, {second[0]} after an evaluation, {total} at the end"
    )
    if len(set(first)) > 1 or len(set(second)) > 1 or total != second[0]:
        raise Wrong(f"graphs are compiled after the first steps: {figure}")
    if bench.device == "neuron":
        folder = bench.job("precompile")
        if any((folder / "model").iterdir()):
            raise Wrong("compiling ahead left a model, whose weights would be invalid")
        figure += "; compiling ahead ends and leaves no model"
    return figure


def evaluation(bench: Bench) -> str:
    losses = _losses(bench.metrics(), "eval_loss")
    if sorted(losses) != [10, 20] or not all(map(math.isfinite, losses.values())):
        raise Wrong(f"evaluation losses {losses}; those of steps 10 and 20 were expected")
    figure = f"loss {losses[10]:.3f} at step 10, {losses[20]:.3f} at step 20"
    if bench.device == "cpu":
        return figure
    apart = _apart(losses, _losses(bench.metrics("reference"), "eval_loss"))
    return _within(f"{figure}; apart from device cpu by {apart:.2g}", apart, LOSS_ALLOWED[bench.device])


def tp2_save(bench: Bench) -> str:
    """Shards of two workers become a model: the trainer itself refuses missing, extra and differing parts."""
    folder = bench.job("tp2")
    whole, parts = (bench.platform.record.path / "job" / "model", folder / "model")
    lost = {p.name for p in whole.iterdir()} ^ {p.name for p in parts.iterdir()}
    sizes = [(f / "model.safetensors").stat().st_size for f in (whole, parts)]
    if lost or sizes[0] != sizes[1]:
        raise Wrong(f"the artifact differs from TP 1's: files {sorted(lost)}, weights of {sizes} bytes")
    apart = _apart(_losses(bench.metrics("tp2"), "loss"), _losses(bench.metrics("reference"), "loss"))
    # bf16 weights with stochastic rounding: wider than fp32's, and a guess until it was seen once.
    return _within(f"TP 2 in bf16, consolidated; losses apart from device cpu's fp32 by {apart:.2g}", apart, 0.2)


def prepare(bench: Bench) -> str:
    compiled = bench.job("prepare") / "model" / "neuron"
    graphs = list(compiled.glob("*.neff"))
    if not graphs or not (compiled / "compile_key.json").is_file():
        raise Wrong(f"{len(graphs)} graphs in {compiled.name}/, compile key missing or no graph")
    return f"{len(graphs)} graphs, {sum(p.stat().st_size for p in graphs) / 1e6:.1f} MB"


def serve(bench: Bench) -> str:
    deployment = bench.jobs.plan.tuned
    if bench.prepared:
        model = copy.deepcopy(deployment.create_model)
        model["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]["S3Uri"] = bench.prepared
        deployment = replace(deployment, create_model=model)
    started = time.monotonic()
    endpoint = steps.deploy(bench.platform, deployment, bench.reporter)
    ready = time.monotonic() - started
    try:
        bodies = [invoke.request(prompt, max_new_tokens=12) for prompt in PROMPTS]
        started = time.monotonic()
        alone = [invoke.texts(bench.platform.invoke(endpoint, body))[0] for body in bodies]
        each = (time.monotonic() - started) / len(PROMPTS)
        together = invoke.texts(bench.platform.invoke(endpoint, invoke.request(list(PROMPTS), max_new_tokens=12)))
        stream = bench.platform.invoke_stream(endpoint, {**bodies[-1], "stream": True})
        streamed = "".join(invoke.pieces(stream))
    finally:
        bench.platform.delete(endpoint)
    log = Path(endpoint.handle.log).read_text(encoding="utf-8", errors="replace")
    if alone != together or streamed != alone[-1]:
        raise Wrong(f"answers alone {alone}, together {together}, streamed {streamed!r}")
    if bench.prepared and "engine neuron: compiled graphs from" not in log:
        raise Wrong("the endpoint did not take the prepared graphs")
    return f"InService in {ready:.0f} s; {len(PROMPTS)} answers the same alone, together, streamed; {each:.2f} s each"


def logits(bench: Bench) -> str:
    found = json.loads((bench.job("logits") / "output" / "data" / "logits.json").read_text(encoding="utf-8"))
    figure = (
        f"engine {found['engine']} in {found['dtype']}, apart from transformers in fp32 by {found['difference']:.2g} "
        f"of the largest (allowed {found['allowed']:g}), {found['tokens_equal']} of {found['rows']} tokens equal"
    )
    return _within(figure, found["difference"], found["allowed"])


@dataclass(frozen=True)
class Step:
    name: str
    do: Callable[[Bench], str]
    devices: tuple[str, ...]
    needs: str = ""
    """The step without which this one has nothing to look at."""


ALL = (
    Step("driver-and-runtime", driver_and_runtime, ("neuron",)),
    Step("train", train, DEVICES),
    Step("compile-counts", compile_counts, ("xla-cpu", "neuron"), "train"),
    Step("evaluation", evaluation, DEVICES, "train"),
    Step("tp2-save", tp2_save, ("neuron",), "train"),
    Step("prepare", prepare, ("neuron",), "train"),
    Step("serve", serve, DEVICES, "train"),
    Step("logits", logits, DEVICES, "train"),
)


def _losses(rows: list[dict[str, float]], name: str) -> dict[int, float]:
    return {int(row["step"]): row[name] for row in rows if name in row}


def _apart(ours: dict[int, float], theirs: dict[int, float]) -> float:
    if sorted(ours) != sorted(theirs):
        raise Wrong(f"losses at steps {sorted(ours)} here and {sorted(theirs)} on device cpu")
    return max(abs(ours[step] - theirs[step]) for step in ours)


def _within(figure: str, apart: float, allowed: float) -> str:
    if not apart <= allowed:  # a NaN is no pass either
        raise Wrong(f"{figure}; {allowed:g} is allowed")
    return figure


def neuron_here() -> bool:
    """Whether this host's driver has a device."""
    return any(Path("/dev").glob("neuron[0-9]*"))


def choose(device: str, platform: str) -> str:
    """The device asked for, or the one that is there. Raises InvalidInput, MissingPrerequisite where it is not."""
    if platform not in ("local", "sagemaker"):
        raise InvalidInput(f"--platform {platform}", hint="local or sagemaker")
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


def start(device: str, share: float = 1.0) -> tuple[Run, Jobs]:
    """Model, data and run file, checked and planned; a record like any run's."""
    from harness.assets import tiny

    run = steps.start(tiny.write(runs_dir() / "verify", verify_jobs.RUN_FILE))
    jobs = verify_jobs.make(run.plan, device, share)
    run.record.write_text("plan.json", jobs.plan.to_json() + "\n")
    return replace(run, plan=jobs.plan), jobs


def carry_out(run: Run, jobs: Jobs, device: str, reporter: Reporter) -> Bench:
    """Every step in order, whatever came of the others; results and what the containers have to work with.

    Raises Interrupted, and MissingPrerequisite where this machine cannot run a job at all.
    """
    try:
        with steps.working_on(run, "verify", reporter) as platform:
            assert isinstance(platform, Direct)  # a verify run is started without a platform
            bench = Bench(run, jobs, platform, device, reporter)
            for image in ("train", "serve"):
                found = bench.job(f"host-{image}") / "output" / "data" / "host.json"
                bench.hosts[image] = json.loads(found.read_text(encoding="utf-8"))
            for step in ALL:
                bench.results.append(_carry_out(step, bench))
                reporter.say(f"{step.name}: {bench.results[-1].status}")
    except Interrupted as error:
        raise Interrupted(error.signum, hint="it starts anew: harness verify") from None
    return bench


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
    except Interrupted:
        raise
    except HarnessError as error:
        problem = error.problems[0]
        status, figure = FAILED, f"{problem.what}: {problem.why}" if problem.why else problem.what
    return Result(step.name, status, figure, time.monotonic() - started)


def failure(results: list[Result]) -> JobFailed | None:
    """What the command ends with where a step failed or could not be tried because another did."""
    bad = [r.name for r in results if r.status in (FAILED, NOT_RUN)]
    return JobFailed(f"{len(bad)} of {len(results)} steps did not pass: {', '.join(bad)}") if bad else None
