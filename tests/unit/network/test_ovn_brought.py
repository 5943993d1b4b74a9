"""Connections that come along to a host of OVN: which are told, and what passes of them until they are known."""

from __future__ import annotations

from kumulus_agents.network.connections import Connection
from kumulus_agents.network.ovn import brought, connections, names, northbound
from kumulus_agents.network.ovn.rows import Rows
from tests.unit.network.material import NETWORK, layout, nic_uid, order

OWN, PEER = "10.20.30.11", "10.20.30.99"
UID = nic_uid(11)
NIC = layout().places[UID].port.nic
OPENED = Connection(OWN, 40000, PEER, 7001, brought.REMEMBERED)
REACHED = Connection(PEER, 41000, OWN, 443, brought.REMEMBERED)


def line(c: Connection, *, zone: int = 5, state: str = "ESTABLISHED", back: str | None = None) -> str:
    return (
        f"tcp,orig=(src={c.source},dst={c.target},sport={c.source_port},dport={c.target_port}),"
        f"reply=(src={back or c.target},dst={c.source},sport={c.target_port},dport={c.source_port}),"
        f"zone={zone},labels=0x1,protoinfo=(state={state})"
    )


def acls(*some: Connection) -> list[tuple[str, str, int, str]]:
    return [(acl.direction, acl.match, acl.priority, acl.action) for acl in brought.acls(order(), NIC, some)]


def test_what_is_established_and_the_guests_own_is_told() -> None:
    other = Connection("10.20.30.98", 1, PEER, 2, 1)
    listing = "\n".join(
        [
            line(OPENED),
            line(REACHED),
            line(OPENED, zone=6),
            line(OPENED, state="SYN_SENT"),
            line(OPENED, back="10.0.0.9"),
            line(other),
            "udp,orig=(src=10.20.30.11,dst=10.20.30.99,sport=1,dport=2),reply=(src=10.20.30.99,dst=10.20.30.11,sport=2,dport=1),zone=5",
            "nonsense",
        ]
    )
    assert brought.listed(listing, 5, NIC) == (OPENED, REACHED)


def test_the_end_that_was_reached_may_speak_first_in_that_connection_and_nobody_else() -> None:
    (there,) = acls(OPENED)
    assert there == (
        "to-lport",
        f'outport == "{UID}" && ip4.src == {PEER} && ip4.dst == {OWN} && tcp.src == 7001 && tcp.dst == 40000',
        brought.KNOWN,
        "allow-stateless",
    )
    (back,) = acls(REACHED)
    assert back[0] == "from-lport" and f'inport == "{UID}" && ip4.src == {OWN} && ip4.dst == {PEER}' in back[1]


def test_what_no_rule_allows_does_not_come_along() -> None:
    assert acls(Connection(PEER, 41000, OWN, 22, 1)) == []


def test_it_stands_in_the_database_for_that_port_and_goes_without_ending_anything() -> None:
    def render(**known: list[Connection]) -> Rows:
        return northbound.render(layout(), 3600, known)

    with_it, without = render(**{UID: [OPENED]}), render()
    ((table, key),) = with_it.keys() - without.keys()
    assert table == "ACL" and key.startswith(f"{names.everybody(NETWORK)}/")
    assert connections.narrower(with_it, without) == frozenset()
