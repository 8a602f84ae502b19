"""Facts that several topics need: what an image's tag says, which cores an instance has, what ends when.

Sources: https://github.com/aws-neuron/deep-learning-containers (README at each tag),
https://github.com/aws/deep-learning-containers (available_images.md), and the SDK's release notes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.estimate import hardware
from harness.estimate.hardware import Instance
from harness.rules.document import IMAGE, INSTANCE, Document, Fact, whole_number

Version = tuple[int, ...]

DLC_ACCOUNT = "763104351884"
TP_NAMES = ("tensor_parallel_degree", "tensor_parallel_size", "tp_degree", "tp")
# Regions whose Neuron images that account serves (available_images.md of aws/deep-learning-containers, column Neuron,
# and the SageMaker SDK's image_uri_config).
DLC_REGIONS = (
    "us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1", "eu-central-1", "eu-north-1",
    "eu-west-1", "eu-west-2", "eu-west-3", "ap-east-2", "ap-northeast-1", "ap-northeast-2", "ap-south-1",
    "ap-southeast-1", "ap-southeast-2",
)  # fmt: skip
# transformers-neuronx left the images with SDK 2.26; the last that had it is 2.25.
TNX_END = "2025-09"


@dataclass(frozen=True)
class Image:
    """What a Neuron image's name and tag say."""

    repository: str
    tag: str
    sdk: Version | None
    python: Version | None
    transformers: Version | None
    server: Version | None
    """DJL Serving's or vLLM's version: what the tag begins with."""
    region: str
    account: str
    line: int

    @property
    def trains(self) -> bool:
        return "-training-" in self.repository

    @property
    def is_vllm(self) -> bool:
        return "vllm" in self.repository

    @property
    def is_djl(self) -> bool:
        return self.repository in ("djl-inference", "djl-serving")

    @property
    def plain_aws(self) -> bool:
        return not self.repository.startswith(("huggingface", "djl", "neuronx-tgi"))


def version(text: str) -> Version | None:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(p) for p in match.group().split(".")) if match else None


def _tagged(pattern: str, tag: str) -> Version | None:
    match = re.search(pattern, tag)
    return version(match.group(1)) if match else None


def image_of(name: str, line: int = 0) -> Image | None:
    """An image's name taken apart; None for what has no Neuron in it."""
    path, _, tag = name.strip("\"'").rpartition(":")
    repository = path.rsplit("/", 1)[-1]
    if not path or ("neuron" not in name and repository != "djl-serving"):
        return None
    registry = re.match(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.", path)
    python = re.search(r"-py(\d)(\d+)", tag)
    return Image(
        repository=repository,
        tag=tag,
        sdk=_tagged(r"sdk(\d+(?:\.\d+)+)", tag),
        python=(int(python.group(1)), int(python.group(2))) if python else None,
        transformers=_tagged(r"transformers(\d+(?:\.\d+)+)", tag),
        server=version(tag),
        region=registry.group(2) if registry else "",
        account=registry.group(1) if registry else "",
        line=line,
    )


def images(document: Document) -> list[Image]:
    found = (image_of(f.value, f.line) for f in document.all(IMAGE))
    return list({(i.repository, i.tag): i for i in found if i is not None}.values())


def instances(document: Document) -> list[tuple[Fact, Instance]]:
    """Neuron instances that are named, with what they are; unknown ones are left to the rule on names."""
    found = ((f, hardware.find(f.value)) for f in document.all(INSTANCE))
    return [(f, i) for f, i in found if i is not None]


def first_generation(document: Document) -> Fact | None:
    """The first mention of trn1 or inf2, if nothing newer is named beside it."""
    found = instances(document)
    if any(i.chip == "trainium2" for _, i in found) or any(
        "trn2" in f.value or "trn3" in f.value for f in document.all(INSTANCE)
    ):
        return None
    return found[0][0] if found else None


def tp_degrees(document: Document) -> list[tuple[Fact, int]]:
    """Tensor-parallel degrees that are plain numbers."""
    found = ((f, whole_number(f.value)) for f in document.settings(*TP_NAMES))
    return [(f, n) for f, n in found if n is not None]


def most_cores(document: Document) -> tuple[Instance, int] | None:
    """The named instance with the most cores, so that a file about several is not judged by the smallest."""
    found = [i for _, i in instances(document)]
    return max(((i, i.cores) for i in found), key=lambda pair: pair[1], default=None)
