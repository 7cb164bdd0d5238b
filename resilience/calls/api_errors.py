"""Errors of APIs that have codes of their own: OpenAI, Anthropic, AWS and gRPC.

Source:
    OpenAI and Anthropic: the error references and the retry rules of their Python clients. AWS: botocore's
    `retries/standard.py`. gRPC: `doc/statuscodes.md` and gRFC A6 (push-back).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from resilience.calls import retry_after
from resilience.calls.http_statuses import BILLING_CODES, attribute, codes_of, info_from_status, read_status
from resilience.calls.kinds import ErrorInfo, ErrorKind

__all__ = ["read_aws", "read_grpc", "read_model_api", "read_stream_error"]

Ask: TypeAlias = Callable[[BaseException], ErrorInfo]


def read_model_api(exc: Any, ask: Ask) -> ErrorInfo | None:
    """Read an error of openai or anthropic, whose servers also say outright whether a retry makes sense."""
    info = read_status(exc, ask)
    if info is None or info.kind is ErrorKind.QUOTA:
        return info
    advice = retry_after.header(attribute(attribute(exc, "response"), "headers"), "x-should-retry")
    if advice in {"true", "false"}:
        return replace(info, transient=advice == "true")
    # These servers answer 409 to a lock that was not free in time.
    return replace(info, transient=True) if info.status == HTTPStatus.CONFLICT else info


#: Code to kind, whether it is transient, and whether it may have been executed.
_STREAM_CODES: Final = {
    "server_error": (ErrorKind.SERVER_ERROR, True, True),
    "api_error": (ErrorKind.SERVER_ERROR, True, True),
    "internal_error": (ErrorKind.SERVER_ERROR, True, True),
    "overloaded_error": (ErrorKind.OVERLOADED, True, False),
    "rate_limit_exceeded": (ErrorKind.RATE_LIMIT, True, False),
    "rate_limit_error": (ErrorKind.RATE_LIMIT, True, False),
    "timeout_error": (ErrorKind.TIMEOUT, True, True),
    "authentication_error": (ErrorKind.AUTH, False, False),
    "invalid_api_key": (ErrorKind.AUTH, False, False),
    "permission_error": (ErrorKind.PERMISSION, False, False),
    "not_found_error": (ErrorKind.NOT_FOUND, False, False),
    "model_not_found": (ErrorKind.NOT_FOUND, False, False),
    "invalid_request_error": (ErrorKind.INVALID_REQUEST, False, False),
}


def read_stream_error(exc: Any, ask: Ask) -> ErrorInfo | None:
    """Read an error that came in the middle of a stream: a code, but no status."""
    for code in codes_of(exc):
        if code in BILLING_CODES:
            return ErrorInfo(ErrorKind.QUOTA, code=code)
        if code in _STREAM_CODES:
            kind, transient, maybe_executed = _STREAM_CODES[code]
            return ErrorInfo(kind, transient, maybe_executed, code=code)
    return None


_THROTTLES: Final = {
    "BandwidthLimitExceeded",
    "EC2ThrottledException",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
}
#: Kind, whether it is transient (and then may have been executed), and the beginnings of codes.
_AWS_CODES: Final = (
    (ErrorKind.TIMEOUT, True, ("RequestTimeout",)),
    (ErrorKind.AUTH, False, ("ExpiredToken", "InvalidAccessKeyId", "InvalidClientTokenId", "SignatureDoesNotMatch")),
    (ErrorKind.AUTH, False, ("UnrecognizedClient", "AuthFailure", "MissingAuthenticationToken")),
    (ErrorKind.PERMISSION, False, ("AccessDenied", "UnauthorizedOperation")),
    (ErrorKind.NOT_FOUND, False, ("ResourceNotFound", "NoSuch")),
    (ErrorKind.INVALID_REQUEST, False, ("Validation", "InvalidParameter", "MalformedQuery")),
)


def read_aws(exc: Any, ask: Ask) -> ErrorInfo | None:
    """Read botocore's ClientError: the code first, for throttling comes as HTTP 400 too, then the status."""
    response = exc.response if isinstance(exc.response, dict) else {}
    metadata = response.get("ResponseMetadata") or {}
    code, status = str((response.get("Error") or {}).get("Code", "")), metadata.get("HTTPStatusCode")
    wait = retry_after.from_headers(metadata.get("HTTPHeaders"))
    if code in _THROTTLES:
        return ErrorInfo(ErrorKind.RATE_LIMIT, transient=True, retry_after=wait, status=status, code=code)
    for kind, transient, beginnings in _AWS_CODES:
        if code.startswith(beginnings):
            return ErrorInfo(kind, transient, transient, wait, status, code)
    info = info_from_status(status, metadata.get("HTTPHeaders"))
    return ErrorInfo(ErrorKind.UNKNOWN, code=code) if info is None else replace(info, code=code)


#: Status to kind, whether it is transient, and whether it may have been executed.
_GRPC_STATUSES: Final = {
    "CANCELLED": (ErrorKind.CANCELLED, False, False),
    "INVALID_ARGUMENT": (ErrorKind.INVALID_REQUEST, False, False),
    "DEADLINE_EXCEEDED": (ErrorKind.TIMEOUT, True, True),
    "NOT_FOUND": (ErrorKind.NOT_FOUND, False, False),
    "ALREADY_EXISTS": (ErrorKind.CONFLICT, False, False),
    "PERMISSION_DENIED": (ErrorKind.PERMISSION, False, False),
    "RESOURCE_EXHAUSTED": (ErrorKind.RATE_LIMIT, True, False),
    "FAILED_PRECONDITION": (ErrorKind.INVALID_REQUEST, False, False),
    "ABORTED": (ErrorKind.CONFLICT, True, False),
    "OUT_OF_RANGE": (ErrorKind.INVALID_REQUEST, False, False),
    "UNIMPLEMENTED": (ErrorKind.INVALID_REQUEST, False, False),
    "INTERNAL": (ErrorKind.UNKNOWN, False, True),
    "UNAVAILABLE": (ErrorKind.CONNECTION, True, False),
    "DATA_LOSS": (ErrorKind.UNKNOWN, False, True),
    "UNAUTHENTICATED": (ErrorKind.AUTH, False, False),
    "UNKNOWN": (ErrorKind.UNKNOWN, False, True),
}


def read_grpc(exc: Any, ask: Ask) -> ErrorInfo | None:
    """Read an RpcError's status code, and the server's push-back, which may also forbid a retry."""
    code = str(getattr(_called(exc, "code"), "name", ""))
    if code not in _GRPC_STATUSES:
        return None
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in str(_called(exc, "details")):
        return ErrorInfo(ErrorKind.INVALID_REQUEST, code=code)
    kind, transient, maybe_executed = _GRPC_STATUSES[code]
    metadata = {entry[0]: entry[1] for entry in _called(exc, "trailing_metadata") or ()}
    pushback = metadata.get("grpc-retry-pushback-ms")
    wait = retry_after.parse_milliseconds(pushback)
    is_forbidden = pushback is not None and wait is None
    return ErrorInfo(kind, transient and not is_forbidden, maybe_executed, wait, code=code)


def _called(owner: object, name: str) -> Any:
    """Call a method without arguments; None when there is none or it fails."""
    method = attribute(owner, name)
    try:
        return method() if callable(method) else None
    except Exception:  # noqa: BLE001  # what a foreign exception cannot tell must not hide the error it stands for
        return None
