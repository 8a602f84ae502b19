"""What AWS says when it refuses, as one of ours: what was asked, why not, what to do now.

Codes are the services' own: https://docs.aws.amazon.com/sagemaker/latest/APIReference/CommonErrors.html and
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.
"""

from __future__ import annotations

from typing import Any

from harness.errors import EndpointFailed, HarnessError, Refused

EXPIRED: tuple[str, ...] = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidClientTokenId")
EXPIRED += ("TokenRefreshRequired", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch")
DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized", "403", "Forbidden")
MISSING: tuple[str, ...] = ("ResourceNotFound", "ResourceNotFoundException", "NoSuchEntity", "NotFound", "404")
MISSING += ("NotFoundException",)
MISSING += ("NoSuchKey", "NoSuchBucket", "NoSuchUpload", "RepositoryNotFoundException", "ImageNotFoundException")
TAKEN: tuple[str, ...] = ("ResourceInUse", "ResourceInUseException", "BucketAlreadyOwnedByYou", "BucketAlreadyExists")
TAKEN += ("EntityAlreadyExists", "RepositoryAlreadyExistsException")
THROTTLED = ("Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown")

RENEW = "renew them (`aws sso login`, or what your organisation uses), then repeat the command: it goes on"


def refusal(error: Exception, service: str, operation: str, region: str) -> HarnessError:
    """`error`, a botocore exception, as a HarnessError whose text a user can act on."""
    where = f"{service} {operation} in {region}"
    response: dict[str, Any] = getattr(error, "response", {})
    if not response:
        return _unreachable(error, where)
    code = str(response.get("Error", {}).get("Code", ""))
    message = str(response.get("Error", {}).get("Message", "")) or code
    if code == "ModelError":
        return _model_error(response, message)
    what, hint = f"AWS refuses {where}: {code}", ""
    if code in EXPIRED:
        what, hint = "the AWS credentials have expired or are not valid", RENEW
    elif code in DENIED:
        what = f"{where}: access denied"
        hint = "the policy that is needed is in docs/aws.md; a service control policy may also forbid it"
    elif code in ("ResourceLimitExceeded", "LimitExceededException", "ServiceQuotaExceededException"):
        what = f"{where}: a quota of the account is used up"
        hint = "ask for more in Service Quotas (it takes hours to days), or use another instance type or region"
    elif code in THROTTLED:
        what = f"{where}: AWS throttles this account; eight tries with growing waits were not enough"
        hint = "repeat the command in a few minutes: it goes on where it was"
    return Refused(what, message, hint, code, operation)


def _unreachable(error: Exception, where: str) -> HarnessError:
    """No answer: nobody to sign as, or no way to get there."""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        hint = "aws configure, aws sso login, or AWS_PROFILE; see docs/aws.md"
        return Refused("there are no AWS credentials", str(error), hint, name)
    if "Token" in name or "SSO" in name:
        return Refused("the AWS credentials have expired or are not valid", str(error), RENEW, "ExpiredToken")
    if name == "ProfileNotFound":
        return Refused(str(error), hint="see ~/.aws/config, or leave aws_profile out of the profile", code=name)
    return Refused(f"no answer to {where}", str(error), "is the network up? a proxy needs HTTPS_PROXY", name)


def _model_error(response: dict[str, Any], message: str) -> EndpointFailed:
    status = response.get("OriginalStatusCode", "")
    said = str(response.get("OriginalMessage", "")) or message
    where = response.get("LogStreamArn", "")
    if status == 0:
        return EndpointFailed("the invocation timed out", said, "see harness logs --endpoint tuned")
    return EndpointFailed(f"the container answered {status}", said, f"its log: {where}" if where else "")


def is_missing(error: HarnessError) -> bool:
    """Whether `error` says that what was asked for is not there.

    SageMaker answers Describe of an unknown name with ValidationException, which is also what a malformed request
    gets; ours are validated before they are sent, so there it has no other meaning. Of Delete and Stop it has others
    (an endpoint that is being made): whoever gets one asks again what there is under the name.
    """
    if not isinstance(error, Refused):
        return False
    unknown = error.code == "ValidationException" and error.operation.startswith("describe_")
    return error.code in MISSING or unknown


def is_taken(error: HarnessError) -> bool:
    """Whether `error` says, or may say, that the name is in use.

    SageMaker answers the second creation of a model, configuration or endpoint with ValidationException: whoever
    gets one asks what there is under the name.
    """
    if not isinstance(error, Refused):
        return False
    return error.operation.startswith("create_") and error.code in (*TAKEN, "ValidationException")


def is_capacity(reason: str) -> bool:
    """Whether a FailureReason means that AWS has no such instance to give at the moment."""
    words = (
        "CapacityError",
        "InsufficientInstanceCapacity",
        "Unable to provision requested",
        "insufficient capacity",
    )
    return any(word.lower() in reason.lower() for word in words)
