"""Every SageMaker operation: what answers it, how exactly (docs/reference/sagemaker-operations.md is made of it)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness import aws
from harness.emulator import endpoints, jobs, models, tags
from harness.emulator.errors import ApiError, invalid, not_implemented
from harness.emulator.service import Service
from harness.errors import InvalidInput

Handler = Callable[[Service, str, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Operation:
    """`differs` is what is not as on AWS; empty where nothing is known to be."""

    handler: Handler
    differs: str = ""


OPERATIONS: dict[str, Operation] = {
    "CreateTrainingJob": Operation(
        jobs.create,
        "VPC, encryption and volume size are recorded and have no effect; refused: Pipe mode, ShardedByS3Key, "
        "manifests, AWS's algorithms, warm pools, instance groups, profiler, debugger, experiments, another "
        "checkpoint directory",
    ),
    "DescribeTrainingJob": Operation(
        jobs.JOBS.describe, "a spot job is billed for the time that it ran, without discount"
    ),
    "ListTrainingJobs": Operation(jobs.list_jobs, "refused: by warm pool, by training plan"),
    "StopTrainingJob": Operation(jobs.stop),
    "UpdateTrainingJob": Operation(jobs.update, "only KeepAlivePeriodInSeconds 0, which ends nothing here"),
    "DeleteTrainingJob": Operation(jobs.delete, "at once, without the status Deleting"),
    "CreateModel": Operation(models.create_model, "refused: several containers, MultiModel, model packages"),
    "DescribeModel": Operation(models.MODELS.describe),
    "ListModels": Operation(models.MODELS.list),
    "DeleteModel": Operation(models.MODELS.delete),
    "CreateEndpointConfig": Operation(
        models.create_config,
        "one container whatever InitialInstanceCount; refused: several variants, serverless, async, data capture, "
        "shadow variants, inference components",
    ),
    "DescribeEndpointConfig": Operation(models.CONFIGS.describe),
    "ListEndpointConfigs": Operation(models.CONFIGS.list),
    "DeleteEndpointConfig": Operation(models.CONFIGS.delete),
    "CreateEndpoint": Operation(endpoints.create, "refused: DeploymentConfig"),
    "DescribeEndpoint": Operation(endpoints.ENDPOINTS.describe),
    "ListEndpoints": Operation(endpoints.ENDPOINTS.list),
    "UpdateEndpoint": Operation(
        endpoints.update,
        "all traffic at once when the new container is healthy; refused: DeploymentConfig, retained properties",
    ),
    "DeleteEndpoint": Operation(endpoints.delete, "refused while Creating or Updating"),
    "AddTags": Operation(tags.add, "training jobs, models, endpoint configurations and endpoints"),
    "DeleteTags": Operation(tags.delete, "as AddTags"),
    "ListTags": Operation(tags.list_tags, "as AddTags; always one page"),
}


def call(service: Service, region: str, operation: str, request: dict[str, Any]) -> dict[str, Any]:
    """Check `request` against botocore's model, then let the operation answer. Raises ApiError."""
    if operation not in OPERATIONS:
        if operation in aws.service_model("sagemaker").operation_names:
            raise not_implemented(operation)
        raise ApiError("UnknownOperationException", f"The requested operation {operation} is not recognized.", 404)
    service.faults.check_call(operation, request, service.account, region)
    try:
        aws.validate("sagemaker", operation, request)
    except InvalidInput as error:
        texts = [problem.what.removeprefix(f"{operation}: ") for problem in error.problems]
        count = f"{len(texts)} validation error{'s' if len(texts) > 1 else ''} detected"
        raise invalid(f"{count}: {'; '.join(texts)}") from None
    return OPERATIONS[operation].handler(service, region, request)
