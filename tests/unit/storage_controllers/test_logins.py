"""Which login of a docker configuration is a registry's."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kumulus_controllers.storage.logins import Login, find


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


ME = Login("me", "pass:word")


@pytest.mark.parametrize(
    ("auths", "reference"),
    [
        ({"quay.io": auth("me:pass:word")}, "quay.io/a/b:1"),
        ({"https://quay.io": auth("me:pass:word")}, "quay.io/a"),
        ({"https://quay.io/v2/": {"username": "me", "password": "pass:word"}}, "quay.io/a"),
        ({"quay.io/a": auth("me:pass:word"), "quay.io": auth("x:y")}, "quay.io/a/b:1"),
        ({"quay.io/a": auth("me:pass:word"), "quay.io": auth("x:y")}, "quay.io/a:1"),
        ({"quay.io/ab": auth("x:y"), "quay.io": auth("me:pass:word")}, "quay.io/a:1"),
        ({"quay.io/a": {}, "quay.io": auth("me:pass:word")}, "quay.io/a:1"),
        ({"r.example:5000": auth("me:pass:word"), "r.example": auth("x:y")}, "r.example:5000/a"),
        ({"https://index.docker.io/v1/": auth("me:pass:word")}, "docker.io/debian"),
    ],
)
def test_the_login_that_fits(auths: dict[str, Any], reference: str) -> None:
    assert find({"auths": auths}, reference) == ME


@pytest.mark.parametrize(
    "config",
    [
        None, [], {}, {"auths": []}, {"auths": {}}, {"auths": {"other.example": auth("a:b")}},
        {"auths": {"r.example:5000": auth("a:b")}}, {"auths": {"xr.example": auth("a:b")}}, {"auths": {"r.example.org": auth("a:b")}},
        {"auths": {"r.example": "a:b"}}, {"auths": {"r.example": {"auth": "!"}}}, {"auths": {"r.example": auth("nocolon")}},
        {"auths": {"r.example": {"username": "a"}}}, {"auths": {"r.example": {"auth": base64.b64encode(b"\xff:\xff").decode()}}},
        {"auths": {"r.example/other": auth("a:b")}}, {"auths": {"r.example": {"identitytoken": "x"}}},
    ],
)  # fmt: skip
def test_no_login(config: object) -> None:
    assert find(config, "r.example/a:1") is None


def test_a_login_is_not_printed() -> None:
    assert "pass" not in repr(ME)
