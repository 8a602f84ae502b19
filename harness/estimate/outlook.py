"""Everything that can be said before a run is paid for: fit, time, price, and the cheapest change that makes it fit.

`Subject` is plain values, so that this package needs to know neither run files nor plans. Pure and fast: no network,
no model files but what the caller read already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from typing import Any

from harness.estimate import duration, hardware, host, memory, price
from harness.estimate.architecture import Architecture
from harness.estimate.duration import Seconds, Work
from harness.estimate.hardware import GIB, Instance
from harness.estimate.memory import DOES_NOT_FIT, FITS, TIGHT, Footprint, Serving, Training
from harness.estimate.price import Bill, Charge, Table

UNKNOWN = "unknown"
ORDER = {FITS: 0, UNKNOWN: 1, TIGHT: 2, DOES_NOT_FIT: 3}


@dataclass(frozen=True)
class Subject:
    """A run, as far as money and memory are concerned."""

    arch: Architecture
    source: str
    """Where the shapes were read."""
    train_instance: str
    serve_instance: str
    region: str = "us-east-1"
    serve_region: str = ""
    hosts: int = 1
    spot: bool = False
    max_runtime: int = 7200
    startup_seconds: int = 1800
    volume_gb: int = 0
    endpoints: int = 1
    """How many are deployed one after the other: 2 where the base model is measured, too."""
    endpoint_seconds: tuple[float, float] = (600, 3600)
    """How long each answers after its start."""
    # training, by run_clm's own names where there is one
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    zero1: bool = False
    precision: str = "fp32"
    batch: int = 8
    accumulation: int = 1
    block: int = 1024
    checkpointing: bool = False
    max_steps: int = -1
    epochs: float = 3.0
    rows: int | None = None
    evaluates: bool = False
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()
    # serving
    serve_tp: int = 1
    positions: int = 1024
    slots: int = 32
    serve_dtype: str = "bf16"
    smallest_bucket: int = 128
    precompiled: bool = False
    """Whether a job before compiles the endpoint's graphs into the artifact; it is part of the price."""

    @property
    def per_step_rows(self) -> int:
        return self.batch * self.accumulation * self.data_parallel

    @property
    def data_parallel(self) -> int:
        instance = hardware.find(self.train_instance)
        cores = instance.cores * self.hosts if instance else 1
        return max(cores // (self.tensor_parallel * self.pipeline_parallel), 1)

    @property
    def training(self) -> Training:
        return Training(
            tp=self.tensor_parallel,
            pp=self.pipeline_parallel,
            data_parallel=self.data_parallel,
            batch=self.batch,
            block=self.block,
            precision=self.precision,
            zero1=self.zero1,
            checkpointing=self.checkpointing,
            microbatches=self.accumulation,
            lora_rank=self.lora_rank,
            lora_targets=self.lora_targets,
        )

    @property
    def serving(self) -> Serving:
        """The graphs of engine `neuron`: buckets for prompts and for answers, one prompt at a time."""
        buckets = memory.doubling(self.smallest_bucket, self.positions)
        return Serving(self.serve_tp, max(self.slots, 2), buckets, buckets, 1, self.serve_dtype)


@dataclass(frozen=True)
class Side:
    """Training or serving: what fits, how long it takes, and what to know."""

    instance: str
    verdict: str
    core: Footprint | None
    host: Footprint | None
    notes: tuple[str, ...] = ()
    change: str = ""
    """The cheapest change that makes it fit; empty where it fits or nothing tried does."""


@dataclass(frozen=True)
class Outlook:
    """The whole answer."""

    subject: Subject
    train: Side
    serve: Side
    work: Work
    training_time: Seconds | None
    job_time: Seconds
    start_time: Seconds
    """From CreateEndpoint to InService."""
    artifact_bytes: float
    replicas: int
    rate: tuple[float, float] | None
    """Output tokens per second of the whole endpoint."""
    bill: Bill
    endpoint_per_hour: Decimal | None
    assumptions: tuple[duration.Assumption, ...] = field(default_factory=duration.assumptions)

    @property
    def verdict(self) -> str:
        return max((self.train.verdict, self.serve.verdict), key=lambda v: ORDER[v])


def outlook(subject: Subject, table: Table | None = None, suggest: bool = True) -> Outlook:
    """Everything about `subject`. `table`: prices, the carried ones where none are given."""
    table = table or price.carried()
    train, serve = hardware.find(subject.train_instance), hardware.find(subject.serve_instance)
    work = duration.training_work(
        subject.max_steps, subject.epochs, subject.rows, subject.per_step_rows, subject.block, subject.evaluates
    )
    training_time = (
        duration.training_time(subject.arch, work, train, subject.hosts, subject.precision) if train else None
    )
    job, start = _job_time(subject, work, training_time), _start_time(subject, serve)
    copies = replicas(serve, subject) if serve else 1
    rate = duration.decoding_rate(subject.arch, subject.serving, serve) if serve else None
    charges = list(_charges(subject, job, start))
    return Outlook(
        subject=subject,
        train=_train_side(subject, train, table, suggest),
        serve=_serve_side(subject, serve, start, table, suggest),
        work=work,
        training_time=training_time,
        job_time=job,
        start_time=start,
        artifact_bytes=duration.artifact_bytes(subject.arch),
        replicas=copies,
        rate=(rate[0] * copies, rate[1] * copies) if rate else None,
        bill=price.bill(charges, table, subject.region)
        if not subject.serve_region
        else _two_bills(subject, charges, table),
        endpoint_per_hour=price.per_hour(
            [(price.HOSTING, subject.serve_instance, 1)], table, subject.serve_region or subject.region
        ),
    )


def _two_bills(subject: Subject, charges: list[Charge], table: Table) -> Bill:
    """Serving has a region of its own."""
    training = [c for c in charges if c.service != price.HOSTING]
    hosting = [c for c in charges if c.service == price.HOSTING]
    both = price.bill(training, table, subject.region).lines + price.bill(hosting, table, subject.serve_region).lines
    return Bill(both)


def _job_time(subject: Subject, work: Work, training: Seconds | None) -> Seconds:
    """What is billed of the job: from the download to the upload, at most max_runtime."""
    model = duration.download(subject.arch.parameters * 2.0, "model")
    compile_ = duration.training_compile(subject.arch, work)
    if training is None:
        high = float(subject.max_runtime)
        return Seconds(
            min(model.low + compile_.low, high), high, "the number of rows is not known: at most max_runtime"
        )
    whole = model + compile_ + training + duration.download(duration.artifact_bytes(subject.arch), "artifact")
    capped = min(whole.high, float(subject.max_runtime))
    return Seconds(min(whole.low, capped), capped, whole.because)


def _start_time(subject: Subject, instance: Instance | None) -> Seconds:
    artifact = duration.download(duration.artifact_bytes(subject.arch), "artifact")
    boot = Seconds(180, 480, "SageMaker starts the instance and pulls the image")
    if subject.precompiled or instance is None:
        return boot + artifact
    return boot + artifact + duration.serving_compile(subject.arch, subject.serving, subject.serving.graphs)


def _charges(subject: Subject, job: Seconds, start: Seconds) -> Iterator[Charge]:
    yield Charge("training", price.TRAINING, subject.train_instance, subject.hosts, (job.low, job.high), subject.spot)
    trained_on = hardware.find(subject.train_instance)
    if subject.volume_gb and (trained_on is None or not trained_on.disk_gb):
        # Instances with a disk of their own get no volume (API_ResourceConfig).
        seconds = (job.low, job.high)
        yield Charge("training volume", price.TRAINING, price.VOLUME, subject.hosts, seconds, gb=subject.volume_gb)
    if subject.precompiled:
        graphs = duration.serving_compile(subject.arch, subject.serving, subject.serving.graphs)
        model = duration.download(duration.artifact_bytes(subject.arch), "artifact")
        whole = (graphs.low + model.low, graphs.high + 2 * model.high)
        yield Charge("prepare job", price.TRAINING, subject.train_instance, 1, whole)
    low, high = subject.endpoint_seconds
    alive = (start.low + low, min(start.high, subject.startup_seconds) + high)
    for number in range(subject.endpoints):
        name = "endpoint" if subject.endpoints == 1 else f"endpoint {number + 1} of {subject.endpoints}"
        yield Charge(name, price.HOSTING, subject.serve_instance, 1, alive)


def _no_cores(instance: str) -> Side:
    return Side(
        instance, UNKNOWN, None, None, (f"{instance} has no NeuronCores that are known here: nothing to say",)
    )


def _verdict(*parts: Footprint) -> str:
    return max((part.verdict for part in parts), key=lambda v: ORDER[v])


def train_fit(subject: Subject, instance: Instance) -> tuple[Footprint, Footprint]:
    """One NeuronCore and one host of training."""
    core = memory.training_footprint(subject.arch, subject.training, instance.core_gib)
    return core, host.training_host(subject.arch, subject.training, instance.cores, instance.host_gib)


def serve_fit(subject: Subject, instance: Instance) -> tuple[Footprint, Footprint]:
    """One NeuronCore and the host of the endpoint."""
    core = memory.serving_footprint(subject.arch, subject.serving, instance.core_gib)
    return core, host.serving_host(
        subject.arch, subject.serving, instance.host_gib, replicas(instance, subject), compiled=subject.precompiled
    )


def replicas(instance: Instance, subject: Subject) -> int:
    """Copies of the model that an endpoint's instance holds: DJL Serving starts one process for each group of cores
    (djl-serving 0.30.0, ModelInfo.getLoadOnDevices), one after the other."""
    return max(instance.cores // subject.serve_tp, 1)


def _train_side(subject: Subject, instance: Instance | None, table: Table, suggest: bool) -> Side:
    if instance is None:
        return _no_cores(subject.train_instance)
    core, machine = train_fit(subject, instance)
    notes = [
        f"{subject.data_parallel} data-parallel worker{'s' if subject.data_parallel > 1 else ''} of TP "
        f"{subject.tensor_parallel} x PP {subject.pipeline_parallel} on {instance.cores * subject.hosts} cores"
    ]
    notes += _where(instance, subject.region)
    verdict = _verdict(core, machine)
    change = _cheapest(subject, _train_changes(subject), train_fit, "train_instance", price.TRAINING, table)
    return Side(
        subject.train_instance, verdict, core, machine, tuple(notes), change if suggest and verdict != FITS else ""
    )


def _serve_side(subject: Subject, instance: Instance | None, start: Seconds, table: Table, suggest: bool) -> Side:
    if instance is None:
        return _no_cores(subject.serve_instance)
    core, machine = serve_fit(subject, instance)
    copies = replicas(instance, subject)
    notes = [f"{copies} replica{'s' if copies > 1 else ''} of TP {subject.serve_tp} on {instance.cores} cores"]
    if start.low > subject.startup_seconds:
        notes.append(f"starting takes at least {start.low:.0f} s, startup_seconds is {subject.startup_seconds}")
    elif start.high > subject.startup_seconds:
        notes.append(f"starting may take {start.high:.0f} s, startup_seconds is {subject.startup_seconds}")
    notes += _where(instance, subject.serve_region or subject.region)
    verdict = _verdict(core, machine)
    change = _cheapest(subject, _serve_changes(subject), serve_fit, "serve_instance", price.HOSTING, table)
    return Side(
        subject.serve_instance, verdict, core, machine, tuple(notes), change if suggest and verdict != FITS else ""
    )


def _where(instance: Instance, region: str) -> list[str]:
    """Where the instance exists, if not in `region`. The table is second-hand."""
    if region in instance.regions:
        zones = instance.regions[region]
        return [f"{instance.name} in {region}: {', '.join(zones)}"] if zones else []
    return [f"{instance.name} was not seen in {region}; seen in {', '.join(instance.regions)}"]


# The cheapest change ------------------------------------------------------------------------------------------------

Change = tuple[str, Subject]
Fit = Callable[[Subject, Instance], tuple[Footprint, Footprint]]


def divides(arch: Architecture, tp: int) -> bool:
    """What training needs of TP: heads, MLP width and vocabulary in equal parts (neuronx-distributed)."""
    return not any(n % tp for n in (arch.heads, arch.intermediate, arch.vocab))


def _train_changes(s: Subject) -> Iterator[Change]:
    """Changes in the order of what they cost a user beside money: settings first, another instance last."""
    if s.precision == "fp32":
        yield "train.bf16 = true", replace(s, precision="bf16")
    if not s.checkpointing:
        yield "train.gradient_checkpointing = true", replace(s, checkpointing=True)
    if not s.zero1 and s.data_parallel > 1:
        yield "train.zero_1 = true", replace(s, zero1=True)
    if s.batch > 1:
        half = replace(s, batch=s.batch // 2, accumulation=s.accumulation * 2)
        what = f"train.per_device_train_batch_size = {half.batch}"
        yield f"{what}, train.gradient_accumulation_steps = {half.accumulation}", half
    for name, instance in hardware.instances().items():
        if not instance.training:
            continue
        for tp in hardware.TP_DEGREES[instance.chip]:
            if tp > instance.cores or not divides(s.arch, tp) or tp < s.tensor_parallel:
                continue
            here = f"ml.{name}" == s.train_instance
            if here and tp == s.tensor_parallel:
                continue
            moved = replace(s, train_instance=f"ml.{name}", tensor_parallel=tp)
            what = f"train.tensor_parallel_size = {tp}"
            what = what if here else f'compute.train_instance = "ml.{name}", {what}'
            yield what, moved
            saving = replace(moved, checkpointing=True, zero1=True)
            yield f"{what}, train.gradient_checkpointing = true, train.zero_1 = true", saving


def _serve_changes(s: Subject) -> Iterator[Change]:
    for slots in (s.slots // 2, s.slots // 4, s.slots // 8):
        if slots >= 2:
            yield f"serve.max_batch_size = {slots}", replace(s, slots=slots)
    if s.positions >= 512:
        yield f"serve.n_positions = {s.positions // 2}", replace(s, positions=s.positions // 2)
    for name, instance in hardware.instances().items():
        if not instance.hosting:
            continue
        for tp in hardware.TP_DEGREES[instance.chip]:
            here = f"ml.{name}" == s.serve_instance
            if tp > instance.cores or tp < s.serve_tp or (here and tp == s.serve_tp):
                continue
            what = f"serve.tp_degree = {tp}"
            yield (
                what if here else f'compute.serve_instance = "ml.{name}", {what}',
                replace(s, serve_instance=f"ml.{name}", serve_tp=tp),
            )


def _cheapest(s: Subject, changes: Iterator[Change], fit: Fit, which: str, service: str, table: Table) -> str:
    """The change with the lowest price per hour among those that fit; the first of equals. Empty where none fits."""
    best: tuple[Decimal, int, str] | None = None
    for number, (what, changed) in enumerate(changes):
        name = getattr(changed, which)
        instance = hardware.find(name)
        if instance is None or _verdict(*fit(changed, instance)) != FITS:
            continue
        region = s.serve_region or s.region if service == price.HOSTING else s.region
        row = table.find(service, name, region) or table.find(price.EC2, instance.name, region)
        # Without any price the number of chips orders them well enough.
        cost = row.usd if row else Decimal(instance.chips) * 100
        cost = Decimal(0) if name == getattr(s, which) else cost
        if best is None or (cost, number) < best[:2]:
            best = (cost, number, what)
    return best[2] if best else ""


# JSON ---------------------------------------------------------------------------------------------------------------


def to_dict(found: Outlook) -> dict[str, Any]:
    """Everything, for --json: bytes, seconds, and USD as strings."""
    raw = price.plain(asdict(found))
    assert isinstance(raw, dict)
    raw["verdict"] = found.verdict
    for side in ("train", "serve"):
        for part in ("core", "host"):
            footprint = getattr(getattr(found, side), part)
            if footprint is not None:
                raw[side][part]["verdict"] = footprint.verdict
                raw[side][part]["total"] = asdict(footprint.total)
                raw[side][part]["largest"] = footprint.largest.name
    raw["bill"]["known"] = [str(v) for v in found.bill.known]
    raw["bill"]["total"] = [str(v) for v in found.bill.total] if found.bill.total else UNKNOWN
    raw["endpoint_per_hour"] = UNKNOWN if found.endpoint_per_hour is None else str(found.endpoint_per_hour)
    return raw


def gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
