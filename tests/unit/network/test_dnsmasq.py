"""What dnsmasq reads."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from pydantic import ValidationError

from kumulus.api.segments import DhcpOption, DnsRecord, Nic
from kumulus_agents.network.linux import dnsmasq
from kumulus_agents.network.linux.layout import Place
from kumulus_agents.network.protocol import NetworkError, Port
from tests.unit.network.material import MACHINE, NETWORK, layout, order, port

DIRECTORY = PurePosixPath("/run/kumulus/network/served") / NETWORK


def serving(**more: object) -> list[str]:
    return dnsmasq.serving(order(**more), DIRECTORY, user="dnsmasq", group="nogroup", lease_seconds=3600).splitlines()


def test_configuration() -> None:
    assert serving() == [
        "user=dnsmasq",
        "group=nogroup",
        "except-interface=lo",
        "bind-dynamic",
        "no-hosts",
        "no-resolv",
        "interface=leg",
        f"addn-hosts={DIRECTORY}/names",
        "server=fe80::1%up",
        "domain-needed",
        "bogus-priv",
        "domain=corp.example",
        "local=/corp.example/",
        f"dhcp-hostsfile={DIRECTORY}/hosts",
        f"dhcp-optsfile={DIRECTORY}/options",
        "dhcp-authoritative",
        "dhcp-ignore=tag:!known",
        "dhcp-ignore-names",
        "dhcp-lease-max=65536",
        "leasefile-ro",
        "no-ping",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
        "dhcp-range=10.20.30.0,static,255.255.255.0,3600",
        "dhcp-option-force=option:mtu,1450",
        "dhcp-range=fd00:20::,static,64,3600",
        "enable-ra",
        "ra-param=leg,mtu:1450,60,0",
    ]
    assert not [line for line in serving(dhcp=False) if "dhcp" in line or "ra" in line.split("-")]


def test_files() -> None:
    assert dnsmasq.hosts(layout().ports_of(NETWORK)) == (
        "02:00:00:00:00:0b,10.20.30.11,[fd00:20::11],host11\n02:00:00:00:00:0c,10.20.30.12,[fd00:20::12],host12\n"
    )
    assert dnsmasq.names_file(order()) == "10.20.30.11 db.corp.example db\nfd00:20::11 db.corp.example db\n"
    assert dnsmasq.servers(["192.0.2.1", "2001:db8::1"]) == "server=192.0.2.1\nserver=2001:db8::1\n"
    assert dnsmasq.options(order()).splitlines() == [
        "option:router,10.20.30.1",
        "option:dns-server,10.20.30.2",
        "option:classless-static-route,169.254.169.254/32,10.20.30.2,0.0.0.0/0,10.20.30.1",
        "249,169.254.169.254/32,10.20.30.2,0.0.0.0/0,10.20.30.1",
        "option6:dns-server,[fd00:20::2]",
        "option:ntp-server,10.20.30.9",
        "option6:ntp-server,[fd00:20::9]",
        "option:domain-search,corp.example",
        "option6:domain-search,corp.example",
    ]


def test_who_has_no_router_asks_again_soon() -> None:
    subnets = [{"cidr": "10.20.30.0/24", "service": "10.20.30.2"}]
    assert dnsmasq.options(order(subnets=subnets)).splitlines()[:2] == ["option:router", "option:T1,60"]
    assert not [line for line in dnsmasq.options(order()).splitlines() if "T1" in line]


HOSTILE = ("x\ndhcp-script=/bin/sh", "a,b", "a b", "a=b", "#", "a\r", "a\0", "$(id)", "../x", "", "a\u2028b", "x" * 254)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_could_be_a_directive_is_refused_when_the_order_is_read(text: str) -> None:
    """CVE-2021-40085."""
    with pytest.raises(ValidationError):
        Nic.model_validate(port(11).nic.model_dump() | {"hostname": text})
    with pytest.raises(ValidationError):
        DnsRecord.model_validate({"name": text, "addresses": ["10.0.0.1"]})
    with pytest.raises(ValidationError):
        order(dns={"domain": text})
    with pytest.raises(ValidationError):
        DhcpOption.model_validate({"name": "bootfile-name", "values": [text]})
    with pytest.raises(ValidationError):
        DhcpOption.model_validate({"name": text, "values": ["a"]})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ntp-server", ["time.example"]),
        ("domain-search", ["a/b"]),
        ("domain-search", ["a..b"]),
        ("tftp-server", ["a:b"]),
        ("bootfile-name", ["a", "b"]),
    ],
)
def test_a_value_that_is_not_of_its_option_is_refused(name: str, values: list[str]) -> None:
    with pytest.raises(NetworkError) as caught:
        dnsmasq.options(order(options=[{"name": name, "values": values}]))
    assert (caught.value.reason, caught.value.retryable) == ("BadOption", False)


@pytest.mark.parametrize("name", ["ignore", "infinite", "5m", "100"])
def test_a_machine_that_is_called_like_a_word_of_dnsmasq_has_its_address(name: str) -> None:
    nic = port(11, hostname=name).nic
    assert dnsmasq.hosts([Place(Port(nic, MACHINE), 1)]) == f"{nic.mac},10.20.30.11,[fd00:20::11]\n"
