"""What a load balancer's hosts are told, and what its status says."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from kumulus.api.base import ConditionStatus
from kumulus.api.gateways import Redundancy
from kumulus.api.host import WorkOrder
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import NetworkInterface
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists
from kumulus_controllers.network import tls
from kumulus_controllers.network.gateway_plan import Choice
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.load_balancer_plan import (
    Scope,
    balancing,
    derive_status,
    gateway,
    lack,
    members,
    template_interface,
)
from kumulus_controllers.storage.volume_plan import MADE_FOR
from tests.unit.network_controllers.material import NOW, NS, allocated, interface, meta, network, uid

ALONE = Redundancy(group=1, priority=100, mac="0a:00:00:00:00:01")
TIME = datetime(2026, 1, 1, tzinfo=UTC)


def balancer(status: dict[str, Any] | None = None, **spec: Any) -> LoadBalancer:
    body = {"network": "net", "listeners": [{"port": 80}], "members": {"selector": {"app": "web"}}, **spec}
    return LoadBalancer.parse({"metadata": meta("web"), "spec": body, "status": status or {}})


def own(*addresses: str) -> NetworkInterface:
    return allocated("web-lb", *addresses, annotations={MADE_FOR: balancer().uid})


def scope(**more: Any) -> Scope:
    given = {"balancer": balancer(), "network": network(), "interface": own("10.0.0.5"), "choice": Choice(("h1",))}
    return Scope(**{**given, **more})


def order(host: str, *, active: bool = True, well: tuple[NetworkInterface, ...] = (), **status: Any) -> WorkOrder:
    facts = {"active": active, "balancer": {"members": [{"uid": item.uid, "healthy": True} for item in well]}}
    wanted = gateway(scope(), host, ALONE)
    for_ = {"kind": "LoadBalancer", "namespace": NS, "name": "web", "uid": balancer().uid}
    return WorkOrder.parse(
        {
            "metadata": meta("gateway", f"kumulus-host-{host}"),
            "spec": {"type": "Gateway", "for": for_, "gateway": wanted.to_json()},
            "status": {"state": "Ready", "observedGeneration": 1, "gateway": facts, **status},
        }
    )


def test_its_interface_is_no_machines() -> None:
    made = template_interface(balancer(securityGroups=["front"]))
    assert made["metadata"]["name"] == "web-lb"
    assert made["metadata"]["annotations"] == {MADE_FOR: balancer().uid}
    assert made["spec"] == {"network": "net", "securityGroups": ["front"]}
    again = template_interface(balancer({"addresses": ["10.0.0.5"]}))
    assert again["spec"]["addresses"] == ["10.0.0.5"], "the address is kept for life"


def test_members_are_in_its_network_and_have_an_address_of_its_family() -> None:
    candidates = (
        allocated("b", "10.0.0.12", "fd00::12"),
        allocated("a", "10.0.0.11"),
        interface("waits"),
        allocated("six", "fd00::13"),
        interface("elsewhere", status={"network": uid("other"), "addresses": ["10.0.0.14"]}),
        allocated("goes", "10.0.0.15", deletionTimestamp=NOW),
    )
    found = members(scope(candidates=candidates))
    assert [(item.name, address) for item, address in found] == [("a", "10.0.0.11"), ("b", "10.0.0.12")]
    both = members(scope(candidates=candidates, interface=own("10.0.0.5", "fd00::5")))
    assert [address for _, address in both] == ["10.0.0.11", "10.0.0.12", "fd00::13"]


def test_a_load_balancer_is_no_member() -> None:
    """Neither itself nor another one: connections would go round until there are no more."""
    made = template_interface(balancer())["metadata"]
    another = allocated("db-lb", "10.0.0.6", ownerReferences=[{**made["ownerReferences"][0], "name": "db"}])
    real = allocated("a", "10.0.0.11")
    found = scope(candidates=(own("10.0.0.5"), another, real), orders=(order("h1", well=(real,)),))
    assert [item.name for item, _ in members(found)] == ["a"]
    status = derive_status(found, None, NOW)
    ready = status.condition("Ready")
    assert ready is not None
    assert ready.reason == "MemberIsLoadBalancer"
    assert "db-lb, web-lb" in ready.message
    assert status.healthy == "1/1"


def test_what_a_host_is_told() -> None:
    told = gateway(scope(candidates=(allocated("a", "10.0.0.11"),)), "h1", ALONE)
    assert [str(address) for address in told.legs[0].addresses] == ["10.0.0.5/24"]
    assert told.balancer is not None
    assert told.balancer.gateways == ("10.0.0.1",)
    assert [(one.port, one.target_port) for one in told.balancer.listeners] == [(80, 80)]
    assert told.router is None


def test_a_secret_is_named_by_what_is_in_it() -> None:
    spec = {"listeners": [{"port": 443, "protocol": "HTTPS", "targetPort": 80, "tls": {"secret": "site"}}]}
    told = balancing(scope(balancer=balancer(**spec), digests={"site": "ab" * 32}))
    certificate = told.listeners[0].certificate
    assert certificate is not None
    assert certificate.secret == f"tls-{balancer().uid}-{'ab' * 8}"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"network": None}, "NetworkNotFound"),
        ({"network": network(type="L2", cidrs=[])}, "NetworkWithoutAddresses"),
        ({"interface": None}, "InterfacePending"),
        ({"interface": allocated("web-lb", "10.0.0.5")}, "InterfaceNameTaken"),
        ({"interface": interface("web-lb", annotations={MADE_FOR: balancer().uid})}, "AddressPending"),
        (
            {
                "interface": interface(
                    "web-lb",
                    annotations={MADE_FOR: balancer().uid},
                    status={
                        "conditions": [
                            {
                                "type": "Ready",
                                "status": "False",
                                "reason": "NetworkFull",
                                "message": "No address left.",
                            },
                            {"type": "Stalled", "status": "True"},
                        ]
                    },
                )
            },
            "NetworkFull",
        ),
        ({}, None),
    ],
)
def test_what_it_lacks(more: dict[str, Any], reason: str | None) -> None:
    found = lack(scope(**more))
    assert (found.reason if found is not None else None) == reason


def test_status() -> None:
    one, two = allocated("a", "10.0.0.11", vm="one"), allocated("b", "10.0.0.12", vm="two")
    status = derive_status(
        scope(candidates=(one, two), orders=(order("h1", well=(one,)), order("h2", active=False))),
        None,
        NOW,
    )
    assert (status.phase, status.healthy, status.active_host, status.standby_hosts) == ("Ready", "1/2", "h1", ("h2",))
    assert [(m.name, m.vm, m.healthy) for m in status.members] == [("a", "one", True), ("b", "two", False)]
    assert status.addresses == ("10.0.0.5",)
    redundant = status.condition("Redundant")
    assert redundant is not None
    assert redundant.status is ConditionStatus.TRUE


def test_of_two_that_say_that_they_are_active_one_speaks_still() -> None:
    """A host that is gone has said so when it last could."""
    orders = (order("h1"), order("h2"))
    known = balancer({"activeHost": "h1"})
    assert derive_status(scope(balancer=known, orders=orders), None, NOW).active_host == "h1"
    gone = scope(balancer=known, orders=orders, silent=frozenset({"h1"}))
    assert derive_status(gone, None, NOW).active_host == "h2"


@pytest.mark.parametrize(
    ("more", "reason", "phase"),
    [
        ({"choice": Choice((), 2, {"h1": "cordoned"})}, "NoGatewayHost", "Failed"),
        ({"orders": (order("h1", active=False),)}, "Pending", "Pending"),
        (
            {
                "orders": (
                    order("h1", active=False, state="Failed", reason="ProgramMissing", message="Install haproxy."),
                )
            },
            "ProgramMissing",
            "Failed",
        ),
        ({"orders": (order("h1"),)}, "NoMembers", "Pending"),
        ({"orders": (order("h1"),), "candidates": (allocated("a", "10.0.0.11"),)}, "NoHealthyMembers", "Pending"),
        ({"orders": (order("h1"),), "unknown": ("x",)}, "InterfaceNotFound", "Failed"),
        (
            {
                "orders": (order("h1"),),
                "candidates": tuple(allocated(f"n{i:02}", f"10.0.0.{i + 10}") for i in range(65)),
            },
            "TooManyMembers",
            "Ready",
        ),
    ],
)
def test_why_it_does_not_serve(more: dict[str, Any], reason: str, phase: str) -> None:
    status = derive_status(scope(**more), None, NOW)
    ready = status.condition("Ready")
    assert ready is not None
    assert (ready.reason, ready.status.value, status.phase) == (reason, "False", phase)
    assert len(status.members) <= 64


def test_what_a_host_has_not_done_is_not_hidden_by_one_that_serves() -> None:
    """It may serve with what it was told before; phase and address say that it does."""
    one = allocated("a", "10.0.0.11")
    refused = {"state": "Failed", "reason": "CommandFailed", "message": "haproxy: bad certificate"}
    waits = {"state": "Waiting", "reason": "SegmentNotReady"}

    def said(*orders: WorkOrder, **more: Any) -> tuple[str, str, bool]:
        of = scope(candidates=(one,), orders=orders, choice=Choice(("h1", "h2")), **more)
        status = derive_status(of, None, NOW)
        ready = status.condition("Ready")
        assert ready is not None
        return ready.reason or "", status.phase or "", status.condition("Stalled") is not None

    well = order("h1", well=(one,))
    assert said(well, order("h2", active=False)) == ("Ready", "Ready", False)
    assert said(well, order("h2", active=False, **refused)) == ("CommandFailed", "Ready", True)
    assert said(order("h1", well=(one,), **refused), order("h2", active=False)) == ("CommandFailed", "Ready", True)
    assert said(order("h1", well=(one,), **waits), order("h2", active=False, **refused))[0] == "CommandFailed"
    assert said(well, order("h2", active=False, **refused), silent=frozenset({"h2"})) == ("Ready", "Ready", False)


def test_a_change_on_its_way_takes_nothing_from_what_serves() -> None:
    """Ready stays, with the generation that it is of, and Reconciling says that hosts are being told."""
    one, new = allocated("a", "10.0.0.11"), allocated("b", "10.0.0.12")

    def said(*orders: WorkOrder, **more: Any) -> tuple[str, str, str | None]:
        given = {"candidates": (one,), "choice": Choice(("h1", "h2")), **more}
        status = derive_status(scope(orders=orders, **given), None, NOW)
        ready, going = status.condition("Ready"), status.condition("Reconciling")
        assert ready is not None
        assert ready.observed_generation == status.observed_generation == 1
        return ready.status.value, ready.reason or "", going.reason if going is not None else None

    well, stands_by = order("h1", well=(one,)), order("h2", active=False)
    told = order("h1", well=(one,), observedGeneration=0)
    assert said(well, stands_by) == ("True", "Ready", None)
    assert said(told, stands_by) == ("True", "Ready", "Pending"), "it serves as it did before"
    assert said(well, order("h2", active=False, observedGeneration=0)) == ("True", "Ready", "Pending")
    assert said(well, order("h2", active=False, state="Waiting", reason="SegmentNotReady")) == (
        *("True", "Ready"),
        "SegmentNotReady",
    )
    assert said(well, stands_by, late=True) == ("True", "Ready", "Pending")
    assert said(told, stands_by, candidates=(new,)) == ("True", "Ready", "Pending"), "with members of before"
    assert said(well, stands_by, candidates=(new,)) == ("False", "NoHealthyMembers", "NoHealthyMembers")
    assert said(order("h1", active=False, observedGeneration=0), stands_by) == ("False", "Pending", "Pending")


def test_a_new_one_is_ready_when_the_hosts_of_its_network_know_where_it_is() -> None:
    one = allocated("a", "10.0.0.11")

    def said(*untold: str, was: str | None = None, why: str = "", well: bool = True, **more: Any) -> tuple[str, str]:
        ready = [{"type": "Ready", "status": was, "reason": why, "lastTransitionTime": NOW}] if was else []
        serving = order("h1", well=(one,) if well else ())
        given = {"candidates": (one,), "orders": (serving,), "untold": frozenset(untold), **more}
        status = derive_status(scope(balancer=balancer({"conditions": ready}), **given), None, NOW)
        told = status.condition("Ready")
        assert told is not None
        return told.reason or "", status.phase or ""

    assert said() == ("Ready", "Ready")
    assert said("h3") == ("HostsNotTold", "Pending")
    assert said("h3", was="False") == ("HostsNotTold", "Pending")
    assert said("h3", was="True") == ("Ready", "Ready"), "changes are on their way to hosts all the time"
    assert said("h3", was="False", why="NoHealthyMembers") == ("Ready", "Ready"), "its packets have arrived before"
    assert said("h3", was="False", why="NoHealthyMembers", well=False)[0] == "NoHealthyMembers"
    assert said("h3", was="False", why="HostsNotTold", well=False)[0] == "HostsNotTold"
    assert said("h3", well=False)[0] == "HostsNotTold", "members cannot be reached before"
    assert said("h3", unknown=("x",))[0] == "InterfaceNotFound", "somebody has to do something"


def made(key: Any = None, *, until: datetime = TIME + timedelta(days=1)) -> tuple[bytes, bytes]:
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lb.example")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(TIME - timedelta(days=10))
        .not_valid_after(until)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), pem


EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
"""Of the type of a key, in DER."""
EC_POINT = bytes.fromhex("03420004")
"""The begin of a key on P-256, in DER."""


def pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def test_a_certificate_is_written_anew_and_never_shown() -> None:
    """What else stands in the Secret goes nowhere."""
    certificate, key = made()
    one = tls.parse({"tls.crt": b"x\n" + certificate, "tls.key": key + b"\nbind *:80\n", "other": b"x"}, "s", TIME)
    other = tls.parse({"tls.crt": certificate, "tls.key": key}, "s", TIME)
    assert isinstance(one, tls.Identity)
    assert one == other
    assert one.pem == certificate + key
    assert "PRIVATE" not in repr(one)


def test_what_is_no_certificate_is_explained() -> None:
    certificate, key = made()
    expired, its_key = made(until=TIME - timedelta(days=1))
    other = made(ed25519.Ed25519PrivateKey.generate())
    der = x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER)
    strange = der.replace(EC_PUBLIC_KEY, EC_PUBLIC_KEY[:-1] + b"\x7f")  # a type of key that nobody knows
    start = der.index(EC_POINT)
    broken = der[:start] + EC_POINT[:-1] + b"\x09" + der[start + len(EC_POINT) :]
    for data, reason in (
        ({}, "SecretNotCertificate"),
        ({"tls.crt": certificate}, "SecretNotCertificate"),
        ({"tls.crt": b"x", "tls.key": key}, "SecretNotCertificate"),
        ({"tls.crt": certificate, "tls.key": b"x"}, "SecretNotCertificate"),
        ({"tls.crt": certificate, "tls.key": its_key}, "SecretNotCertificate"),
        ({"tls.crt": other[0], "tls.key": other[1]}, "SecretNotCertificate"),
        ({"tls.crt": certificate * 1000, "tls.key": key}, "SecretNotCertificate"),
        ({"tls.crt": pem(strange), "tls.key": key}, "SecretNotCertificate"),
        ({"tls.crt": pem(broken), "tls.key": key}, "SecretNotCertificate"),
        ({"tls.crt": expired, "tls.key": its_key}, "CertificateExpired"),
    ):
        found = tls.parse(data, "s", TIME)
        assert isinstance(found, Lack)
        assert found.reason == reason
        assert " s " in found.message


class Secrets:
    """An API server that has Secrets. Its garbage collector never comes."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, Any]] = {}

    async def create(self, _kind: object, body: dict[str, Any], _namespace: str) -> dict[str, Any]:
        name = body["metadata"]["name"]
        if name in self.there:
            raise AlreadyExists(409, "AlreadyExists", name)
        self.there[name] = {**body, "metadata": {**body["metadata"], "uid": uid(f"secret {len(self.there)}")}}
        return self.there[name]

    async def delete(self, _kind: object, name: str, _namespace: str, *, uid: str) -> None:
        assert self.there.pop(name)["metadata"]["uid"] == uid

    async def find(self, _kind: object, name: str, _namespace: str) -> dict[str, Any] | None:
        return self.there.get(name)


async def test_a_secret_that_goes_with_an_order_of_before_is_made_anew() -> None:
    """A host left and is back: what its former order had is removed some time."""
    api, identity = Secrets(), tls.Identity(b"pem", "ab" * 32)
    client, now = cast("KubeClient", api), order("h1")
    before = now.model_copy(update={"metadata": now.metadata.model_copy(update={"uid": uid("before")})})
    assert await tls.hand_over(client, balancer().uid, identity, before)
    assert await tls.hand_over(client, balancer().uid, identity, before), "there already"
    assert await tls.hand_over(client, balancer().uid, identity, now)
    (secret,) = api.there.values()
    assert secret["metadata"]["ownerReferences"][0]["uid"] == now.uid
