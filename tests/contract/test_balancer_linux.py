"""The load balancer of the driver `linux`: real haproxy between real clients and members, all of them in namespaces."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

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
from kumulus_agents.network.linux import balancer as balancers
from kumulus_agents.network.linux import gateway_links
from kumulus_agents.network.linux.balancer import Balancer
from kumulus_agents.network.linux.settings import LinuxSettings
from kumulus_agents.network.protocol import Identity, NetworkError
from tests.contract import network_world
from tests.contract.balancers import CHECK, SECONDS, TALK, BalancerContract, Told, listener
from tests.contract.network_world import Machine, eventually
from tests.contract.test_gateways_linux import hosts, outside, world
from tests.contract.test_network_linux import TestContract as Networks
from tests.patience import PATIENCE

__all__ = ["hosts", "outside", "world"]  # the fixtures

WHY_NOT = network_world.why_none()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

UID = "0b000000-0000-4000-8000-00000000000b"
AT = "10.30.0.1"
CLIENT = "10.30.0.2"
MEMBERS = {f"0c000000-0000-4000-8000-00000000000{number}": f"10.20.0.1{number}" for number in range(1, 4)}


@dataclass
class Street:
    """A client, a gateway and members, on two cables."""

    gateway: Machine
    client: Machine
    members: Machine
    servers: Told
    certificates: dict[str, Identity]
    authority: Path
    settings: LinuxSettings
    made: list[Balancer] = field(default_factory=list)

    def balancer(self) -> Balancer:
        """As an agent that has just been started sees it."""
        return Balancer(UID, Path(f"/proc/{self.gateway.pid}/ns/net"), self.settings)

    def ask(self, port: int, count: int = 1, *, cookie: str = "", tls: bool = False) -> list[dict[str, Any]]:
        said = self.client.run(
            sys.executable,
            "-I",
            "-S",
            TALK,
            "ask",
            AT,
            str(port),
            str(count),
            cookie,
            str(self.authority) if tls else "",
        )
        answers: list[dict[str, Any]] = json.loads(said)
        return answers

    def who(self, port: int, count: int) -> Counter[str]:
        return Counter(answer["member"] for answer in self.ask(port, count))

    def processes(self) -> list[str]:
        """Command lines of haproxies of this street."""
        said = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        return [line for line in said.splitlines() if str(self.settings.state) in line and "haproxy" in line]

    def process(self) -> tuple[int, dict[str, str]]:
        """The one that takes connections, and what the kernel says of it."""
        pid = int((Path(str(self.settings.state)) / "balancers" / UID / "run/pid").read_text())
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        limits = Path(f"/proc/{pid}/limits").read_text()
        fields |= {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
        return pid, {**fields, "oom_score_adj": Path(f"/proc/{pid}/oom_score_adj").read_text().strip()}

    def key_modes(self) -> list[str]:
        """Who may read the keys."""
        return [oct(path.stat().st_mode & 0o777) for path in Path(str(self.settings.state)).rglob("*.pem")]


@pytest.fixture(scope="module")
def street_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    directory = tmp_path_factory.mktemp("certificates")
    machines = [Machine("gateway"), Machine("client"), Machine("members")]
    gateway, client, members = machines
    servers = None
    try:
        gateway.add_link("out", mtu=1500, to=client, peer=["name", "eth0"])
        gateway.add_link("in", mtu=1500, to=members, peer=["name", "eth0"])
        for machine, device, addresses in (
            (gateway, "out", [AT]),
            (gateway, "in", ["10.20.0.1"]),
            (client, "eth0", [CLIENT]),
            (members, "eth0", list(MEMBERS.values())),
        ):
            for address in addresses:
                machine.run("ip", "address", "add", f"{address}/24", "dev", device)
            machine.run("ip", "link", "set", "dev", device, "up")
        gateway.run("sysctl", "-q", "-w", *(f"{name}={value}" for name, value in gateway_links.SYSCTLS.items()))
        servers = Told(members, "serve", *MEMBERS.values())
        made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
        files = ["-subj", "/CN=lb.example", "-keyout", f"{directory}/key", "-out", f"{directory}/crt"]
        subprocess.run(["openssl", *made, *files], check=True, capture_output=True)
        pem = (directory / "crt").read_bytes() + (directory / "key").read_bytes()
        yield Street(
            gateway,
            client,
            members,
            servers,
            {hashlib.sha256(pem).hexdigest(): Identity(pem)},
            directory / "crt",
            LinuxSettings(state=directory / "unset"),
        )
    finally:
        if servers is not None:
            servers.close()
        for machine in machines:
            machine.close()


def short_directory() -> Path:
    """Like /run: others may go through, and the path is short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="lb-"))
    made.chmod(0o711)
    return made


@pytest.fixture
async def street(street_: Street) -> AsyncIterator[Street]:
    """Everybody is well before; after the test the balancer is removed, and nothing is left of it."""
    state = short_directory()
    street_.settings = LinuxSettings(state=state)
    try:
        yield street_
    finally:
        for address in MEMBERS.values():
            street_.servers.tell(f"up {address}")
        await street_.balancer().remove()
    assert street_.processes() == []
    assert [path for path in state.rglob("*") if not path.is_dir()] == []
    shutil.rmtree(state)


def balancing(*listeners: BalancerListener, members: int = 3, check: HealthCheck = CHECK) -> Balancing:
    return Balancing(
        addresses=(AT,),
        listeners=listeners,
        members=tuple(BalancerMember(uid=uid, address=at) for uid, at in list(MEMBERS.items())[:members]),
        health_check=check,
    )


async def healthy(balancer: Balancer, order: Balancing, wanted: set[str]) -> None:
    """Wait until these members, by address, are the ones that are well."""
    deadline = asyncio.get_running_loop().time() + SECONDS * PATIENCE
    while True:
        found = {MEMBERS[one.uid] for one in await balancer.facts(order) if one.healthy}
        if found == wanted:
            return
        assert asyncio.get_running_loop().time() < deadline, f"well are {found}, not {wanted}"
        await asyncio.sleep(0.05)


async def test_it_shares_among_those_that_are_well(street: Street) -> None:
    """Over protocols and algorithms; who does not answer gets nothing, until it is well again. Headers and cookies tell
    members and clients what they need."""
    digest = next(iter(street.certificates))
    order = balancing(
        listener(80),
        listener(81, algorithm=Algorithm.LEAST_CONNECTIONS),
        listener(82, algorithm=Algorithm.SOURCE),
        listener(83, stickiness=Stickiness(type=StickinessType.SOURCE_IP)),
        listener(84, ListenerProtocol.HTTP, stickiness=Stickiness(type=StickinessType.COOKIE)),
        listener(443, ListenerProtocol.HTTPS, certificate=Certificate(digest=digest, secret="tls")),
        listener(8443, ListenerProtocol.TLS, certificate=Certificate(digest=digest, secret="tls")),
        check=CHECK.model_copy(update={"type": CheckType.HTTP, "path": "/health"}),
    )
    balancer = street.balancer()
    with pytest.raises(NetworkError) as missing:
        await balancer.ensure(order, {})
    assert missing.value.reason == "CertificateMissing"
    assert await balancer.ensure(order, street.certificates)
    assert not await balancer.ensure(order, {})
    await healthy(balancer, order, set(MEMBERS.values()))
    assert street.who(80, 9) == dict.fromkeys(MEMBERS.values(), 3)
    assert sum(street.who(81, 6).values()) == 6
    assert len(street.who(82, 6)) == 1
    stuck = street.who(83, 6)
    assert len(stuck) == 1

    first = street.ask(84)[0]
    assert first["headers"]["x-forwarded-for"] == CLIENT
    assert "HttpOnly" in first["cookie"]
    cookie = first["cookie"].partition(";")[0]
    assert {answer["member"] for answer in street.ask(84, 6, cookie=cookie)} == {first["member"]}
    assert len({answer["member"] for answer in street.ask(84, 6)}) == 3

    secure = street.ask(443, tls=True)[0]
    assert (secure["headers"]["x-forwarded-proto"], secure["headers"]["x-forwarded-port"]) == ("https", "443")
    assert "x-forwarded-for" not in street.ask(8443, tls=True)[0]["headers"]
    assert street.key_modes() == ["0o400"]
    assert "PRIVATE" not in str(street.processes())

    # One goes, one says that it is not well: nobody is given to them, also by a balancer that was started anew meanwhile.
    gone, unwell, left = MEMBERS.values()
    street.servers.tell(f"down {gone}")
    street.servers.tell(f"unwell {unwell}")
    await healthy(balancer, order, {left})
    assert street.who(80, 6) == {left: 6}
    changed = order.model_copy(update={"max_connections": 1000})
    assert await street.balancer().ensure(changed, {})
    assert street.who(80, 6) == {left: 6}
    street.servers.tell(f"up {gone}")
    street.servers.tell(f"up {unwell}")
    balancer = street.balancer()
    await healthy(balancer, changed, set(MEMBERS.values()))
    assert street.who(83, 6) in ({left: 6}, stuck)


async def test_nobody_is_cut_or_refused_while_members_change(street: Street) -> None:
    """Connections all the time, and one that is open all along, through changes of members by agents one after the
    other."""
    two, three = balancing(listener(80), members=2), balancing(listener(80))
    await street.balancer().ensure(two, {})
    load = Told(street.client, "load", AT, "80")
    try:
        for _ in range(4):
            for order in (three, two):
                assert await street.balancer().ensure(order, {})
                assert load.tell("are you on") == "on"
                await healthy(street.balancer(), order, {member.address for member in order.members})
        said = json.loads(load.tell("stop"))
    finally:
        load.close()
    assert said["errors"] == []
    assert said["done"] > 100
    # Who has nothing more to finish ends.
    deadline = asyncio.get_running_loop().time() + SECONDS * PATIENCE
    while len(street.processes()) > 1:
        assert asyncio.get_running_loop().time() < deadline, street.processes()
        await asyncio.sleep(0.05)


class _Killed(BaseException):
    """The agent is no more."""


async def test_an_agent_that_is_killed_after_any_step_leaves_what_the_next_one_completes(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 0

    def dies(effect: Any) -> Any:
        def step() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise _Killed

        async def later(*args: Any, **more: Any) -> Any:
            done = await effect(*args, **more)
            step()
            return done

        def at_once(*args: Any, **more: Any) -> Any:
            done = effect(*args, **more)
            if done is not False:  # it was so already
                step()
            return done

        return later if asyncio.iscoroutinefunction(effect) else at_once

    for effect in ("run", "write_whole"):
        monkeypatch.setattr(balancers, effect, dies(getattr(balancers, effect)))
    digest = next(iter(street.certificates))
    orders = [
        balancing(
            listener(80),
            listener(443, ListenerProtocol.HTTPS, certificate=Certificate(digest=digest, secret="tls")),
            members=n,
        )
        for n in (2, 3)
    ]
    deaths = 0
    for order in orders:
        while True:
            left = 1
            try:
                await street.balancer().ensure(order, street.certificates)
                break
            except _Killed:
                deaths += 1
                left = 0
                if order is orders[1]:
                    assert street.who(80, 2)
        left = 0
        balancer = street.balancer()
        await balancer.ensure(order, street.certificates)
        await healthy(balancer, order, {member.address for member in order.members})
        assert set(street.who(80, 6)) == {member.address for member in order.members}
    assert deaths >= 6, "key, configuration, process; configuration, states, process"
    assert len(street.processes()) == 1


async def test_what_was_ended_by_hand_or_wrong_comes_right(street: Street) -> None:
    wrong = balancing(listener(80).model_copy(update={"target_port": 81}))
    balancer = street.balancer()
    await balancer.ensure(wrong, {})
    await healthy(balancer, wrong, set())
    order = balancing(listener(80))
    await balancer.ensure(order, {})
    await healthy(balancer, order, set(MEMBERS.values()))
    pid, fields = street.process()
    assert fields["Uid"].split() == [str(balancers.user(UID))] * 4
    assert (int(fields["CapEff"], 16), int(fields["CapPrm"], 16), int(fields["CapBnd"], 16)) == (0, 0, 0)
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Max address space"] == str(640 << 20)
    assert fields["Max open files"] == str(min(18432, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    assert (fields["Max core file size"], fields["Max processes"]) == ("0", "0")
    assert int(fields["Threads"]) == 2
    assert fields["oom_score_adj"] == "1000"
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: street.processes() == [], "it does not end")
    assert await street.balancer().ensure(order, {})
    assert sum(street.who(80, 3).values()) == 3


class TestBalancer(BalancerContract):
    """The contract."""

    networks = Networks()
