"""Limits and habits of SageMaker: instances, time-outs, spot, network, secrets, endpoints that nobody ends."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.errors import did_you_mean
from harness.estimate import hardware
from harness.rules.document import ARG, CALL, INSTANCE, Document, Fact, setting_name, truthy, whole_number
from harness.rules.known import instances
from harness.rules.rule import ERROR, NOTE, WARNING, rule

API = "https://docs.aws.amazon.com/sagemaker/latest/APIReference"
STARTUP = ("container_startup_health_check_timeout", "containerstartuphealthchecktimeoutinseconds")
DOWNLOAD = ("model_data_download_timeout", "modeldatadownloadtimeoutinseconds")


def calls(document: Document, *endings: str) -> list[Fact]:
    return [f for f in document.all(CALL) if f.name.split("(")[0].endswith(endings)]


def training_calls(document: Document) -> list[Fact]:
    return calls(document, "create_training_job", "ModelTrainer", "HuggingFace", "PyTorch", "Estimator")


def hosting_calls(document: Document) -> list[Fact]:
    return calls(document, "create_endpoint", "create_endpoint_config", ".deploy")


def speaks_sagemaker(document: Document) -> bool:
    return document.has("sagemaker") and document.kind in ("python", "notebook", "json", "yaml", "shell")


@rule(
    "instance-name",
    ERROR,
    "no such instance type",
    "ml.trn1.2xlarge and .32xlarge, ml.trn2.48xlarge; ml.inf2.xlarge, .8xlarge, .24xlarge and .48xlarge",
    f"{API}/API_ProductionVariant.html",
)
def instance_name(document: Document) -> Iterator[tuple[int, str]]:
    known = [f"ml.{n}" for n in hardware.instances()] + ["ml.inf1.xlarge", "ml.inf1.2xlarge", "ml.inf1.6xlarge"]
    known += ["ml.inf1.24xlarge", "ml.trn2.xlarge"]
    for fact in document.all(INSTANCE):
        if re.match(r"ml\.(?:trn1n?|inf2)\.", fact.value) and fact.value not in known:
            yield fact.line, f"{fact.value}; {did_you_mean(fact.value, known)}".rstrip("; ")


@rule(
    "instance-cannot-train",
    ERROR,
    "SageMaker does not train on inf2",
    "ml.trn1.2xlarge or larger",
    f"{API}/API_ResourceConfig.html",
)
def instance_cannot_train(document: Document) -> Iterator[tuple[int, str]]:
    """By the estimator's or the job's own argument: in a notebook the endpoint's instance is inf2 rightly."""
    if hosting_calls(document) or not speaks_sagemaker(document):
        return
    trains = training_calls(document) or document.settings("trainingjobname")
    for fact in document.settings("instance_type", "instancetype", "train_instance_type"):
        found = hardware.find(fact.value)
        if trains and found is not None and not found.training and fact.value.startswith("ml."):
            yield fact.line, f"{fact.value} for training"


@rule(
    "startup-timeout-range",
    ERROR,
    "outside what SageMaker takes",
    "60 to 3600 seconds: what takes longer has to be compiled before",
    f"{API}/API_ProductionVariant.html",
)
def startup_timeout_range(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.settings(*STARTUP, *DOWNLOAD):
        seconds = whole_number(fact.value)
        if seconds is not None and not 60 <= seconds <= 3600:
            yield fact.line, f"{fact.name} {seconds}"


@rule(
    "startup-timeout-missing",
    WARNING,
    "an LLM on Inferentia is rarely ready within the default",
    "set ContainerStartupHealthCheckTimeoutInSeconds (up to 3600): loading and compiling count",
    "https://github.com/deepjavalibrary/djl-serving/issues/950",
)
def startup_timeout_missing(document: Document) -> Iterator[tuple[int, str]]:
    hosts = [i for _, i in instances(document) if i.hosting]
    set_ = document.settings(*STARTUP)
    for fact in hosting_calls(document):
        if fact.name.endswith((".deploy", "create_endpoint_config")) and hosts and not set_ and _is_llm(document):
            yield fact.line, "no start-up time-out"
            return


def _is_llm(document: Document) -> bool:
    if document.has("JumpStartModel"):  # brings its own settings
        return False
    words = (
        "llama",
        "mistral",
        "qwen",
        "llm",
        "gpt",
        "zephyr",
        "tgi",
        "vllm",
        "djl",
        "max_new_tokens",
        "HF_NUM_CORES",
    )
    return document.has(*words)


@rule(
    "inference-ami",
    NOTE,
    "the default host of endpoints has an old Neuron driver",
    'InferenceAmiVersion="al2-ami-sagemaker-inference-neuron-2" for inf2 and trn1',
    "https://github.com/awslabs/llm-hosting-container/pull/156",
)
def inference_ami(document: Document) -> Iterator[tuple[int, str]]:
    if document.settings("inferenceamiversion", "inference_ami_version"):
        return
    first = next((f for f, i in instances(document) if i.hosting and f.value.startswith("ml.")), None)
    made = [f for f in hosting_calls(document) if f.name.endswith((".deploy", "create_endpoint_config"))]
    if first and made and _is_llm(document):
        yield made[0].line, f"{first.value} without InferenceAmiVersion"


@rule(
    "inference-ami-unknown",
    ERROR,
    "no such InferenceAmiVersion for Neuron",
    "al2-ami-sagemaker-inference-neuron-2: with another family's the endpoint stays Creating, without logs",
    "https://github.com/aws/deep-learning-containers/pull/6187",
)
def inference_ami_unknown(document: Document) -> Iterator[tuple[int, str]]:
    chips = [f for f, i in instances(document) if i.hosting]
    for fact in document.settings("inferenceamiversion", "inference_ami_version"):
        if (
            chips
            and "gpu" in fact.value
            and len({f.value for f in document.all(INSTANCE)}) == len({f.value for f in chips})
        ):
            yield fact.line, f"{fact.value} with {chips[0].value}"


@rule(
    "max-runtime-range",
    ERROR,
    "outside what SageMaker takes",
    "1 second to 28 days (2419200 s)",
    f"{API}/API_StoppingCondition.html",
)
def max_runtime_range(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.settings("max_run", "maxruntimeinseconds", "max_runtime_in_seconds", "max_wait"):
        seconds = whole_number(fact.value)
        if seconds is not None and not 1 <= seconds <= 28 * 86400 and speaks_sagemaker(document):
            yield fact.line, f"{fact.name} {seconds}"


@rule(
    "spot-wait-shorter-than-run",
    ERROR,
    "a spot job's wait has to hold its run time",
    "max_wait >= max_run",
    f"{API}/API_StoppingCondition.html",
)
def spot_wait_shorter_than_run(document: Document) -> Iterator[tuple[int, str]]:
    runs = document.settings("max_run", "maxruntimeinseconds", "max_runtime_in_seconds")
    waits = document.settings("max_wait", "maxwaittimeinseconds", "max_wait_time_in_seconds")
    if len(runs) == 1 and len(waits) == 1:
        run, wait = whole_number(runs[0].value), whole_number(waits[0].value)
        if run and wait and wait < run:
            yield waits[0].line, f"{waits[0].name} {wait} is less than {runs[0].name} {run}"


@rule(
    "spot-without-checkpoints",
    WARNING,
    "a spot job without checkpoints starts from the beginning each time",
    "checkpoint_s3_uri (CheckpointConfig), and save_steps in the training script",
    "https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html",
)
def spot_without_checkpoints(document: Document) -> Iterator[tuple[int, str]]:
    for fact in document.settings("use_spot_instances", "enablemanagedspottraining", "enable_managed_spot_training"):
        given = document.settings("checkpoint_s3_uri", "checkpointconfig", "checkpoint_config")
        if truthy(fact.value) and not given and not document.has("checkpoint_s3_uri", "CheckpointConfig"):
            yield fact.line, f"{fact.name}, and no checkpoint_s3_uri"


@rule(
    "network-isolation-and-hub",
    ERROR,
    "a container without a network cannot download from the hub",
    "give model and data as channels, or turn network isolation off",
    "https://docs.aws.amazon.com/sagemaker/latest/dg/mkt-algo-model-internet-free.html",
)
def network_isolation_and_hub(document: Document) -> Iterator[tuple[int, str]]:
    names = ("enablenetworkisolation", "enable_network_isolation")
    isolated = [f for f in document.settings(*names) if truthy(f.value)]
    hub = [
        f
        for f in document.facts
        if setting_name(f) in ("hf_model_id", "model_name_or_path", "dataset_name", "model_id")
    ]
    remote = [
        f for f in hub if re.fullmatch(r"[\w.-]+/[\w.-]+", f.value) and not f.value.startswith(("opt/", "data/"))
    ]
    if isolated and remote and not document.has("ModelDataUrl", "model_data=", "InputDataConfig"):
        yield isolated[0].line, f"{remote[0].name} is {remote[0].value}"


# A whole token, not a word that begins like one.
SECRET = re.compile(r"\b(hf_[A-Za-z]{30,40}|AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{36}|sk-[A-Za-z0-9]{40,})\b")


@rule(
    "secret-readable",
    WARNING,
    "a token that everybody can read who may describe the job",
    "Secrets Manager, fetched in the container; and revoke this one",
    f"{API}/API_DescribeTrainingJob.html",
)
def secret_readable(document: Document) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(document.text.splitlines(), 1):
        found = SECRET.search(line)
        if found:
            at = number if document.kind != "notebook" else _line_of(document, found.group(1))
            yield at, f"{found.group(1)[:6]}..."


def _line_of(document: Document, text: str) -> int:
    return next((f.line for f in document.facts if text in f.value), 1)


@rule(
    "endpoint-without-end",
    NOTE,
    "nothing in this file ends the endpoint",
    "delete_endpoint at the end, or an expiry (harness deploy sets one)",
    "https://docs.aws.amazon.com/sagemaker/latest/dg/realtime-endpoints-delete-resources.html",
)
def endpoint_without_end(document: Document) -> Iterator[tuple[int, str]]:
    made = [f for f in hosting_calls(document) if f.name.endswith((".deploy", "create_endpoint"))]
    chips = [f for f, i in instances(document) if i.hosting]
    if (
        made
        and chips
        and not calls(document, "delete_endpoint")
        and not document.has("delete-endpoint", "delete_endpoint")
    ):
        yield made[0].line, f"{made[0].name} on {chips[0].value} is billed until somebody deletes it"


@rule(
    "hyperparameter-through-shell",
    WARNING,
    "SageMaker's training toolkit runs the command in a shell",
    "no spaces, quotes, $ or * in hyperparameters; or give them in a file",
    "https://github.com/aws/sagemaker-training-toolkit/blob/master/src/sagemaker_training/process.py",
)
def hyperparameter_through_shell(document: Document) -> Iterator[tuple[int, str]]:
    """process.run_async joins the arguments with spaces and starts them with shell=True."""
    if document.path.replace("\\", "/").rsplit("/", 1)[-1] != "hyperparameters.json":
        return
    for fact in document.all(ARG):
        if re.search(r"[\s$*`;&|<>]", fact.value) and not fact.value.startswith(("{", "[")):
            yield fact.line, f"{fact.name} = {fact.value[:40]!r} is split or expanded"


@rule(
    "distribution-for-trainium",
    WARNING,
    "this distribution is for GPUs",
    'distribution={"torch_distributed": {"enabled": True}}',
    "https://sagemaker.readthedocs.io/en/v2.200.0/frameworks/pytorch/using_pytorch.html",
)
def distribution_for_trainium(document: Document) -> Iterator[tuple[int, str]]:
    trn = [f for f, i in instances(document) if i.training]
    others = [f for f in document.all(INSTANCE) if f not in trn]
    if not trn or others or re.search(r"ml\.[pg]\d", document.text):
        return
    for number, line in enumerate(document.text.splitlines(), 1):
        if document.kind == "python" and re.search(r"[\"']smdistributed[\"']\s*:", line):
            yield number, f"smdistributed on {trn[0].value}"


@rule(
    "quota-of-new-accounts",
    NOTE,
    "new accounts have a quota of 0 for these instances",
    "ask for it in Service Quotas; it takes hours to days",
    "https://github.com/phonghuule/fine-tuning-llms-on-aws",
)
def quota_of_new_accounts(document: Document) -> Iterator[tuple[int, str]]:
    made = training_calls(document) + hosting_calls(document)
    first = next((f for f, _ in instances(document) if f.value.startswith("ml.")), None)
    if made and first:
        yield first.line, f"{first.value} for training job or endpoint usage"


@rule(
    "update-endpoint-variant",
    WARNING,
    "update_endpoint needs the whole variant",
    "give instance_type and initial_instance_count as well",
    "https://github.com/aws/sagemaker-python-sdk/issues/5266",
)
def update_endpoint_variant(document: Document) -> Iterator[tuple[int, str]]:
    for fact in calls(document, ".update_endpoint"):
        near = [
            f
            for f in document.all(ARG, "instance_type", "endpoint_config_name", "EndpointConfigName")
            if f.line >= fact.line
        ]
        if not near:
            yield fact.line, "no instance_type"
