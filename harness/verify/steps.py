"""The steps of `harness verify`. Each is a function that returns its figure in words, or raises Wrong.

docs/limits.md names the step that settles each of its rows. A step that a device cannot do says so, and never counts
as passed.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.run import invoke, steps
from harness.spec.plan import Deployment
from harness.verify.bench import Bench, Wrong
from harness.verify.jobs import DEVICES, ENDPOINT_SECONDS

STEPS = 20
STILL = 5  # steps after which a new graph is one too many: docs/internals/neuron-training.md saw 3
FROM_GRAPHS = "engine neuron: compiled graphs from"  # serve/engines/neuron.py
LOG_SECONDS = 30  # lines of an endpoint are in CloudWatch within seconds
PROMPTS = ("v0 red:", "v1 blue:", "a longer question, of no sense: red or blue?")
# Largest difference of a loss from device cpu's. XLA:CPU computes in fp32, too (tests/neuron). neuronx-cc multiplies
# in bf16 unless told otherwise, 8 bits of mantissa; a guess until it was seen once.
LOSS_ALLOWED = {"xla-cpu": 5e-4, "neuron": 0.05}


def driver_and_runtime(bench: Bench) -> str:
    host = bench.hosts["train"]
    missing = [name for name in ("driver", "runtime", "devices", "device_files") if not host[name]]
    if missing:
        raise Wrong(f"not to be seen from inside the container: {', '.join(missing)}")
    if host["cores"] != 2 * host["devices"]:
        raise Wrong(f"{host['devices']} devices show {host['cores']} cores; train/launch.py counts two for each")
    return f"driver {host['driver']}, runtime {host['runtime']}, {host['devices']} devices, {host['cores']} cores"


def train(bench: Bench) -> str:
    bench.afford("job train", bench.jobs.plan.create_training_job)
    steps.train(bench.run, bench.client, bench.reporter)
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
    whole, parts = bench.trained() / "model", folder / "model"
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
    deployment = _of_prepared(bench.jobs.plan.tuned, bench.prepared)
    bench.budget.afford("the endpoint", ENDPOINT_SECONDS, bench.billed())
    with bench.budget.endpoint() as tick:
        started = time.monotonic()
        # The tag says the same to `harness down --expired`, should this command be killed.
        endpoint = bench.client.deploy(deployment, tick, ttl=ENDPOINT_SECONDS)
        ready = time.monotonic() - started
        bench.reporter.say(f"endpoint {endpoint.name}: InService")
        try:
            bodies = [invoke.request(prompt, max_new_tokens=12) for prompt in PROMPTS]
            started = time.monotonic()
            alone = [invoke.texts(bench.client.invoke(endpoint, body))[0] for body in bodies]
            each = (time.monotonic() - started) / len(PROMPTS)
            body = invoke.request(list(PROMPTS), max_new_tokens=12)
            together = invoke.texts(bench.client.invoke(endpoint, body))
            stream = bench.client.invoke_stream(endpoint, {**bodies[-1], "stream": True})
            streamed = "".join(invoke.pieces(stream))
            from_graphs = not bench.prepared or _logged(bench, endpoint.name, FROM_GRAPHS)
        finally:
            bench.client.delete(endpoint)
    if alone != together or streamed != alone[-1]:
        raise Wrong(f"answers alone {alone}, together {together}, streamed {streamed!r}")
    if not from_graphs:
        raise Wrong("the endpoint did not take the prepared graphs")
    return f"InService in {ready:.0f} s; {len(PROMPTS)} answers the same alone, together, streamed; {each:.2f} s each"


def _of_prepared(deployment: Deployment, uri: str) -> Deployment:
    """The endpoint with the prepared model, where there is one."""
    if not uri:
        return deployment
    model = copy.deepcopy(deployment.create_model)
    model["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]["S3Uri"] = uri
    return replace(deployment, create_model=model)


def _logged(bench: Bench, endpoint: str, text: str) -> bool:
    """Whether the endpoint has logged `text`, waiting as long as CloudWatch may take to show it."""
    deadline = time.monotonic() + LOG_SECONDS
    while not any(text in line for line in bench.client.endpoint_log(endpoint)):
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


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
    if not apart <= allowed:  # a NaN does not pass either
        raise Wrong(f"{figure}; {allowed:g} is allowed")
    return figure
