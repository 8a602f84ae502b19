"""A run of our own as documents, so that the same rules that judge foreign files judge it."""

from __future__ import annotations

from collections.abc import Mapping

from harness.rules import where
from harness.rules.document import ARG, IMAGE, INSTANCE, Document
from harness.rules.lint import findings
from harness.rules.rule import ERROR, Finding

RUN = "run"
# The plan does these by itself, so that saying them of a run file would be noise.
DONE_BY_US = (
    "serving-rolling-batch-chosen",
    "serving-compile-at-start",
    "startup-timeout-missing",
    "inference-ami",
    "shards-not-consolidated",
    "endpoint-without-end",
    "quota-of-new-accounts",
    "shapes-vary",
)


def documents(
    path: str,
    model: str,
    train: Mapping[str, object],
    serve: Mapping[str, object],
    compute: Mapping[str, object],
    images: tuple[str, str],
) -> list[Document]:
    """One document for training, one for serving, one for the pair of images. Values as in a run file."""
    training, serving, both = (Document(path, RUN, "neuron sagemaker neuron-harness") for _ in range(3))
    training.add(ARG, "do_train", "true", 0)
    for document, values, instance, image in (
        (training, train, compute.get("train_instance"), images[0]),
        (serving, serve, compute.get("serve_instance"), images[1]),
    ):
        document.add(ARG, "model_id", model, 0)
        for key, value in values.items():
            document.add(ARG, key, str(value).lower() if isinstance(value, bool) else value, 0)
        document.add(INSTANCE, str(instance), instance, 0)
        document.add(IMAGE, image, image, 0)
        both.add(IMAGE, image, image, 0)
    training.add(ARG, "instance_count", compute.get("train_instance_count", 1), 0)
    serving.add(ARG, "ContainerStartupHealthCheckTimeoutInSeconds", compute.get("startup_seconds", 1800), 0)
    return [training, serving, both]


def judge(
    path: str,
    model: str,
    model_type: str,
    stack: str,
    train: Mapping[str, object],
    serve: Mapping[str, object],
    compute: Mapping[str, object],
    images: tuple[str, str],
) -> list[Finding]:
    """Every rule on a run, and the table of what runs where."""
    found: list[Finding] = []
    for document in documents(path, model, train, serve, compute, images):
        found += findings(document, off=DONE_BY_US)
    needs = {
        "train": True,
        "serve": True,
        "continuous_batching": True,
        "train_tensor": _above_one(train.get("tensor_parallel_size")),
        "train_pipeline": _above_one(train.get("pipeline_parallel_size")),
        "train_lora": train.get("use_peft") is True,
    }
    for text in where.refusals(model_type, stack, needs):
        remedy, source = "choose another model or stack", "https://github.com/huggingface/optimum-neuron"
        found.append(Finding(path, 0, "what-runs-where", ERROR, text, remedy, source))
    return list(dict.fromkeys(found))


def _above_one(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1
