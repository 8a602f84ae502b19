"""Tags of the local SageMaker's resources: AddTags, DeleteTags, ListTags, and their part in GetResources."""

from __future__ import annotations

import fnmatch
from typing import Any

from harness.local.api.errors import ApiError, invalid
from harness.local.api.records import Table
from harness.local.service import Service

Tags = dict[str, str]


def take_tags(request: dict[str, Any]) -> Tags:
    """The tags of a create request, which leave it: descriptions do not repeat them."""
    tags = {tag["Key"]: tag["Value"] for tag in request.get("Tags", [])}
    if len(tags) < len(request.get("Tags", [])):
        raise invalid("Duplicate tag keys found. Please note that Tag keys are case insensitive.")
    if any(key.lower().startswith("aws:") for key in tags):
        raise invalid("aws: prefixed tag key names are not allowed for external use.")
    return tags


def _tables(service: Service) -> dict[str, Table]:
    return {
        "training-job": service.jobs,
        "model": service.models,
        "endpoint-config": service.configs,
        "endpoint": service.endpoints,
    }


def _find(service: Service, arn: str) -> tuple[Table, str, str]:
    """(table, region, name) of an ARN; names in ARNs are lower case."""
    parts = arn.split(":", 5)
    if len(parts) == 6 and parts[2] == "sagemaker":
        region, (kind, _, wanted) = parts[3], parts[5].partition("/")
        table = _tables(service).get(kind)
        for row_region, name, _ in table.rows(region) if table else []:
            if name.lower() == wanted:
                assert table is not None
                return table, row_region, name
    raise ApiError("ResourceNotFound", f"Resource {arn} does not exist")


def _as_list(tags: Tags) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def add(service: Service, region: str, request: dict[str, Any]) -> dict[str, Any]:
    """AddTags."""
    table, where, name = _find(service, request["ResourceArn"])
    more = take_tags(request)
    with table.changing(where, name) as document:
        if len({**document["tags"], **more}) > 50:
            raise ApiError("ResourceLimitExceeded", "The number of tags must not exceed 50.")
        document["tags"].update(more)
        return {"Tags": _as_list(document["tags"])}


def delete(service: Service, region: str, request: dict[str, Any]) -> dict[str, Any]:
    """DeleteTags."""
    table, where, name = _find(service, request["ResourceArn"])
    with table.changing(where, name) as document:
        for key in request["TagKeys"]:
            document["tags"].pop(key, None)
    return {}


def list_tags(service: Service, region: str, request: dict[str, Any]) -> dict[str, Any]:
    """ListTags, always on one page: 50 tags are all that a resource has."""
    table, where, name = _find(service, request["ResourceArn"])
    document = table.get(where, name)
    return {"Tags": _as_list(document["tags"] if document else {})}


def resources(service: Service, region: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Our part of resourcegroupstaggingapi's GetResources, which moto answers for everything else."""
    kinds = request.get("ResourceTypeFilters") or ["sagemaker"]
    arns = request.get("ResourceARNList")
    found = []
    for kind, table in _tables(service).items():
        if not any(fnmatch.fnmatchcase(f"sagemaker:{kind}", pattern) or pattern == "sagemaker" for pattern in kinds):
            continue
        for _, name, document in table.rows(region):
            arn = service.arn(region, kind, name.lower())
            if document["tags"] and _fits(document["tags"], request) and (not arns or arn in arns):
                found.append({"ResourceARN": arn, "Tags": _as_list(document["tags"])})
    return found


def _fits(tags: Tags, request: dict[str, Any]) -> bool:
    return all(
        f["Key"] in tags and (not f.get("Values") or tags[f["Key"]] in f["Values"])
        for f in request.get("TagFilters", [])
    )
