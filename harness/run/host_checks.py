"""What a run on platform `ec2` needs of the Trainium or Inferentia host itself, checked before anything starts."""

from __future__ import annotations

from pathlib import Path

from harness.errors import Busy, HarnessError, InvalidInput, MissingPrerequisite, Problem, did_you_mean
from harness.executors import neuron, neuron_host
from harness.executors.neuron_host import Host
from harness.images import build as images, engine
from harness.images.build import Build
from harness.run import inputs
from harness.sagemaker import preflight
from harness.sagemaker.client import RunClient
from harness.spec import instances
from harness.spec.plan import Plan
from harness.spec.runfile import RunFile

EXECUTOR = "neuron"
# The class of the error where problems of several classes are found: first what waiting does not mend.
CLASSES: tuple[type[HarnessError], ...] = (InvalidInput, MissingPrerequisite, Busy)
Found = list[tuple[type[HarnessError], Problem]]


def check(client: RunClient, run: RunFile, plan: Plan) -> None:
    """Host, driver, cores, images, disk and bucket, all at once.

    Raises InvalidInput, MissingPrerequisite or Busy, whichever comes first in this order, with all problems.
    """
    host = neuron_host.look()
    found = of_run(run) + of_host(host, run, plan) + of_images(plan.stack)
    found += [(MissingPrerequisite, problem) for problem in _disk(client, run)]
    profile = client.profile
    if profile.objects_in_s3:
        preflight.identity(client.aws, profile)  # without it every other answer would be the same refusal
        found += [(InvalidInput, problem) for problem in preflight.check_bucket(client.aws, profile)]
    for kind in CLASSES:
        if any(k is kind for k, _ in found):
            raise kind.of([problem for _, problem in found])
    where = f"s3://{profile.bucket}" if profile.objects_in_s3 else "files on this host"
    fake = f"; {neuron_host.FAKE} is set: a device tree without an accelerator" if host.root != Path("/") else ""
    client.say(f"{len(host.neuron)} Neuron devices, driver {host.driver}; objects in {where}{fake}")


def _disk(client: RunClient, run: RunFile) -> list[Problem]:
    """What is known before a model is fetched; the rest is checked when it is here."""
    if not run.model.is_directory:
        return []
    return inputs.disk_problems(client.record, inputs.size_of(Path(run.model.id)))


def of_run(run: RunFile) -> Found:
    """What the run file asks for that one Neuron host never has."""
    found = []
    for key in ("train_instance", "serve_instance"):
        value = getattr(run.compute, key)
        if value not in instances.CORES:
            hint = did_you_mean(value, list(instances.CORES)) or f"known: {', '.join(instances.CORES)}"
            why = "a job gets as many NeuronCores as the instance that it names has"
            found.append(Problem(f'compute.{key} = "{value}" has no NeuronCores that platform ec2 knows', why, hint))
    if run.compute.train_instance_count > 1:
        why = "platform ec2 is the host that the command runs on"
        found.append(Problem(f"compute.train_instance_count is {run.compute.train_instance_count}", why, "make it 1"))
    shared = _parallel(run)
    cores = instances.CORES.get(run.compute.train_instance, 0)
    if cores and (cores % shared or shared > cores):
        what = f"tensor and pipeline parallelism are {shared}, {run.compute.train_instance} has {cores} NeuronCores"
        found.append(Problem(what, "the cores must be a multiple of it", "name a larger instance, or lower them"))
    return [(InvalidInput, problem) for problem in found]


def _parallel(run: RunFile) -> int:
    sizes = [run.train.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline")]
    return int(sizes[0]) * int(sizes[1])


def needed_cores(run: RunFile) -> tuple[int, int]:
    """NeuronCores of the training job and of an endpoint."""
    return instances.CORES.get(run.compute.train_instance, 0), int(run.serve.get("tp_degree", 1))


def of_host(host: Host, run: RunFile, plan: Plan) -> Found:
    """What this host lacks; and who else has the cores, where it has enough of them."""
    counts = needed_cores(run)
    found: Found = [(MissingPrerequisite, p) for p in neuron_host.problems(host, plan.stack, max(counts))]
    if not host.neuron:
        return found
    for count in sorted(set(counts)):
        found += [(InvalidInput, problem) for problem in neuron_host.range_problems(host, count)]
    if engine.problems():
        return found  # of_images says it
    if 0 < max(counts) <= host.cores and not any(kind is InvalidInput for kind, _ in found):
        others = {k: v for k, v in neuron.of(host).taken().items() if plan.run_id not in v}
        found += [(Busy, problem) for problem in neuron_host.busy(host, max(counts), others)]
    return found


def of_images(stack: str) -> Found:
    """Docker, and the images of this revision on the Deep Learning Containers."""
    if problems := engine.problems():
        return [(MissingPrerequisite, problem) for problem in problems]
    names = [Build(stack).name(role) for role in images.ROLES]
    missing = [name for name in names if not images.is_here(name)]
    if not missing:
        return []
    why = "this revision is not built here"
    if all(images.is_here(Build(stack, stand_in=True).name(role)) for role in images.ROLES):
        why = "only its CPU stand-ins are, which have no Neuron packages"
    problem = Problem(f"no image {' and no image '.join(missing)}", why, "run: harness build (docs/images.md)")
    return [(MissingPrerequisite, problem)]
