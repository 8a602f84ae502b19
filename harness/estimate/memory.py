"""Device memory of one NeuronCore in bytes, for training and for serving, as a span: low, expected, high.

Weights, KV cache and optimizer state are arithmetic. What the compiler and the runtime add (scratchpad, DMA rings,
program code, collectives) is not published anywhere as a formula; it is calibrated on out-of-memory reports and
measurements that people published (docs/reference/fit.md, tests/estimate/). Weights and KV cache alone passed five
published out-of-memory cases, so a span is what can be said honestly.

Categories as in https://awsdocs-neuron.readthedocs-hosted.com/en/v2.33.0/neuron-runtime/explore/device-memory.html
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.estimate.architecture import Architecture
from harness.estimate.hardware import GIB

MIB = 1024**2
FITS, TIGHT, DOES_NOT_FIT = "fits", "tight", "does not fit"
DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Span:
    """Bytes: at least, expected, at most."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.expected + other.expected, self.high + other.high)


NOTHING = Span(0, 0, 0)


def exactly(count: float) -> Span:
    """A number of bytes that follows from shapes alone."""
    return Span(count, count, count)


@dataclass(frozen=True)
class Term:
    """One part of the memory, with how it comes about."""

    name: str
    span: Span
    reason: str


@dataclass(frozen=True)
class Footprint:
    """What one core (or one host) holds, against what it has."""

    terms: tuple[Term, ...]
    capacity: float

    @property
    def total(self) -> Span:
        out = NOTHING
        for term in self.terms:
            out = out + term.span
        return out

    @property
    def verdict(self) -> str:
        """Fits: even the high end is within the capacity. Does not fit: even the low end is not.

        Tight: between, where both successes and failures have been published.
        """
        total = self.total
        if total.high <= self.capacity:
            return FITS
        if total.low > self.capacity:
            return DOES_NOT_FIT
        return TIGHT

    @property
    def largest(self) -> Term:
        return max(self.terms, key=lambda term: term.span.expected)


@dataclass(frozen=True)
class Coefficients:
    """What is calibrated. tests/estimate/test_points.py recomputes every number from the calibration points."""

    ring_per_weight: float = 0.0271
    """Bytes of DMA descriptors per byte of weights and graph."""
    ring_per_token: float = 3.41e6
    """Bytes of DMA descriptors per prompt token of a context graph, for 32 layers of 4096 on one core."""
    scratchpad: Span = Span(512 * MIB, 512 * MIB, 1024 * MIB)
    """One page of 512 MiB in every report; larger variables get space of their own."""
    collectives: Span = Span(367 * MIB, 443 * MIB, 518 * MIB)
    code_base: float = 96 * MIB
    """Micro-code of one core (the SDK's page on device memory)."""
    code_per_graph: float = 20 * MIB
    """Instructions of one graph of 32 layers."""
    training_runtime: Span = Span(0.7 * GIB, 1.5 * GIB, 3.0 * GIB)
    """Scratchpad, rings, code and collectives of training: never published apart, so an assumption."""


DEFAULT = Coefficients()
LOW, HIGH = 0.25, 2.0  # of the expected rings: newer runtimes make many descriptors on the fly; see Coefficients


# Serving ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Serving:
    """What an endpoint compiles. Buckets in tokens; `batch` is the number of slots of the shared cache."""

    tp: int
    batch: int
    token_buckets: tuple[int, ...]
    context_buckets: tuple[int, ...]
    context_batch: int = 1
    """Prompts encoded at once: 1 with continuous batching, the batch without."""
    dtype: str = "bf16"

    @property
    def positions(self) -> int:
        return max((*self.token_buckets, *self.context_buckets))

    @property
    def graphs(self) -> int:
        return len(self.token_buckets) + len(self.context_buckets)


def doubling(smallest: int, largest: int) -> tuple[int, ...]:
    """Buckets as transformers-neuronx makes them: `smallest` doubled up to `largest`, which is always one."""
    sizes = [largest]
    while smallest < largest:
        sizes.append(smallest)
        smallest *= 2
    return tuple(sorted(sizes))


def sharded_heads(arch: Architecture, tp: int) -> tuple[int, int]:
    """Query and key/value heads on each core: padded to a multiple of TP, key/value heads repeated where TP needs it.

    As transformers-neuronx 0.12 does it (utils.get_qkv_padding, release-2.20): repeated up to TP where that divides,
    else up to the number of query heads, which makes 70 B at TP 12 keep 72 of them instead of 8.
    """
    heads, kv = arch.heads, arch.kv_heads
    padded = _up(heads, tp)
    if heads == kv:
        return padded // tp, padded // tp
    if kv % tp == 0:
        return padded // tp, kv // tp
    extra = padded - heads
    if kv < tp and tp % kv == 0 and (heads % tp == 0 or (extra and extra % kv == 0)):
        repeated = tp
    elif padded * kv == heads * tp:
        repeated = kv
    else:
        repeated = heads
    repeated = max(repeated, tp)
    repeated = padded if repeated == heads else repeated
    return padded // tp, _up(repeated, tp) // tp


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def serving_weights(arch: Architecture, tp: int, dtype: str) -> float:
    """Bytes of weights on one core. The embedding stays on the host; the norms are on every core."""
    q, kv = sharded_heads(arch, tp)
    attention = arch.hidden * arch.head_dim * (2 * q + 2 * kv)
    width = 3 if arch.family.gated else 2
    mlp = width * arch.hidden * (_up(arch.intermediate, tp) // tp) * max(arch.experts, 1)
    norms = arch.family.norms * arch.hidden
    head = arch.hidden * (_up(arch.vocab, tp) // tp)
    layers = arch.layers * (attention + mlp) * DTYPE_BYTES[dtype]
    return layers + (head + arch.layers * norms) * max(DTYPE_BYTES[dtype], 2)


def kv_cache(arch: Architecture, serving: Serving) -> float:
    """Bytes of keys and values on one core: every slot has all its positions from the start."""
    _, kv = sharded_heads(arch, serving.tp)
    element = 4 if serving.dtype == "fp32" else 2
    return 2 * arch.layers * kv * arch.head_dim * serving.positions * serving.batch * element


def relative_size(arch: Architecture) -> float:
    """Layers times width, 1 for 32 layers of 4096: what graphs and their descriptors grow with."""
    return arch.layers * arch.hidden / (32 * 4096)


def dma_rings(arch: Architecture, serving: Serving, c: Coefficients = DEFAULT) -> Span:
    """Descriptors of every graph that is loaded at the same time."""
    by_weight = c.ring_per_weight * serving_weights(arch, serving.tp, serving.dtype) * serving.graphs
    tokens = sum(serving.context_buckets) * serving.context_batch / serving.tp
    by_token = c.ring_per_token * tokens * relative_size(arch)
    # Calibrated by sharing one measured sum equally between both; at most, either one made all of it.
    return Span(LOW * (by_weight + by_token), by_weight + by_token, HIGH * max(by_weight, by_token))


def serving_footprint(
    arch: Architecture, serving: Serving, core_gib: float = 16, c: Coefficients = DEFAULT
) -> Footprint:
    """One NeuronCore that serves `arch` with these graphs."""
    q, kv = sharded_heads(arch, serving.tp)
    code = c.code_base + c.code_per_graph * serving.graphs * arch.layers / 32
    longest = max(serving.context_buckets, default=0)
    scores = serving.context_batch * longest**2 * q * 2  # bf16 scores of one layer, where they are kept at once
    scratchpad = Span(c.scratchpad.low, c.scratchpad.expected, max(c.scratchpad.high, c.scratchpad.expected + scores))
    repeated = f", {kv} key/value heads on each core of {arch.kv_heads}" if kv * serving.tp != arch.kv_heads else ""
    terms: tuple[Term, ...] = (
        Term(
            "weights",
            exactly(serving_weights(arch, serving.tp, serving.dtype)),
            f"{serving.dtype}, TP {serving.tp}{repeated}; the embedding is on the host",
        ),
        Term(
            "KV cache",
            exactly(kv_cache(arch, serving)),
            f"{serving.batch} slots of {serving.positions} positions",
        ),
        Term("DMA rings", dma_rings(arch, serving, c), f"descriptors of {serving.graphs} graphs"),
        Term("scratchpad", scratchpad, f"pages of 512 MiB; at most the scores of {longest} prompt tokens as well"),
        Term("program code", Span(0.5 * code, code, 2 * code), f"{serving.graphs} graphs of {arch.layers} layers"),
    )
    if serving.tp > 1:
        terms += (Term("collectives", c.collectives, f"all-reduce among {serving.tp} cores"),)
    return Footprint(terms, core_gib * GIB)


# Training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Precision:
    """Bytes per parameter: weights, gradients, Adam's two moments together, master weights."""

    weights: int
    gradients: int
    moments: int
    master: int
    activation: int = 2
    """Bytes per element of an activation."""


# optimum-neuron 0.0.28 with --bf16 sets XLA_USE_BF16 (half_precision_backend "xla", its default): every fp32 tensor
# is bf16 on the device, moments included. 0.4 and NxD keep fp32 master weights and gradients
# (optimizer_use_master_weights, optimizer_use_fp32_grad_acc).
PRECISIONS = {
    "fp32": Precision(4, 4, 8, 0, activation=4),
    "bf16": Precision(2, 2, 4, 0),
    "bf16-master": Precision(2, 4, 8, 4),
}


@dataclass(frozen=True)
class Training:
    """How a model is trained. Sizes per worker; `data_parallel` is what is left of the cores after TP and PP."""

    tp: int = 1
    pp: int = 1
    data_parallel: int = 1
    batch: int = 1
    """Rows of one microbatch."""
    block: int = 1024
    precision: str = "bf16"
    zero1: bool = False
    checkpointing: bool = False
    sequence_parallel: bool = True
    microbatches: int = 1
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()


def stage_parameters(arch: Architecture, t: Training) -> float:
    """Parameters of the fullest worker: its share of the layers, and of embedding and head (one of them with PP)."""
    layers = -(-arch.layers // t.pp) * arch.layer_parameters
    ends = arch.embedding_parameters if t.pp > 1 else arch.embedding_parameters + arch.head_parameters
    return (layers + ends) / t.tp


def activations(arch: Architecture, t: Training) -> Span:
    """Bytes kept from forward to backward on the fullest worker.

    Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models,
    https://arxiv.org/abs/2205.05198, table 2 (2-byte elements; scaled for 4): sbh(10 + 24/t + 5as/(ht)) per layer,
    with sequence parallelism sbh/t (34 + 5as/h); with full recomputation the layer's input and one layer at a time.
    """
    rows, width, tokens = t.batch, arch.hidden, t.block
    unit = tokens * rows * width * PRECISIONS[t.precision].activation / 2
    scores = 5 * arch.heads * tokens / width
    split = t.sequence_parallel and t.tp > 1
    whole = unit * ((34 + scores) / t.tp if split else 10 + (24 + scores) / t.tp)
    lean = unit * (34 / t.tp if split else 10 + 24 / t.tp)  # without kept attention scores
    layers = -(-arch.layers // t.pp)
    flying = min(t.pp, max(t.microbatches, 1))  # 1F1B: the first stage holds PP microbatches
    if t.checkpointing:
        kept = 2 * unit / (t.tp if split else 1) * layers * flying
        return Span(kept + lean, kept + whole, kept + 2 * whole)
    return Span(lean * layers * flying, whole * layers * flying, 1.25 * whole * layers * flying)


def logits(arch: Architecture, t: Training) -> Span:
    """Bytes of the scores over the vocabulary: the output, its fp32 copy for the loss, and its gradient."""
    count = t.batch * t.block * arch.vocab / t.tp
    element = PRECISIONS[t.precision].activation
    return Span(element * count, (element + 4 + element) * count, (element + 4 + 4 + element) * count)


def training_footprint(arch: Architecture, t: Training, core_gib: float = 16, c: Coefficients = DEFAULT) -> Footprint:
    """One NeuronCore of the fullest pipeline stage."""
    per, parameters = PRECISIONS[t.precision], stage_parameters(arch, t)
    if t.lora_rank:
        trained = arch.lora_parameters(t.lora_rank, t.lora_targets) / t.tp / t.pp
        frozen, what = parameters, f"adapters of rank {t.lora_rank} only"
    else:
        trained, frozen, what = parameters, 0.0, "every parameter"
    shards = t.data_parallel if t.zero1 else 1
    zero = f", ZeRO-1 over {shards} workers" if shards > 1 else ""
    weights = exactly((frozen + trained) * per.weights)
    gradients = Span(trained * per.gradients, trained * per.gradients, 1.1 * trained * per.gradients)
    optimizer = exactly(trained * (per.moments + per.master) / shards)
    terms = (
        Term("weights", weights, f"{per.weights} bytes each, TP {t.tp}, PP {t.pp}"),
        Term("gradients", gradients, f"{per.gradients} bytes each, {what}"),
        Term("optimizer state", optimizer, f"Adam, {per.moments + per.master} bytes each, {what}{zero}"),
        Term(
            "activations",
            activations(arch, t),
            f"{t.batch} x {t.block} tokens{', recomputed layer by layer' if t.checkpointing else ''}",
        ),
        Term("logits", logits(arch, t), f"{t.batch} x {t.block} tokens x {arch.vocab} words over TP {t.tp}"),
        Term("runtime", c.training_runtime, "scratchpad, DMA rings, code, collectives (an assumption)"),
    )
    return Footprint(terms, core_gib * GIB)


def worst(footprints: Iterable[Footprint]) -> Footprint:
    """The one that is fullest in proportion to what it has."""
    return max(footprints, key=lambda f: f.total.expected / f.capacity)
