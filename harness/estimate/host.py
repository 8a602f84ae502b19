"""Host memory: what kills 16 and 32 GB instances long before device memory does.

Every number here is a span with its reason. The compiler's memory is not published; "neuronx-cc killed" reports on
trn1.2xlarge and inf2.xlarge bound it (docs/reference/fit.md), so it is an assumption that scales with the graph.
"""

from __future__ import annotations

from harness.estimate.architecture import Architecture
from harness.estimate.hardware import GIB
from harness.estimate.memory import Footprint, Serving, Span, Term, Training, relative_size

SERVER = Span(1.0 * GIB, 1.5 * GIB, 2.0 * GIB)
"""DJL Serving's JVM (JAVA_OPTS -Xmx1g in the DLC) and one Python process with torch."""
WORKER = Span(0.7 * GIB, 1.0 * GIB, 1.6 * GIB)
"""One training process with torch_xla, before it has a model."""
SYSTEM = Span(0.4 * GIB, 0.7 * GIB, 1.0 * GIB)
"""Kernel, container runtime, agents of SageMaker or of the DLAMI."""


def compiler(arch: Architecture) -> Span:
    """One neuronx-cc process on one graph: grows with layers times width."""
    size = relative_size(arch) * GIB
    return Span(0.2 * GIB + 0.5 * size, 0.3 * GIB + 1.5 * size, 0.4 * GIB + 2.5 * size)


def times(count: float, span: Span) -> Span:
    return Span(count * span.low, count * span.expected, count * span.high)


def serving_host(
    arch: Architecture,
    serving: Serving,
    host_gib: float,
    replicas: int = 1,
    parallel: int = 0,
    compiled: bool = False,
) -> Footprint:
    """The host of an endpoint while it starts, which is its peak.

    `replicas`: copies of the model that load at once (DJL starts one process per group of TP cores). `parallel`:
    compilers at once; 0 means one per graph, which is what transformers-neuronx does by itself (base.py, compile).
    `compiled`: the graphs come with the artifact, nothing is compiled.
    """
    checkpoint = arch.parameters * 2.0
    # Low: layer by layer from mapped files. High: the whole checkpoint once as read and once as it is cut up.
    loading = Span(0.3 * checkpoint, 1.1 * checkpoint, 1.8 * checkpoint)
    embedding = arch.embedding_parameters * 4.0
    terms = [
        Term("system", SYSTEM, "kernel and agents"),
        Term("server", times(replicas, SERVER), f"{replicas} worker process{'es' if replicas > 1 else ''}"),
        Term("loading", times(replicas, loading), f"{replicas} x {checkpoint / GIB:.1f} GiB of checkpoint"),
        Term("embedding", times(replicas, Span(embedding, embedding, embedding)), "kept on the host in fp32"),
    ]
    if not compiled:
        at_once = parallel or serving.graphs
        reason = f"{at_once} compilers at once for {serving.graphs} graphs"
        terms.append(Term("compiling", times(replicas * at_once, compiler(arch)), reason))
    return Footprint(tuple(terms), host_gib * GIB)


def training_host(
    arch: Architecture, training: Training, workers: int, host_gib: float, parallel: int = 1
) -> Footprint:
    """One training host: `workers` processes, compilation, and the export at the end."""
    full = arch.parameters * 4.0
    # With TP or PP every worker reads its own part (lazy_load_for_parallelism); without, the whole model in fp32.
    one = full / (training.tp * training.pp)
    loading = times(workers, Span(0.3 * one, one, 1.3 * one))
    terms = [
        Term("system", SYSTEM, "kernel and agents"),
        Term("workers", times(workers, WORKER), f"{workers} processes"),
        Term("loading", loading, f"{workers} x {one / GIB:.1f} GiB in fp32"),
    ]
    # The larger of two peaks that do not come at once: compiling first, the export last.
    compiling = times(parallel, compiler(arch))
    # One tensor at a time: 0.39 to 0.46 of the bf16 weights at 1.1 B parameters (docs/internals/measurements.md).
    export = Span(0.1 * full, 0.25 * full, 0.5 * full)
    if export.expected > compiling.expected:
        terms.append(Term("export", export, "half of the bf16 weights, on rank 0"))
    else:
        terms.append(Term("compiling", compiling, f"{parallel} compiler{'s' if parallel > 1 else ''} at once"))
    return Footprint(tuple(terms), host_gib * GIB)
