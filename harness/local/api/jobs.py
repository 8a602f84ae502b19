"""The training job operations: Create, Describe, List, Stop, Update, Delete.

A create call is held against the service's own rules, beyond what botocore's model says: what AWS checks before it
answers.
"""

from __future__ import annotations

import re
from typing import Any

from containers import contract
from harness.local.api.errors import ApiError, invalid, not_implemented, only
from harness.local.api.records import Records
from harness.local.api.tags import take_tags
from harness.local.jobs.runner import artifact_uri
from harness.local.jobs.worker import JobWorker, finish_deletion, show_logs
from harness.local.service import Service, now

# Members that change nothing here but are recorded and described: there is no network, key or volume to speak of.
TRAINING_MEMBERS = {
    *("TrainingJobName", "HyperParameters", "AlgorithmSpecification", "RoleArn", "InputDataConfig"),
    *("OutputDataConfig", "ResourceConfig", "VpcConfig", "StoppingCondition", "Tags", "EnableNetworkIsolation"),
    *("EnableInterContainerTrafficEncryption", "EnableManagedSpotTraining", "CheckpointConfig", "Environment"),
    "RetryStrategy",
}
ALGORITHM = {"TrainingImage", "TrainingInputMode", "MetricDefinitions", "ContainerEntrypoint", "ContainerArguments"}
ALGORITHM |= {"EnableSageMakerMetricsTimeSeries"}  # what matches a metric definition is in CloudWatch either way
RESOURCES = {"InstanceType", "InstanceCount", "VolumeSizeInGB", "VolumeKmsKeyId"}
CHANNEL = {"ChannelName", "DataSource", "ContentType", "CompressionType", "RecordWrapperType", "InputMode"}
S3_SOURCE = {"S3DataType", "S3Uri", "S3DataDistributionType"}
MAX_HOSTS = 16  # loopback addresses and processes are cheap, this machine's memory is not


def check_training_job(service: Service, region: str, request: dict[str, Any]) -> None:
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
    if odd := [name for name in names if not name.strip(".")]:
        raise invalid(f"{odd[0]!r} is not a channel name: it would be a directory above the channels.")
    service.check_role(request["RoleArn"])
    for channel in channels:
        _check_channel(service, channel, request)
        service.check_bucket(channel["DataSource"]["S3DataSource"]["S3Uri"], region)
    _check_output(service, region, request)


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
        found = any(service.store.objects(uri))
    except ValueError as error:
        raise invalid(f"Invalid S3Uri: {error}") from None
    if not found:
        bucket = uri.removeprefix("s3://").split("/")[0]
        raise invalid(
            f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket '
            f'exists in the selected region, that objects exist under that S3 prefix, and that the role "{role}" has '
            f'"s3:ListBucket" permissions on bucket "{bucket}".'
        )


def _check_output(service: Service, region: str, request: dict[str, Any]) -> None:
    uris = [request["OutputDataConfig"]["S3OutputPath"]]
    if "CheckpointConfig" in request:
        uris.append(request["CheckpointConfig"]["S3Uri"])
        local = request["CheckpointConfig"].get("LocalPath", contract.DEFAULT_CHECKPOINTS).rstrip("/")
        if local != contract.DEFAULT_CHECKPOINTS:
            raise not_implemented(f"CheckpointConfig.LocalPath other than {contract.DEFAULT_CHECKPOINTS}")
    for uri in uris:
        try:
            service.store.path(uri)
        except ValueError as error:
            raise invalid(f"Invalid S3Uri: {error}") from None
        bucket = uri.removeprefix("s3://").split("/")[0]
        if not service.store.has_bucket(bucket):
            raise invalid(f"The specified bucket does not exist: {bucket}")
        service.check_bucket(uri, region)


Request = dict[str, Any]
Response = dict[str, Any]

ENDED = ("Completed", "Failed", "Stopped")
JOBS = Records(
    lambda service: service.jobs,
    "TrainingJobName",
    "TrainingJobSummaries",
    (
        *("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime"),
        *("TrainingJobStatus", "SecondaryStatus"),
    ),
    lambda *_: ApiError("ValidationException", "Requested resource not found."),
    "TrainingJobStatus",
    pages_first=True,
)
# What a request says and a description repeats.
REPEATED = (
    "HyperParameters",
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "VpcConfig",
    "StoppingCondition",
    "CheckpointConfig",
    "Environment",
    "RetryStrategy",
)


def create(service: Service, region: str, request: Request) -> Response:
    """CreateTrainingJob: checks, a record, a thread."""
    name = request["TrainingJobName"]
    arn = service.arn(region, "training-job", name.lower())
    if service.jobs.get(region, name) is not None:
        raise _taken(arn)
    check_training_job(service, region, request)
    request = {**request, "StoppingCondition": {"MaxRuntimeInSeconds": 86400, **request["StoppingCondition"]}}
    at = now()
    describe: Response = {
        "TrainingJobName": name,
        "TrainingJobArn": arn,
        "ModelArtifacts": {"S3ModelArtifacts": artifact_uri(request)},
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Starting",
        "CreationTime": at,
        "LastModifiedTime": at,
        "SecondaryStatusTransitions": [
            {"Status": "Starting", "StartTime": at, "StatusMessage": "Preparing the instances for training"}
        ],
        **_described({member: request[member] for member in REPEATED if member in request}),
        **{
            member: request.get(member, False)
            for member in (
                "EnableNetworkIsolation",
                "EnableInterContainerTrafficEncryption",
                "EnableManagedSpotTraining",
            )
        },
    }
    document = {"describe": describe, "request": request, "tags": take_tags(request), "attempt": 0, "billable": 0.0}
    if not service.jobs.add(region, name, document):
        raise _taken(arn)
    service.work("job", region, name, JobWorker(service, region, name))
    return {"TrainingJobArn": arn}


def _described(members: Response) -> Response:
    """With the defaults that AWS writes into a description: SDKs read them without looking whether they are there."""
    members["OutputDataConfig"] = {"KmsKeyId": "", "CompressionType": "GZIP", **members["OutputDataConfig"]}
    if "InputDataConfig" in members:
        unset = {"CompressionType": "None", "RecordWrapperType": "None"}
        members["InputDataConfig"] = [{**unset, **channel} for channel in members["InputDataConfig"]]
    return members


def _taken(arn: str) -> ApiError:
    return ApiError(
        "ResourceInUse",
        "Job name must be unique within an AWS account and region, and a training job with this name already exists "
        f"({arn})",
    )


def list_jobs(service: Service, region: str, request: Request) -> Response:
    """ListTrainingJobs."""
    if "WarmPoolStatusEquals" in request or "TrainingPlanArnEquals" in request:
        raise not_implemented("ListTrainingJobs by warm pool or training plan")
    return JOBS.list(service, region, request)


def stop(service: Service, region: str, request: Request) -> Response:
    """StopTrainingJob: TERM to the containers, then the outputs are uploaded."""
    name = request["TrainingJobName"]
    status = JOBS.find(service, region, name)["describe"]["TrainingJobStatus"]
    if status in (*ENDED, "Deleting"):
        raise invalid(
            f"The request was rejected because the training job is in status {status}.",
        )
    worker = service.worker("job", region, name)
    if worker is not None and status == "InProgress":
        worker.request_stop("Stopped")
    return {}


def update(service: Service, region: str, request: Request) -> Response:
    """UpdateTrainingJob. A warm pool is never kept, so to end one is all that can be asked about it."""
    name = request["TrainingJobName"]
    document = JOBS.find(service, region, name)
    for member in ("ProfilerConfig", "ProfilerRuleConfigurations", "RemoteDebugConfig"):
        if member in request:
            raise not_implemented(f"UpdateTrainingJob.{member}")
    if request.get("ResourceConfig", {}).get("KeepAlivePeriodInSeconds", 0) > 0:
        raise not_implemented("a warm pool (KeepAlivePeriodInSeconds)")
    return {"TrainingJobArn": document["describe"]["TrainingJobArn"]}


def delete(service: Service, region: str, request: Request) -> Response:
    """DeleteTrainingJob: of a job that has ended; its name is free afterwards."""
    name = request["TrainingJobName"]
    status = JOBS.find(service, region, name)["describe"]["TrainingJobStatus"]
    if status not in ENDED:
        raise invalid(f"The request was rejected because the training job is in status {status}.")
    finish_deletion(service, region, name)
    return {}


def settle(service: Service) -> None:
    """After a crash: what of a job still runs is ended, its checkpoints are saved; then it goes on or has failed.

    A spot job, and one with attempts left in its RetryStrategy, starts again from its checkpoints, as after the loss
    of an instance. Any other has failed, as on AWS after an internal error.
    """
    for region, name, document in service.jobs.rows():
        show_logs(service, region, name)
        status = document["describe"]["TrainingJobStatus"]
        if status == "Deleting":
            finish_deletion(service, region, name)
        elif status not in ENDED:
            worker = JobWorker(service, region, name)
            if worker.recover():
                service.work("job", region, name, worker)
