"""Operations, request members and client methods of AWS that our code names exist in botocore's own service models."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
from botocore import xform_name
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from harness import plan, runfile, stacks
from harness.profile import Profile
from tests.conformance.uses import ROOT, files

SERVICES = ("sagemaker", "sagemaker-runtime", "s3", "ecr", "sts", "iam", "logs", "cloudwatch", "pricing", "ec2")
OPERATION = re.compile(r"(?:Create|Describe|Delete|Invoke|List|Stop|Update|Put|Get|Assume|Add)[A-Z]\w+")
MEMBER = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z][A-Za-z0-9]*)*")
# Capitalised keys in the harness that are no member of a request or answer, and what they are.
OTHER_KEYS = {"Content": "HTTP headers begin so"}


@lru_cache
def service(name: str) -> ServiceModel:
    return ServiceModel(Loader().load_service_model(name, "service-2"), name)


def members(shape: Any, seen: frozenset[str] = frozenset()) -> set[str]:
    """Every member's name below a shape."""
    if shape is None or shape.name in seen:
        return set()
    seen |= {shape.name}
    if shape.type_name == "structure":
        return set(shape.members) | {n for part in shape.members.values() for n in members(part, seen)}
    if shape.type_name == "list":
        return members(shape.member, seen)
    return members(shape.value, seen) if shape.type_name == "map" else set()


def operations() -> dict[str, str]:
    """Operation -> its service."""
    return {operation: name for name in reversed(SERVICES) for operation in service(name).operation_names}


def constants(tree: ast.AST) -> Iterator[str]:
    """Texts in the code that are no docstrings."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def keys(tree: ast.AST) -> set[str]:
    """Keys that dictionaries are made with or asked for."""
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            found += node.keys
        elif isinstance(node, ast.Subscript):
            found.append(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            found += node.args[:1]
    return {n.value for n in found if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def misnamed(tree: ast.AST) -> list[str]:
    """Operations, client methods, their parameters and services that AWS does not have."""
    known, wrong = operations(), []
    methods = {xform_name(operation): operation for operation in known}
    wrong += [text for text in constants(tree) if OPERATION.fullmatch(text) and text not in known]
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        given = [k.arg for k in node.keywords if k.arg and k.arg[0].isupper()]
        if name in ("client", "resource") and node.args and isinstance(node.args[0], ast.Constant):
            wrong += [str(node.args[0].value)] if node.args[0].value not in Loader().list_available_services("service-2") else []
        if given and name not in methods:
            wrong.append(f"{name}({', '.join(given)})")
        elif given:
            shape = service(known[methods[name]]).operation_model(methods[name]).input_shape
            wrong += [f"{name}({key})" for key in given if key not in shape.members]
    return wrong


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """What the ready-made run files are sent as, here and on the instances of AWS; with and without channels."""
    profile = Profile()
    for path in sorted((ROOT / "harness" / "runs").glob("*.toml")):
        run = runfile.load(path)
        run = run[0] if isinstance(run, tuple) else run
        for compute in ({}, {"train_instance": "ml.trn1.2xlarge", "serve_instance": "ml.inf2.xlarge"}):
            changed = run.model_copy(update={"compute": run.compute.model_copy(update=compute)})
            made = plan.make(changed, stacks.load(run.stack) if hasattr(run, "stack") else stacks.load(), profile, "r-1")
            yield from ((name, plan.resolve(request, plan.PLACEHOLDERS)) for name, request in plan.requests_of(made))
