"""What goes wrong is told in one sentence that says what to do."""

from __future__ import annotations

import json

import pytest

from kumulus.cli.problem import sentence
from kumulus.kube import errors

SERVER = "https://api.example:6443"


def _status(code: int, reason: str, message: str) -> errors.ApiError:
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return errors.from_response(code, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.Unreachable("connection refused"), ["does not answer", SERVER, "--kubeconfig"]),
        (errors.from_response(404, b"404 page not found\n"), ["not installed", "kumulusctl install"]),
        (_status(401, "Unauthorized", "Unauthorized"), ["credentials", "kubeconfig"]),
        (_status(403, "Forbidden", 'hosts is forbidden: User "eve"'), ["You may not", "eve", "administrator"]),
        (_status(404, "NotFound", 'zones "z9" not found'), ["Not found", "z9"]),
        (_status(409, "Conflict", "the object has been modified"), ["same moment", "try again"]),
        (_status(422, "Invalid", "spec.zone: cannot be changed"), ["refuses", "spec.zone"]),
        (_status(400, "BadRequest", "nonsense"), ["refuses", "nonsense"]),
        (_status(429, "TooManyRequests", "slow down"), ["trouble", "try again"]),
        (errors.from_response(502, b"<html>\nbad gateway</html>"), ["trouble", "bad gateway"]),
    ],
)
def test_every_error_is_one_sentence(error: errors.KubeError, says: list[str]) -> None:
    text = sentence(error, server=SERVER)
    assert all(word in text for word in says)
    assert "\n" not in text
    assert text.endswith(".")
