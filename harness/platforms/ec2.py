"""Platform `ec2`: the plan's requests on the Trainium or Inferentia host itself, in containers with its devices.

A run by direct call (direct.py) on executor `neuron`: the same plan, record and ledger. Objects are in the profile's
bucket where there is an AWS profile, else in directories beside the records.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import cores as splitting, engine, images, neuron_host, plan as plans, profile as profiles
from harness.aws import Aws
from harness.errors import Busy, HarnessError, InvalidInput, MissingPrerequisite, Problem, did_you_mean
from harness.executors import neuron
from harness.images import Build
from harness.neuron_host import INSTANCE_CORES, Host
from harness.paths import runs_dir
from harness.plan import Plan
from harness.platforms import preflight, sources
from harness.platforms.direct import EXECUTOR_FILE, Direct, Say
from harness.platforms.s3store import S3Store
from harness.profile import LOCAL, Profile
from harness.record import Record
from harness.runfile import RunFile
from harness.transfer import Transfer

EXECUTOR = "neuron"
# What a request for one host is refused with first: what nobody can mend by waiting.
CLASSES: tuple[type[HarnessError], ...] = (InvalidInput, MissingPrerequisite, Busy)
Found = list[tuple[type[HarnessError], Problem]]


def profile(region: str = "") -> Profile:
    """The AWS profile where one was written, for everything on this host; else local names, and directories."""
    if not region and not profiles.is_there():
        return LOCAL
    return replace(profiles.load(region=region), serve_region="", serve_bucket="")


class Ec2(Direct):
    """One run on this host."""

    here = False  # it is no CPU whose speed could be estimated

    def __init__(self, record: Record, where: Profile, say: Say) -> None:
        super().__init__(record, say, EXECUTOR)
        self.profile = where
        self.aws: Aws | None = None
        if where.bucket != LOCAL.bucket:
            self.aws = Aws(where)
            self.store = S3Store(runs_dir() / "s3", Transfer(self.aws, record))

    def check(self, run: RunFile, plan: Plan) -> None:
        """Host, driver, cores, images, disk and bucket, all at once; the images are recorded from now on.

        Raises InvalidInput, MissingPrerequisite or Busy, whichever comes first in this order, with all problems.
        """
        host = neuron_host.look()
        found = of_run(run) + of_host(host, run, plan) + of_images(plan.stack)
        found += [(MissingPrerequisite, problem) for problem in self._disk(run)]
        if self.aws is not None:
            preflight.identity(self.aws, self.profile)  # without it every other answer would be the same refusal
            found += [(InvalidInput, problem) for problem in preflight.check_bucket(self.aws, self.profile)]
        for kind in CLASSES:
            if any(k is kind for k, _ in found):
                raise kind.of([problem for _, problem in found])
        self.record.write_json(EXECUTOR_FILE, {"executor": EXECUTOR, **names(plan.stack)})
        where = f"s3://{self.profile.bucket}" if self.aws else f"directories below {self.store.root}"
        fake = f"; {neuron_host.FAKE} is set: a device tree without an accelerator" if host.root != Path("/") else ""
        self.say(f"{len(host.neuron)} Neuron devices, driver {host.driver}; objects in {where}{fake}")

    def forget(self) -> None:
        """Delete what is under the run's prefix of the bucket; directories are left, as by direct call."""
        if isinstance(self.store, S3Store):
            deleted = self.store.transfer.delete(f"s3://{self.profile.bucket}/runs/{self.record.id}/")
            self.say(f"deleted {deleted} objects of s3://{self.profile.bucket}/runs/{self.record.id}/")

    def _executor(self) -> tuple[str, dict[str, str]]:
        """This executor, and the images that the run began with."""
        recorded: dict[str, Any] = self.record.read_json(EXECUTOR_FILE) or names(self._stack())
        return EXECUTOR, {key: value for key, value in recorded.items() if key != "executor"}

    def _stack(self) -> str:
        return plans.from_json((self.record.path / "plan.json").read_text(encoding="utf-8")).stack

    def _disk(self, run: RunFile) -> list[Problem]:
        """What is known before a model is fetched; the rest is checked when it is here."""
        if not run.model.is_directory:
            return []
        size = sum(p.stat().st_size for p in Path(run.model.id).rglob("*") if p.is_file())
        return sources.disk_problems(self.record, size)


def names(stack: str) -> dict[str, str]:
    """The images on the Deep Learning Containers, by the plan's placeholders."""
    return {f"{role}_image": Build(stack).name(role) for role in images.ROLES}


def of_run(run: RunFile) -> Found:
    """What the run file asks for that one Neuron host never has."""
    found = []
    for key in ("train_instance", "serve_instance"):
        value = getattr(run.compute, key)
        if value not in INSTANCE_CORES:
            hint = did_you_mean(value, list(INSTANCE_CORES)) or f"known: {', '.join(INSTANCE_CORES)}"
            why = "a job gets as many NeuronCores as the instance that it names has"
            found.append(Problem(f'compute.{key} = "{value}" has no NeuronCores that platform ec2 knows', why, hint))
    if run.compute.train_instance_count > 1:
        why = "platform ec2 is the host that the command runs on"
        found.append(Problem(f"compute.train_instance_count is {run.compute.train_instance_count}", why, "make it 1"))
    shared = _parallel(run)
    cores = INSTANCE_CORES.get(run.compute.train_instance, 0)
    if cores and (cores % shared or shared > cores):
        what = f"tensor and pipeline parallelism are {shared}, {run.compute.train_instance} has {cores} NeuronCores"
        found.append(Problem(what, "the cores must be a multiple of it", "name a larger instance, or lower them"))
    return [(InvalidInput, problem) for problem in found]


def _parallel(run: RunFile) -> int:
    sizes = [run.train.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline")]
    return int(sizes[0]) * int(sizes[1])


def wanted(run: RunFile) -> tuple[int, int]:
    """Cores of the training job and of an endpoint."""
    return INSTANCE_CORES.get(run.compute.train_instance, 0), int(run.serve.get("tp_degree", 1))


def of_host(host: Host, run: RunFile, plan: Plan) -> Found:
    """What this host lacks; and who else has the cores, where it has enough of them."""
    counts = wanted(run)
    found: Found = [(MissingPrerequisite, p) for p in neuron_host.problems(host, plan.stack, max(counts))]
    if not host.neuron:
        return found
    for count in sorted(set(counts)):
        found += [(InvalidInput, problem) for problem in splitting.problems(host, count)]
    if engine.problems():
        return found  # of_images says it
    if 0 < max(counts) <= host.cores and not any(kind is InvalidInput for kind, _ in found):
        others = {k: v for k, v in neuron.of(host).taken().items() if not v.startswith(plan.run_id)}
        found += [(Busy, problem) for problem in splitting.busy(host, max(counts), others)]
    return found


def of_images(stack: str) -> Found:
    """Docker, and the images of this revision on the Deep Learning Containers."""
    if problems := engine.problems():
        return [(MissingPrerequisite, problem) for problem in problems]
    missing = [name for name in names(stack).values() if not engine.run(["image", "ls", "--quiet", name]).strip()]
    if not missing:
        return []
    why = "this revision is not built here"
    stand_ins = [Build(stack, stand_in=True).name(role) for role in images.ROLES]
    if all(engine.run(["image", "ls", "--quiet", name]).strip() for name in stand_ins):
        why = "only its CPU stand-ins are, which have no Neuron packages"
    problem = Problem(f"no image {' and no image '.join(missing)}", why, "run: harness build (docs/images.md)")
    return [(MissingPrerequisite, problem)]
