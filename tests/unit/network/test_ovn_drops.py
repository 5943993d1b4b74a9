"""What flows of OVN have dropped and whose it was, from listings as programs make them (OVN 23.03, Open vSwitch 3.1)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.ovn import acls, drops, guard, names, talk
from kumulus_agents.network.ovn.drops import Count, Southbound, Tally
from kumulus_agents.network.protocol import Dropped, NetworkError
from tests.unit.network.material import NETWORK, layout, nic_uid, order

ELEVEN, TWELVE = nic_uid(11), nic_uid(12)
SAID = Southbound(
    networks={1: NETWORK},
    ports={(1, 4): ELEVEN, (1, 5): TWELVE, (1, 2): names.wire(NETWORK), (9, 4): "another's"},
    bindings=frozenset({0xD29C0C33}),
    logical={
        0xE6C1CAAF: ("aaaaaaaa", "ls_in_acl"),
        0xE57812D1: ("aaaaaaaa", "ls_out_acl"),
        0x2BE00C6D: ("aaaaaaaa", "ls_out_acl"),
        0x99999999: ("cccccccc", "ls_in_acl"),
        0x8B9314E9: ("", "ls_in_acl"),
        0x28BAAF5F: ("", "ls_in_check_port_sec"),
        0x039C5514: ("", "ls_in_apply_port_sec"),
        0x77777777: ("bbbbbbbb", "ls_in_qos_meter"),
    },
)
LISTING = """\
OFPST_FLOW reply (OF1.3) (xid=0x2):
 cookie=0x0, duration=2.304s, table=0, n_packets=3, n_bytes=1, priority=0 actions=drop
 cookie=0x28baaf5f, duration=1.789s, table=8, n_packets=571, n_bytes=36544, priority=100,metadata=0x1,vlan_tci=0x1000/0x1000 actions=drop
 cookie=0x39c5514, duration=1.789s, table=9, n_packets=10833, n_bytes=782270, priority=50,reg0=0x8000/0x8000,metadata=0x1 actions=drop
 cookie=0x8b9314e9, duration=1.508s, table=16, n_packets=2, n_bytes=0, priority=65532,ct_state=+inv+trk,metadata=0x1 actions=drop
 cookie=0xe6c1caaf, duration=1.508s, table=16, n_packets=570, n_bytes=36480, priority=2000,reg0=0x200/0x200,reg14=0x4,metadata=0x1 actions=drop
 cookie=0xe6c1caaf, duration=1.333s, table=16, n_packets=0, n_bytes=0, priority=2000,reg0=0x200/0x200,reg14=0x5,metadata=0x1 actions=drop
 cookie=0x99999999, duration=1.333s, table=16, n_packets=9, n_bytes=0, priority=3000,reg14=0x5,metadata=0x1 actions=resubmit(,17)
 cookie=0xe57812d1, duration=1.508s, table=46, n_packets=7, n_bytes=36480, priority=2000,reg0=0x200/0x200,reg15=0x5,metadata=0x1 actions=drop
 cookie=0x2be00c6d, duration=1.508s, table=46, n_packets=3, n_bytes=0, priority=2000,ip,reg0=0x400/0x400,reg15=0x4,metadata=0x1 actions=ct(commit,zone=NXM_NX_REG13[0..15],nat(src),exec(load:0x1->NXM_NX_CT_MARK[0]))
 cookie=0xe6c1caaf, duration=1.508s, table=16, n_packets=8, n_bytes=0, priority=2000,reg14=0x4,metadata=0x9 actions=drop
 cookie=0xd29c0c33, duration=1.511s, table=73, n_packets=573, n_bytes=36606, priority=90,ip,reg14=0x4,metadata=0x1,nw_src=10.20.30.11 actions=load:0->NXM_NX_REG10[12]
 cookie=0xd29c0c33, duration=1.511s, table=73, n_packets=7983, n_bytes=599870, priority=80,reg14=0x4,metadata=0x1 actions=load:0x1->NXM_NX_REG10[12]
 cookie=0xd29c0c33, duration=1.511s, table=75, n_packets=6, n_bytes=0, priority=90,ip,reg15=0x4,metadata=0x1 actions=load:0x1->NXM_NX_REG10[12]
 cookie=0x77777777, duration=1.511s, table=22, n_packets=90, n_bytes=0, priority=1000,ip,reg14=0x4,metadata=0x1 actions=meter:2,resubmit(,23)
 cookie=0x77777777, duration=1.511s, table=22, n_packets=10, n_bytes=0, priority=1000,ipv6,reg14=0x4,metadata=0x1 actions=meter:2,resubmit(,23)
"""
METERS = """\
OFPST_METER reply (OF1.3) (xid=0x2):
meter:2 flow_count:1 packet_in_count:100 byte_in_count:140000 duration:1.5s bands:
0: packet_count:41 byte_count:57400

meter:3 flow_count:1 packet_in_count:0 byte_in_count:0 duration:1.5s bands:
0: packet_count:0 byte_count:0
"""


def test_who_lost_what() -> None:
    why, limits = {"aaaaaaaa": "no group lets it through"}, {"bbbbbbbb": ELEVEN}
    found = drops.integration(LISTING, layout(), SAID, why, limits, drops.meters(METERS), 100)
    tally = Tally()
    tally.add(found)
    assert tally.dropped(layout()) == [
        Dropped(NETWORK, "", "not its own", 571),
        Dropped(NETWORK, "", "of no connection that is known", 2),
        Dropped(NETWORK, ELEVEN, "for another guest", 6),
        Dropped(NETWORK, ELEVEN, "no group lets it through", 573),
        Dropped(NETWORK, ELEVEN, "not its own", 7983),
        Dropped(NETWORK, ELEVEN, "over its bandwidth", 41),
        Dropped(NETWORK, TWELVE, "no group lets it through", 7),
    ]


def test_every_acl_that_drops_says_why() -> None:
    nics = [place.port.nic for place in layout().ports_of(NETWORK)]
    said = [*acls.everybody(order()), *(acl for nic in nics for acl in acls.own(order(), nic))]
    assert {acl.why for acl in said if acl.action != acls.DROP} == {""}
    assert "" not in {acl.why for acl in said if acl.action == acls.DROP}
    keys = {f"{number:08x}-0": f"{names.everybody(NETWORK)}/{acl.key}" for number, acl in enumerate(said)}
    found = drops.hints({**keys, "ffffffff-0": "kumulus_0123456789/foreign"}, layout())
    assert found == {f"{number:08x}": acl.why for number, acl in enumerate(said) if acl.why}


def test_every_flow_of_a_guard_that_drops_says_why() -> None:
    nic = layout().places[TWELVE].port.nic
    made = [flow.partition(" ") for flow in guard.flows(order(), nic, 3)]
    whys = [drops.guarded(match) for match, _, actions in made if actions == "actions=drop"]
    assert None not in whys and len(set(whys)) > 5
    as_listed = (
        "duration=1s, n_packets=571, n_bytes=36544, priority=60,dl_src=06:a3:85:99:e7:ed,actions=drop\n"
        "duration=1s, n_packets=5, n_bytes=36544, priority=40,icmp6,icmp_type=136,actions=drop\n"
        "duration=1s, n_packets=9, n_bytes=36544, priority=0,actions=output:2\n"
        "table_id=254, duration=1s, n_packets=3, n_bytes=0, priority=2,recirc_id=0,actions=drop\n"
    )
    assert [count.whose for count in drops.guarding(as_listed, NETWORK, TWELVE, 100)] == [
        (NETWORK, TWELVE, "service MAC"),
        (NETWORK, TWELVE, "another's neighbour advertisement"),
    ]


def test_a_sum_never_becomes_less() -> None:
    tally, whose = Tally(), (NETWORK, ELEVEN, "not its own")

    def total(now: float, *flows: tuple[str, int, float]) -> int:
        tally.add(Count(name, whose, packets, age, now) for name, packets, age in flows)
        return sum(one.packets for one in tally.dropped(layout()))

    assert total(100, ("a", 10, 50), ("b", 5, 50)) == 15
    assert total(110, ("a", 12, 60), ("b", 5, 59)) == 17, "the flows go on"
    assert total(120, ("a", 3, 5), ("b", 6, 69)) == 21, "a began anew and has less"
    assert total(130, ("a", 4, 2), ("b", 6, 79)) == 25, "a began anew and has more"
    assert total(140, ("b", 6, 89)) == 25, "a is gone"
    assert total(150, ("a", 1, 9), ("b", 7, 99)) == 27, "a is back"
    assert total(170, ("a", 2, 29), ("b", 8, 99)) == 29, "a slow host: b is read 20 s after it was listed"
    assert total(180, ("a", 9, 9), ("b", 8, 129)) == 38, "a began anew"


def test_who_is_gone_is_forgotten() -> None:
    tally = Tally()
    tally.add([Count("a", (NETWORK, ELEVEN, "x"), 3, 1), Count("b", (NETWORK, "", "y"), 4, 1)])
    assert tally.dropped(layout().without_port(ELEVEN)) == [Dropped(NETWORK, "", "y", 4)]
    assert tally.dropped(Layout()) == tally.dropped(layout()) == []


def test_what_the_southbound_database_says() -> None:
    uuid, port, flow = ("5fa186a0-0-0-0-0", "d29c0c33-0-0-0-0", "e6c1caaf-0-0-0-0")
    foreign = "11111111-0-0-0-0"
    answer = [
        {
            "rows": [
                {
                    "_uuid": ["uuid", uuid],
                    "tunnel_key": 1,
                    "external_ids": ["map", [["name", names.switch(NETWORK)], ["logical-switch", "1"]]],
                },
                {"_uuid": ["uuid", foreign], "tunnel_key": 2, "external_ids": ["map", [["name", "theirs"]]]},
            ]
        },
        {"rows": [{"_uuid": ["uuid", port], "tunnel_key": 4, "datapath": ["uuid", uuid], "logical_port": ELEVEN}]},
        {
            "rows": [
                {
                    "_uuid": ["uuid", flow],
                    "external_ids": ["map", [["stage-hint", "aaaaaaaa"], ["stage-name", "ls_in_acl"]]],
                }
            ]
        },
    ]
    assert drops.southbound(json.loads(json.dumps(answer))) == Southbound(
        {1: NETWORK}, {(1, 4): ELEVEN}, frozenset({0xD29C0C33}), {0xE6C1CAAF: ("aaaaaaaa", "ls_in_acl")}
    )


@contextmanager
def program(path: Path, *said: bytes) -> Iterator[None]:
    """A program that says this, a part after the other, whatever it is asked."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for part in said:
                    connection.recv(4096)
                    connection.sendall(part)

        thread = Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_answers_come_in_parts_and_among_other_messages(tmp_path: Path) -> None:
    echo = b'{"id": "echo", "method": "echo", "params": []}'
    with program(
        tmp_path / "s", echo + b'{"id": 0, "error": null, "result": "n={1}"}', b'{"id":1,"result":null,"error":"no"}'
    ):
        assert talk.ask(tmp_path / "s", [("bridge/dump-flows", ["a"]), ("bridge/dump-flows", ["b"])]) == ["n={1}", None]


def test_who_hangs_up_is_an_error(tmp_path: Path) -> None:
    with program(tmp_path / "s", b'{"id": 0, "resu'), pytest.raises(NetworkError, match="does not answer"):
        talk.ask(tmp_path / "s", [("version", [])])
    with pytest.raises(NetworkError):
        talk.ask(tmp_path / "nobody", [("version", [])])
