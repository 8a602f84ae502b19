"""Tensor parallelism, cores, heads, buckets and lengths."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.estimate import hardware, models
from harness.estimate.architecture import Architecture
from harness.rules.document import ARG, ENV, Document, Fact, truthy, whole_number
from harness.rules.known import instances, most_cores, tp_degrees
from harness.rules.rule import ERROR, NOTE, WARNING, rule

MODEL_NAMES = ("model_id", "hf_model_id", "model_name_or_path", "model_name", "model", "model_path")


def named_models(document: Document) -> list[tuple[Fact, Architecture]]:
    """Models of the carried table that the file names."""
    found = ((f, models.find(f.value)) for f in document.settings(*MODEL_NAMES))
    return [(f, m.architecture) for f, m in found if m is not None]


@rule(
    "tp-more-than-cores",
    ERROR,
    "more tensor-parallel workers than the instance has NeuronCores",
    "inf2.xlarge and inf2.8xlarge have 2 cores, inf2.24xlarge 12, inf2.48xlarge 24, trn1.2xlarge 2, trn1.32xlarge 32",
    "https://github.com/vllm-project/vllm-neuron/issues/7",
)
def tp_more_than_cores(document: Document) -> Iterator[tuple[int, str]]:
    most = most_cores(document)
    if most is None:
        return
    for fact, degree in tp_degrees(document):
        if degree > most[1]:
            yield fact.line, f"{fact.name} {degree}, but {most[0].name} has {most[1]} cores"


@rule(
    "tp-degree-unusual",
    WARNING,
    "a tensor-parallel degree that the collectives do not know",
    "inf2: 1, 2, 4, 8, 12 or 24; trn1: 1, 2, 8 or 32 (16 works for some models)",
    "https://awsdocs-neuron.readthedocs-hosted.com/en/v2.33.0/archive/transformers-neuronx/generative-llm-inference-with-neuron.html",
)
def tp_degree_unusual(document: Document) -> Iterator[tuple[int, str]]:
    chips = {i.chip for _, i in instances(document)}
    if not chips:
        return
    allowed = {n for chip in chips for n in hardware.TP_DEGREES[chip]}
    for fact, degree in tp_degrees(document):
        if degree not in allowed and degree >= 1:
            yield fact.line, f"{fact.name} {degree}; known are {', '.join(map(str, sorted(allowed)))}"


@rule(
    "tp-divides-heads",
    ERROR,
    "tensor parallelism does not divide the model for training",
    "choose a degree that divides attention heads, MLP width and vocabulary",
    "https://github.com/aws-neuron/neuronx-distributed/blob/main/src/neuronx_distributed/parallel_layers/utils.py",
)
def tp_divides_heads(document: Document) -> Iterator[tuple[int, str]]:
    """neuronx-distributed's divide() asserts equal parts: heads, intermediate size, vocabulary."""
    for fact in document.settings("tensor_parallel_size"):
        degree = whole_number(fact.value)
        if degree is None or degree < 2 or not is_training(document):
            continue
        for _, arch in named_models(document):
            wrong = [f"{n} {what}" for n, what in parts(arch) if n % degree]
            if wrong:
                yield fact.line, f"TP {degree} does not divide {', '.join(wrong)}"


def parts(arch: Architecture) -> tuple[tuple[int, str], ...]:
    """What training cuts into TP equal parts."""
    return (arch.heads, "heads"), (arch.intermediate, "of MLP width"), (arch.vocab, "words of vocabulary")


def is_training(document: Document) -> bool:
    return bool(document.settings("do_train", "num_train_epochs", "max_steps", "per_device_train_batch_size"))


@rule(
    "kv-heads-repeated",
    NOTE,
    "key/value heads are repeated, which costs memory",
    "a TP degree that divides the key/value heads, or is a multiple of them, keeps one copy",
    "https://github.com/aws-neuron/transformers-neuronx/blob/release-2.20/src/transformers_neuronx/utils.py",
)
def kv_heads_repeated(document: Document) -> Iterator[tuple[int, str]]:
    """What made a 70 B model at TP 12 keep 72 of them (transformers-neuronx #92)."""
    for fact in document.settings("tensor_parallel_degree", "tp_degree"):
        degree = whole_number(fact.value)
        for _, arch in named_models(document):
            kv = arch.kv_heads
            if degree and degree > 1 and kv < arch.heads and degree % kv and kv % degree:
                times = arch.heads // kv
                yield fact.line, f"TP {degree} and {kv} key/value heads: each is stored {times} times"


@rule(
    "length-beyond-model",
    WARNING,
    "longer than the model was made for",
    "positions beyond max_position_embeddings give poor answers, or fail to load",
    "https://huggingface.co/docs/transformers/main_classes/configuration",
)
def length_beyond_model(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.settings(
        "n_positions", "max_model_len", "sequence_length", "block_size", "max_total_tokens"
    ):
        length = whole_number(fact.value)
        for named, arch in named_models(document):
            if length and length > arch.positions:
                yield fact.line, f"{fact.name} {length}; {named.value} has {arch.positions} positions"


@rule(
    "bucket-beyond-length",
    ERROR,
    "a prompt bucket is longer than the whole sequence",
    "context_length_estimate entries are at most n_positions",
    "https://github.com/aws-neuron/transformers-neuronx/blob/release-2.20/src/transformers_neuronx/bucket.py",
)
def bucket_beyond_length(document: Document) -> Iterator[tuple[int, str]]:
    lengths = [n for f in document.settings("n_positions") if (n := whole_number(f.value))]
    for fact in document.settings("context_length_estimate"):
        buckets = [int(n) for n in re.findall(r"\d{1,9}", fact.value)]
        if len(lengths) == 1 and buckets and max(buckets) > lengths[0]:
            yield fact.line, f"context_length_estimate {max(buckets)} is more than n_positions {lengths[0]}"


@rule(
    "visible-cores-range",
    ERROR,
    "NEURON_RT_VISIBLE_CORES names cores that the instance does not have",
    "cores count from 0; inf2.8xlarge has 0-1",
    "https://github.com/vllm-project/vllm/issues/5738",
)
def visible_cores_range(document: Document) -> Iterator[tuple[int, str]]:
    most = most_cores(document)
    for fact in [f for f in document.facts if f.kind in (ENV, ARG) and f.name == "NEURON_RT_VISIBLE_CORES"]:
        numbers = [int(n) for n in re.findall(r"\d{1,4}", fact.value)]
        if most and numbers and max(numbers) >= most[1]:
            yield fact.line, f"core {max(numbers)}, but {most[0].name} has 0 to {most[1] - 1}"


@rule(
    "replicas-of-small-tp",
    NOTE,
    "DJL starts one copy of the model for every group of TP cores",
    "each copy compiles and loads by itself: count host memory and start-up for all of them, or set maxWorkers=1",
    "https://github.com/deepjavalibrary/djl-serving/issues/1079",
)
def replicas_of_small_tp(document: Document) -> Iterator[tuple[int, str]]:
    named = [i for _, i in instances(document) if i.hosting]
    smallest = min(named, key=lambda i: i.cores, default=None)
    limited = any(f.value == "1" for f in document.settings("maxworkers", "max_workers", "serving_max_workers"))
    for fact in document.settings("tensor_parallel_degree"):
        degree = whole_number(fact.value)
        if smallest and degree and degree * 2 <= smallest.cores and not limited:
            yield fact.line, f"TP {degree} on {smallest.cores} cores: {smallest.cores // degree} copies"


@rule(
    "zero1-without-data-parallelism",
    NOTE,
    "ZeRO-1 has nothing to share the optimizer with",
    "it saves memory only where more than one data-parallel worker is left",
    "https://huggingface.co/docs/optimum-neuron/guides/distributed_training",
)
def zero1_without_data_parallelism(document: Document) -> Iterator[tuple[int, str]]:
    most = most_cores(document)
    degrees = [n for _, n in tp_degrees(document)]
    for fact in document.settings("zero_1"):
        if truthy(fact.value) and most and degrees and max(degrees) >= most[1]:
            yield fact.line, f"TP {max(degrees)} takes all {most[1]} cores of {most[0].name}"
