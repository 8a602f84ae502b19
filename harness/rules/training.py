"""Arguments of training that end a job, or quietly do nothing, on Trainium."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.rules.document import Document, Fact, truthy, whole_number
from harness.rules.known import Version, images, tp_degrees
from harness.rules.packages import pinned
from harness.rules.parallel import is_training
from harness.rules.rule import ERROR, NOTE, WARNING, rule

OPTIMUM = "https://github.com/huggingface/optimum-neuron"
SDK = "https://github.com/aws-neuron/aws-neuron-sdk"
# huggingface-pytorch-training-neuronx: transformers of the tag -> optimum-neuron inside.
OPTIMUM_OF_TRANSFORMERS: dict[tuple[int, int], Version] = {
    (4, 34): (0, 0, 13),
    (4, 36): (0, 0, 21),
    (4, 41): (0, 0, 24),
    (4, 43): (0, 0, 25),
    (4, 48): (0, 0, 28),
    (4, 51): (0, 3, 0),
    (4, 55): (0, 4, 1),
}


def optimum_version(document: Document) -> Version | None:
    """The optimum-neuron that trains: as pinned, else as in the training image."""
    found = pinned(document, "optimum-neuron")
    if found:
        return found
    for image in images(document):
        if image.trains and image.repository.startswith("huggingface") and image.transformers:
            return OPTIMUM_OF_TRANSFORMERS.get((image.transformers[0], image.transformers[1]))
    return None


def _on(facts: list[Fact]) -> list[Fact]:
    return [f for f in facts if truthy(f.value)]


@rule(
    "evaluation-not-supported",
    ERROR,
    "this optimum-neuron raises when it evaluates",
    "0.4.0 and newer: leave do_eval and eval_strategy out and evaluate the artifact; 0.0.28: our trainer mends it",
    f"{OPTIMUM}/blob/v0.4.5/optimum/neuron/trainers/training_args.py",
)
def evaluation_not_supported(document: Document) -> Iterator[tuple[int, str]]:
    """0.4: RuntimeError "Evaluation is not supported yet."; 0.0.28: TypeError in compute_loss (return_outputs)."""
    found = optimum_version(document)
    if found is None or not (found >= (0, 4) or found == (0, 0, 28)) or document.has("neuron-harness"):
        return
    for fact in document.settings("do_eval", "eval_strategy", "evaluation_strategy"):
        wanted = truthy(fact.value) if fact.name == "do_eval" else fact.value not in ("no", "", "{}")
        if wanted and is_training(document):
            yield fact.line, f"{fact.name} with optimum-neuron {'.'.join(map(str, found))}"


@rule(
    "resume-not-supported",
    ERROR,
    "this optimum-neuron cannot resume",
    "0.4.0 and newer raise ValueError; keep to 0.0.28 or start anew",
    f"{OPTIMUM}/blob/v0.4.5/optimum/neuron/trainers/transformers.py",
)
def resume_not_supported(document: Document) -> Iterator[tuple[int, str]]:
    found = optimum_version(document)
    for fact in document.settings("resume_from_checkpoint"):
        if found and found >= (0, 4) and fact.value.lower() not in ("false", "none", ""):
            yield fact.line, f"resume_from_checkpoint with optimum-neuron {'.'.join(map(str, found))}"


@rule(
    "optimizer-fused",
    WARNING,
    "the fused optimizer breaks on XLA",
    "--optim adamw_torch",
    f"{SDK}/blob/master/frameworks/torch/torch-neuronx/tutorials/training/finetune_hftrainer.rst",
)
def optimizer_fused(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.settings("optim"):
        if re.search(r"fused|8bit|paged", fact.value) and document.has("neuron", "trn1"):
            yield fact.line, f"optim {fact.value}"


@rule(
    "shards-not-consolidated",
    WARNING,
    "with tensor parallelism training leaves shards, not a model",
    "optimum-cli neuron consolidate CHECKPOINT OUTPUT after training",
    f"{OPTIMUM}/issues/349",
)
def shards_not_consolidated(document: Document) -> Iterator[tuple[int, str]]:
    if document.has("consolidate", "neuron-harness") or not is_training(document):
        return
    if not document.has("optimum", "run_clm", "finetune"):
        return  # others write a format that their own tools read
    for fact, degree in tp_degrees(document):
        if degree > 1 and fact.name == "tensor_parallel_size" and document.kind in ("shell", "python", "notebook"):
            yield fact.line, f"tensor_parallel_size {degree}, and nothing consolidates"
            return


@rule(
    "shapes-vary",
    WARNING,
    "rows of different lengths compile again and again",
    'pad to one length (padding="max_length") or pack rows of a fixed length; dataloader_drop_last true',
    "https://github.com/aws-neuron/aws-neuron-sdk/issues/564",
)
def shapes_vary(document: Document) -> Iterator[tuple[int, str]]:
    if not (is_training(document) and document.has("neuron")):
        return
    for fact in document.settings("group_by_length", "pad_to_max_length", "packing", "padding"):
        wrong = fact.value.lower() in (("false",) if fact.name != "group_by_length" else ("true",))
        if (wrong and fact.name != "packing") or fact.value == "longest":
            yield fact.line, f"{fact.name} = {fact.value}"


@rule(
    "last-batch-kept",
    NOTE,
    "a smaller last batch is another shape to compile",
    "dataloader_drop_last true",
    "https://github.com/huggingface/optimum-neuron/issues/216",
)
def last_batch_kept(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.settings("dataloader_drop_last"):
        if fact.value.lower() == "false" and document.has("neuron"):
            yield fact.line, "dataloader_drop_last false"


@rule(
    "sequence-not-divisible",
    WARNING,
    "sequence parallelism needs rows that TP divides",
    "a block_size that is a multiple of tensor_parallel_size, or disable_sequence_parallel",
    f"{OPTIMUM}/blob/v0.0.28/docs/source/guides/distributed_training.mdx",
)
def sequence_not_divisible(document: Document) -> Iterator[tuple[int, str]]:
    if _on(document.settings("disable_sequence_parallel")) or not is_training(document):
        return
    if not document.has("optimum", "run_clm", "neuron"):
        return
    degrees = [n for f, n in tp_degrees(document) if f.name == "tensor_parallel_size"]
    for fact in document.settings("block_size", "max_seq_length", "max_length"):
        length = whole_number(fact.value)
        if length and len(degrees) == 1 and degrees[0] > 1 and length % degrees[0]:
            yield fact.line, f"{fact.name} {length} is no multiple of TP {degrees[0]}"


@rule(
    "precompile-differs",
    WARNING,
    "precompiling with other settings than training compiles twice",
    "everything but the number of steps has to be the same",
    "https://github.com/huggingface/optimum-neuron/issues/407",
)
def precompile_differs(document: Document) -> Iterator[tuple[int, str]]:
    """The same flag with two values in a script that calls neuron_parallel_compile."""
    if document.kind != "shell" or not document.has("neuron_parallel_compile"):
        return
    for name in ("per_device_train_batch_size", "block_size", "tensor_parallel_size", "bf16", "max_seq_length"):
        values = {f.value: f for f in document.settings(name)}
        if len(values) > 1:
            yield list(values.values())[-1].line, f"{name}: {' and '.join(values)}"


@rule(
    "precompile-with-evaluation-metrics",
    NOTE,
    "results of neuron_parallel_compile are not results",
    "it runs the graphs with no data: losses and saved files mean nothing",
    "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/frameworks/torch/torch-neuronx/api-reference-guide/training/pytorch-neuron-parallel-compile.html",
)
def precompile_with_evaluation_metrics(document: Document) -> Iterator[tuple[int, str]]:
    compiled_only = document.has("RUN_NEURON_PARALLEL_COMPILE")
    for fact in document.facts:
        if compiled_only and fact.name == "RUN_NEURON_PARALLEL_COMPILE" and truthy(fact.value):
            yield fact.line, "this job compiles and trains nothing"
            return
