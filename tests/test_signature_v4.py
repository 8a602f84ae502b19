"""The local SageMaker's reading of Signature Version 4, held against botocore's signer."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import given, strategies as st

from harness.local.api import signature
from harness.local.api.errors import ApiError

KEY, SECRET = "AKIAEXAMPLE", "a secret/of+some=length"
HOST = "127.0.0.1:4567"


def signed(method: str, target: str, service: str, body: bytes = b"", **headers: str) -> dict[str, Any]:
    """WSGI's environment of a request that botocore has signed."""
    request = AWSRequest(method, f"http://{HOST}{target}", {"Host": HOST, **headers}, body)
    kind = S3SigV4Auth if service == "s3" else SigV4Auth
    kind(Credentials(KEY, SECRET), service, "eu-west-1").add_auth(request)
    return environ(method, target, dict(request.headers))


def environ(method: str, target: str, headers: Mapping[str, str]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    out = {
        "REQUEST_METHOD": method,
        "REQUEST_URI": target,
        "PATH_INFO": urllib.parse.unquote(path),
        "QUERY_STRING": query,
    }
    for name, value in headers.items():
        out[f"HTTP_{name.upper().replace('-', '_')}"] = value
    return out


def check(env: dict[str, Any], body: bytes | None = b"", secret: str = SECRET, now: datetime | None = None) -> None:
    signature.check(signature.read(env), env, body, lambda key: secret if key == KEY else None, now)


def refused(env: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ApiError) as caught:
        check(env, **more)
    return caught.value.code


def test_what_botocore_signs_is_accepted() -> None:
    check(signed("POST", "/", "sagemaker", b'{"a": 1}'), b'{"a": 1}')
    check(signed("GET", "/bucket/a%20b/c?list-type=2&prefix=x%2Fy&uploads", "s3"), None)
    check(signed("POST", "/endpoints/a%20b/invocations", "sagemaker", b"x"), b"x")


@given(
    path=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8), max_size=4),
    query=st.dictionaries(st.text(min_size=1, max_size=6), st.text(max_size=6), max_size=3),
    service=st.sampled_from(["s3", "sagemaker"]),
    body=st.binary(max_size=20),
)
def test_any_path_query_and_body_is_read_as_botocore_reads_it(
    path: list[str], query: dict[str, str], service: str, body: bytes
) -> None:
    target = "/" + "/".join(urllib.parse.quote(part, safe="") for part in path)
    if query:
        target += "?" + urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
    check(signed("PUT", target, service, body), body)


def test_a_wrong_secret_another_path_method_header_or_body_is_refused() -> None:
    env = signed("PUT", "/bucket/key", "s3", b"data")
    assert refused(env, body=b"data", secret="another") == "SignatureDoesNotMatch"
    assert refused({**env, "REQUEST_URI": "/bucket/other"}, body=None) == "SignatureDoesNotMatch"
    assert refused({**env, "REQUEST_METHOD": "DELETE"}, body=None) == "SignatureDoesNotMatch"
    assert refused({**env, "HTTP_HOST": "evil.example"}, body=None) == "SignatureDoesNotMatch"
    assert refused(env, body=b"other") == "XAmzContentSHA256Mismatch"
    assert refused(signed("POST", "/", "sagemaker", b"{}"), body=b"[]") == "SignatureDoesNotMatch"


def test_an_unknown_key_no_signature_and_half_of_one_are_refused() -> None:
    assert refused(environ("POST", "/", {})) == "MissingAuthenticationToken"
    env = signed("POST", "/", "sagemaker")
    other = {**env, "HTTP_AUTHORIZATION": env["HTTP_AUTHORIZATION"].replace(KEY, "AKIAOTHER")}
    assert refused(other) == "InvalidClientTokenId"
    half = {**env, "HTTP_AUTHORIZATION": env["HTTP_AUTHORIZATION"].partition(", Signature")[0]}
    assert refused(half) == "IncompleteSignature"


def test_a_signature_counts_for_fifteen_minutes() -> None:
    env, now = signed("POST", "/", "sagemaker"), datetime.now(UTC)
    check(env, now=now + timedelta(minutes=14))
    assert refused(env, now=now + timedelta(minutes=16)) == "RequestTimeTooSkewed"
    assert refused(env, now=now - timedelta(minutes=16)) == "RequestTimeTooSkewed"


def presigned(key: str, expires: int = 600) -> str:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}",
        region_name="eu-west-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    url: str = client.generate_presigned_url("get_object", {"Bucket": "b", "Key": key}, expires)
    return url.removeprefix(f"http://{HOST}")


def presigned_version_2(key: str) -> str:
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
    client = boto3.client("s3", endpoint_url=f"http://{HOST}", region_name="eu-west-1", **keys)
    url: str = client.generate_presigned_url("get_object", {"Bucket": "b", "Key": key}, 60)
    return url.removeprefix(f"http://{HOST}")


def test_so_does_one_of_version_2() -> None:
    def ask(target: str, method: str = "GET", seconds: int = 0, secret: str = SECRET) -> None:
        env = environ(method, target, {"Host": HOST})
        assert signature.is_version_2(env)
        now = datetime.now(UTC) + timedelta(seconds=seconds)
        signature.check_version_2(env, lambda key: secret if key == KEY else None, now)

    url = presigned_version_2("a/b c")
    ask(url)
    for wrong in (
        {"target": url.replace("b%20c", "d")},
        {"method": "DELETE"},
        {"seconds": 61},
        {"secret": "another"},
    ):
        with pytest.raises(ApiError):
            ask(**{"target": url, **wrong})


def test_a_presigned_url_opens_its_object_only_and_for_its_time() -> None:
    env = environ("GET", presigned("a/b c.txt"), {"Host": HOST})
    check(env, None)
    other = presigned("a/b c.txt").replace("b%20c.txt", "d.txt")
    assert refused(environ("GET", other, {"Host": HOST}), body=None) == "SignatureDoesNotMatch"
    assert refused({**env, "REQUEST_METHOD": "PUT"}, body=None) == "SignatureDoesNotMatch"
    assert refused(env, body=None, now=datetime.now(UTC) + timedelta(seconds=601)) == "AccessDenied"
    longer = presigned("a").replace("X-Amz-Expires=600", "X-Amz-Expires=6000")
    assert refused(environ("GET", longer, {"Host": HOST}), body=None) == "SignatureDoesNotMatch"
    forever = presigned("a").replace("X-Amz-Expires=600", "X-Amz-Expires=9999999")
    assert refused(environ("GET", forever, {"Host": HOST}), body=None) == "AuthorizationQueryParametersError"
