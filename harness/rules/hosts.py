"""Hosts: memory, drivers, devices, EFA, regions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.estimate import host, memory
from harness.estimate.hardware import GIB
from harness.rules.document import ARG, CALL, PACKAGE, Document, whole_number
from harness.rules.known import Version, image_of, images, instances, version
from harness.rules.parallel import named_models
from harness.rules.rule import ERROR, NOTE, WARNING, rule

RUNTIME_NOTES = "https://github.com/aws-neuron/aws-neuron-sdk/blob/master/release-notes/components/runtime.rst"
# SDK -> runtime library, from the README of aws-neuron/deep-learning-containers at each tag.
RUNTIME_OF_SDK: dict[tuple[int, int], Version] = {
    (2, 18): (2, 20),
    (2, 19): (2, 21),
    (2, 20): (2, 22),
    (2, 21): (2, 23),
    (2, 22): (2, 24),
    (2, 23): (2, 25),
    (2, 24): (2, 26),
    (2, 25): (2, 27),
    (2, 26): (2, 28),
    (2, 27): (2, 29),
    (2, 28): (2, 30),
    (2, 29): (2, 31),
    (2, 30): (2, 32),
    (2, 31): (2, 33),
    (2, 32): (2, 34),
    (2, 33): (2, 35),
}


def drivers(document: Document) -> list[tuple[int, Version]]:
    """(line, version) of a pinned aws-neuronx-dkms."""
    out = []
    for number, line in enumerate(document.text.splitlines(), 1):
        found = re.search(r"aws-neuronx-dkms[= ]+=?\s*(\d+\.\d+)", line)
        if found and not line.lstrip().startswith("#"):
            out.append((number, version(found.group(1)) or ()))
    return out


@rule(
    "driver-too-new",
    ERROR,
    "this driver refuses older runtimes",
    'pin "aws-neuronx-dkms=2.28.*" on hosts that run images of SDK 2.30 and older',
    RUNTIME_NOTES,
)
def driver_too_new(document: Document) -> Iterator[tuple[int, str]]:
    """Driver 2.29 and newer: nrt_init fails with runtimes before 2.33."""
    runtimes = _runtimes(document)
    for line, driver in drivers(document):
        if driver >= (2, 29) and runtimes and min(runtimes) < (2, 33):
            yield line, f"driver {_shown(driver)} and runtime {_shown(min(runtimes))}"


@rule(
    "driver-too-old",
    ERROR,
    "this runtime needs a newer driver",
    "driver 2.27 or newer for runtime 2.32 and newer (images of SDK 2.30 and newer)",
    RUNTIME_NOTES,
)
def driver_too_old(document: Document) -> Iterator[tuple[int, str]]:
    runtimes = _runtimes(document)
    for line, driver in drivers(document):
        if driver < (2, 27) and runtimes and max(runtimes) >= (2, 32):
            yield line, f"driver {_shown(driver)} and runtime {_shown(max(runtimes))}"


def _runtimes(document: Document) -> list[Version]:
    found = [r for i in images(document) if i.sdk and (r := RUNTIME_OF_SDK.get((i.sdk[0], i.sdk[1])))]
    pins = re.findall(r"aws-neuronx-runtime-lib[= ]+=?\s*(\d+\.\d+)", document.text)
    return found + [v for p in pins if (v := version(p))]


def _shown(value: Version) -> str:
    return ".".join(map(str, value))


@rule(
    "driver-in-image",
    WARNING,
    "the driver belongs to the host",
    "leave aws-neuronx-dkms out of the image; the runtime library and tools go in",
    "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/containers/index.html",
)
def driver_in_image(document: Document) -> Iterator[tuple[int, str]]:
    if document.kind == "dockerfile":
        for number, line in enumerate(document.text.splitlines(), 1):
            if "aws-neuronx-dkms" in line and not line.lstrip().startswith("#"):
                yield number, "a kernel module cannot be loaded in a container"
                return


@rule(
    "host-memory-compile",
    WARNING,
    "the host's memory is not enough to load and compile this model",
    "compile on inf2.8xlarge or larger (128 GiB) and bring the compiled artifact",
    "https://github.com/aws-neuron/aws-neuron-samples/issues/10",
)
def host_memory_compile(document: Document) -> Iterator[tuple[int, str]]:
    """neuronx-cc "Killed", -9: 16 and 32 GB hosts; with a known model, by the estimator."""
    found = [(f, i) for f, i in instances(document) if i.host_gib <= 32]
    if not found or len(found) != len(instances(document)):
        return
    fact, instance = found[0]
    for named, arch in named_models(document):
        buckets = memory.doubling(128, 2048)
        need = host.serving_host(arch, memory.Serving(2, 1, buckets, buckets), instance.host_gib).total
        if need.expected > instance.host_gib * GIB and not document.settings("compiled_graph_path"):
            yield (
                fact.line,
                f"{named.value} on {instance.host_gib} GiB: about {need.expected / GIB:.0f} GiB while compiling",
            )
            return


@rule(
    "efa-instances",
    WARNING,
    "several hosts without EFA",
    "trn1.32xlarge, trn1n.32xlarge or trn2.48xlarge: the smaller ones talk by TCP only",
    "https://awsdocs-neuron.readthedocs-hosted.com/en/v2.28.0/_sources/about-neuron/arch/neuron-hardware/trn1-arch.rst",
)
def efa_instances(document: Document) -> Iterator[tuple[int, str]]:
    named = [i for _, i in instances(document) if i.training]
    for fact in document.settings("instance_count", "instancecount", "nnodes"):
        count = whole_number(fact.value)
        if count and count > 1 and named and not any(i.efa for i in named):
            yield fact.line, f"{count} x {named[0].name}"


@rule(
    "efa-variables",
    NOTE,
    "EFA needs its variables in a launcher of one's own",
    "FI_PROVIDER=efa and FI_EFA_USE_DEVICE_RDMA=1 (SageMaker sets them for ml.trn1.32xlarge only)",
    "https://github.com/aws/sagemaker-training-toolkit/blob/v4.8.3/src/sagemaker_training/torch_distributed.py",
)
def efa_variables(document: Document) -> Iterator[tuple[int, str]]:
    if document.kind != "shell" or document.has("FI_PROVIDER"):
        return
    for fact in document.all(ARG, "nnodes"):
        count = whole_number(fact.value)
        if count and count > 1 and document.has("neuron"):
            yield fact.line, f"--nnodes {count}"


@rule(
    "device-not-there",
    ERROR,
    "the instance has no such Neuron device",
    "inf2.xlarge, inf2.8xlarge and trn1.2xlarge have /dev/neuron0 only",
    "https://github.com/helixml/helix/pull/2663",
)
def device_not_there(document: Document) -> Iterator[tuple[int, str]]:
    named = [i for _, i in instances(document)]
    most = max((i.chips for i in named), default=0)
    for number, line in enumerate(document.text.splitlines(), 1):
        for index in re.findall(r"--device[= ]/dev/neuron(\d+)", line):
            if most and int(index) >= most:
                yield number, f"/dev/neuron{index}, and {named[0].name} has {most}"


@rule(
    "device-missing",
    WARNING,
    "a Neuron container without a device",
    "docker run --device=/dev/neuron0: without one some servers go on with the CPU, silently",
    "https://github.com/aws-neuron/aws-neuron-sdk/issues/873",
)
def device_missing(document: Document) -> Iterator[tuple[int, str]]:
    lines = document.text.splitlines()
    for number, line in enumerate(lines, 1):
        if not re.search(r"\bdocker run\b", line) or line.lstrip().startswith("#"):
            continue
        whole, at = line, number
        while whole.rstrip().endswith("\\") and at < len(lines):
            whole += lines[at]
            at += 1
        runs = any(image_of(w) for w in whole.split() if ":" in w)
        if runs and "/dev/neuron" not in whole and "--privileged" not in whole and "--entrypoint" not in whole:
            yield number, "no --device"


@rule(
    "region-without-instance",
    WARNING,
    "the instance was not seen in this region",
    "harness plan shows where it was; Service Quotas of the region say whether it is there",
    "https://github.com/skypilot-org/skypilot-catalog/blob/master/catalogs/v8/aws/vms.csv",
)
def region_without_instance(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.settings("region", "region_name", "aws_region", "aws_default_region"):
        if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", fact.value):
            continue
        for _, instance in instances(document):
            if fact.value not in instance.regions:
                yield fact.line, f"{instance.name} in {fact.value}; seen in {', '.join(list(instance.regions)[:5])}"
                break


@rule(
    "capacity-in-some-zones",
    NOTE,
    "this instance is in some zones of the region only",
    "give subnets in those zones, or leave the network to SageMaker",
    "https://github.com/skypilot-org/skypilot-catalog/blob/master/catalogs/v8/aws/vms.csv",
)
def capacity_in_some_zones(document: Document) -> Iterator[tuple[int, str]]:
    """A subnet in another zone means waiting for capacity that never comes."""
    subnets = document.settings("subnets", "vpc_config", "subnet_id", "subnetid")
    regions = {f.value for f in document.settings("region", "region_name", "aws_region", "aws_default_region")}
    for fact in subnets[:1]:
        for _, instance in instances(document):
            for region, zones in instance.regions.items():
                if zones and region in regions:
                    yield fact.line, f"{instance.name} in {region}: seen in {', '.join(zones)} only"
                    return


@rule(
    "nccl-in-neuron-image",
    NOTE,
    "packages of CUDA in a Neuron image",
    "leave them out: they take gigabytes and do nothing",
    "https://github.com/aws-neuron/aws-neuron-sdk/issues/617",
)
def nccl_in_neuron_image(document: Document) -> Iterator[tuple[int, str]]:
    base = any(image_of(f.value) for f in document.all(CALL, "FROM"))
    for fact in document.all(PACKAGE, "flash-attn", "bitsandbytes", "xformers", "nvidia-ml-py", "deepspeed"):
        if document.kind == "dockerfile" and base:
            yield fact.line, fact.value.split()[0]
