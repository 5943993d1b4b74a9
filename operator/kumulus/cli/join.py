"""`kumulusctl host add`: make a Host and the bundle with which its machine joins, once.

The token in the bundle is one of the ServiceAccount `kumulus-join` of the host's namespace, which may do
nothing but ask for the agent's first token. It is bound to the Secret `kumulus-join`, so it is dead as
soon as that Secret is deleted, which the join does; a second `host add` makes the first one's token dead.
Source: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/ (bound tokens).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from kumulus.api.base import DOMAIN
from kumulus.api.fabric import Host, HostPhase, HypervisorType, Zone, host_namespace
from kumulus.api.host import JOIN_SERVICE_ACCOUNT
from kumulus.cli import bundle
from kumulus.cli.amounts import duration, moment
from kumulus.cli.problem import Problem, Usage
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line
from kumulus.kube import errors
from kumulus.kube.builtin import SECRET, SERVICE_ACCOUNT

Raw = dict[str, Any]

JOIN_SECRET = "kumulus-join"  # noqa: S105
"""Name of the Secret that a join token lives and dies with, in the host's namespace."""


def ensure_zone(session: Session, zone: str, *, create: bool) -> None:
    """Make sure that there is such a zone."""
    if session.cluster.find(Zone.KIND, zone) is not None:
        return
    if not create:
        there = ", ".join(z["metadata"]["name"] for z in session.cluster.objects(Zone.KIND)) or "none yet"
        raise Problem(f"There is no zone {zone} (there are: {there}); add --create-zone to make it.")
    session.cluster.create(Zone.KIND, {"metadata": {"name": zone}, "spec": {}})
    session.printer.note(f"Made the zone {zone}.")


def ensure_host(session: Session, name: str, zone: str, hypervisor: HypervisorType) -> Host:
    """The Host of that name, made if there is none. Raises `Problem` when there is one that is not like this."""
    raw = session.cluster.find(Host.KIND, name)
    if raw is None:
        body = {"metadata": {"name": name}, "spec": {"zone": zone, "hypervisor": hypervisor.value}}
        try:
            raw = session.cluster.create(Host.KIND, body)
        except errors.AlreadyExists:
            raw = session.cluster.get(Host.KIND, name)
    host = Host.parse(raw)
    if host.deleting:
        raise Problem(f"The host {name} is being removed; try again when `kumulusctl host list` no longer shows it.")
    if host.spec.zone != zone or host.spec.hypervisor is not hypervisor:
        raise Problem(
            f"There is a host {name} already, in zone {host.spec.zone} with hypervisor {host.spec.hypervisor}, and "
            "neither can be changed: use these, or another name."
        )
    if host.status.phase in (HostPhase.READY, HostPhase.MAINTENANCE):
        session.printer.note(f"The host {name} has joined already; this bundle lets it join anew.")
    return host


def await_namespace(session: Session, name: str, seconds: float) -> str:
    """Wait until the Host controller has made the host's namespace with its accounts and roles, and has said so in
    the Host's status: it says so only of a namespace that is the host's own. Returns the namespace."""
    wanted = host_namespace(name)
    for raw in session.cluster.follow(Host.KIND, name, seconds=seconds):
        if raw is None:
            raise Problem(f"The host {name} was removed meanwhile.")
        host = Host.parse(raw)
        stalled = host.status.condition("Stalled")
        if stalled is not None and stalled.status == "True" and host.status.namespace is None:
            raise Problem(f"The host {name} cannot get its namespace: {one_line(stalled.message or stalled.reason)}")
        if host.status.namespace == wanted:
            return wanted
    raise Problem(
        f"The host {name} is made, but after {seconds:g}s it has no namespace {wanted}: the controllers do not seem to "
        "run (`kumulusctl status` shows them). Start them and repeat this command."
    )


def make_token(session: Session, name: str, namespace: str, seconds: int) -> tuple[str, datetime | None]:
    """A fresh join token and when it ends. Tokens of earlier calls are dead afterwards."""
    cluster = session.cluster
    with contextlib.suppress(errors.NotFound):
        cluster.delete(SECRET, JOIN_SECRET, namespace)
    secret = cluster.create(
        SECRET,
        {"metadata": {"name": JOIN_SECRET, "labels": {f"{DOMAIN}/host": name}}, "type": f"{DOMAIN}/join"},
        namespace,
    )
    answer = cluster.request(
        "POST",
        SERVICE_ACCOUNT.path(namespace, JOIN_SERVICE_ACCOUNT, "token"),
        body={
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "name": JOIN_SECRET,
                    "uid": secret["metadata"]["uid"],
                },
            },
        },
    )
    return answer["status"]["token"], moment(answer["status"].get("expirationTimestamp"))


def _authority(session: Session, file: Path | None) -> bytes:
    if file is None:
        ca = session.cluster.ca
        if ca is None:
            raise Problem(
                "Your kubeconfig names no certificate authority, so a host could not tell the right API server from "
                "another; name it with --certificate-authority FILE."
            )
        return ca
    try:
        ca = file.read_bytes()
    except OSError as error:
        raise Usage(f"--certificate-authority {file} cannot be read: {error.strerror}.") from error
    if b"-----BEGIN CERTIFICATE-----" not in ca:
        raise Usage(f"--certificate-authority {file} holds no PEM certificate.")
    return ca


def _server(session: Session, given: str | None) -> str:
    server = (given or session.cluster.server).rstrip("/")
    parts = urlsplit(server)
    if parts.scheme != "https" or not parts.hostname:
        raise Usage(f"The API server's address for hosts must be an https URL, not {server}; set it with --server URL.")
    if given is None and _only_here(parts.hostname):
        session.printer.note(
            f"Note: {server} is an address of this machine only; use --server URL with one that the host can reach."
        )
    return server


def _only_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _add(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the host.", show_default=False)],
    zone: Annotated[str, typer.Option("--zone", metavar="NAME", help="The zone it is in.", show_default=False)],
    hypervisor: Annotated[
        HypervisorType, typer.Option("--hypervisor", help="What runs machines on it.")
    ] = HypervisorType.LIBVIRT,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="URL", help="The API server as the host reaches it; default: as you do."),
    ] = None,
    certificate_authority: Annotated[
        Path | None,
        typer.Option("--certificate-authority", metavar="FILE", help="PEM file; default: as in your kubeconfig."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the bundle there (mode 0600), not to stdout."),
    ] = None,
    ttl: Annotated[int, typer.Option("--ttl", min=600, max=3600, help="Seconds the token lives.")] = 1800,
    timeout: Annotated[float, typer.Option(min=1, max=3600, help="Seconds to wait for the controllers.")] = 30,
    create_zone: Annotated[bool, typer.Option("--create-zone", help="Make the zone if there is none.")] = False,
) -> None:
    """Make a host and the bundle with which its machine joins, once."""
    if output is not None and not os.access(output.parent, os.W_OK):
        raise Usage(f"--output {output}: the directory {output.parent} is not there or cannot be written to.")
    url, ca = _server(session, server), _authority(session, certificate_authority)
    ensure_zone(session, zone, create=create_zone)
    ensure_host(session, name, zone, hypervisor)
    namespace = await_namespace(session, name, timeout)
    token, ends = make_token(session, name, namespace, ttl)
    content = bundle.Bundle(server=url, ca=ca, host=name, namespace=namespace, token=token).to_json()
    if output is None:
        session.printer.text(content)
    else:
        bundle.write(output, content)
    lives = duration((ends - session.now).total_seconds() + 1) if ends else duration(ttl)
    where = str(output) if output else "this bundle, as a file only root can read,"
    session.printer.note(
        f"Bring {where} to the host {name}, and run there as root:\n"
        f"\n  kumulus-agent join --bundle {output.name if output else 'FILE'}\n\n"
        f"The token in it works once and lives {lives}. Who holds it can join as {name}: keep it to yourself."
    )


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "add")(_add)
