"""Requests checked offline against botocore's own service model.

The model ships with botocore, so a request is checked without credentials or network: unknown members, missing
ones, types, enumerations, patterns, lengths and ranges. AWS checks the same, after the wait.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import InvalidInput, Problem, did_you_mean
from harness.remembered import remembered


@lru_cache(maxsize=4)
def load(service: str) -> Any:
    """botocore's model of `service`, for example "sagemaker"."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


def enum_values(service: str, shape: str) -> list[str]:
    """The members of an enumeration, for example ("sagemaker", "TrainingInstanceType")."""

    def read() -> list[str]:
        return list(load(service).shape_for(shape).enum)

    members: list[str] = remembered(read, "botocore", Path(__file__), "enum", service, shape)
    return members


def validate(service: str, operation: str, request: Mapping[str, Any]) -> None:
    """Raise InvalidInput with every way in which `request` does not fit `operation`'s input shape."""

    def check() -> list[str]:
        return problems(request, load(service).operation_model(operation).input_shape)

    try:
        key = json.dumps(request, sort_keys=True)
    except (TypeError, ValueError):  # something that is no JSON is a problem of its own
        found = check()
    else:
        found = remembered(check, "botocore", Path(__file__), "validate", service, operation, key)
    if found:
        raise InvalidInput.of([Problem(f"{operation}: {text}") for text in found])


def problems(value: Any, shape: Any) -> list[str]:
    """Every way in which `value` does not fit one of botocore's shapes."""
    return list(_check(value, shape, ""))


def _check(value: Any, shape: Any, where: str) -> Iterator[str]:
    kind = shape.type_name
    if kind == "structure":
        yield from _check_structure(value, shape, where)
    elif kind == "list":
        if not isinstance(value, list):
            yield f"{where} must be a list, not {type(value).__name__}"
            return
        yield from _check_length(len(value), shape, where, "entries")
        for i, item in enumerate(value):
            yield from _check(item, shape.member, f"{where}[{i}]")
    elif kind == "map":
        if not isinstance(value, Mapping):
            yield f"{where} must be a map, not {type(value).__name__}"
            return
        yield from _check_length(len(value), shape, where, "entries")
        for key, item in value.items():
            yield from _check(key, shape.key, f"{where} key {str(key)[:40]!r}")
            yield from _check(item, shape.value, f"{where}.{key}")
    else:
        yield from _check_scalar(value, shape, where)


def _check_structure(value: Any, shape: Any, where: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{where or 'the request'} must be an object, not {type(value).__name__}"
        return
    dot = f"{where}." if where else ""
    for name in shape.required_members:
        if name not in value:
            yield f"{dot}{name} is missing"
    for name, item in value.items():
        if name not in shape.members:
            yield f"{dot}{name} is not known; {did_you_mean(name, list(shape.members))}".rstrip("; ")
        else:
            yield from _check(item, shape.members[name], f"{dot}{name}")


_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "character": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
    "blob": (bytes, str),
}


def _check_scalar(value: Any, shape: Any, where: str) -> Iterator[str]:
    wanted = _PYTHON_TYPES.get(shape.type_name)
    if wanted is None:
        return  # timestamps: none in the requests that are made here
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        yield f"{where} must be {shape.type_name}, not {value!r}"
        return
    if isinstance(value, str):
        yield from _check_length(len(value), shape, where, "characters")
        pattern = shape.metadata.get("pattern")
        if shape.enum and value not in shape.enum:
            yield f"{where} is {value!r}; {did_you_mean(value, shape.enum) or 'see the service documentation'}"
        elif pattern and not re.fullmatch(_python_pattern(pattern), value):
            yield f"{where} is {value!r}; it must match {pattern}"
    elif not isinstance(value, bool) and isinstance(value, (int, float)):
        yield from _check_length(value, shape, where, "")


def _python_pattern(pattern: str) -> str:
    """botocore's patterns are Java's; possessive and unicode classes do not occur in the shapes used here."""
    return pattern.replace(r"\p{L}\p{Z}\p{N}", r"\w\s")


def _check_length(n: float, shape: Any, where: str, unit: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and n < low:
        yield (f"{where} has {n} {unit}; at least {low} are needed" if unit else f"{where} is {n}; at least {low}")
    if high is not None and n > high:
        yield f"{where} has {n} {unit}; at most {high} fit" if unit else f"{where} is {n}; at most {high}"


def output_problems(service: str, operation: str, response: Mapping[str, Any]) -> list[str]:
    """Every way in which `response` does not fit `operation`'s output shape; times are seconds since the epoch."""
    shape = load(service).operation_model(operation).output_shape
    return problems(response, shape) if shape is not None else []
