"""Networks and ports to render."""

from __future__ import annotations

from kumulus.api.segments import Nic, SegmentOrder
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.protocol import Port

NETWORK, OTHER = "6f1d0a52-6c1a-4b7e-9a70-000000000001", "6f1d0a52-6c1a-4b7e-9a70-000000000002"
WEB, DATA = "6f1d0a52-6c1a-4b7e-9a70-00000000000a", "6f1d0a52-6c1a-4b7e-9a70-00000000000b"
MACHINE = "6f1d0a52-6c1a-4b7e-9a70-0000000000ff"


def nic_uid(number: int) -> str:
    return f"6f1d0a52-6c1a-4b7e-9a70-0000000001{number:02x}"


def order(**more: object) -> SegmentOrder:
    """A network with everything."""
    return SegmentOrder.model_validate(
        {
            "uid": NETWORK,
            "driver": "linux",
            "vni": 5001,
            "mtu": 1450,
            "peers": ["10.0.0.2", "10.0.0.3"],
            "subnets": [
                {"cidr": "10.20.30.0/24", "gateway": "10.20.30.1", "service": "10.20.30.2"},
                {"cidr": "fd00:20::/64", "service": "fd00:20::2"},
            ],
            "options": [{"name": "ntp-server", "values": ["10.20.30.9", "fd00:20::9"]}],
            "dns": {
                "domain": "corp.example",
                "records": [{"name": "db", "addresses": ["10.20.30.11", "fd00:20::11"]}],
            },
            "groups": [
                {
                    "uid": WEB,
                    "ingress": [
                        {
                            "protocol": "TCP",
                            "ports": [
                                {"first": 443, "last": 443},
                                {"first": 80, "last": 81},
                                {"first": 81, "last": 90},
                            ],
                            "cidrs": ["0.0.0.0/0", "2001:db8::/32", "2001:db8:1::/48"],
                        },
                        {"protocol": "ICMP"},
                    ],
                    "egress": [{}],
                    "members": ["10.20.30.11", "fd00:20::11"],
                },
                {"uid": DATA, "ingress": [{"protocol": "TCP", "ports": [{"first": 5432, "last": 5432}], "group": WEB}]},
            ],
        }
        | more
    )


def port(number: int, *, network: str = NETWORK, **more: object) -> Port:
    """A port of it."""
    values: dict[str, object] = {
        "name": "eth0",
        "uid": nic_uid(number),
        "network": network,
        "mac": f"02:00:00:00:00:{number:02x}",
        "addresses": [f"10.20.30.{number}", f"fd00:20::{number}"],
        "groups": [WEB],
        "hostname": f"host{number}.corp.example",
    }
    return Port(Nic.model_validate(values | more), MACHINE)


def layout() -> Layout:
    """That network with two ports, and one that carries and serves nothing."""
    pairs = [{"cidr": "10.20.30.100/32"}, {"cidr": "0.0.0.0/0", "mac": "02:00:5e:00:00:01"}]
    return (
        Layout()
        .with_network(order())
        .with_network(order(uid=OTHER, vni=5002, subnets=[], groups=[], options=[]))
        .with_port(port(11))
        .with_port(port(12, groups=[DATA, WEB], pairs=pairs, bandwidth={"inbound": 8_000_000, "outbound": 4_000_000}))
        .with_port(port(13, network=OTHER, addresses=[], groups=[]))
    )
