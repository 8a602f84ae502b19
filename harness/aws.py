"""boto3 at arm's length: the clients, and offline validation of requests against botocore's own service model.

The model ships with botocore, so a request is checked without credentials or network: unknown members, missing
ones, types, enumerations, patterns, lengths and ranges. AWS checks the same, after the wait.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.awserrors import refusal
from harness.errors import EndpointFailed, InvalidInput, Problem, did_you_mean
from harness.profile import Profile

# Seconds. A stream may take 8 minutes between two parts; a little more, so that SageMaker's own error comes.
READ_TIMEOUT = {"sagemaker-runtime": 490}


class Aws:
    """Calls as one profile: the standard credential chain, or fixed credentials for a local SageMaker.

    Every call goes through `call`, so that there is one place which retries (botocore's standard mode: eight tries
    with full jitter) and one which turns refusals into ours.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._clients: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()
        self._session: Any = None

    def client(self, service: str, region: str = "") -> Any:
        """The boto3 client; made once. Clients may be shared by threads, making them may not."""
        region = region or self.profile.region
        with self._lock:
            if (service, region) not in self._clients:
                self._clients[service, region] = self._make(service, region)
            return self._clients[service, region]

    def _make(self, service: str, region: str) -> Any:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        profile, local = self.profile, bool(self.profile.endpoint_url)
        config = Config(
            # A second try of an invocation generates a second time, and waits as long again.
            retries={"mode": "standard", "max_attempts": 2 if local or service == "sagemaker-runtime" else 8},
            connect_timeout=5,
            read_timeout=READ_TIMEOUT.get(service, 60),
            max_pool_connections=20,
            user_agent_extra="neuron-harness",
            s3={"addressing_style": "path" if local else "auto"},
        )
        more = {}
        if local:  # never the user's own credentials
            more = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
            more["endpoint_url"] = profile.endpoint_url
        try:
            if self._session is None:
                self._session = _local_session() if local else _session(profile.aws_profile)
            return self._session.client(service, region_name=region, config=config, **more)
        except BotoCoreError as error:
            raise refusal(error, service, "client", region) from None

    def call(self, service: str, operation: str, region: str = "", **request: Any) -> Any:
        """One API call, for example ("sagemaker", "describe_endpoint", EndpointName=...).

        Raises Refused, or EndpointFailed for what the container of an endpoint answered.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self.client(service, region), operation)(**request)
        except (ClientError, BotoCoreError) as error:
            raise refusal(error, service, operation, region or self.profile.region) from None

    def pages(self, service: str, operation: str, key: str, region: str = "", **request: Any) -> Iterator[Any]:
        """Every item of a paginated listing, for example key="TrainingJobSummaries"."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            for page in self.client(service, region).get_paginator(operation).paginate(**request):
                yield from page.get(key, [])
        except (ClientError, BotoCoreError) as error:
            raise refusal(error, service, operation, region or self.profile.region) from None

    def events(self, stream: Any, event: str, member: str, name: str) -> Iterator[bytes]:
        """The bytes of an event stream's parts. Raises EndpointFailed where it breaks."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        try:
            for item in stream:
                yield item[event][member]
        except (ClientError, BotoCoreError, HTTPClientError) as error:
            said = getattr(error, "response", {}).get("Error", {})
            why = f"{said['Code']}: {said.get('Message', '')}" if said else str(error)
            raise EndpointFailed(f"endpoint {name}: the stream broke", why) from None
        finally:
            stream.close()


def _session(profile_name: str) -> Any:
    import boto3

    return boto3.Session(profile_name=profile_name or None)


def _on_ec2() -> bool:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html"""
    vendor = Path("/sys/devices/virtual/dmi/id/sys_vendor")
    return vendor.is_file() and "Amazon" in vendor.read_text(encoding="utf-8", errors="replace")


def credentials_from(profile_name: str) -> str:
    """Which link of the standard chain has credentials, without using them. Raises Refused where none has."""
    from botocore.exceptions import BotoCoreError, NoCredentialsError
    from botocore.session import Session

    session = Session(profile=profile_name or None)
    try:
        if not _on_ec2():  # nobody answers elsewhere, and the wait is a second, twice
            session.get_component("credential_provider").remove("iam-role")
        found = session.get_credentials()
        if found is None:
            raise NoCredentialsError
    except BotoCoreError as error:
        raise refusal(error, "sts", "credentials", "") from None
    return str(found.method)


@lru_cache(maxsize=1)
def _local_session() -> Any:
    """One for all: it has no credentials to go stale, and reading the services' models takes half a second."""
    return _session("")


@lru_cache(maxsize=4)
def service_model(service: str) -> Any:
    """botocore's model of `service`, for example "sagemaker"."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


def enum_values(service: str, shape: str) -> list[str]:
    """The members of an enumeration, for example ("sagemaker", "TrainingInstanceType")."""
    return list(service_model(service).shape_for(shape).enum)


def validate(service: str, operation: str, request: Mapping[str, Any]) -> None:
    """Raise InvalidInput with every way in which `request` does not fit `operation`'s input shape."""
    shape = service_model(service).operation_model(operation).input_shape
    found = [Problem(f"{operation}: {text}") for text in problems(request, shape)]
    if found:
        raise InvalidInput.of(found)


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
    shape = service_model(service).operation_model(operation).output_shape
    return problems(response, shape) if shape is not None else []
