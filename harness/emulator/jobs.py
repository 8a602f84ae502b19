"""The training job operations: Create, Describe, List, Stop, Update, Delete."""

from __future__ import annotations

from typing import Any

from harness.emulator.errors import ApiError, invalid, not_implemented
from harness.emulator.jobrun import JobWorker, finish_deletion, show_logs
from harness.emulator.records import Records
from harness.emulator.rules import check_training_job
from harness.emulator.service import Service, now
from harness.emulator.tags import take_tags
from harness.emulator.trainingjob import artifact_uri

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
    check_training_job(service, request)
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
        **{member: request[member] for member in REPEATED if member in request},
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
