"""Logins to registries and web servers: read by name from the image's namespace, copied for the one host that imports, taken back.

Of a Secret with logins to many registries, the host gets the one that is for the image's.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kumulus.api.host import WorkOrder
from kumulus.api.image import ImageSource, OciSource
from kumulus.api.image_order import HttpFetch, OciFetch
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient, Raw
from kumulus_controllers import order_secret

_TYPE, _KEY = "kubernetes.io/dockerconfigjson", ".dockerconfigjson"
_BASIC = "kubernetes.io/basic-auth"
_DOCKER = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class LoginProblem(Exception):
    """There is no login that could be handed over. The text is a sentence that says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Login:
    """A user of a server."""

    username: str
    password: str = field(repr=False)


def find(config: object, reference: str) -> Login | None:
    """The login for the reference's registry, of several that with the longest path that fits. Pure.

    As the kubelet reads it: keys are hosts, perhaps with a path, perhaps written as URLs; a login is a
    name and a password, or both in `auth` (base64).
    """
    auths = config.get("auths") if isinstance(config, Mapping) else None
    if not isinstance(auths, Mapping):
        return None
    fitting = sorted(
        (key for key in auths if isinstance(key, str) and _fits(key, reference)), key=lambda key: (len(_path(key)), key)
    )
    for key in reversed(fitting):
        if (login := _login(auths[key])) is not None:
            return login
    return None


def _bare(key: str) -> str:
    return key.removeprefix("https://").removeprefix("http://").rstrip("/")


def _path(key: str) -> str:
    path = _bare(key).partition("/")[2]
    return "" if path in ("v1", "v2") else path


def _fits(key: str, reference: str) -> bool:
    host, (registry, _, repository) = _bare(key).partition("/")[0], reference.partition("/")
    path = _path(key)
    same = host == registry or {host, registry} <= _DOCKER
    return same and (
        not path or f"{repository}/".startswith(f"{path}/") or repository.startswith((f"{path}:", f"{path}@"))
    )


def _login(entry: object) -> Login | None:
    if not isinstance(entry, Mapping):
        return None
    username, password, auth = (entry.get(key) for key in ("username", "password", "auth"))
    if isinstance(username, str) and username and isinstance(password, str):
        return Login(username, password)
    if not isinstance(auth, str):
        return None
    try:
        username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Login(username, password) if username and colon else None


async def gather(client: KubeClient, source: ImageSource, namespace: str) -> Login:
    """The login that the image's Secret has for where it is: a live read, never cached. Raises `LoginProblem`."""
    name, field = source.secret or "", "oci" if source.oci is not None else "http"
    found = await client.find(SECRET, name, namespace)
    if found is None:
        raise LoginProblem(
            "SecretNotFound",
            f"spec.source.{field}.secret: there is no Secret {name} in namespace {namespace}. Make it.",
        )
    return _for_registry(found, name, source.oci) if source.oci is not None else _for_server(found, name)


def _for_server(found: Mapping[str, Any], name: str) -> Login:
    data = found.get("data") or {}
    try:
        login = Login(*(base64.b64decode(data[key], validate=True).decode() for key in ("username", "password")))
    except (KeyError, ValueError):
        login = Login("", "")
    # A colon ends the name (RFC 7617), and control characters end a header.
    fits = login.username and ":" not in login.username and (login.username + login.password).isprintable()
    if found.get("type") != _BASIC or not fits:
        raise LoginProblem(
            "SecretUnusable",
            f"spec.source.http.secret: Secret {name} is not of type {_BASIC} with a username and a password. Make one:"
            f" kubectl create secret generic {name} --type={_BASIC} --from-literal=username=NAME --from-literal=password=...",
        )
    return login


def _for_registry(found: Mapping[str, Any], name: str, source: OciSource) -> Login:
    registry = source.reference.partition("/")[0]
    if found.get("type") != _TYPE or _KEY not in (found.get("data") or {}):
        raise LoginProblem(
            "SecretUnusable",
            f"spec.source.oci.secret: Secret {name} is not of type {_TYPE}."
            " Make one: kubectl create secret docker-registry.",
        )
    try:
        config = json.loads(base64.b64decode(found["data"][_KEY], validate=True))
    except (ValueError, RecursionError):
        config = None
    login = find(config, source.reference)
    if login is None:
        raise LoginProblem(
            "SecretUnusable", f"spec.source.oci.secret: Secret {name} has no user name and password for {registry}."
        )
    return login


def asked(order: WorkOrder) -> HttpFetch | OciFetch | None:
    """The server that a host is to ask for an image, if there is one. Pure."""
    disk = order.spec.disk
    return disk.import_image.asked if disk is not None and disk.import_image is not None else None


def again(order: WorkOrder) -> Raw:
    """The change that tells the host to ask with its login once more. Pure."""
    server = asked(order)
    source = "oci" if isinstance(server, OciFetch) else "http"
    return {"spec": {"disk": {"importImage": {source: {"login": server.login + 1 if server is not None else 1}}}}}


def _secret_of(order: WorkOrder) -> str | None:
    server = asked(order)
    return server.secret if server is not None else None


async def hand_over(client: KubeClient, order: WorkOrder, login: Login) -> bool:
    """Have the login in the host's namespace, for that order alone; it goes with it. Another one there is replaced.

    True when it was not there before."""
    name = _secret_of(order)
    if name is None:
        return False
    given = {"username": login.username, "password": login.password}
    data = {key: base64.b64encode(value.encode()).decode() for key, value in given.items()}
    body = order_secret.belonging(name, order, {"data": data})
    return await order_secret.give(client, body, order, same=lambda found: found.get("data") == data)


async def take_back(client: KubeClient, order: WorkOrder) -> None:
    """Remove the login of that order from the host's namespace. Gone already: nothing."""
    name = _secret_of(order)
    if name is not None:
        await order_secret.take_back(client, name, order)
