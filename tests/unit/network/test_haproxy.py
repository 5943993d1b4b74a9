"""What haproxy reads, and what is read of what it says."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
from pydantic import ValidationError

from kumulus.api.balancing import (
    Algorithm,
    BalancerListener,
    BalancerMember,
    Balancing,
    Certificate,
    CheckType,
    HealthCheck,
    ListenerProtocol,
    Stickiness,
    StickinessType,
)
from kumulus.api.gateways import GatewayOrder
from kumulus_agents.network.linux import gateway_links, gateway_rules, haproxy, names
from kumulus_agents.network.protocol import NetworkError
from tests.unit.network.material import NETWORK

FILES = haproxy.Files(PurePosixPath("/run/kumulus/network/balancers/0b000000-0000-4000-8000-00000000000b"))
ONE, TWO = "0c000000-0000-4000-8000-000000000001", "0c000000-0000-4000-8000-000000000002"
MEMBERS = (BalancerMember(uid=TWO, address="fd00::12"), BalancerMember(uid=ONE, address="10.0.0.11"))
DIGEST = "a" * 64


def listener(port: int = 80, protocol: ListenerProtocol = ListenerProtocol.TCP, **more: Any) -> BalancerListener:
    return BalancerListener(port=port, protocol=protocol, target_port=8080, **more)


def lines(*listeners: BalancerListener, **more: Any) -> list[str]:
    order = Balancing(addresses=("10.0.0.5", "fd00::5"), listeners=listeners, members=MEMBERS, **more)
    return haproxy.configuration(order, FILES).splitlines()


def section(said: list[str], title: str) -> list[str]:
    start = said.index(title) + 1
    end = said.index("", start) if "" in said[start:] else len(said)
    return [line.strip() for line in said[start:end]]


def test_tcp() -> None:
    said = lines(listener(), max_connections=100)
    assert section(said, "global") == [
        "localpeer self",
        "nbthread 2",
        "maxconn 100",
        "no strict-limits",
        "hard-stop-after 3600s",
        f"stats socket {FILES.directory}/run/stats mode 600 level admin expose-fd listeners",
        "stats timeout 30s",
        f"server-state-file {FILES.directory}/states",
        "spread-checks 5",
        "ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
    ]
    assert section(said, "listen p80") == [
        "mode tcp",
        "bind 10.0.0.5:80",
        "bind [fd00::5]:80",
        "balance roundrobin",
        "timeout client 3600s",
        "timeout server 3600s",
        f"server {ONE} 10.0.0.11:8080 check",
        f"server {TWO} [fd00::12]:8080 check",
    ]
    assert "peers peers" not in said


def test_the_same_order_gives_the_same_text_whatever_the_order_of_its_parts() -> None:
    """A file is named by what is in it: nothing is started anew without need."""
    one = Balancing(addresses=("10.0.0.5",), listeners=(listener(80), listener(81)), members=MEMBERS)
    other = Balancing(addresses=("10.0.0.5",), listeners=(listener(81), listener(80)), members=MEMBERS[::-1])
    assert haproxy.configuration(one, FILES) == haproxy.configuration(other, FILES)


def test_a_member_is_asked_the_same_once() -> None:
    other = BalancerListener(port=82, protocol=ListenerProtocol.TCP, target_port=9090)
    said = lines(listener(80), listener(81), other, listener(83, proxy_protocol=True))
    servers = [line.strip() for line in said if f"server {ONE}" in line]
    assert servers == [
        f"server {ONE} 10.0.0.11:8080 check",
        f"server {ONE} 10.0.0.11:8080 track p80/{ONE}",
        f"server {ONE} 10.0.0.11:9090 check",
        f"server {ONE} 10.0.0.11:8080 check send-proxy-v2 check-send-proxy",
    ]


def test_requests() -> None:
    said = lines(
        listener(
            443,
            ListenerProtocol.HTTPS,
            algorithm=Algorithm.LEAST_CONNECTIONS,
            stickiness=Stickiness(type=StickinessType.COOKIE, timeout_seconds=60),
            certificate=Certificate(digest=DIGEST, secret="tls"),
            proxy_protocol=True,
        )
    )
    found = section(said, "listen p443")
    assert found[:4] == [
        "mode http",
        f"bind 10.0.0.5:443 ssl crt {FILES.directory}/keys/{DIGEST}.pem alpn h2,http/1.1",
        f"bind [fd00::5]:443 ssl crt {FILES.directory}/keys/{DIGEST}.pem alpn h2,http/1.1",
        "balance leastconn",
    ]
    assert "option forwardfor" in found
    assert "http-request set-header X-Forwarded-Proto https" in found
    assert "cookie kumulus-lb insert indirect nocache httponly secure maxidle 60s" in found
    servers = [line for line in found if line.startswith("server")]
    assert all(" check send-proxy-v2 check-send-proxy cookie " in line for line in servers)
    assert all(uid not in line.partition(" cookie ")[2] for uid, line in zip((ONE, TWO), servers, strict=True))


def test_tls_for_bytes_promises_no_protocol() -> None:
    said = lines(listener(993, ListenerProtocol.TLS, certificate=Certificate(digest=DIGEST, secret="tls")))
    assert section(said, "listen p993")[1] == f"bind 10.0.0.5:993 ssl crt {FILES.directory}/keys/{DIGEST}.pem"


def test_clients_known_by_address_are_told_to_the_next_process() -> None:
    said = lines(listener(stickiness=Stickiness(type=StickinessType.SOURCE_IP, timeout_seconds=9)))
    assert section(said, "peers peers") == ["peer self 127.0.0.1:19"]
    assert section(said, "listen p80")[6:8] == [
        "stick-table type ipv6 size 65536 expire 9s peers peers",
        "stick on src",
    ]


def test_health_checks() -> None:
    check = HealthCheck(
        type=CheckType.HTTP,
        path="/a/b.c",
        port=99,
        interval_seconds=7,
        timeout_seconds=2,
        unhealthy_threshold=4,
        healthy_threshold=5,
    )
    said = lines(listener(), health_check=check)
    defaults = section(said, "defaults")
    assert "timeout check 2s" in defaults
    assert defaults[-1] == "default-server inter 7s fastinter 1s downinter 1s fall 4 rise 5 port 99"
    assert "http-check send meth GET uri /a/b.c ver HTTP/1.1 hdr Host health-check hdr Connection close" in section(
        said, "listen p80"
    )


@pytest.mark.parametrize(
    "path",
    [
        "/a\n    server evil 192.0.2.1:80",
        "/a\r",
        "/a b",
        "/a hdr Authorization x",
        "/%[src]",
        "/${HOME}",
        '/"',
        "/'",
        "/a\\",
        "/a#b",
        "/a?b=c",
        "a",
        "",
        "/" + "a" * 256,
        "/ä",
    ],
)
def test_a_path_can_hold_nothing_else(path: str) -> None:
    """Neither when the order is read, nor, if it came past that, when the configuration is written."""
    with pytest.raises(ValidationError):
        HealthCheck(type=CheckType.HTTP, path=path)
    if path:
        with pytest.raises(NetworkError) as refused:
            lines(
                listener(),
                health_check=HealthCheck.model_construct(**{**dict(HealthCheck(type=CheckType.HTTP)), "path": path}),
            )
        assert refused.value.reason == "BadBalancer"


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (BalancerMember(uid=ONE, address="10.0.0.1"), "uid", "x\n"),
        (BalancerMember(uid=ONE, address="10.0.0.1"), "address", "10.0.0.1 backup"),
        (BalancerMember(uid=ONE, address="10.0.0.1"), "address", "unix@/run/x"),
        (BalancerMember(uid=ONE, address="10.0.0.1"), "address", "fe80::1%eth0"),
        (listener(), "port", 0),
        (listener(), "target_port", "80 backup"),
        (listener(), "algorithm", "rdp-cookie"),
        (listener(), "protocol", "UDP"),
        (Certificate(digest=DIGEST, secret="tls"), "digest", "../" * 21 + "a"),
        (Stickiness(type=StickinessType.COOKIE), "type", "Cookie\n"),
        (HealthCheck(), "interval_seconds", "1s"),
    ],
)
def test_what_is_no_value_of_its_kind_is_refused_when_the_order_is_read(model: Any, field: str, value: object) -> None:
    type(model).model_validate(dict(model))
    with pytest.raises(ValidationError):
        type(model).model_validate({**dict(model), field: value})


def test_what_haproxy_cannot_be_told_is_refused() -> None:
    for wrong in (
        listener(443, ListenerProtocol.HTTPS),
        listener(stickiness=Stickiness(type=StickinessType.COOKIE)),
    ):
        with pytest.raises(NetworkError):
            lines(wrong)


def stats(*rows: tuple[str, str, str, str]) -> str:
    head = "# pxname,svname,status,check_status,\n"
    return head + "".join(f"{','.join(row)},\n" for row in rows)


def test_what_is_handed_over_of_members_is_about_the_same_members() -> None:
    """haproxy believes its file of states more than its configuration."""
    head = "1\n# be_id be_name srv_id srv_name srv_addr ...\n"
    line = "2 {} 1 {} {} 0 0 1 1 1 8 2 0 6 0 0 0 - {} - 0 {} - - 0\n"
    same = line.format("p80", ONE, "10.0.0.11", 8080, 0) + line.format("p80", TWO, "fd00::12", 8080, 0)
    others = [
        line.format("p80", ONE, "10.0.0.11", 81, 0),
        line.format("p80", ONE, "10.0.0.12", 8080, 0),
        line.format("p81", ONE, "10.0.0.11", 8080, 0),
        line.format("p80", FILES.directory.name, "10.0.0.11", 8080, 0),
        line.format("p80", ONE, "10.0.0.11", 8080, 99),
        "\n",
        "2 p80\n",
    ]
    order = Balancing(addresses=("10.0.0.5",), listeners=(listener(),), members=MEMBERS)
    assert haproxy.states(head + same + "".join(others), order) == head + same


def test_who_is_well() -> None:
    said = stats(
        ("p80", "FRONTEND", "OPEN", ""),
        ("p80", ONE, "UP", "L4OK"),
        ("p80", TWO, "UP 1/3", "* L4OK"),
        ("p80", "BACKEND", "UP", ""),
        ("p81", ONE, "DOWN", "L4TOUT"),
        ("p81", TWO, "UP", "L4OK"),
        ("p82", TWO, "DOWN", ""),
    )
    assert haproxy.health(said) == {ONE: False, TWO: True}


def test_who_was_not_looked_at_yet_is_as_before() -> None:
    """A new process knows at first only what it was told."""
    order = Balancing(addresses=("10.0.0.5",), listeners=(listener(),), members=MEMBERS)
    found = haproxy.health(stats(("p80", ONE, "UP", "INI"), ("p80", TWO, "UP", "UNK")))
    assert [item.healthy for item in haproxy.facts(order, found)] == [False, False]
    assert [item.healthy for item in haproxy.facts(order, found, {ONE: True})] == [True, False]


def test_its_gateway_lets_in_what_is_for_its_ports_and_passes_nothing_on() -> None:
    leg = {"network": NETWORK, "mac": "0a:00:00:00:00:01", "mtu": 1450, "addresses": ["10.0.0.5/24", "fd00::5/64"]}
    order = GatewayOrder.model_validate(
        {
            "uid": ONE,
            "driver": "linux",
            "legs": [leg],
            "redundancy": {"group": 9, "priority": 100, "mac": "0a:00:00:00:00:03"},
            "balancer": {
                "addresses": ["10.0.0.5", "fd00::5"],
                "listeners": [{"port": port, "protocol": "TCP", "targetPort": 1} for port in (443, 80)],
                "gateways": ["10.0.0.1", "fd00::1"],
            },
        }
    )
    rules = gateway_rules.render(order).chains
    said = {name: str(rules[gateway_rules.FAMILY, name]) for name in ("input", "forward")}
    assert said["input"].count("[80, 443]") == 2, "of each family"
    assert "10.0.0.5" in said["input"] and "fd00::5" in said["input"]
    assert "accept" not in said["forward"]
    device = names.inner(NETWORK)
    assert gateway_links.routes(order) == [("0.0.0.0/0", "10.0.0.1", device), ("::/0", "fd00::1", device)]


def test_what_one_may_have_follows_from_its_connections() -> None:
    few, most = (
        haproxy.bounds(Balancing(addresses=("10.0.0.5",), listeners=(listener(),), max_connections=connections))
        for connections in (8192, 65536)
    )
    assert (few.memory, few.files) == (640 << 20, 18432)
    assert (most.memory, most.files) == (2432 << 20, 133120)
