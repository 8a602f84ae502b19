"""Packages: placeholders under Neuron's names, and versions that do not go together."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.rules.document import CALL, ENV, PACKAGE, Document, Fact
from harness.rules.known import Version, image_of, images, version
from harness.rules.rule import ERROR, NOTE, WARNING, rule

# Names on PyPI that are placeholders; the packages are on https://pip.repos.neuron.amazonaws.com.
PLACEHOLDERS = (
    "neuronx-cc", "neuronx-cc-stubs", "torch-neuronx", "libneuronxla", "neuronx-distributed",
    "neuronx-distributed-inference", "neuronx-distributed-training", "transformers-neuronx", "jax-neuronx",
    "vllm-neuron", "nki-library", "nki",
)  # fmt: skip


def pinned(document: Document, package: str) -> Version | None:
    """The version of `package` if it is pinned by == (or ~=)."""
    for fact in document.all(PACKAGE, package):
        found = re.search(r"[=~]=\s*([\d.]+)", fact.value)
        if found:
            return version(found.group(1))
    return None


def knows_neuron_index(document: Document) -> bool:
    """An index of Neuron's is configured somewhere, or the base image has it (SDK 2.26 and older images)."""
    if document.has("pip.repos.neuron"):
        return True
    return any(i for f in document.all(CALL, "FROM") if (i := image_of(f.value)) is not None)


@rule(
    "package-placeholder",
    ERROR,
    "PyPI has only a placeholder under this name",
    "add --extra-index-url https://pip.repos.neuron.amazonaws.com",
    "https://pypi.org/project/torch-neuronx/",
)
def package_placeholder(document: Document) -> Iterator[tuple[int, str]]:
    """In a Dockerfile without that index anywhere and on no Neuron image: pip takes the placeholder, silently."""
    if document.kind == "dockerfile" and document.all(CALL, "FROM") and not knows_neuron_index(document):
        if document.has("pip.conf", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "--index-url", "--extra-index-url"):
            return
        for fact in _placeholders(document):
            yield fact.line, f"pip install {fact.value.split()[0]} without Neuron's index"


def _placeholders(document: Document) -> list[Fact]:
    return [
        f for f in document.all(PACKAGE, *PLACEHOLDERS) if "neuron-index" not in f.value and ".whl" not in f.value
    ]


@rule(
    "package-placeholder-possible",
    WARNING,
    "PyPI has only a placeholder under this name",
    "name Neuron's index in the file itself: --extra-index-url https://pip.repos.neuron.amazonaws.com",
    "https://pypi.org/project/transformers-neuronx/",
)
def package_placeholder_possible(document: Document) -> Iterator[tuple[int, str]]:
    """Where the environment may have the index: requirements.txt, scripts, notebooks."""
    if document.kind in ("requirements", "shell", "notebook", "python") and not document.has("pip.repos.neuron"):
        for fact in _placeholders(document):
            yield fact.line, f"{fact.value.split()[0]}: right only where pip is configured for Neuron's index"


@rule(
    "sagemaker-sdk-3",
    WARNING,
    "version 3 of the SageMaker SDK has no estimators and no sagemaker.huggingface",
    'pin "sagemaker<3", or use ModelTrainer, or speak boto3',
    "https://github.com/huggingface/hub-docs/pull/2095",
)
def sagemaker_sdk_3(document: Document) -> Iterator[tuple[int, str]]:
    old = [
        f
        for f in document.all(CALL)
        if re.match(r"import sagemaker\.(huggingface|pytorch|estimator|djl_inference)", f.name)
    ]
    for fact in document.all(PACKAGE, "sagemaker"):
        if old and not re.search(r"(==|<|~=)\s*=?\s*[012]", fact.value):
            yield fact.line, f"{fact.value} and {old[0].name.split()[1]}, which is gone in version 3"


@rule(
    "optimum-extra",
    WARNING,
    "the extra for another generation",
    "optimum[neuronx] is for trn1 and inf2, optimum[neuron] for inf1",
    "https://github.com/huggingface/optimum-neuron/issues/804",
)
def optimum_extra(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.all(PACKAGE, "optimum", "optimum-neuron"):
        if re.search(r"\[neuron\]", fact.value):
            yield fact.line, fact.value.split()[0]


@rule(
    "numpy-for-pyarrow",
    WARNING,
    "pyarrow and numpy pinned to versions that refuse each other",
    'pin "pyarrow<26" where numpy is below 2, as in every Neuron image',
    "https://github.com/apache/arrow/releases",
)
def numpy_for_pyarrow(document: Document) -> Iterator[tuple[int, str]]:
    arrow, numpy = pinned(document, "pyarrow"), pinned(document, "numpy")
    if arrow and numpy and arrow >= (26,) and numpy < (2,):
        yield document.all(PACKAGE, "pyarrow")[0].line, "pyarrow 26 requires numpy 2.0 or newer"


@rule(
    "datasets-for-pyarrow",
    ERROR,
    "datasets and pyarrow pinned to versions that do not go together",
    "datasets 2.15 or newer with pyarrow 25 or newer",
    "https://github.com/huggingface/optimum-neuron/commit/90323d51",
)
def datasets_for_pyarrow(document: Document) -> Iterator[tuple[int, str]]:
    arrow, datasets = pinned(document, "pyarrow"), pinned(document, "datasets")
    if arrow and datasets and arrow >= (25,) and datasets < (2, 15):
        yield document.all(PACKAGE, "datasets")[0].line, "AttributeError in datasets at import"


@rule(
    "hub-for-datasets",
    WARNING,
    "datasets and huggingface_hub pinned to versions that do not go together",
    "datasets 5.0.1 or older with transformers 4",
    "https://github.com/huggingface/datasets/releases/tag/5.2.0",
)
def hub_for_datasets(document: Document) -> Iterator[tuple[int, str]]:
    """datasets 5.2 needs huggingface_hub 1.31, transformers 4.57 caps it below 1."""
    datasets, transformers = pinned(document, "datasets"), pinned(document, "transformers")
    if datasets and transformers and datasets >= (5, 2) and transformers < (5,):
        yield (
            document.all(PACKAGE, "datasets")[0].line,
            "datasets 5.2 with transformers 4: no huggingface_hub suits both",
        )


@rule(
    "training-toolkit-protobuf",
    WARNING,
    "sagemaker-training 5 needs a protobuf that Neuron's compiler does not take",
    'pin "sagemaker-training<5" on images of SDK 2.26 and older',
    "https://github.com/aws/sagemaker-training-toolkit/releases/tag/v5.0.0",
)
def training_toolkit_protobuf(document: Document) -> Iterator[tuple[int, str]]:
    found = pinned(document, "sagemaker-training")
    old = any(i.sdk and i.sdk[:2] <= (2, 26) for i in images(document)) or document.all(PACKAGE, "neuronx-cc")
    if found and found >= (5,) and old:
        yield document.all(PACKAGE, "sagemaker-training")[0].line, "protobuf 5 against protobuf below 4"


@rule(
    "argument-renamed",
    ERROR,
    "this version has no such argument",
    "max_length from trl 0.20 on (optimum-neuron 0.4.3 and newer pin 0.24)",
    "https://github.com/huggingface/optimum-neuron/issues/841",
)
def argument_renamed(document: Document) -> Iterator[tuple[int, str]]:
    trl, optimum = pinned(document, "trl"), pinned(document, "optimum-neuron")
    late = (trl is not None and trl >= (0, 20)) or (optimum is not None and optimum >= (0, 4, 3))
    configs = [f.line for f in document.all(CALL) if f.name.endswith(("SFTConfig", "NeuronSFTConfig"))]
    for fact in document.facts:
        if fact.name == "max_seq_length" and late and configs:
            yield fact.line, "NeuronSFTConfig got an unexpected keyword argument max_seq_length"


@rule(
    "package-unpinned-in-image",
    NOTE,
    "a package without a version in an image",
    "pin it: transformers, numpy and protobuf of the base are part of a tested set",
    "https://github.com/huggingface/optimum-neuron/issues/720",
)
def package_unpinned_in_image(document: Document) -> Iterator[tuple[int, str]]:
    base = [i for f in document.all(CALL, "FROM") if (i := image_of(f.value)) is not None]
    risky = ("transformers", "numpy", "protobuf", "torch", "accelerate", "datasets", "optimum-neuron", "peft", "trl")
    if document.kind == "dockerfile" and base:
        for fact in document.all(PACKAGE, *risky):
            if not re.search(r"[=<~]", fact.value):
                yield fact.line, f"pip install {fact.value.split()[0]} on {base[0].repository}"


@rule(
    "transformers-replaced-in-image",
    WARNING,
    "another transformers than the image was tested with",
    "leave transformers as it is, or choose an image that has the version",
    "https://github.com/huggingface/optimum-neuron/issues/698",
)
def transformers_replaced_in_image(document: Document) -> Iterator[tuple[int, str]]:
    base = [i for f in document.all(CALL, "FROM") if (i := image_of(f.value)) is not None and i.transformers]
    found = pinned(document, "transformers")
    if base and found and base[0].transformers and found[:2] != base[0].transformers[:2]:
        shown = ".".join(map(str, base[0].transformers))
        yield document.all(PACKAGE, "transformers")[0].line, f"the image has transformers {shown}"


def env_names(document: Document) -> set[str]:
    return {f.name for f in document.all(ENV)}
