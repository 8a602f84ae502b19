"""Operations of AWS that the harness calls, with their keywords, and the requests that its plans send.

boto3 makes a client's methods at run time from the service models that botocore ships, so these stand in no Python
source; they are looked up in the models of a wheel.
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from harness.sagemaker.resources import DELETION, KINDS
from harness.spec import service_model
from tests.conformance import uses

# boto3's own methods, made of several operations.
INJECTED = {("s3", "download_file"): "get_object", ("s3", "copy"): "copy_object"}
OF_THE_METHOD = {"Filename", "SourceClient", "ExtraArgs"}


@dataclass(frozen=True, order=True)
class Call:
    """One place in the harness that calls AWS. `listed` is the member that a listing's items are in."""

    file: str
    service: str
    operation: str  # as boto3 writes it
    keywords: tuple[str, ...]
    listed: str = ""


def calls(sources: dict[str, str] | None = None) -> list[Call]:
    """Every call of AWS in the harness. Raises ValueError for one that cannot be read from the source."""
    found = []
    for file, text in (sources or uses.files(("harness",))).items():
        if file in ("harness/aws/session.py",) or file.startswith("harness/local/"):
            continue
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, ast.FunctionDef):
                names = {
                    node.targets[0].id: node.value
                    for node in ast.walk(function)
                    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
                }
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and _is_aws(node):
                        found += list(_read(file, node, names))
    return sorted(set(found))


def _is_aws(node: ast.Call) -> bool:
    return (
        isinstance(node.func, ast.Attribute)
        and node.func.attr in ("call", "pages")
        and (ast.unparse(node.func.value).rpartition(".")[2] == "aws" or "Aws(" in ast.unparse(node.func.value))
    )


def _read(file: str, node: ast.Call, names: dict[str, ast.expr]) -> Iterator[Call]:
    assert isinstance(node.func, ast.Attribute)
    first, operation = node.args[0], node.args[1]
    service = first.value if isinstance(first, ast.Constant) else None
    if isinstance(operation, ast.Name):
        operation = names.get(operation.id, operation)
    keywords = tuple(sorted(k.arg for k in node.keywords if k.arg))
    listed = node.args[2].value if node.func.attr == "pages" and isinstance(node.args[2], ast.Constant) else ""
    if isinstance(operation, ast.Constant) and isinstance(service, str):
        yield Call(file, service, str(operation.value), keywords, str(listed))
    elif isinstance(operation, ast.JoinedStr) and "how.noun" in ast.unparse(operation):
        for name, kind in KINDS.items():
            if name in DELETION or "delete" not in ast.unparse(operation):
                word = ast.unparse(operation)[2:-1].replace("{how.noun}", kind.noun)
                named = (kind.name,) if "how.name:" in ast.unparse(node) else ()
                yield Call(file, "sagemaker", word, named, kind.summaries if node.func.attr == "pages" else "")
    else:
        raise ValueError(f"{file}:{node.lineno}: {ast.unparse(node)[:80]}")


class Models:
    """The service models in a botocore wheel."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = ZipFile(wheel)
        self.models: dict[str, Any] = {}

    @cached_property
    def newest(self) -> dict[str, str]:
        """Service -> the member of the wheel with its newest model."""
        found = {}
        for name in sorted(self.wheel.namelist()):
            parts = name.split("/")
            if parts[:2] == ["botocore", "data"] and parts[-1].startswith("service-2.json"):
                found[parts[2]] = name
        return found

    def operations(self, service: str) -> dict[str, Any]:
        """Operation, as boto3 writes it -> its model."""
        from botocore import xform_name
        from botocore.model import ServiceModel

        if service not in self.models:
            raw = self.wheel.read(self.newest[service])
            raw = gzip.decompress(raw) if self.newest[service].endswith(".gz") else raw
            model = ServiceModel(json.loads(raw), service)
            self.models[service] = {xform_name(n): model.operation_model(n) for n in model.operation_names}
        found: dict[str, Any] = self.models[service]
        return found

    def misfits(self, call: Call) -> list[str]:
        """What of a call these models do not have."""
        if call.service not in self.newest:
            return [f"boto3 has no service {call.service}"]
        name = INJECTED.get((call.service, call.operation), call.operation)
        model = self.operations(call.service).get(name)
        if model is None:
            return [f"{call.service} has no operation {call.operation}"]
        there = model.input_shape.members if model.input_shape else {}
        extra = OF_THE_METHOD if (call.service, call.operation) in INJECTED else set()
        missing = [
            f"{call.service}.{call.operation} takes no {k}" for k in call.keywords if k not in {*there, *extra}
        ]
        if call.listed and call.listed not in model.output_shape.members:
            missing.append(f"{call.service}.{call.operation} answers no {call.listed}")
        return missing

    def refused(self, operation: str, request: dict[str, Any]) -> list[str]:
        """How a request to SageMaker breaks the service's own rules as this version knows them."""
        from botocore import xform_name

        shape = self.operations("sagemaker")[xform_name(operation)].input_shape
        return [f"{operation}: {text}" for text in service_model.problems(request, shape)]
