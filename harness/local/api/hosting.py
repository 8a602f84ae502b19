"""The hosting operations: models and endpoint configurations, which are records, and endpoints made from them."""

from __future__ import annotations

from typing import Any

from harness.local.api.errors import ApiError, invalid, not_implemented, only
from harness.local.api.records import Records
from harness.local.api.tags import take_tags
from harness.local.endpoints.container import model_data
from harness.local.endpoints.worker import EndpointWorker, remove_endpoint
from harness.local.service import Service, now

Request = dict[str, Any]
Response = dict[str, Any]

CONTAINER = {"Image", "Mode", "ModelDataUrl", "ModelDataSource", "Environment", "ContainerHostname"}
MODEL = {"ModelName", "PrimaryContainer", "Containers", "ExecutionRoleArn", "Tags", "VpcConfig"}
MODEL |= {"EnableNetworkIsolation"}
CONFIG = {"EndpointConfigName", "ProductionVariants", "Tags", "KmsKeyId"}
VARIANT = {"VariantName", "ModelName", "InitialInstanceCount", "InstanceType", "InitialVariantWeight"}
VARIANT |= {"VolumeSizeInGB", "ModelDataDownloadTimeoutInSeconds", "ContainerStartupHealthCheckTimeoutInSeconds"}
VARIANT |= {"InferenceAmiVersion", "RoutingConfig"}
MODEL_ID_VARIABLES = ("HF_MODEL_ID", "OPTION_MODEL_ID")  # hub ids, which the containers have no network for
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
    if "ExecutionRoleArn" not in request:
        raise invalid("ExecutionRoleArn is required.")
    service.check_role(request["ExecutionRoleArn"])
    _check_container(container)
    _check_model_source(service, region, request, container)
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


def _check_model_source(service: Service, region: str, request: Request, container: dict[str, Any]) -> None:
    """What the endpoint would fail for after minutes: model data that is not there, an image or id it cannot have."""
    image, source = container["Image"], model_data(container)
    if service.executor == "process" and not image.startswith(f"{service.account}."):
        text = f"Image {image} is not of this account, and executor process runs only neuron-harness's own images"
        raise not_implemented(f"{text}; with Docker: harness local up --executor docker")
    for name in MODEL_ID_VARIABLES:
        value = container.get("Environment", {}).get(name, "/")
        if not value.startswith("/"):
            what = "a place in S3" if value.startswith("s3://") else "an id of the model hub"
            text = f"{name}={value} is {what}, and nothing is downloaded by the container"
            raise invalid(f"{text}; give the model as ModelDataUrl or ModelDataSource in S3.")
    if source is not None:
        service.check_bucket(source["S3Uri"], region)
        try:
            found = any(service.store.objects(source["S3Uri"]))
        except ValueError as error:
            raise invalid(f"Invalid S3Uri: {error}") from None
        if not found:
            role = request["ExecutionRoleArn"]
            raise invalid(
                f'Could not access model data at {source["S3Uri"]}. Please ensure that the role "{role}" exists and '
                'that its trust relationship policy allows the action "sts:AssumeRole" for the service principal '
                '"sagemaker.amazonaws.com". Also ensure that the role has "s3:GetObject" permissions and that the '
                f"object is located in {region}."
            )


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


def _not_found(service: Service, region: str, name: str) -> ApiError:
    return invalid(f'Could not find endpoint "{service.arn(region, "endpoint", name.lower())}".')


ENDPOINTS = Records(
    lambda service: service.endpoints,
    "EndpointName",
    "Endpoints",
    ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus"),
    _not_found,
    "EndpointStatus",
)


def create(service: Service, region: str, request: Request) -> Response:
    """CreateEndpoint: a record, and a thread that starts the container and looks after it."""
    only("CreateEndpoint", request, {"EndpointName", "EndpointConfigName", "Tags"})
    name, config = request["EndpointName"], request["EndpointConfigName"]
    arn = service.arn(region, "endpoint", name.lower())
    CONFIGS.find(service, region, config)
    at = now()
    document = {
        "describe": {
            "EndpointName": name,
            "EndpointArn": arn,
            "EndpointConfigName": config,
            "EndpointStatus": "Creating",
            "CreationTime": at,
            "LastModifiedTime": at,
        },
        "tags": take_tags(request),
        "generation": 0,
        "deployed": None,
    }
    if not service.endpoints.add(region, name, document):
        raise invalid(f'Cannot create already existing endpoint "{arn}".')
    worker = EndpointWorker(service, region, name)
    worker.ask(config)
    service.work("endpoint", region, name, worker)
    return {"EndpointArn": arn}


def update(service: Service, region: str, request: Request) -> Response:
    """UpdateEndpoint: the new container is healthy before the old one goes; a failure changes nothing."""
    only("UpdateEndpoint", request, {"EndpointName", "EndpointConfigName", "RetainAllVariantProperties"})
    name, config = request["EndpointName"], request["EndpointConfigName"]
    if request.get("RetainAllVariantProperties"):
        raise not_implemented("UpdateEndpoint with RetainAllVariantProperties")
    document = ENDPOINTS.find(service, region, name)
    CONFIGS.find(service, region, config)
    arn, status = document["describe"]["EndpointArn"], document["describe"]["EndpointStatus"]
    worker = service.worker("endpoint", region, name)
    if status != "InService" or worker is None:
        raise invalid(f'Cannot update in-progress endpoint "{arn}".' if status != "Failed" else _failed(arn))
    with service.endpoints.changing(region, name) as changed:
        changed["describe"] |= {"EndpointStatus": "Updating", "LastModifiedTime": now()}
        changed["describe"].pop("FailureReason", None)
    worker.ask(config)
    return {"EndpointArn": arn}


def _failed(arn: str) -> str:
    return f'Cannot update endpoint "{arn}": it is Failed and can only be deleted.'


def delete(service: Service, region: str, request: Request) -> Response:
    """DeleteEndpoint: Deleting at once, gone when the container has had its thirty seconds."""
    name = request["EndpointName"]
    document = ENDPOINTS.find(service, region, name)
    arn, status = document["describe"]["EndpointArn"], document["describe"]["EndpointStatus"]
    if status in ("Creating", "Updating", "RollingBack", "SystemUpdating", "Deleting"):
        raise invalid(f'Cannot update in-progress endpoint "{arn}".')
    worker = service.worker("endpoint", region, name)
    with service.endpoints.changing(region, name) as changed:
        changed["describe"] |= {"EndpointStatus": "Deleting", "LastModifiedTime": now()}
    if worker is None or not worker.delete():
        remove_endpoint(service, region, name)
    return {}


def settle(service: Service) -> None:
    """After a restart: endpoints are started again from what they were made of; half-deleted ones are deleted."""
    for region, name, document in service.endpoints.rows():
        shown = document["describe"]
        worker = EndpointWorker(service, region, name)
        worker.sweep()
        if shown["EndpointStatus"] == "Deleting":
            remove_endpoint(service, region, name)
        elif shown["EndpointStatus"] != "Failed":
            with service.endpoints.changing(region, name) as changed:
                status = "Creating" if shown["EndpointStatus"] == "Creating" else "SystemUpdating"
                changed["describe"] |= {"EndpointStatus": status, "LastModifiedTime": now()}
            worker.ask(shown["EndpointConfigName"], again=True)
            service.work("endpoint", region, name, worker)
