"""Images, SDKs and architectures that belong together, and when they end."""

from __future__ import annotations

from collections.abc import Iterator

from harness.rules.document import ARG, IMAGE, PACKAGE, Document
from harness.rules.known import TNX_END, first_generation, image_of, images, instances
from harness.rules.rule import ERROR, NOTE, WARNING, rule


@rule(
    "image-needs-newer-chip",
    ERROR,
    "the image's software has nothing for trn1 and inf2",
    "take huggingface-vllm-inference-neuronx of SDK 2.26.1, or the plain vLLM image 0.13.0 of SDK 2.28.0",
    "https://github.com/aws-neuron/aws-neuron-sdk/issues/1322",
)
def image_needs_newer_chip(document: Document) -> Iterator[tuple[int, str]]:
    """From SDK 2.29 NxD Inference has no kernels there, though tags still listed inf2; 2.32 has no image at all.

    release-notes/components/nxd-inference.rst: "models are now only supported on Trn2 and newer hardware".
    """
    where = first_generation(document)
    if where is None:
        return
    for image in images(document):
        if image.sdk and (
            image.sdk[:2] >= (2, 32) or (image.is_vllm and image.plain_aws and image.sdk[:2] >= (2, 29))
        ):
            yield image.line, f"{image.repository}:{image.tag} with {where.value}: models run on trn2 and newer only"


@rule(
    "image-not-published",
    ERROR,
    "there is no such image",
    "the last: pytorch-training-neuronx of SDK 2.30.0, pytorch-inference-neuronx of 2.31.1, djl-inference of 2.20.1",
    "https://github.com/aws-neuron/deep-learning-containers/blob/2be9ed1/README.md",
)
def image_not_published(document: Document) -> Iterator[tuple[int, str]]:
    last = {"pytorch-training-neuronx": (2, 30), "pytorch-inference-neuronx": (2, 31), "djl-inference": (2, 20)}
    for image in images(document):
        limit = last.get(image.repository)
        if limit and image.sdk and image.sdk[:2] > limit:
            yield image.line, f"{image.repository}:{image.tag}: not published after SDK {limit[0]}.{limit[1]}"


@rule(
    "stack-end-of-support",
    NOTE,
    "transformers-neuronx has ended",
    "it goes on working with pinned images; nothing in it is mended any more, and no newer chip runs it",
    "https://github.com/aws-neuron/aws-neuron-sdk/blob/master/about-neuron/announcements/neuron2.x/announce-intent-eos-tnx.rst",
)
def stack_end_of_support(document: Document) -> Iterator[tuple[int, str]]:
    for image in images(document):
        if image.is_djl or (
            image.repository.endswith("pytorch-inference-neuronx") and image.sdk and image.sdk < (2, 26)
        ):
            yield (
                image.line,
                f"{image.repository}:{image.tag} serves by transformers-neuronx, supported until {TNX_END}",
            )
            return
    for fact in document.settings("rolling_batch"):
        if fact.value == "tnx":
            yield fact.line, f"transformers-neuronx, supported until {TNX_END}"
            return
    for fact in document.all(PACKAGE, "transformers-neuronx"):
        yield fact.line, f"transformers-neuronx, supported until {TNX_END}"
        return


@rule(
    "stack-pair",
    WARNING,
    "training and serving images of different SDKs",
    "take both from one SDK release where the compiled graphs or the checkpoint's format matter",
    "https://github.com/aws-neuron/aws-neuron-sdk/issues/1071",
)
def stack_pair(document: Document) -> Iterator[tuple[int, str]]:
    found = [i for i in images(document) if i.sdk]
    train, serve = [i for i in found if i.trains], [i for i in found if not i.trains]
    if len(train) == 1 and len(serve) == 1 and train[0].sdk and serve[0].sdk and train[0].sdk[:2] != serve[0].sdk[:2]:
        a, b = (".".join(map(str, i.sdk or ())) for i in (train[0], serve[0]))
        yield serve[0].line, f"trained with SDK {a}, served with SDK {b}"


@rule(
    "artifact-tokenizer-drift",
    ERROR,
    "the serving image cannot read the tokenizer that training writes",
    "serve with transformers 4.45 or newer, or train with 4.44 or older",
    "https://github.com/huggingface/tokenizers/releases/tag/v0.20.0",
)
def artifact_tokenizer_drift(document: Document) -> Iterator[tuple[int, str]]:
    """A file of tokenizers 0.20 and newer "did not match any variant of untagged enum ModelWrapper" before."""
    writers = [i for i in images(document) if i.trains and i.transformers and i.transformers >= (4, 45)]
    for image in images(document):
        old = image.transformers is not None and image.transformers < (4, 45)
        old = old or (image.is_djl and image.server is not None and image.server < (0, 30))
        if not image.trains and old and writers:
            wrote = ".".join(map(str, writers[0].transformers or ()))
            reads = f"{image.repository}:{image.tag} has tokenizers 0.19 or older"
            yield image.line, f"{reads}, training writes with transformers {wrote}"


@rule(
    "artifact-chat-template-drift",
    WARNING,
    "the chat template is lost on the way to the serving image",
    "write the template into tokenizer_config.json, or serve with transformers 4.52 or newer",
    "https://github.com/huggingface/transformers/releases/tag/v4.52.1",
)
def artifact_chat_template_drift(document: Document) -> Iterator[tuple[int, str]]:
    """4.52 writes chat_template.jinja; 4.45 and older look in tokenizer_config.json only."""
    writers = [i for i in images(document) if i.trains and i.transformers and i.transformers >= (4, 52)]
    for image in images(document):
        if not image.trains and writers and (image.is_djl or (image.transformers or (9,)) < (4, 46)):
            yield (
                image.line,
                f"{image.repository}:{image.tag} does not read chat_template.jinja, which training writes",
            )


# transformers-neuronx 0.12: what its classes are for; gpt_bigcode by DJL's list (tnx_user_guide.md, 0.30.0).
TNX_SERVES = ("bloom", "code_llama", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "llama", "mistral", "mixtral", "opt")


@rule(
    "architecture-not-served",
    ERROR,
    "the serving stack has no class for this model",
    "choose a model of a type that it has, or a stack that has the type (harness plan says which)",
    "https://github.com/aws-neuron/transformers-neuronx/tree/release-2.20/src/transformers_neuronx",
)
def architecture_not_served(document: Document) -> Iterator[tuple[int, str]]:
    from harness.estimate import models

    tnx = any(i.is_djl for i in images(document)) or any(f.value == "tnx" for f in document.settings("rolling_batch"))
    if not tnx:
        return
    for fact in document.settings("model_id", "hf_model_id"):
        known = models.find(fact.value)
        kind = known.architecture.model_type if known else ""
        if kind and kind not in TNX_SERVES:
            yield fact.line, f"{fact.value} is a {kind}; transformers-neuronx has {', '.join(TNX_SERVES)}"


@rule(
    "image-account-and-region",
    WARNING,
    "the registry of that region has no Neuron images, or they are in another account",
    "pull from a region of the list, or copy the image into your own ECR",
    "https://github.com/aws/deep-learning-containers/blob/master/available_images.md",
)
def image_account_and_region(document: Document) -> Iterator[tuple[int, str]]:
    from harness.rules.known import DLC_ACCOUNT, DLC_REGIONS

    for image in images(document):
        if image.account == DLC_ACCOUNT and image.region and image.region not in DLC_REGIONS:
            yield image.line, f"{image.account} serves no Neuron images in {image.region}"


@rule(
    "python-of-image",
    ERROR,
    "optimum-neuron cannot be installed on this image's Python",
    "images of SDK 2.26 and older have Python 3.10 or 3.11",
    "https://github.com/huggingface/optimum-neuron/blob/v0.4.5/pyproject.toml",
)
def python_of_image(document: Document) -> Iterator[tuple[int, str]]:
    """optimum-neuron up to 0.4.5 asks for Python 3.10 or 3.11."""
    if document.kind != "dockerfile":
        return
    bases = [i for f in document.all(IMAGE) if (i := image_of(f.value, f.line)) and i.python and i.python >= (3, 12)]
    for fact in document.all(PACKAGE, "optimum-neuron"):
        if bases and bases[0].plain_aws:
            shown = ".".join(map(str, bases[0].python or ()))
            yield fact.line, f"the base image has Python {shown}, optimum-neuron needs at most 3.11"


@rule(
    "neff-generation",
    ERROR,
    "compiled for one generation of chips, used on another",
    "compile once for each generation",
    "https://github.com/aws-neuron/aws-neuron-sdk/issues/1259",
)
def neff_generation(document: Document) -> Iterator[tuple[int, str]]:
    """--target=trn1 graphs are refused by trn2."""
    newer = [f for f, i in instances(document) if i.chip == "trainium2"]
    older = [f for f, i in instances(document) if i.chip != "trainium2"]
    for fact in document.all(ARG, "target"):
        if fact.value in ("trn1", "inf2") and newer and not older:
            yield fact.line, f"--target={fact.value}, and the instance is {newer[0].value}"
