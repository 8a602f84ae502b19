"""The service's own rules, beyond what botocore's model says: what AWS checks before it answers a create call."""

from __future__ import annotations

import re
from typing import Any

from containers import contract
from harness.emulator.errors import invalid, not_implemented
from harness.emulator.service import Service

# Members that change nothing here but are recorded and described: there is no network, key or volume to speak of.
TRAINING_MEMBERS = {
    *("TrainingJobName", "HyperParameters", "AlgorithmSpecification", "RoleArn", "InputDataConfig"),
    *("OutputDataConfig", "ResourceConfig", "VpcConfig", "StoppingCondition", "Tags", "EnableNetworkIsolation"),
    *("EnableInterContainerTrafficEncryption", "EnableManagedSpotTraining", "CheckpointConfig", "Environment"),
    "RetryStrategy",
}
ALGORITHM = {"TrainingImage", "TrainingInputMode", "MetricDefinitions", "ContainerEntrypoint", "ContainerArguments"}
RESOURCES = {"InstanceType", "InstanceCount", "VolumeSizeInGB", "VolumeKmsKeyId"}
CHANNEL = {"ChannelName", "DataSource", "ContentType", "CompressionType", "RecordWrapperType", "InputMode"}
S3_SOURCE = {"S3DataType", "S3Uri", "S3DataDistributionType"}
MAX_HOSTS = 16  # loopback addresses and processes are cheap, this machine's memory is not


def only(where: str, value: dict[str, Any], known: set[str]) -> None:
    """Raises for every member that is not emulated: it would silently have no effect."""
    unknown = sorted(set(value) - known)
    if unknown:
        raise not_implemented(f"{where} with {', '.join(unknown)}")


def check_role(service: Service, arn: str) -> None:
    """The role must exist here, too: `local up` makes role/local."""
    if not service.role_exists(arn):
        raise invalid(
            f"Could not assume role {arn}. Please ensure that the role exists and allows principal "
            "'sagemaker.amazonaws.com' to assume the role."
        )


def check_training_job(service: Service, request: dict[str, Any]) -> None:
    """Raises ApiError for the first rule that `request` breaks."""
    only("CreateTrainingJob", request, TRAINING_MEMBERS)
    for member in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
        if member not in request:
            raise invalid(f"{member} is required.")
    _check_algorithm(request["AlgorithmSpecification"])
    _check_resources(request["ResourceConfig"])
    _check_times(request)
    channels = request.get("InputDataConfig", [])
    names = [channel["ChannelName"] for channel in channels]
    if len(set(names)) < len(names):
        raise invalid("Channel names must be unique within InputDataConfig.")
    check_role(service, request["RoleArn"])
    for channel in channels:
        _check_channel(service, channel, request)
    _check_output(service, request)


def _check_algorithm(algorithm: dict[str, Any]) -> None:
    only("AlgorithmSpecification", algorithm, ALGORITHM)
    if "TrainingImage" not in algorithm:
        raise invalid("AlgorithmSpecification must have TrainingImage.")
    if algorithm.get("TrainingInputMode", "File") == "Pipe":
        raise not_implemented("TrainingInputMode Pipe")
    for definition in algorithm.get("MetricDefinitions", []):
        try:
            pattern = re.compile(definition["Regex"])
        except re.error as error:
            raise invalid(f"Regex of metric {definition['Name']} is invalid: {error}") from None
        if not pattern.groups:
            raise invalid(f"Regex of metric {definition['Name']} has no capture group.")


def _check_resources(resources: dict[str, Any]) -> None:
    if resources.get("KeepAlivePeriodInSeconds"):
        raise not_implemented("a warm pool (KeepAlivePeriodInSeconds)")
    only("ResourceConfig", resources, RESOURCES | {"KeepAlivePeriodInSeconds"})
    for member in ("InstanceType", "InstanceCount"):
        if member not in resources:
            raise invalid(f"ResourceConfig must have {member}.")
    if not 1 <= resources["InstanceCount"] <= MAX_HOSTS:
        raise invalid(f"InstanceCount must be between 1 and {MAX_HOSTS} here.")


def _check_times(request: dict[str, Any]) -> None:
    condition = request["StoppingCondition"]
    runtime, wait = condition.get("MaxRuntimeInSeconds", 86400), condition.get("MaxWaitTimeInSeconds")
    if request.get("EnableManagedSpotTraining"):
        if wait is None or wait < runtime:
            raise invalid(
                "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
            )
    elif wait is not None:
        raise invalid("MaxWaitTimeInSeconds is only supported when EnableManagedSpotTraining is true.")


def _check_channel(service: Service, channel: dict[str, Any], request: dict[str, Any]) -> None:
    only(f"channel {channel['ChannelName']}", channel, CHANNEL)
    only(f"channel {channel['ChannelName']}", channel["DataSource"], {"S3DataSource"})
    source = channel["DataSource"].get("S3DataSource")
    if source is None:
        raise invalid(f"Channel {channel['ChannelName']} has no data source.")
    only(f"channel {channel['ChannelName']}", source, S3_SOURCE)
    if source["S3DataType"] != "S3Prefix":
        raise not_implemented(f"S3DataType {source['S3DataType']}")
    if source.get("S3DataDistributionType", "FullyReplicated") != "FullyReplicated":
        raise not_implemented("S3DataDistributionType ShardedByS3Key")
    mode = channel.get("InputMode", request["AlgorithmSpecification"].get("TrainingInputMode", "File"))
    if mode == "Pipe":
        raise not_implemented("InputMode Pipe")
    if channel.get("CompressionType", "None") != "None" or channel.get("RecordWrapperType", "None") != "None":
        raise invalid("CompressionType and RecordWrapperType are for InputMode Pipe only.")
    uri = source["S3Uri"]
    if mode == "FastFile" and not uri.endswith("/"):
        raise invalid(f"The S3Uri of a FastFile channel must end with a slash: {uri}")
    check_s3(service, uri, request["RoleArn"])


def check_s3(service: Service, uri: str, role: str) -> None:
    """Something must be there before the job starts."""
    try:
        found = any(service.store.files(uri))
    except ValueError as error:
        raise invalid(f"Invalid S3Uri: {error}") from None
    if not found:
        bucket = uri.removeprefix("s3://").split("/")[0]
        raise invalid(
            f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket '
            f'exists in the selected region, that objects exist under that S3 prefix, and that the role "{role}" has '
            f'"s3:ListBucket" permissions on bucket "{bucket}".'
        )


def _check_output(service: Service, request: dict[str, Any]) -> None:
    uris = [request["OutputDataConfig"]["S3OutputPath"]]
    if "CheckpointConfig" in request:
        uris.append(request["CheckpointConfig"]["S3Uri"])
        local = request["CheckpointConfig"].get("LocalPath", contract.DEFAULT_CHECKPOINTS).rstrip("/")
        if local != contract.DEFAULT_CHECKPOINTS:
            raise not_implemented(f"CheckpointConfig.LocalPath other than {contract.DEFAULT_CHECKPOINTS}")
    for uri in uris:
        try:
            bucket = service.store.path("s3://" + uri.removeprefix("s3://").split("/")[0])
            service.store.path(uri)
        except ValueError as error:
            raise invalid(f"Invalid S3Uri: {error}") from None
        if not bucket.is_dir():
            raise invalid(f"The specified bucket does not exist: {bucket.name}")
