"""What can go wrong when talking to the API server."""

from __future__ import annotations

import json

WATCH_PASSING = (429, 500, 502, 503)
"""Answers after which the same watch may go on. Any other may be about the version that it asks for (such as 504, "too large
resource version", after etcd was restored), so everything is listed again."""


class KubeError(Exception):
    """The API server could not be reached, or said no."""

    retryable = True


class Unreachable(KubeError):
    """No answer: connection refused, reset or timed out. Whether a write arrived is not known."""


class NotLeading(KubeError):
    """Not sent: the process has stopped leading in the middle of a pass, and somebody else may lead by now."""


class NoCluster(KubeError):
    """Nothing says which API server to talk to, or what says it cannot be read."""

    retryable = False


class ApiError(KubeError):
    """The API server answered with an error.

    `status` is the HTTP code, `reason` the API's word for it (NotFound, Conflict, Invalid, ...).
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{reason} ({status}): {message}")
        self.status = status
        self.reason = reason
        self.message = message


class NotFound(ApiError):
    """There is no such object (or no such namespace)."""


class Conflict(ApiError):
    """Somebody changed the object in between, or a precondition does not hold."""


class AlreadyExists(ApiError):
    """An object of that name is there already."""


class Gone(ApiError):
    """That resource version is too old: list again."""


class Refused(ApiError):
    """Not allowed or not valid; trying again does not help."""

    retryable = False


def from_response(status: int, body: bytes) -> ApiError:
    """The error an answer with this code and body means (a `Status` of the API, or anything a proxy sends)."""
    reason, message = "", ""
    try:
        parsed = json.loads(body)
        if isinstance(parsed, dict):
            reason, message = str(parsed.get("reason") or ""), str(parsed.get("message") or "")
    except ValueError:
        pass
    message = message or body[:500].decode(errors="replace")
    kind: type[ApiError] = ApiError
    if status == 404:
        kind = NotFound
    elif status == 409:
        kind = AlreadyExists if reason == "AlreadyExists" else Conflict
    elif status == 410 or reason == "Expired":
        kind = Gone
    elif status in (400, 401, 403, 405, 415, 422):
        kind = Refused
    return kind(status, reason or f"HTTP{status}", message)
