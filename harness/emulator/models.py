"""Models and endpoint configurations: records that an endpoint is made from."""

from __future__ import annotations

from typing import Any

from harness.emulator.errors import ApiError, invalid, not_implemented
from harness.emulator.records import Records
from harness.emulator.rules import check_role, only
from harness.emulator.service import Service, now
from harness.emulator.tags import take_tags

Request = dict[str, Any]
Response = dict[str, Any]

CONTAINER = {"Image", "Mode", "ModelDataUrl", "ModelDataSource", "Environment", "ContainerHostname"}
MODEL = {"ModelName", "PrimaryContainer", "Containers", "ExecutionRoleArn", "Tags", "VpcConfig"}
MODEL |= {"EnableNetworkIsolation"}
CONFIG = {"EndpointConfigName", "ProductionVariants", "Tags", "KmsKeyId"}
VARIANT = {"VariantName", "ModelName", "InitialInstanceCount", "InstanceType", "InitialVariantWeight"}
VARIANT |= {"VolumeSizeInGB", "ModelDataDownloadTimeoutInSeconds", "ContainerStartupHealthCheckTimeoutInSeconds"}
VARIANT |= {"InferenceAmiVersion", "RoutingConfig"}
MAX_ENVIRONMENT = 32 * 1024  # bytes of all keys and values of a container


def create_model(service: Service, region: str, request: Request) -> Response:
    """CreateModel. The model data is looked at when an endpoint is made, as on AWS."""
    name = request["ModelName"]
    arn = service.arn(region, "model", name.lower())
    only("CreateModel", request, MODEL)
    containers = request.get("Containers", [])
    if len(containers) > 1:
        raise not_implemented("a model of several containers")
    container = request.get("PrimaryContainer") or next(iter(containers), None)
    if container is None:
        raise invalid("Either PrimaryContainer or Containers must be given.")
    _check_container(container)
    if "ExecutionRoleArn" not in request:
        raise invalid("ExecutionRoleArn is required.")
    check_role(service, request["ExecutionRoleArn"])
    describe = {k: v for k, v in request.items() if k not in ("Tags", "Containers")}
    describe |= {"PrimaryContainer": {"Mode": "SingleModel", **container}}
    describe |= {"ModelArn": arn, "CreationTime": now()}
    describe.setdefault("EnableNetworkIsolation", False)
    if not service.models.add(region, name, {"describe": describe, "tags": take_tags(request)}):
        raise invalid(f'Cannot create already existing model "{arn}".')
    return {"ModelArn": arn}


def _check_container(container: dict[str, Any]) -> None:
    only("a container", container, CONTAINER)
    if container.get("Mode", "SingleModel") != "SingleModel":
        raise not_implemented("Mode MultiModel")
    if not container.get("Image"):
        raise invalid("A container must have an Image.")
    if "ModelDataUrl" in container and "ModelDataSource" in container:
        raise invalid("Both ModelDataUrl and ModelDataSource are given; only one is allowed.")
    source = container.get("ModelDataSource", {})
    only("ModelDataSource", source, {"S3DataSource"})
    s3 = source.get("S3DataSource", {})
    only("ModelDataSource.S3DataSource", s3, {"S3Uri", "S3DataType", "CompressionType"})
    if s3.get("S3DataType") == "S3Prefix" and not s3["S3Uri"].endswith("/"):
        raise invalid(f"The S3Uri of an S3Prefix must end with a slash: {s3['S3Uri']}")
    if s3.get("S3DataType") == "S3Prefix" and s3["CompressionType"] != "None":
        raise invalid("CompressionType Gzip needs S3DataType S3Object.")
    size = sum(len(k.encode()) + len(v.encode()) for k, v in container.get("Environment", {}).items())
    if size > MAX_ENVIRONMENT:
        raise invalid(f"The environment has {size} bytes; {MAX_ENVIRONMENT} are allowed.")


def _no_model(service: Service, region: str, name: str) -> ApiError:
    return invalid(f'Could not find model "{service.arn(region, "model", name.lower())}".')


MODELS = Records(
    lambda service: service.models, "ModelName", "Models", ("ModelName", "ModelArn", "CreationTime"), _no_model
)


def create_config(service: Service, region: str, request: Request) -> Response:
    """CreateEndpointConfig, with one variant on an instance of its own."""
    name = request["EndpointConfigName"]
    arn = service.arn(region, "endpoint-config", name.lower())
    only("CreateEndpointConfig", request, CONFIG)
    variants = request["ProductionVariants"]
    if len(variants) > 1:
        raise not_implemented("an endpoint of several variants")
    variant = variants[0]
    only("a production variant", variant, VARIANT)
    for member in ("ModelName", "InstanceType", "InitialInstanceCount"):
        if member not in variant:
            raise not_implemented(f"a production variant without {member}")
    MODELS.find(service, region, variant["ModelName"])
    describe = {
        "EndpointConfigName": name,
        "EndpointConfigArn": arn,
        "ProductionVariants": [{"InitialVariantWeight": 1.0, **variant}],
        "CreationTime": now(),
        **({"KmsKeyId": request["KmsKeyId"]} if "KmsKeyId" in request else {}),
    }
    if not service.configs.add(region, name, {"describe": describe, "tags": take_tags(request)}):
        raise invalid(f'Cannot create already existing endpoint configuration "{arn}".')
    return {"EndpointConfigArn": arn}


def _no_config(service: Service, region: str, name: str) -> ApiError:
    arn = service.arn(region, "endpoint-config", name.lower())
    return invalid(f'Could not find endpoint configuration "{arn}".')


CONFIGS = Records(
    lambda service: service.configs,
    "EndpointConfigName",
    "EndpointConfigs",
    ("EndpointConfigName", "EndpointConfigArn", "CreationTime"),
    _no_config,
)
