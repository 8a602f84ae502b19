"""What the local SageMaker answers instead of a result: AWS's error code, message and HTTP status."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """`code` is what boto3 shows as Error.Code; `members` are further fields of the error shape."""

    def __init__(self, code: str, message: str, status: int = 400, **members: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.members = code, message, status, members


def invalid(message: str) -> ApiError:
    """The service's rules are broken. AWS also says so where a resource does not exist."""
    return ApiError("ValidationException", message)


def not_implemented(what: str) -> ApiError:
    """Never a silent success: what is not emulated is refused by name. botocore does not retry a 501."""
    page = "docs/reference/sagemaker-operations.md"
    return ApiError("NotImplemented", f"{what} is not implemented by the local SageMaker; see {page}", 501)
