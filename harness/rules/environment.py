"""Environment variables and caches of the Neuron SDK."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from harness.rules.document import ARG, ENV, Document, Fact, truthy
from harness.rules.known import images
from harness.rules.packages import pinned
from harness.rules.rule import NOTE, WARNING, rule

SDK = "https://github.com/aws-neuron/aws-neuron-sdk"
ANNOUNCED = f"{SDK}/blob/master/about-neuron/announcements/neuron2.x"


def variables(document: Document, *names: str) -> list[Fact]:
    """Environment variables, wherever they are set: ENV, export, a dict, os.environ, a pod's env."""
    return list({f.line: f for f in document.facts if f.kind in (ENV, ARG) and f.name in names}.values())


@rule(
    "env-bf16-removed",
    WARNING,
    "XLA_USE_BF16 and XLA_DOWNCAST_BF16 do nothing any more",
    "use bf16 weights or autocast; SDK 2.24 is the last that reads them",
    f"{ANNOUNCED}/announce-eos-xla-bf16.rst",
)
def env_bf16_removed(document: Document) -> Iterator[tuple[int, str]]:
    sdks = [i.sdk for i in images(document) if i.sdk]
    version = pinned(document, "optimum-neuron")
    late = any(sdk[:2] >= (2, 25) for sdk in sdks) or (version is not None and version >= (0, 4))
    for fact in variables(document, "XLA_USE_BF16", "XLA_DOWNCAST_BF16"):
        if late and truthy(fact.value):
            yield fact.line, f"{fact.name}={fact.value}: trained in fp32, at twice the memory"


@rule(
    "env-async-removed",
    NOTE,
    "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS does nothing from SDK 2.31",
    "remove it, or use the runtime's explicit asynchronous calls",
    f"{ANNOUNCED}/announce-no-support-implicit-async-mode.rst",
)
def env_async_removed(document: Document) -> Iterator[tuple[int, str]]:
    sdks = [i.sdk for i in images(document) if i.sdk]
    for fact in variables(document, "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS"):
        if sdks and min(sdks)[:2] >= (2, 31):
            yield fact.line, f"{fact.name} with SDK {'.'.join(map(str, min(sdks)))}"


@rule(
    "env-cache-dir-cut",
    WARNING,
    "optimum-neuron cuts this --cache_dir short",
    "set NEURON_COMPILE_CACHE_URL instead; without dots and without s3:// in --cache_dir",
    "https://github.com/huggingface/optimum-neuron/blob/v0.4.5/optimum/neuron/utils/cache_utils.py",
)
def env_cache_dir_cut(document: Document) -> Iterator[tuple[int, str]]:
    """Its pattern is --cache_dir=([\\w\\/-]+), so s3://b/c is "s3" and /mnt/cache.v1/x is "/mnt/cache"."""
    uses = document.has("optimum", "run_clm", "NeuronTrainer")
    for fact in variables(document, "NEURON_CC_FLAGS"):
        found = re.search(r"--cache_dir[= ](\S+)", fact.value)
        if found and uses and re.search(r"[.:]", found.group(1).strip("\"'")):
            yield fact.line, f"--cache_dir={found.group(1)}"


@rule(
    "env-cache-shared",
    WARNING,
    "a compile cache on NFS, EFS or FSx",
    "a local disk or an s3:// URL",
    f"{SDK}/blob/master/archive/nxd-training/training-troubleshooting.rst",
)
def env_cache_shared(document: Document) -> Iterator[tuple[int, str]]:
    for fact in variables(document, "NEURON_COMPILE_CACHE_URL", "NEURON_CC_FLAGS"):
        if re.search(r"(?:^|[= ])/(?:mnt/)?(?:fsxl?|efs|nfs)\b", fact.value):
            yield fact.line, f"{fact.name}={fact.value}: errors while compiling were reported there"


@rule(
    "env-two-core-variables",
    NOTE,
    "NEURON_RT_VISIBLE_CORES wins over NEURON_RT_NUM_CORES",
    "set one of them",
    "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/neuron-runtime/nrt-configurable-parameters.html",
)
def env_two_core_variables(document: Document) -> Iterator[tuple[int, str]]:
    visible = variables(document, "NEURON_RT_VISIBLE_CORES")
    for fact in variables(document, "NEURON_RT_NUM_CORES"):
        if visible and document.kind in ("dockerfile", "shell"):
            yield fact.line, f"NEURON_RT_NUM_CORES={fact.value} beside NEURON_RT_VISIBLE_CORES={visible[0].value}"


@rule(
    "env-remote-cache",
    WARNING,
    "VLLM_NEURON_REMOTE_CACHE has no effect",
    "bake the compiled artifacts into the image or model.tar.gz",
    f"{SDK}/issues/1368",
)
def env_remote_cache(document: Document) -> Iterator[tuple[int, str]]:
    for fact in variables(document, "VLLM_NEURON_REMOTE_CACHE"):
        yield fact.line, "the next pod compiles again"


@rule(
    "env-cc-flags-lost",
    WARNING,
    "NEURON_CC_FLAGS is set twice; the second replaces the first",
    'write NEURON_CC_FLAGS="$NEURON_CC_FLAGS ..." the second time',
    "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/compiler/neuronx-cc/api-reference-guide/neuron-compiler-cli-reference-guide.html",
)
def env_cc_flags_lost(document: Document) -> Iterator[tuple[int, str]]:
    """Only in a Dockerfile's ENV, where both are certainly reached; flags of the first that the second lacks."""
    found = [f for f in document.all(ENV, "NEURON_CC_FLAGS") if document.kind == "dockerfile"]
    for first, second in pairwise(found):
        lost = [w for w in first.value.split() if w.startswith("--") and w not in second.value]
        if lost and "NEURON_CC_FLAGS" not in second.value:
            yield second.line, f"loses {' '.join(lost)} of line {first.line}"
