"""Ways to switch a host off, and to know that it is: an extension point (`kumulus.fencing.methods`)."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from kumulus.api.fabric import Bmc, Host
from kumulus.api.pools import OPERATORS_NAMESPACE
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient

METHODS = "kumulus.fencing.methods"
"""Extension point, and entry point group, of what can fence hosts, by the name of the method."""


class FencingError(Exception):
    """A host could not be fenced, or nobody can say whether it is. `reason` is one CamelCase word for the status."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Power(StrEnum):
    """What somebody who must know says of a host's power."""

    ON = "On"
    OFF = "Off"
    UNKNOWN = "Unknown"
    """Also on its way from one to the other."""


@dataclass(frozen=True, slots=True)
class Target:
    """A host, and what switches its power."""

    host: str
    bmc: Bmc
    username: str
    password: str = field(repr=False)


class Fencer(Protocol):
    """Switches hosts off. Calls may be repeated, and return within some seconds."""

    async def power(self, target: Target) -> Power:
        """Whether it is on, asked now. Raises `FencingError`."""

    async def off(self, target: Target) -> None:
        """Take its power away at once, without asking what runs on it. Off already: nothing. That it returns proves nothing:
        `power` does. Raises `FencingError`."""


async def target(client: KubeClient, host: Host) -> Target:
    """What switches the power of a host, with what opens it, read live. Raises `FencingError`."""
    bmc = host.spec.bmc
    if bmc is None:
        raise FencingError(f"Host {host.name} has no spec.bmc.", reason="NoBmc")
    found = await client.find(SECRET, bmc.credentials_secret, OPERATORS_NAMESPACE)
    if found is None:
        raise FencingError(
            f"There is no Secret {bmc.credentials_secret} in namespace {OPERATORS_NAMESPACE}: make one with the keys username"
            " and password.",
            reason="SecretNotFound",
        )
    data = found.get("data") or {}
    try:
        username, password = (base64.b64decode(data[key], validate=True).decode() for key in ("username", "password"))
    except (KeyError, binascii.Error, UnicodeDecodeError):
        raise FencingError(
            f"Secret {bmc.credentials_secret} needs the keys username and password, both UTF-8 text.",
            reason="SecretNotUsable",
        ) from None
    return Target(host.name, bmc, username, password)
