"""The one place that makes boto3 clients: calls as one profile, retried and refused in one way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.aws.errors import refusal
from harness.errors import EndpointFailed
from harness.spec.profile import Profile

# Seconds. A stream may take 8 minutes between two parts; a little more, so that SageMaker's own error comes.
READ_TIMEOUT = {"sagemaker-runtime": 490}
# Of a client whose requests go nowhere, or whose server was found without its key pair.
NO_CREDENTIALS = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
# What a local SageMaker answers even where its objects are in AWS's S3.
LOCAL_SERVICES = ("sagemaker", "sagemaker-runtime", "logs", "scheduler")


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

        profile, local = self.profile, self._is_local(service)
        config = Config(
            # A second try of an invocation generates a second time, and waits as long again.
            retries={"mode": "standard", "max_attempts": 2 if local or service == "sagemaker-runtime" else 8},
            connect_timeout=5,
            read_timeout=READ_TIMEOUT.get(service, 60),
            max_pool_connections=20,
            user_agent_extra="neuron-harness",
            s3={"addressing_style": "path" if local else "auto"},
            proxies={} if local else None,
        )
        more: dict[str, Any] = {}
        if local:
            more = {"endpoint_url": profile.endpoint_url, **NO_CREDENTIALS}
            if profile.access_key:
                more |= dict(zip(NO_CREDENTIALS, profile.access_key, strict=True))
        try:
            session = _local_session() if local else self._aws_session()
            return session.client(service, region_name=region, config=config, **more)
        except BotoCoreError as error:
            raise refusal(error, service, "client", region) from None

    def _is_local(self, service: str) -> bool:
        """Whether the local SageMaker answers; on a Neuron host with a profile its objects are in AWS's S3."""
        return bool(self.profile.endpoint_url) and (not self.profile.objects_in_s3 or service in LOCAL_SERVICES)

    def _aws_session(self) -> Any:
        if self._session is None:
            self._session = _session(self.profile.aws_profile)
        return self._session

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


def read_models() -> None:
    """Import boto3 and read what clients of a local SageMaker are made from, for whoever has to wait anyway."""
    for service in (*LOCAL_SERVICES, "s3", "sts", "iam"):
        _local_session().client(service, region_name="us-west-2", endpoint_url="http://127.0.0.1", **NO_CREDENTIALS)


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
    """One for all local SageMakers: reading the services' models takes half a second.

    It reads none of the user's AWS configuration, so that AWS_PROFILE or a damaged ~/.aws/config has no effect.
    """
    import boto3
    import botocore.session

    nothing = (None, None, None, None)
    no_file = (None, None, os.devnull, None)
    variables = {"profile": nothing, "config_file": no_file, "credentials_file": no_file}
    return boto3.Session(botocore_session=botocore.session.Session(session_vars=variables))
