"""What guests are told of themselves: who asks decides, whatever they say, and as much as they may."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kumulus_agents.metadata import documents
from kumulus_agents.metadata.control import Control
from kumulus_agents.metadata.line import CONTROL, Line
from kumulus_agents.metadata.records import MachineRecord, NicRecord, Reader, Records, SubnetRecord
from kumulus_agents.metadata.server import (
    BURST,
    CONNECTIONS_EACH,
    LONGEST,
    TOKEN,
    TOKEN_TTL,
    Rates,
    Server,
    Tokens,
)
from tests.patience import PATIENCE
from tests.unit.agent.host import eventually

NETWORK, OTHER, WEB, DB = (str(uuid.uuid4()) for _ in range(4))
SEED = {
    "meta-data": b"instance-id: i-1\nlocal-hostname: web\nrole: front\npublic-keys: [ssh-ed25519 A a, ssh-ed25519 B b]\n",
    "user-data": b"#cloud-config\npackages: [x]\n",
    "network-config": b"version: 2\n",
}
NIC = NicRecord(name="eth0", network=NETWORK, mac="02:00:00:00:00:01", addresses=("127.0.0.1", "fd00::5"))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    made = Records(tmp_path / "metadata", os.getgid())
    made.prepare()
    made.put_machine(WEB, "tenant", "web", SEED)
    made.put_nic(WEB, str(uuid.UUID(int=1)), NIC)
    return made


def reader(tmp_path: Path) -> Reader:
    return Reader(os.open(tmp_path / "metadata", os.O_RDONLY | os.O_DIRECTORY))


class TestRecords:
    """Whose an address is."""

    def test_an_address_is_somebodys_in_its_network_alone(self, records: Records, tmp_path: Path) -> None:
        found = reader(tmp_path)
        for address in ("127.0.0.1", "fd00::5", "FD00:0::5"):
            machine = found.machine_at(NETWORK, address)
            assert machine is not None
            assert (machine.uid, machine.seed["user-data"]) == (WEB, "#cloud-config\npackages: [x]\n")
        assert found.machine_at(OTHER, "127.0.0.1") is None
        assert found.machine_at(NETWORK, "127.0.0.2") is None

    def test_an_address_that_changed_hands_is_the_new_ones(self, records: Records, tmp_path: Path) -> None:
        found = reader(tmp_path)
        first, second = (str(uuid.UUID(int=number)) for number in (1, 2))
        records.put_nic(WEB, first, NIC.model_copy(update={"addresses": ("10.0.0.9",)}))
        assert found.machine_at(NETWORK, "127.0.0.1") is None
        records.put_machine(DB, "tenant", "db", {})
        records.put_nic(DB, second, NIC.model_copy(update={"addresses": ("10.0.0.9",)}))
        records.drop_nic(first)
        machine = found.machine_at(NETWORK, "10.0.0.9")
        assert machine is not None and machine.uid == DB
        records.drop_nic(second)
        assert found.machine_at(NETWORK, "10.0.0.9") is None

    def test_what_somebody_removed_is_written_again(self, records: Records, tmp_path: Path) -> None:
        records.drop_network(NETWORK)
        assert reader(tmp_path).machine_at(NETWORK, "127.0.0.1") is None
        records.put_nic(WEB, str(uuid.UUID(int=1)), NIC)
        machine = reader(tmp_path).machine_at(NETWORK, "127.0.0.1")
        assert machine is not None and machine.uid == WEB

    def test_what_guests_are_told_of_their_network_follows_it(self, records: Records, tmp_path: Path) -> None:
        subnet = SubnetRecord(cidr="127.0.0.0/8", service="127.0.0.2")

        def told() -> NicRecord:
            machine = reader(tmp_path).machine_at(NETWORK, "127.0.0.1")
            assert machine is not None
            (nic,) = machine.nics.values()
            return nic

        assert told().dhcp
        records.put_network(OTHER, dhcp=False, subnets=(subnet,))
        assert told().dhcp
        records.put_network(NETWORK, dhcp=False, subnets=(subnet,))
        assert (told().dhcp, told().subnets) == (False, (subnet,))
        path = next((tmp_path / "metadata" / "machines").iterdir())
        before = path.stat().st_ino
        records.put_network(NETWORK, dhcp=False, subnets=(subnet,))
        assert path.stat().st_ino == before, "nothing is written that is there"
        # Who was plugged in by what the network was before is told when the network is said again.
        records.put_nic(WEB, str(uuid.UUID(int=1)), NIC)
        assert told().dhcp
        records.put_network(NETWORK, dhcp=False, subnets=(subnet,))
        assert not told().dhcp

    def test_a_network_that_is_as_it_was_costs_no_reading(
        self, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        again = Records(tmp_path / "metadata", os.getgid())
        read: list[Path] = []
        plain = again._read
        monkeypatch.setattr(again, "_read", lambda path: (read.append(path), plain(path))[1])
        again.put_network(NETWORK, dhcp=False, subnets=())
        assert read
        read.clear()
        again.put_network(NETWORK, dhcp=False, subnets=())
        again.put_network(OTHER, dhcp=False, subnets=())
        assert read == []
        again.put_network(NETWORK, dhcp=True, subnets=())
        assert read

    def test_what_is_gone_leaves_nothing(self, records: Records, tmp_path: Path) -> None:
        records.drop_nic(str(uuid.UUID(int=1)))
        records.keep_machines({DB})
        records.drop_network(NETWORK)
        assert [path for path in (tmp_path / "metadata").rglob("*") if path.is_file()] == []

    def test_secrets_are_for_the_servers_group_alone(self, records: Records, tmp_path: Path) -> None:
        for path in (tmp_path / "metadata").rglob("*"):
            assert path.stat().st_mode & 0o7 == 0, path


class TestDocuments:
    """Three shapes of the same."""

    machine = MachineRecord(
        uid=WEB,
        namespace="tenant",
        name="vm",
        seed={key: value.decode() for key, value in SEED.items()},
        nics={"one": NIC.model_copy(update={"addresses": ("10.0.0.5", "fd00::5")})},
    )

    def at(self, path: str) -> Any:
        return documents.find(documents.tree(self.machine), path)

    def test_ec2(self) -> None:
        assert "latest/" in self.at("/").split()
        assert set(self.at("/latest/").split()) == {"dynamic/", "meta-data/", "user-data"}
        document = json.loads(self.at("/latest/dynamic/instance-identity/document"))
        assert (document["instanceId"], document["privateIp"]) == ("i-1", "10.0.0.5")
        assert self.at("/latest/meta-data/instance-id") == "i-1"
        assert self.at("/2009-04-04/meta-data/local-hostname") == "web"
        assert self.at("/latest/meta-data/local-ipv4") == "10.0.0.5"
        assert self.at("/latest/meta-data/public-keys/").splitlines() == ["0=key0", "1=key1"]
        assert self.at("/latest/meta-data/public-keys/1/openssh-key") == "ssh-ed25519 B b"
        assert self.at("/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/local-ipv4s") == "10.0.0.5"
        assert self.at("/latest/user-data") == "#cloud-config\npackages: [x]\n"
        for nothing in (
            "/latest/meta-data/iam",
            "/latest/meta-data/instance-id/x",
            "/../etc/passwd",
            "/latest/user-data/x",
        ):
            assert self.at(nothing) is None

    def test_openstack(self) -> None:
        meta = json.loads(self.at("/openstack/latest/meta_data.json"))
        assert (meta["uuid"], meta["hostname"], meta["project_id"]) == (WEB, "web", "tenant")
        assert meta["public_keys"] == {"key0": "ssh-ed25519 A a", "key1": "ssh-ed25519 B b"}
        assert meta["meta"] == {"role": "front"}
        network = json.loads(self.at("/openstack/latest/network_data.json"))
        assert network["links"] == [{"id": "eth0", "type": "phy", "ethernet_mac_address": NIC.mac}]
        assert [item["type"] for item in network["networks"]] == ["ipv4_dhcp", "ipv6_dhcp"]
        assert self.at("/openstack/latest/user_data") == "#cloud-config\npackages: [x]\n"

    def test_openstack_of_a_network_without_dhcp(self) -> None:
        subnets = (
            SubnetRecord(cidr="10.0.0.0/24", gateway="10.0.0.1", service="10.0.0.2"),
            SubnetRecord(cidr="fd00::/64", service="fd00::2"),
        )
        nic = NIC.model_copy(
            update={"addresses": ("10.0.0.5", "10.0.0.6", "fd00::5"), "dhcp": False, "subnets": subnets}
        )
        machine = self.machine.model_copy(update={"nics": {"one": nic}})
        said = documents.find(documents.tree(machine), "/openstack/latest/network_data.json")
        assert said is not None
        network = json.loads(said)
        four = {"type": "ipv4", "link": "eth0", "netmask": "255.255.255.0"}
        assert network["networks"] == [
            {
                **four,
                "id": "eth0-ipv4",
                "ip_address": "10.0.0.5",
                "routes": [
                    {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"},
                    {"network": "169.254.169.254", "netmask": "255.255.255.255", "gateway": "10.0.0.2"},
                ],
            },
            {**four, "id": "eth0-ipv4-1", "ip_address": "10.0.0.6", "routes": []},
            {
                "id": "eth0-ipv6",
                "type": "ipv6",
                "link": "eth0",
                "ip_address": "fd00::5",
                "netmask": "ffff:ffff:ffff:ffff::",
                "routes": [],
            },
        ]
        assert network["services"] == [{"type": "dns", "address": "10.0.0.2"}, {"type": "dns", "address": "fd00::2"}]

    def test_nocloud(self) -> None:
        assert yaml.safe_load(self.at("/nocloud/meta-data"))["instance-id"] == "i-1"
        assert self.at("/nocloud/user-data") == "#cloud-config\npackages: [x]\n"
        assert self.at("/nocloud/network-config") == "version: 2\n"

    def test_a_machine_without_first_boot_data_still_knows_who_it_is(self) -> None:
        bare = documents.tree(MachineRecord(uid=DB, namespace="tenant", name="db"))
        assert documents.find(bare, "/latest/meta-data/instance-id") == DB
        assert documents.find(bare, "/latest/meta-data/hostname") == "db"
        assert documents.find(bare, "/latest/user-data") is None
        assert yaml.safe_load(documents.find(bare, "/nocloud/meta-data") or "")["local-hostname"] == "db"

    @given(meta=st.binary(max_size=200), path=st.text(max_size=60))
    def test_nothing_that_is_given_or_asked_breaks_it(self, meta: bytes, path: str) -> None:
        machine = MachineRecord(uid=DB, namespace="t", name="db", seed={"meta-data": meta.decode(errors="replace")})
        documents.find(documents.tree(machine), path)
        assert documents.find(documents.tree(machine), "/latest/meta-data/instance-id")

    @pytest.mark.parametrize(
        "meta",
        [
            "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
            "a: &a {x: y}\nb: {<<: [*a, *a]}\n",
            "[" * 9000,
            "- " * 8000 + "a",
            "a: 2024-99-99",
            "a: !!timestamp x",
            "a: !!int x",
            f"a: 0x{'f' * 9000}",
            "instance-id: i-1\n" + "# more\n" * 90000,
        ],
    )
    def test_meta_data_that_are_hard_to_read_are_handed_on_as_they_are(self, meta: str) -> None:
        machine = documents.tree(MachineRecord(uid=DB, namespace="t", name="db", seed={"meta-data": meta}))
        assert documents.find(machine, "/latest/meta-data/instance-id") == DB
        assert json.loads(documents.find(machine, "/openstack/latest/meta_data.json") or "")["hostname"] == "db"
        assert documents.find(machine, "/nocloud/meta-data") == meta


class TestTokens:
    """Session tokens."""

    def test_a_token_is_good_for_who_got_it_and_as_long_as_it_says(self) -> None:
        now = [1000.0]
        tokens = Tokens(lambda: now[0])
        token = tokens.issue((NETWORK, "10.0.0.5"), 60)
        assert tokens.holds((NETWORK, "10.0.0.5"), token)
        assert not tokens.holds((OTHER, "10.0.0.5"), token)
        assert not tokens.holds((NETWORK, "10.0.0.6"), token)
        assert not Tokens(lambda: now[0]).holds((NETWORK, "10.0.0.5"), token)
        until, _, sign = token.partition(".")
        assert not tokens.holds((NETWORK, "10.0.0.5"), f"{int(until, 16) + 9999:x}.{sign}")
        now[0] += 60
        assert not tokens.holds((NETWORK, "10.0.0.5"), token)

    @given(st.text(max_size=100))
    def test_nothing_else_is_a_token(self, text: str) -> None:
        assert not Tokens().holds((NETWORK, "10.0.0.5"), text)

    def test_who_asks_too_often_waits(self) -> None:
        now = [0.0]
        rates = Rates(lambda: now[0])
        assert sum(rates.allow((NETWORK, "a")) for _ in range(1000)) == BURST
        assert rates.allow((NETWORK, "b"))
        now[0] += 1
        assert rates.allow((NETWORK, "a"))


class Guest:
    """Asks as guests do."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def raw(self, text: bytes, source: str = "127.0.0.1") -> bytes:
        arriving, leaving = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(source, 0))
        try:
            leaving.write(text)
            async with asyncio.timeout(10 * PATIENCE):
                return await arriving.read()
        finally:
            leaving.close()
            with contextlib.suppress(OSError):
                await leaving.wait_closed()

    async def ask(self, path: str, method: str = "GET", source: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
        lines = [f"{method} {path} HTTP/1.1", "Host: 169.254.169.254", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        answer = await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode(), source)
        head, _, body = answer.decode().partition("\r\n\r\n")
        return int(head.split()[1]), body


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Guest]:
    server = Server(reader(tmp_path))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    await server.add(NETWORK, 1, listener)
    try:
        yield Guest(port)
    finally:
        await server.drop(NETWORK)


async def test_a_guest_asks_with_and_without_a_token(records: Records, tmp_path: Path) -> None:
    async with serving(tmp_path) as guest:
        assert await guest.ask("/latest/meta-data/instance-id") == (200, "i-1")
        status, token = await guest.ask("/latest/api/token", "PUT", **{TOKEN_TTL: "60"})
        assert status == 200
        assert await guest.ask("/latest/meta-data/instance-id", **{TOKEN: token}) == (200, "i-1")
        assert (await guest.ask("/latest/meta-data/instance-id", **{TOKEN: token + "0"}))[0] == 401
        for wrong in ({}, {TOKEN_TTL: "0"}, {TOKEN_TTL: str(LONGEST + 1)}, {TOKEN_TTL: "x"}):
            assert (await guest.ask("/latest/api/token", "PUT", **wrong))[0] == 400
        assert (await guest.ask("/latest/api/token"))[0] == 405
        assert (await guest.ask("/latest/user-data", "POST"))[0] == 405
        assert (await guest.ask("/nothing"))[0] == 404


async def test_only_the_address_says_who_asks(records: Records, tmp_path: Path) -> None:
    async with serving(tmp_path) as guest:
        assert (await guest.ask("/latest/meta-data/instance-id", source="127.0.0.2"))[0] == 404
        for header in ("X-Forwarded-For", "Forwarded"):
            assert (await guest.ask("/latest/user-data", source="127.0.0.2", **{header: "127.0.0.1"}))[0] == 403
            assert (await guest.ask("/latest/user-data", **{header: "127.0.0.2"}))[0] == 403
            assert (await guest.ask("/latest/api/token", "PUT", **{header: "1.2.3.4", TOKEN_TTL: "60"}))[0] == 403


async def test_a_change_is_seen_at_once(records: Records, tmp_path: Path) -> None:
    async with serving(tmp_path) as guest:
        records.drop_nic(str(uuid.UUID(int=1)))
        assert (await guest.ask("/latest/user-data"))[0] == 404
        records.put_nic(WEB, str(uuid.UUID(int=1)), NIC)
        assert (await guest.ask("/latest/user-data"))[0] == 200


async def test_first_boot_data_are_read_once_for_each_state_of_their_file(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counting(machine: MachineRecord) -> documents.Tree:
        made.append(machine.name)
        return tree(machine)

    tree = documents.tree
    monkeypatch.setattr(documents, "tree", counting)
    async with serving(tmp_path) as guest:
        for _ in range(3):
            assert await guest.ask("/latest/meta-data/instance-id") == (200, "i-1")
        assert made == ["web"]
        records.put_machine(WEB, "tenant", "other", {"meta-data": b"instance-id: i-2\n"})
        answers = await asyncio.gather(*(guest.ask("/latest/meta-data/instance-id") for _ in range(4)))
        assert set(answers) == {(200, "i-2")}
        assert made == ["web", "other"]


async def test_what_a_guest_can_send_is_bounded(records: Records, tmp_path: Path) -> None:
    async with serving(tmp_path) as guest:
        long = b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\n\r\n"
        many = b"GET / HTTP/1.1\r\n" + b"".join(b"H%d: x\r\n" % n for n in range(1000)) + b"\r\n"
        body = b"PUT /latest/api/token HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 65536
        for flood in (long, many, body, b"\x00\xff" * 4096):
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await guest.raw(flood)
            assert b"200 OK" not in answer
        assert (await guest.ask("/latest/user-data"))[0] == 200


async def test_a_guest_holds_only_so_many_connections(records: Records, tmp_path: Path) -> None:
    async with serving(tmp_path) as guest:
        held = [await asyncio.open_connection("127.0.0.1", guest._port) for _ in range(CONNECTIONS_EACH)]
        held[0][1].write(b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await held[0][0].readline()).startswith(b"HTTP/1.1 200")
        with pytest.raises((ConnectionError, IndexError)):
            await guest.ask("/latest/user-data")
        for _, leaving in held:
            leaving.close()
        for _, leaving in held:
            await leaving.wait_closed()

        async def again() -> bool:
            with contextlib.suppress(ConnectionError, IndexError):
                return (await guest.ask("/latest/user-data"))[0] == 200
            return False

        await eventually(again, "a connection", 10)


async def test_the_agent_says_where_to_answer_and_the_server_goes_on_without_it(
    records: Records, tmp_path: Path
) -> None:
    path = tmp_path / CONTROL
    control = Control(Control.listen(path), Server(reader(tmp_path)))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(control.run())
        listener = socket.create_server(("127.0.0.1", 0))
        guest = Guest(listener.getsockname()[1])

        def tell() -> dict[str, int]:
            line = Line(path)
            try:
                line.add(NETWORK, 7, listener)
                return line.networks()
            finally:
                line.close()
                listener.close()

        assert await asyncio.to_thread(tell) == {NETWORK: 7}
        assert (await guest.ask("/latest/user-data"))[0] == 200

        def end() -> None:
            line = Line(path)
            line.drop(NETWORK)
            assert line.networks() == {}
            line.stop()
            line.close()

        await asyncio.to_thread(end)
    with pytest.raises(ConnectionError):
        await guest.ask("/latest/user-data")
