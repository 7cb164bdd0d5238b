"""What an HTTP status means, with what the response around it says: Retry-After and the error codes of its body.

Source:
    RFC 9110 section 15, RFC 6585, RFC 8470 (425); the codes beyond are Cloudflare's (520 to 526), nginx's (499),
    Anthropic's (529) and AWS's (509).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from resilience.calls import retry_after
from resilience.calls.kinds import ErrorInfo, ErrorKind
from resilience.values import is_whole

__all__ = ["BILLING_CODES", "STATUSES", "attribute", "codes_of", "info_from_status", "read_status"]

_SERVER_ERROR, _TIMEOUT = ErrorKind.SERVER_ERROR, ErrorKind.TIMEOUT
#: Whether it is transient, and whether it may have been executed.
_SAFE, _UNSURE, _PERMANENT = (True, False), (True, True), (False, False)

#: Status to kind and outcome; what is not here is INVALID_REQUEST for 4xx and an unsure SERVER_ERROR for 5xx.
STATUSES: Final[dict[int, tuple[ErrorKind, tuple[bool, bool]]]] = {
    401: (ErrorKind.AUTH, _PERMANENT),
    402: (ErrorKind.QUOTA, _PERMANENT),
    403: (ErrorKind.PERMISSION, _PERMANENT),
    404: (ErrorKind.NOT_FOUND, _PERMANENT),
    407: (ErrorKind.AUTH, _PERMANENT),
    408: (_TIMEOUT, _UNSURE),
    409: (ErrorKind.CONFLICT, _PERMANENT),
    423: (ErrorKind.CONFLICT, _SAFE),
    425: (ErrorKind.OVERLOADED, _SAFE),
    429: (ErrorKind.RATE_LIMIT, _SAFE),
    499: (ErrorKind.CANCELLED, _PERMANENT),
    500: (_SERVER_ERROR, _UNSURE),
    501: (_SERVER_ERROR, _PERMANENT),
    # A gateway that got no proper answer cannot know what was done behind it.
    502: (_SERVER_ERROR, _UNSURE),
    503: (_SERVER_ERROR, _SAFE),
    504: (_TIMEOUT, _UNSURE),
    **dict.fromkeys((505, 506, 507, 508, 510), (_SERVER_ERROR, _PERMANENT)),
    509: (ErrorKind.RATE_LIMIT, _SAFE),
    511: (ErrorKind.AUTH, _PERMANENT),
    522: (_TIMEOUT, _UNSURE),
    524: (_TIMEOUT, _UNSURE),
    525: (ErrorKind.TLS, _PERMANENT),
    526: (ErrorKind.TLS, _PERMANENT),
    529: (ErrorKind.OVERLOADED, _SAFE),
}

#: Codes that turn a 429 into "pay first": waiting does not help.
BILLING_CODES: Final = frozenset(
    {
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "contract_spend_limit_reached",
        "credit_balance_exhausted",
        "enforced_spend_limit_reached",
        "insufficient_quota",
        "organization_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "project_spend_limit_exceeded",
    }
)

_ERRORS = range(400, 600)
_CLIENT_ERRORS = range(400, 500)
_MAY_BE_BILLING = {402, 403, 429}
_MAY_BE_LIMITS = {403, 413}
_LONGEST_BODY = 65_536


def read_status(exc: BaseException, ask: Callable[[BaseException], ErrorInfo]) -> ErrorInfo | None:
    """Classify any exception that bears an HTTP error status, on itself or on its response."""
    response = attribute(exc, "response")
    for owner, name in ((exc, "status_code"), (exc, "status"), (response, "status_code"), (response, "status")):
        status = attribute(owner, name)
        if is_whole(status) and status in _ERRORS:
            headers = attribute(response, "headers")
            return info_from_status(status, attribute(exc, "headers") if headers is None else headers, codes_of(exc, response))
    return None


def info_from_status(status: object, headers: object, codes: tuple[str, ...] = ()) -> ErrorInfo | None:
    """Classify a status with the headers and the error codes that came with it; None when it is no error status."""
    if not isinstance(status, int) or status not in _ERRORS:
        return None
    wait = retry_after.from_headers(headers)
    default = (ErrorKind.INVALID_REQUEST, _PERMANENT) if status in _CLIENT_ERRORS else (_SERVER_ERROR, _UNSURE)
    kind, (transient, maybe_executed) = STATUSES.get(status, default)
    billing = next((code for code in codes if code in BILLING_CODES), "")
    if billing and status in _MAY_BE_BILLING:
        kind, transient = ErrorKind.QUOTA, False
    elif status in _MAY_BE_LIMITS and wait is not None:
        # A limit in disguise: GitHub answers 403, others 413, and both say when to come back.
        kind, transient = ErrorKind.RATE_LIMIT, True
    return ErrorInfo(kind, transient, maybe_executed, wait, int(status), billing or next(iter(codes), ""))


def attribute(owner: object, name: str) -> Any:
    """Return an attribute, or None when there is none or reading it fails (as a property may)."""
    try:
        return getattr(owner, name, None)
    except Exception:  # noqa: BLE001  # a property of a foreign exception must not hide the error it belongs to
        return None


def codes_of(exc: BaseException, response: object = None) -> tuple[str, ...]:
    """Collect the error codes that an API's error carries as attributes or in its body, the most exact first."""
    body = attribute(exc, "body")
    found = [attribute(exc, name) for name in ("code", "error_code", "type")]
    found += _codes_in(_body(response) if body is None else body)
    return tuple(dict.fromkeys(code for code in found if isinstance(code, str) and code))


def _codes_in(body: object) -> list[object]:
    error = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return []
    details = error.get("details")
    return [error.get("code"), details.get("error_code") if isinstance(details, dict) else None, error.get("type")]


def _body(response: object) -> object:
    """Return a response's JSON body if it was already read: asking for one that was not would wait for the network."""
    if not (attribute(response, "_content_consumed") or attribute(response, "is_stream_consumed")):
        return None
    content = attribute(response, "content")
    if not isinstance(content, bytes) or not 0 < len(content) <= _LONGEST_BODY:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
