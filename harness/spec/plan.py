"""The plan: a pure function from run file, stack, profile and run id to the requests that will be sent.

What only a later step knows stands in a request as a placeholder. A step fills its placeholders, records the
resolved request, then sends exactly that. Every derived value carries its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from containers import contract
from containers.contract import ContractError
from harness import assets
from harness.errors import InvalidInput, Problem
from harness.spec import endpoint_times, service_model
from harness.spec.profile import Profile
from harness.spec.runfile import Compute, RunFile
from harness.spec.stacks import Stack
from serve.options import ServeOptions, to_environment

RUN_TAG = "neuron-harness:run"
EXPIRES_TAG = "neuron-harness:expires"
# Volumes on these are instance storage, encrypted by the hardware; a request with a key for them is refused:
# https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ResourceConfig.html (VolumeKmsKeyId)
LOCAL_STORAGE = ("ml.trn1.", "ml.trn1n.", "ml.trn2.")


def run_tags(profile: Profile, run_id: str) -> list[dict[str, str]]:
    """On everything that is made: `down` deletes only what carries the first one."""
    return [{"Key": RUN_TAG, "Value": run_id}, *({"Key": k, "Value": v} for k, v in sorted(profile.tags.items()))]


def vpc_config(profile: Profile) -> dict[str, Any]:
    """VpcConfig, where the profile has one."""
    if not profile.subnets:
        return {}
    return {"VpcConfig": {"Subnets": list(profile.subnets), "SecurityGroupIds": list(profile.security_groups)}}


def object_key(profile: Profile) -> dict[str, str]:
    """OutputDataConfig's KmsKeyId."""
    return {"KmsKeyId": profile.kms_key} if profile.kms_key else {}


def volume_key(profile: Profile, instance: str, name: str) -> dict[str, str]:
    """ResourceConfig's VolumeKmsKeyId, an endpoint configuration's KmsKeyId."""
    return {name: profile.kms_key} if profile.kms_key and not instance.startswith(LOCAL_STORAGE) else {}


def secret_arns(profile: Profile) -> dict[str, Any]:
    """Environment with ARNs: NAME_SECRET_ARN. containers/secretsmanager.py fetches the values."""
    found = {f"{name}_SECRET_ARN": arn for name, arn in sorted(profile.secrets.items())}
    return {"Environment": found} if found else {}


# What a placeholder may stand for, with an example of its shape, for validation before the real thing is known.
PLACEHOLDERS = {
    "train_image": "000000000000.dkr.ecr.us-west-2.amazonaws.com/neuron-train@sha256:" + "0" * 64,
    "serve_image": "000000000000.dkr.ecr.us-west-2.amazonaws.com/neuron-serve@sha256:" + "0" * 64,
    "artifact_uri": "s3://bucket/path/model.tar.gz",
    "expires": "2026-01-01T00:00:00Z",
}


@dataclass(frozen=True)
class Derived:
    """A value that the run file did not give."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Deployment:
    """The three requests that make one endpoint."""

    create_model: dict[str, Any]
    create_endpoint_config: dict[str, Any]
    create_endpoint: dict[str, Any]

    @property
    def endpoint_name(self) -> str:
        return str(self.create_endpoint["EndpointName"])


@dataclass(frozen=True)
class Plan:
    """Every request of a run. `base` is there where the run compares the model before and after."""

    run_id: str
    stack: str
    create_training_job: dict[str, Any]
    tuned: Deployment
    base: Deployment | None
    derived: tuple[Derived, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def from_json(text: str) -> Plan:
    """Read what to_json wrote."""
    raw = json.loads(text)
    raw["tuned"] = Deployment(**raw["tuned"])
    raw["base"] = Deployment(**raw["base"]) if raw["base"] else None
    raw["derived"] = tuple(Derived(**d) for d in raw["derived"])
    return Plan(**raw)


def make(run: RunFile, stack: Stack, profile: Profile, run_id: str) -> Plan:
    """Build the plan of a run file that checks.load has checked, and validate its requests."""
    derived: list[Derived] = []
    options = ServeOptions(**run.serve)  # type: ignore[arg-type]  # checks.load knows the types
    plan = Plan(
        run_id=run_id,
        stack=stack.name,
        create_training_job=_training_job(run, stack, profile, run_id, derived),
        tuned=_deployment(run, profile.serving, run_id, "tuned", options),
        base=_deployment(run, profile.serving, run_id, "base", options) if compares(run) else None,
        derived=tuple(derived),
    )
    validate(plan)
    return plan


def compares(run: RunFile) -> bool:
    """Before and after can be measured where there are held-out examples and the base model is at hand."""
    return run.has_test and _comes_as_channel(run)


def _comes_as_channel(run: RunFile) -> bool:
    """Assets and directories are uploaded; a hub id is downloaded by the job."""
    return run.model.id in assets.MODELS or run.model.is_directory


def model_prefix(run: RunFile, profile: Profile, run_id: str) -> str:
    """Where the base model is in S3: an asset once for all runs, a directory with its run."""
    if run.model.id in assets.MODELS:
        return f"s3://{profile.bucket}/assets/{run.model.id}/"
    return f"s3://{profile.bucket}/runs/{run_id}/model/"


def _training_job(
    run: RunFile, stack: Stack, profile: Profile, run_id: str, derived: list[Derived]
) -> dict[str, Any]:
    root = f"s3://{profile.bucket}/runs/{run_id}"
    channels = _channels(run, profile, run_id)
    try:
        hyperparameters = contract.encode_hyperparameters(_hyperparameters(run, stack, derived))
    except ContractError as error:
        raise InvalidInput(f"[train] {error}") from None
    offline = "model" in channels and "train" in channels
    derived.append(
        Derived(
            "EnableNetworkIsolation",
            str(offline).lower(),
            "model and data come as channels" if offline else "the job downloads from the Hugging Face hub",
        )
    )
    inputs = [
        {
            "ChannelName": name,
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix",
                    "S3Uri": uri,
                    "S3DataDistributionType": "FullyReplicated",
                }
            },
        }
        for name, uri in channels.items()
    ]
    return {
        "TrainingJobName": run_id,
        "AlgorithmSpecification": {
            "TrainingImage": {"placeholder": "train_image"},
            "TrainingInputMode": "File",
            "MetricDefinitions": [
                {"Name": "train:loss", "Regex": r"step=\S+ loss=(\S+)"},
                {"Name": "train:grad_norm", "Regex": r"step=\S+ loss=.* grad_norm=(\S+)"},
                {"Name": "train:learning_rate", "Regex": r"step=\S+ loss=.* learning_rate=(\S+)"},
                {"Name": "train:tokens_per_second", "Regex": r"tokens_per_second=(\S+)"},
                {"Name": "train:mfu", "Regex": r" mfu=(\S+)"},
                {"Name": "eval:loss", "Regex": r"eval_loss=(\S+)"},
                {"Name": "eval:perplexity", "Regex": r"eval_perplexity=(\S+)"},
            ],
        },
        "RoleArn": profile.role_arn,
        "HyperParameters": hyperparameters,
        **({"InputDataConfig": inputs} if inputs else {}),
        "OutputDataConfig": {"S3OutputPath": f"{root}/output", **object_key(profile)},
        "CheckpointConfig": {"S3Uri": f"{root}/checkpoints"},
        "ResourceConfig": {
            "InstanceType": run.compute.train_instance,
            "InstanceCount": run.compute.train_instance_count,
            "VolumeSizeInGB": run.compute.volume_gb,
            **volume_key(profile, run.compute.train_instance, "VolumeKmsKeyId"),
        },
        **_times(run.compute),
        "EnableNetworkIsolation": offline,
        **vpc_config(profile),
        **({} if offline else secret_arns(profile)),  # without a network there is nowhere to get them from
        "Tags": run_tags(profile, run_id),
    }


def _times(compute: Compute) -> dict[str, Any]:
    """When the job is given up. A spot job's wait holds its run time, too: all its starts and what lies between.

    https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StoppingCondition.html
    """
    runtime = {"MaxRuntimeInSeconds": compute.max_runtime_seconds}
    if not compute.spot:
        return {"StoppingCondition": {**runtime, "MaxPendingTimeInSeconds": compute.max_pending_seconds}}
    wait = compute.max_runtime_seconds + compute.max_pending_seconds
    return {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {**runtime, "MaxWaitTimeInSeconds": wait},
    }


def _channels(run: RunFile, profile: Profile, run_id: str) -> dict[str, str]:
    """Channel name -> prefix. Hub ids have no channel: the job downloads them."""
    root = f"s3://{profile.bucket}/runs/{run_id}"
    channels = {}
    if _comes_as_channel(run):
        channels["model"] = model_prefix(run, profile, run_id)
    for name in ("train", "validation"):
        given = getattr(run.data, name)
        if isinstance(given, str) and given.startswith("s3://"):
            channels[name] = given
        elif run.data.id in assets.DATA_SETS or given is not None:
            channels[name] = f"{root}/channels/{name}/"
    return channels


# Flags that a run gets unless its file says otherwise, each with its reason.
TRAIN_DEFAULTS: dict[str, tuple[bool | int | float | str, str]] = {
    "optim": ("adamw_torch", "the fused variant, transformers' newer default, breaks on XLA"),
    "dataloader_drop_last": (True, "a smaller last batch has another shape, which Neuron compiles again"),
    "report_to": ("none", "no job talks to a tracking service by itself"),
    "disable_tqdm": (True, "a progress bar in a log file is a line for every step"),
    "logging_steps": (10, "often enough for a loss curve, seldom enough not to slow XLA down"),
    "save_strategy": ("no", "the finished model is exported by itself; checkpoints are for long runs"),
    "save_total_limit": (2, "the older checkpoint stays until the newer one is whole"),
    "seed": (42, "transformers' own default, written out so that it is in the record"),
}


def _hyperparameters(run: RunFile, stack: Stack, derived: list[Derived]) -> dict[str, bool | int | float | str]:
    values = dict(run.train)
    for name, (value, reason) in TRAIN_DEFAULTS.items():
        if name not in values:
            values[name] = value
            derived.append(Derived(f"train.{name}", str(value), reason))
    values["stack"], values["base_model"] = stack.name, run.model.id
    if not _comes_as_channel(run):
        values["model_name_or_path"], values["model_revision"] = run.model.id, run.model.revision
    if run.data.id is not None and run.data.id not in assets.DATA_SETS:
        values["dataset_name"] = run.data.id
    return {**values, **_data_arguments(run)}


def _data_arguments(run: RunFile) -> dict[str, bool | int | float | str]:
    """[data]'s options by the trainer's names; what the file does not say is the trainer's default."""
    data = run.data
    values: dict[str, bool | int | float | str | None] = {
        "data_format": data.format,
        "data_columns": json.dumps(data.columns) if data.columns else None,
        "train_on": data.train_on,
        "too_long": data.too_long,
        "chat_template": data.chat_template,
        "validation_split_percentage": data.validation_split_percentage,
        "validation_split_seed": data.seed if data.validation_split_percentage else None,
    }
    if data.chat_template is not None and Path(data.chat_template).is_file():
        values["chat_template"] = Path(data.chat_template).read_text(encoding="utf-8-sig")
    return {name: value for name, value in values.items() if value is not None}


def _deployment(run: RunFile, profile: Profile, run_id: str, which: str, options: ServeOptions) -> Deployment:
    name, tags = f"{run_id}-{which}", run_tags(profile, run_id)
    if which == "tuned":
        source: dict[str, Any] = {
            "S3Uri": {"placeholder": "artifact_uri"},
            "S3DataType": "S3Object",
            "CompressionType": "Gzip",
        }
    else:
        source = {
            "S3Uri": model_prefix(run, profile, run_id),
            "S3DataType": "S3Prefix",
            "CompressionType": "None",
        }
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": name,
        "InstanceType": run.compute.serve_instance,
        "InitialInstanceCount": 1,
        **endpoint_times.variant(run.compute.startup_seconds),
    }
    if run.compute.serve_instance.startswith(("ml.inf2", "ml.trn")):
        # SageMaker's default host has Neuron driver 2.10, too old for these images; this AMI has 2.19.
        variant["InferenceAmiVersion"] = "al2-ami-sagemaker-inference-neuron-2"
    return Deployment(
        create_model={
            "ModelName": name,
            "PrimaryContainer": {
                "Image": {"placeholder": "serve_image"},
                "ModelDataSource": {"S3DataSource": source},
                "Environment": {
                    **to_environment(options),
                    **endpoint_times.environment(run.compute.startup_seconds),
                },
            },
            "ExecutionRoleArn": profile.role_arn,
            "EnableNetworkIsolation": True,
            **vpc_config(profile),
            "Tags": tags,
        },
        create_endpoint_config={
            "EndpointConfigName": name,
            "ProductionVariants": [variant],
            **volume_key(profile, run.compute.serve_instance, "KmsKeyId"),
            "Tags": tags,
        },
        create_endpoint={
            "EndpointName": name,
            "EndpointConfigName": name,
            "Tags": [*tags, {"Key": EXPIRES_TAG, "Value": {"placeholder": "expires"}}],
        },
    )


def resolve(request: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """`request` with its placeholders filled. Raises KeyError for one that is not known yet."""

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            if set(value) == {"placeholder"}:
                return known[value["placeholder"]]
            return {k: walk(v) for k, v in value.items()}
        return [walk(v) for v in value] if isinstance(value, list) else value

    out: dict[str, Any] = walk(request)
    return out


def requests_of(plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """(operation, request with placeholders) in the order in which they are sent."""
    yield "CreateTrainingJob", plan.create_training_job
    for deployment in (plan.base, plan.tuned):
        if deployment is not None:
            yield "CreateModel", deployment.create_model
            yield "CreateEndpointConfig", deployment.create_endpoint_config
            yield "CreateEndpoint", deployment.create_endpoint


def validate(plan: Plan) -> None:
    """Check every request against botocore's model, placeholders standing for examples of their shape."""
    problems: list[Problem] = []
    for operation, request in requests_of(plan):
        try:
            service_model.validate("sagemaker", operation, resolve(request, PLACEHOLDERS))
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput.of(problems)
