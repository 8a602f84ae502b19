"""Who asks: Signature Version 4 of every request to the local SageMaker, in the header or in a presigned URL.

The local SageMaker runs commands for whoever may create a job, so it answers only those who know the key pair in its
state directory. Rules: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html and
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html; tests compare with botocore's signer.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from harness.local.api.errors import ApiError

ALGORITHM = "AWS4-HMAC-SHA256"
WINDOW = timedelta(minutes=15)  # how far a signature's time may be from ours
LONGEST = 7 * 24 * 3600  # seconds that a presigned URL may be valid
CREDENTIAL = re.compile(r"([^/]+)/(\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")
FIELD = re.compile(r"(Credential|SignedHeaders|Signature)=([^,\s]+)")


@dataclass(frozen=True)
class Signed:
    """What a request says about its signature."""

    access_key: str
    date: str
    region: str
    service: str
    headers: tuple[str, ...]
    """Names of the signed headers, in lower case."""
    signature: str
    time: str
    """As 20260101T000000Z."""
    expires: int | None = None
    """Seconds; of a presigned URL."""


def read(environ: Mapping[str, Any]) -> Signed:
    """The signature of a request. Raises ApiError 403 where it has none or a damaged one."""
    text = str(environ.get("HTTP_AUTHORIZATION", ""))
    if text.startswith(ALGORITHM):
        found = dict(FIELD.findall(text))
        return _signed(found, str(environ.get("HTTP_X_AMZ_DATE", "")), None)
    query = dict(urllib.parse.parse_qsl(str(environ.get("QUERY_STRING", ""))))
    if query.get("X-Amz-Algorithm") == ALGORITHM:
        names = ("Credential", "SignedHeaders", "Signature")
        found = {name: query.get(f"X-Amz-{name}", "") for name in names}
        expires = query.get("X-Amz-Expires", "")
        if not expires.isdigit() or not 0 < int(expires) <= LONGEST:
            raise _denied("AuthorizationQueryParametersError", f"X-Amz-Expires must be 1 to {LONGEST}")
        return _signed(found, query.get("X-Amz-Date", ""), int(expires))
    raise _denied("MissingAuthenticationToken", "Request is missing Authentication Token")


def _signed(found: Mapping[str, str], time: str, expires: int | None) -> Signed:
    scope = CREDENTIAL.fullmatch(found.get("Credential", ""))
    if scope is None or not found.get("Signature") or not re.fullmatch(r"\d{8}T\d{6}Z", time):
        raise _denied("IncompleteSignature", "Credential, Signature or the date is missing or malformed")
    headers = tuple(found.get("SignedHeaders", "").split(";"))
    key, date, region, service = scope.groups()
    return Signed(key, date, region, service, headers, found["Signature"], time, expires)


def check(
    signed: Signed,
    environ: Mapping[str, Any],
    body: bytes | None,
    secret_of: Callable[[str], str | None],
    now: datetime | None = None,
) -> None:
    """Raises ApiError 403 unless the whole signature is right and its time is near.

    `body` is None where it is not read before the signature is known (objects): then what the header
    x-amz-content-sha256 says of it is signed. `secret_of` gives the secret of an access key, None for an unknown one.
    """
    secret = secret_of(signed.access_key)
    if secret is None:
        raise _denied("InvalidClientTokenId", "The security token included in the request is invalid.")
    _check_time(signed, now or datetime.now(UTC))
    if "host" not in signed.headers:
        raise _denied("SignatureDoesNotMatch", "'Host' must be a signed header")
    if not hmac.compare_digest(_signature(signed, environ, body, secret), signed.signature):
        raise _denied(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
            "Access Key and signing method.",
        )


def is_version_2(environ: Mapping[str, Any]) -> bool:
    """Whether a request is a presigned URL of Signature Version 2, which boto3 makes for S3 unless told otherwise."""
    query = urllib.parse.parse_qs(str(environ.get("QUERY_STRING", "")))
    return not environ.get("HTTP_AUTHORIZATION") and {"AWSAccessKeyId", "Signature", "Expires"} <= query.keys()


def check_version_2(
    environ: Mapping[str, Any], secret_of: Callable[[str], str | None], now: datetime | None = None
) -> None:
    """Raises ApiError 403 unless such a URL is of this object, and its time is not over.

    Rules: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html
    """
    from botocore.auth import HmacV1Auth
    from botocore.credentials import Credentials

    path, query = _target(environ)
    given = dict(urllib.parse.parse_qsl(query))
    secret, expires = secret_of(given.pop("AWSAccessKeyId")), given.pop("Expires")
    if secret is None:
        raise _denied("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    if not expires.isdigit() or (now or datetime.now(UTC)).timestamp() > int(expires):
        raise _denied("AccessDenied", "Request has expired")
    signed = given.pop("Signature")
    url = urllib.parse.urlsplit(f"{path}?{urllib.parse.urlencode(given)}")
    head = (
        str(environ["REQUEST_METHOD"]),
        _header(environ, "content-md5"),
        _header(environ, "content-type"),
        expires,
    )
    resource: str = HmacV1Auth(Credentials("", secret)).canonical_resource(url)  # with the parameters that count
    digest = hmac.digest(secret.encode(), "\n".join((*head, resource)).encode(), "sha1")
    wanted = base64.b64encode(digest).decode()
    if not hmac.compare_digest(wanted.encode(), signed.encode()):
        raise _denied("SignatureDoesNotMatch", "The request signature we calculated does not match the one given.")


def _check_time(signed: Signed, now: datetime) -> None:
    made = datetime.strptime(signed.time, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    until = WINDOW if signed.expires is None else timedelta(seconds=signed.expires)
    if now > made + until and signed.expires is not None:
        raise _denied("AccessDenied", "Request has expired")
    if now > made + until or made > now + WINDOW or signed.time[:8] != signed.date:
        raise _denied("RequestTimeTooSkewed", f"Signature not yet current or expired: {signed.time} is not near now")


def _signature(signed: Signed, environ: Mapping[str, Any], body: bytes | None, secret: str) -> str:
    """The signature that the request ought to have."""
    scope = f"{signed.date}/{signed.region}/{signed.service}/aws4_request"
    digest = hashlib.sha256(_canonical(signed, environ, body).encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, "\n".join((ALGORITHM, signed.time, scope, digest)).encode(), "sha256").hex()


def _canonical(signed: Signed, environ: Mapping[str, Any], body: bytes | None) -> str:
    path, query = _target(environ)
    if signed.service != "s3":  # the path of every other service is encoded once more
        path = urllib.parse.quote(_without_dots(path), safe="/~")
    headers = {name: " ".join(_header(environ, name).split()) for name in signed.headers}
    lines = [str(environ["REQUEST_METHOD"]), path, _canonical_query(query)]
    lines += [*(f"{name}:{headers[name]}" for name in sorted(headers)), "", ";".join(sorted(headers))]
    return "\n".join([*lines, _payload(signed, headers, body)])


def _target(environ: Mapping[str, Any]) -> tuple[str, str]:
    """(path, query) as they were sent; the server keeps them beside the decoded ones."""
    target = str(environ.get("REQUEST_URI") or environ.get("PATH_INFO") or "/")
    if not target.startswith("/"):  # the whole URL, as a proxy is asked
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    return path, query


def _without_dots(path: str) -> str:
    """RFC 3986's removal of dot segments, and empty segments with them."""
    out: list[str] = []
    for part in path.split("/"):
        if part == "..":
            out = out[:-1]
        elif part not in ("", "."):
            out.append(part)
    return "/" + "/".join(out) + ("/" if path.endswith("/") and out else "")


def _canonical_query(query: str) -> str:
    pairs = [part.partition("=")[::2] for part in query.split("&") if part]
    plain = [(urllib.parse.unquote(k), urllib.parse.unquote(v)) for k, v in pairs if k != "X-Amz-Signature"]
    quoted = [(urllib.parse.quote(k, safe="-_.~"), urllib.parse.quote(v, safe="-_.~")) for k, v in plain]
    return "&".join(f"{k}={v}" for k, v in sorted(quoted))


def _payload(signed: Signed, headers: Mapping[str, str], body: bytes | None) -> str:
    """What the signature says of the body."""
    if said := headers.get("x-amz-content-sha256"):
        if body is not None:
            _check_body(said, body)
        return said
    if signed.service == "s3":
        return "UNSIGNED-PAYLOAD"
    return hashlib.sha256(body or b"").hexdigest()


def _check_body(said: str, body: bytes) -> None:
    if re.fullmatch(r"[0-9a-f]{64}", said) and said != hashlib.sha256(body).hexdigest():
        raise _denied("XAmzContentSHA256Mismatch", "x-amz-content-sha256 does not match what was computed", 400)


def _header(environ: Mapping[str, Any], name: str) -> str:
    key = name.upper().replace("-", "_")
    return str(environ.get(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}", ""))


def _denied(code: str, message: str, status: int = 403) -> ApiError:
    return ApiError(code, message, status)
