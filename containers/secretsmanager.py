"""Secrets by ARN: a container that is told NAME_SECRET_ARN gets NAME, fetched from Secrets Manager as it starts.

Requests, plans, logs and descriptions of a job hold the ARN alone; the value is in the memory of the container's
processes. One call, signed here with the standard library (Signature Version 4), because this package may import
nothing else and the CPU stand-ins have no AWS SDK.

Sources: docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html,
.../IAM/latest/UserGuide/create-signed-request.html, .../sdkref/latest/guide/feature-container-credentials.html,
.../AWSEC2/latest/UserGuide/instancedata-data-retrieval.html. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from containers.contract import ContractError

SUFFIX = "_SECRET_ARN"
SERVICE = "secretsmanager"
TIMEOUT = 10  # seconds for one answer
WAITS = (1.0, 2.0, 4.0)  # seconds between attempts where another may help: throttling, 5xx, no connection
# Where containers (ECS's address, SageMaker's too) and instances get their role's credentials from.
CONTAINER_HOST = "http://169.254.170.2"
INSTANCE_HOST = "http://169.254.169.254"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # those are behind no proxy
SHORTEST_HIDDEN = 4  # characters; hiding shorter ones would make a log unreadable and protect nothing
HIDDEN = b"***"


class Credentials(NamedTuple):
    """Of the job's role, or of whoever runs a container by hand."""

    key: str
    secret: str
    token: str = ""


def wanted(environment: Mapping[str, str]) -> dict[str, str]:
    """Variable -> ARN of its secret."""
    return {k[: -len(SUFFIX)]: v for k, v in environment.items() if k.endswith(SUFFIX) and k != SUFFIX and v}


def fetch(environment: Mapping[str, str]) -> dict[str, str]:
    """Variable -> value for every NAME_SECRET_ARN. Raises ContractError naming variable, ARN and reason."""
    found = {}
    for name, arn in sorted(wanted(environment).items()):
        try:
            found[name] = _value(arn, environment)
        except ContractError as error:
            raise ContractError(f"{name}{SUFFIX} ({arn}): {error}") from None
    return found


def hidden(*groups: Mapping[str, str]) -> tuple[bytes, ...]:
    """What must not appear in a log: the values, or each line of those that have several; the longest first."""
    values = [value for group in groups for value in group.values()]
    lines = {line.strip().encode() for value in values for line in value.splitlines()}
    return tuple(sorted((line for line in lines if len(line) >= SHORTEST_HIDDEN), key=len, reverse=True))


def hide(text: bytes, secrets: tuple[bytes, ...]) -> bytes:
    """`text` without them."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def _value(arn: str, environment: Mapping[str, str]) -> str:
    parts = arn.split(":")
    if len(parts) < 7 or parts[0] != "arn" or parts[2] != SERVICE:
        raise ContractError("this is not the ARN of a secret")
    region = parts[3]
    url = environment.get("AWS_ENDPOINT_URL_SECRETS_MANAGER") or environment.get("AWS_ENDPOINT_URL")
    url = url or f"https://{SERVICE}.{region}.amazonaws.com{'.cn' if parts[1] == 'aws-cn' else ''}"
    body = json.dumps({"SecretId": arn}).encode()
    headers = signed(url, region, body, credentials(environment), datetime.now(timezone.utc))
    answer = json.loads(_ask(urllib.request.Request(url, body, headers, method="POST")))  # noqa: S310 (http: the local one)
    value = answer.get("SecretString")
    if not isinstance(value, str) or not value or "\0" in value:
        raise ContractError("it has no text that fits into a variable (SecretString)")
    return value


def credentials(environment: Mapping[str, str]) -> Credentials:
    """From the environment, from the container's endpoint, or from the instance: the order of AWS's SDKs."""
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        token = environment.get("AWS_SESSION_TOKEN", "")
        return Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], token)
    url = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
    if relative := environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        url = CONTAINER_HOST + relative
    try:
        if url:
            return _read(_get(url, _container_headers(environment)))
        if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
            return _of_instance(environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", INSTANCE_HOST).rstrip("/"))
    except (ContractError, OSError, ValueError, KeyError) as error:
        raise ContractError(f"no credentials to read it with: {error}") from None
    raise ContractError("no credentials to read it with: a job without a role or without a network has none")


def _container_headers(environment: Mapping[str, str]) -> dict[str, str]:
    token = environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
    if file := environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
        token = Path(file).read_text(encoding="utf-8").strip()
    return {"Authorization": token} if token else {}


def _of_instance(host: str) -> Credentials:
    """IMDSv2. A container reaches it where the instance's hop limit is two or more."""
    seconds = {"X-aws-ec2-metadata-token-ttl-seconds": "300"}
    request = urllib.request.Request(f"{host}/latest/api/token", headers=seconds, method="PUT")  # noqa: S310
    token = {"X-aws-ec2-metadata-token": _ask(request, DIRECT, attempts=1).decode()}
    url = f"{host}/latest/meta-data/iam/security-credentials/"
    role = _get(url, token).decode().split()[0]
    return _read(_get(url + role, token))


def _get(url: str, headers: Mapping[str, str]) -> bytes:
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 (link-local addresses have no TLS)
    return _ask(request, DIRECT)


def _read(raw: bytes) -> Credentials:
    found = json.loads(raw)
    return Credentials(found["AccessKeyId"], found["SecretAccessKey"], found.get("Token", ""))


def _ask(
    request: urllib.request.Request,
    opener: urllib.request.OpenerDirector | None = None,
    attempts: int = len(WAITS) + 1,
) -> bytes:
    """The body of a 200. Raises ContractError with the service's own code and message."""
    for wait in (*WAITS[: attempts - 1], None):
        try:
            with (opener or urllib.request.build_opener()).open(request, timeout=TIMEOUT) as answer:
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            reason = _refusal(error)
            again = error.code >= 500 or "Throttling" in reason
        except OSError as error:
            reason, again = f"no answer from {urllib.parse.urlsplit(request.full_url).netloc}: {error}", True
        if wait is None or not again:
            break
        time.sleep(wait)
    raise ContractError(reason)


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        found: dict[str, Any] = json.loads(error.read())
        code = str(found["__type"]).rpartition("#")[2]
        return f"{code}: {found.get('message') or found.get('Message') or ''}".rstrip(": ")
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"


def signed(url: str, region: str, body: bytes, who: Credentials, at: datetime) -> dict[str, str]:
    """The headers of GetSecretValue as POST of `body` to `url`, signed at `at` (UTC)."""
    stamp, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": urllib.parse.urlsplit(url).netloc,
        "x-amz-date": stamp,
        "x-amz-target": f"{SERVICE}.GetSecretValue",
    }
    if who.token:
        headers["x-amz-security-token"] = who.token
    names = ";".join(sorted(headers))
    canonical = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = f"POST\n/\n\n{canonical}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{day}/{region}/{SERVICE}/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{who.secret}".encode()
    for part in (day, region, SERVICE, "aws4_request", to_sign):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = key.hex()
    value = f"AWS4-HMAC-SHA256 Credential={who.key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": value}
