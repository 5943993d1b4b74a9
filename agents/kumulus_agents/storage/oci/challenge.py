"""How a registry wants to be asked, and what a token service answers (RFC 9110, 11.6.1; distribution's token spec). Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from yarl import URL

_SCHEME = re.compile(r"\s*(basic|bearer)\b", re.IGNORECASE)
_PARAMETER = re.compile(r'(realm|service|scope|error)="([^"\\\r\n]{0,2048})"', re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,16384}")


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token is to be fetched from a service."""

    realm: str
    service: str | None


@dataclass(frozen=True, slots=True)
class Basic:
    """Name and password are to be sent along."""


def read(headers: Sequence[str]) -> Bearer | Basic | None:
    """What the values of `WWW-Authenticate` ask for; of several a token. None when it is nothing we know."""
    basic = None
    for header in headers:
        match = _SCHEME.match(header)
        if match is None:
            continue
        if match[1].lower() == "basic":
            basic = Basic()
            continue
        found = {name.lower(): value for name, value in _PARAMETER.findall(header)}
        if found.get("realm"):
            return Bearer(found["realm"], found.get("service"))
    return basic


def ask(bearer: Bearer, realm: URL, repository: str) -> URL:
    """What to ask the token service for: to read that repository, whatever the registry says the scope is."""
    query = {"scope": f"repository:{repository}:pull"}
    if bearer.service is not None:
        query["service"] = bearer.service
    return realm.update_query(query)


def token(body: bytes) -> str | None:
    """The token in the service's answer, if there is one that fits a header."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    value = found.get("token") or found.get("access_token")
    return value if isinstance(value, str) and _TOKEN.fullmatch(value) else None
