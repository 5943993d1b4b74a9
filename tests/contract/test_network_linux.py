"""The driver `linux` on hosts that are namespaces, with real packets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kumulus.api.segments import FilterGroup, Nic
from kumulus_agents.network.linux import dnsmasq, names
from kumulus_agents.network.linux.driver import LinuxNetwork
from kumulus_agents.network.linux.settings import LinuxSettings
from kumulus_agents.network.protocol import Port
from tests.contract import network, network_world
from tests.contract.network import NetworkContract
from tests.contract.network_frames import FALSE, TRUE, ethernet, ip4, udp, unreachable
from tests.contract.network_programs import Sender, Server, Talk, Watcher
from tests.contract.network_world import Guest, Host, World, eventually

WHY_NOT = network_world.why_none()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def hosts() -> Iterator[World]:
    yield from network_world.two_hosts()


@pytest.fixture
async def world(hosts: World) -> AsyncIterator[World]:
    async for world in network_world.emptied(hosts, nothing_left):
        yield world


def nothing_left(host: Host) -> None:
    """Nothing of any network is on the host."""
    network_world.nothing_left(host, names.is_ours)
    assert "kumulus" not in host.machine.run("nft", "list", "tables")


class TestContract(NetworkContract):
    """The contract."""

    def device_of(self, nic: Nic) -> str:
        return names.tap(nic.uid)


async def test_errors_about_a_connection_come_from_its_ends_alone(world: World) -> None:
    net = await TestContract().network(world)
    first, other = net.hosts
    one, two = await net.guest(first), await net.guest(other)
    strangers = [await net.guest(first), await net.guest(other)]
    sent, back = network.four(one), network.four(two)

    def error(guest: Guest, mark: bytes) -> bytes:
        about = unreachable(ip4(sent, back, 17, udp(41000, 9, mark)))
        return ethernet(guest.nic.mac, one.nic.mac, 0x0800, ip4(network.four(guest), sent, 1, about))

    with Server(two, 9), Talk(one, back, 9, udp=True, source=41000) as talk:
        assert talk.works_on()
        with (
            Watcher(one) as watcher,
            Sender(strangers[0], [error(strangers[0], FALSE)]),
            Sender(strangers[1], [error(strangers[1], FALSE)]),
            Sender(two, [error(two, TRUE)]),
        ):
            await eventually(lambda: watcher.seen()[0] > 50, "the error from its end does not arrive")
            await eventually(lambda: min(guest.sent() for guest in strangers) > 50, "nothing is sent")
            TestContract().nothing_false([watcher])


_MARKED = """
add table inet marked
add chain inet marked sent { type filter hook output priority 300; }
add rule inet marked sent udp dport 4789 counter
add rule inet marked sent udp dport 4789 meta mark != 0 counter
"""


async def test_no_mark_leaves_with_what_goes_to_other_hosts(world: World) -> None:
    """Rules and routes of the host would take it for their own: of IPv4, IPv6, ARP and what opens a connection."""
    net = await TestContract().network(world)
    first, other = net.hosts
    one, two = await net.guest(first), await net.guest(other)
    first.machine.run("nft", "-f", "-", given=_MARKED)
    try:
        for address in (network.four(two), network.six(two)):
            await network.reaches(one, address)
        one.machine.run("ip", "neighbour", "flush", "dev", "eth0")
        with Server(two, 80), Talk(one, network.four(two), 80) as talk:
            assert talk.works_on()
        listed = json.loads(first.machine.run("nft", "-j", "list", "table", "inet", "marked"))["nftables"]
        sent, marked = (
            next(part["counter"]["packets"] for part in entry["rule"]["expr"] if "counter" in part)
            for entry in listed
            if "rule" in entry
        )
    finally:
        first.machine.run("nft", "delete", "table", "inet", "marked")
    assert sent > 10
    assert marked == 0


class TestMending:
    """What was removed or changed by hand is noticed and made so again."""

    @pytest.mark.parametrize(
        "command",
        [
            "ip link delete dev {bridge}",
            "ip link set dev {bridge} type bridge no_linklocal_learn 0",
            "ip link set dev {bridge} type bridge nf_call_iptables 0",
            "ip link set dev {bridge} down",
            "ip link delete dev {tunnel}",
            "ip link set dev {tunnel} nomaster",
            "bridge fdb delete 00:00:00:00:00:00 dev {tunnel} dst 10.99.0.2 self",
            "bridge fdb append 00:00:00:00:00:00 dev {tunnel} dst 10.99.0.99 self",
            "ip link delete dev {service}",
            "ip link delete dev {uplink}",
            "ip link set dev {tap} nomaster",
            "ip -n {namespace} address flush dev leg",
            "ip netns delete {namespace}",
            "nft delete table bridge kumulus",
            "nft delete table inet kumulus",
            "nft flush chain bridge kumulus enter-{tap}",
            "nft insert rule bridge kumulus entry accept",
            "nft add element bridge kumulus enters {{ kt0000000000 : accept }}",
            "kill server",
            "kill asker",
        ],
    )
    async def test_it_is_mended(self, world: World, command: str) -> None:
        contract = TestContract()
        net = await contract.network(world)
        first, other = net.hosts
        one, two = await net.guest(first), await net.guest(other)
        await network.reaches(one, network.four(two))
        assert await first.driver.mend() == []
        uid = net.order.uid
        words = command.format(
            bridge=names.bridge(uid),
            tunnel=names.tunnel(uid),
            service=names.service(uid),
            uplink=names.uplink(uid),
            namespace=names.namespace(uid),
            tap=one.plug.device,
        )
        if command.startswith("kill"):
            pid = first.machine.run("cat", f"{first.settings['state']}/served/{uid}/{words.split()[1]}.pid").strip()
            words = f"kill {pid}"
        first.machine.run(*words.split())
        assert await first.driver.mend() != []
        assert await first.driver.mend() == []
        await network.reaches(one, network.four(two))
        assert one.dhcp()["ip"] == network.four(one)
        await eventually(
            lambda: one.look_up(network_world.WORLD_NAME, "10.20.30.2") == {network_world.WORLD_ADDRESS},
            "names of the world are not served",
        )
        stranger = network.Party("02:00:00:00:00:99", "10.20.30.199", "fd00:20::99")
        service = contract.service_of(net, one)
        lies = list(network.spoofs(network.party(one), network.party(two), service, stranger).values())
        truth = network.honest(network.party(one), network.party(two))
        with Watcher(two) as watcher, Sender(one, [*lies, truth]):
            await eventually(lambda: watcher.seen()[0] > 5, "the honest frame does not arrive")
            contract.nothing_false([watcher])

    async def test_one_that_cannot_be_mended_holds_up_no_other(self, world: World) -> None:
        contract = TestContract()
        host = world.hosts[0]
        nets = [await contract.network(world, vni=vni) for vni in (5001, 5002)]
        spoilt, other = sorted(nets, key=lambda net: net.order.uid)
        tunnel, bridge = names.tunnel(spoilt.order.uid), names.bridge(other.order.uid)
        port = LinuxSettings.model_validate(host.settings).vxlan_port
        host.machine.run("ip", "link", "delete", "dev", tunnel)
        # The kernel has a number of a network once only.
        stranger = f"name stranger type vxlan id {spoilt.order.vni} local {host.address} dstport {port}"
        host.machine.run("ip", "link", "add", *stranger.split())
        host.machine.run("ip", "link", "delete", "dev", bridge)
        try:
            assert await host.driver.mend() != []
            assert bridge in host.machine.links()
            assert tunnel not in host.machine.links()
        finally:
            host.machine.run("ip", "link", "delete", "dev", "stranger")
        assert await host.driver.mend() != []
        assert tunnel in host.machine.links()
        assert await host.driver.mend() == []


strides = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.wide)])
"""At every seventh step; at each of them takes minutes."""


class TestDeath:
    """The agent dies after any step; the next one completes, or removes, what it finds."""

    @strides
    async def test_after_a_step_of_making(self, world: World, stride: int) -> None:
        contract = TestContract()
        host, other = world.hosts[:2]
        steps = 1 - stride
        while True:
            steps += stride
            net = network.Net(world, [host, other], contract.order())
            nic = net.nic()
            driver = host.restart(die_after=steps)
            died = False
            try:
                await net.ensure()
                await driver.ensure_port(Port(nic, nic.uid))
            except network_world.Died:
                died = True
            host.restart()
            if steps // stride % 2:  # either the order has gone meanwhile, or it is still there
                found = await host.driver.found()
                for port in found.ports:
                    await host.driver.remove_port(port)
                for segment in found.segments:
                    await host.driver.remove_segment(segment)
                nothing_left(host)
            else:
                await net.ensure()
                guest = await world.guest(host, nic)
                far = await net.guest(other)
                await network.reaches(guest, network.four(far))
                assert guest.dhcp()["ip"] == network.four(guest)
                assert await host.driver.mend() == []
            await world.clear()
            nothing_left(host)
            if not died:
                break
        assert steps > 10

    @strides
    async def test_after_a_step_of_removing(self, world: World, stride: int) -> None:
        contract = TestContract()
        host = world.hosts[0]
        steps = 1 - stride
        died = True
        while died:
            steps += stride
            host.restart()
            net = network.Net(world, [host], contract.order())
            await net.ensure()
            nic = net.nic()
            await host.driver.ensure_port(Port(nic, nic.uid))
            driver = host.restart(die_after=steps)
            died = False
            try:
                await driver.remove_port(nic.uid)
                await driver.remove_segment(net.order.uid)
            except network_world.Died:
                died = True
            host.restart()
            await host.driver.remove_port(nic.uid)
            await host.driver.remove_segment(net.order.uid)
            nothing_left(host)
        assert steps > 5

    async def test_the_record_is_lost(self, world: World) -> None:
        """What is there is found by its names, and can be removed."""
        contract = TestContract()
        host = world.hosts[0]
        nets = [await contract.network(world), await contract.network(world, vni=5002, subnets=())]
        host.driver.kill()
        host.machine.run("rm", "-r", f"{host.settings['state']}/networks")
        host.restart()
        theirs = names.namespace(other := network.new_uid())  # in which another driver serves a network
        host.machine.run("ip", "netns", "add", theirs)
        try:
            found = await host.driver.found()
            assert found.segments == {net.order.uid for net in nets}
            for uid in (*found.segments, other):
                await host.driver.remove_segment(uid)
            assert theirs in host.machine.run("ip", "netns", "list")
        finally:
            host.machine.run("ip", "netns", "delete", theirs)
        nothing_left(host)


async def test_guests_get_addresses_when_names_of_the_world_cannot_be_looked_up(world: World, tmp_path: Path) -> None:
    host, broken = world.hosts[0], tmp_path / "broken"
    dnsmasq = tmp_path / "dnsmasq"
    dnsmasq.write_text(
        f'#!/bin/sh\nif [ -e {broken} ]; then case "$*" in *asker-*) exit 2;; esac; fi\nexec /usr/sbin/dnsmasq "$@"\n'
    )
    dnsmasq.chmod(0o755)
    broken.touch()
    before = host.settings
    host.settings = {**before, "dnsmasq": str(dnsmasq)}
    try:
        driver = host.restart()
        net = network.Net(world, [host], TestContract().order())
        await net.ensure()
        guest = await net.guest(host, addressed=False)
        assert guest.dhcp()["ip"] == network.four(guest)
        guest.address()
        assert await driver.mend() == []
        broken.unlink()
        assert await driver.mend() == [f"dnsmasq of {names.uplink(net.order.uid)} did not run as it should."]
        await eventually(
            lambda: guest.look_up(network_world.WORLD_NAME, "10.20.30.2") == {network_world.WORLD_ADDRESS},
            "names of the world are not served",
        )
    finally:
        host.settings = before
        host.restart()


REFUSED = "198.51.100.66/32"
"""Rules with this address are refused by `picky`."""


@pytest.fixture
def picky(world: World, tmp_path: Path) -> Iterator[Host]:
    """A host that can be restarted with an nft that refuses some rules."""
    nft = tmp_path / "nft"
    address = REFUSED.partition("/")[0]
    nft.write_text(
        "#!/bin/sh\nrules=$(cat)\n"
        f'case "$rules" in *{address}*) echo "not {address}" >&2; exit 1;; esac\n'
        'printf "%s" "$rules" | /usr/sbin/nft "$@"\n'
    )
    nft.chmod(0o755)
    host = world.hosts[0]
    before = host.settings
    host.settings = {**before, "nft": str(nft)}
    yield host
    host.settings = before
    host.restart()


def refusing() -> FilterGroup:
    return network.OPEN.model_copy(update={"ingress": (network.tcp(80, cidrs=[REFUSED]), network.ANY)})


async def two_guests(world: World, host: Host, **more: object) -> tuple[network.Net, Guest, Guest]:
    net = network.Net(world, [host], TestContract().order(**more))
    await net.ensure()
    one, two = await net.guest(host), await net.guest(host)
    await network.reaches(one, network.four(two))
    return net, one, two


class TestRefusedRules:
    """What nftables refuses harms nobody else."""

    async def test_an_order_fails_alone(self, world: World, picky: Host) -> None:
        driver = picky.restart()
        net, one, two = await two_guests(world, picky)
        error = await network.refused(driver.ensure_segment(net.order.model_copy(update={"groups": (refusing(),)})))
        assert error.reason == "CommandFailed"
        nic = net.nic(pairs=({"cidr": REFUSED},))
        assert (await network.refused(driver.ensure_port(Port(nic, nic.uid)))).reason == "CommandFailed"
        worse = TestContract().order(vni=5009, groups=(refusing(),))
        assert (await network.refused(driver.ensure_segment(worse))).reason == "CommandFailed"
        _, three, four = await two_guests(world, picky, vni=5002)
        for _ in range(2):
            assert await picky.driver.mend() == []
            assert worse.uid not in (await picky.driver.found()).segments
            assert nic.uid not in (await picky.driver.found()).ports
            assert one.reaches(network.four(two), seconds=20)
            assert three.reaches(network.four(four), seconds=20)
            picky.restart()

    async def test_what_is_on_record_is_in_force_without_it(self, world: World, picky: Host) -> None:
        net, one, two = await two_guests(world, picky)
        bad, three, four = await two_guests(world, picky, vni=5002, groups=(refusing(),))
        five = await net.guest(picky, pairs=({"cidr": REFUSED},))
        driver = picky.restart()
        await driver.prepare()
        assert one.reaches(network.four(two), seconds=20)
        assert not three.reaches(network.four(four)), "what cannot be filtered does not pass"
        assert not five.reaches(network.four(one))
        assert (await network.refused(driver.ensure_port(Port(three.nic, three.nic.uid)))).reason == "SegmentNotReady"
        assert (await driver.found()).segments == {net.order.uid, bad.order.uid}
        await bad.ensure(groups=(network.OPEN,))
        for guest in (three, four):
            await driver.ensure_port(Port(guest.nic, guest.nic.uid))
        await network.reaches(three, network.four(four))
        nic = five.nic.model_copy(update={"pairs": ()})
        await driver.ensure_port(Port(nic, nic.uid))
        await network.reaches(five, network.four(one))
        assert await picky.restart().mend() == []

    async def test_nothing_passes_when_nothing_of_the_record_can_be_in_force(self, world: World, picky: Host) -> None:
        _, one, two = await two_guests(world, picky, groups=(refusing(),))
        await picky.restart().prepare()
        assert not one.reaches(network.four(two))


class TestGuarding:
    """What others do to the host, and what guests do to it."""

    async def test_rules_that_somebody_flushed_are_back(self, world: World) -> None:
        host = world.hosts[0]
        _, one, two = await two_guests(world, host)
        assert await host.driver.mend() == []
        host.machine.run("nft", "flush", "ruleset")
        assert await host.driver.guard() == ["The rules of nftables were not what they should be."]
        assert one.reaches(network.four(two), seconds=20)
        assert await host.driver.mend() == []

    async def test_a_guest_fills_no_more_of_the_hosts_table_than_it_may(self, world: World) -> None:
        host, most = world.hosts[0], 64
        before = host.settings
        host.settings = {**before, "connections": most}
        try:
            host.restart()
            net, one, two = await two_guests(world, host)
            three, four = await net.guest(host), await net.guest(host)
            service = TestContract().service_of(net, one)
            me, other = network.party(one), network.party(two)
            flood = [
                ethernet(me.mac, to.mac, 0x0800, ip4(me.four, to.four, 17, udp(20_000 + port, 9, TRUE)))
                for to in (other, service)
                for port in range(5 * most)
            ]
            why = "more connections than an interface may have"
            with Server(two, 80), Talk(one, network.four(two), 80) as talk, Sender(one, flood):
                await eventually(lambda: one.sent() > 3 * len(flood), "too little is sent")
                said = [item for item in await host.driver.dropped() if item.why == why]
                assert {item.interface for item in said} == {one.nic.uid}, "who opens them loses them"
                assert all(item.packets > 0 and item.network == net.order.uid for item in said)
                assert talk.works_on(), "what was there goes on"
                tracked = host.machine.run("conntrack", "-L").splitlines()
                mine = [line for line in tracked if f"src={me.four} " in line.partition("dst=")[0]]
                assert most // 2 < len(mine) <= most
                assert three.reaches(network.four(four), seconds=20), "others are not in its way"
        finally:
            host.settings = before
            host.restart()

    async def test_tunnels_take_frames_only_from_hosts_that_have_the_network(self, world: World) -> None:
        net = await TestContract().network(world)
        first, other = net.hosts
        victim, far = await net.guest(first), await net.guest(other)
        stranger = network_world.Machine("stranger")
        address = "10.99.0.77"
        try:
            world.wire.add_link("stranger", mtu=1500, to=stranger, peer=["name", "uplink"])
            world.wire.run("ip", "link", "set", "dev", "stranger", "master", "wire", "up")
            stranger.run("ip", "address", "add", f"{address}/24", "dev", "uplink")
            stranger.run("ip", "link", "set", "dev", "uplink", "up")
            tunnel = f"id {net.order.vni} local {address} remote {first.address} dstport 4789"
            stranger.run("ip", "link", "add", "name", "eth0", "type", "vxlan", *tunnel.split())
            stranger.run("ip", "link", "set", "dev", "eth0", "up")
            frame = network.honest(network.party(far), network.party(victim))

            def sent() -> int:
                (link,) = json.loads(stranger.run("ip", "-json", "-statistics", "link", "show", "dev", "eth0"))
                return int(link["stats64"]["tx"]["packets"])

            async def peers(*addresses: str) -> None:
                await first.driver.ensure_segment(net.order.model_copy(update={"peers": addresses}))

            with Watcher(victim) as watcher, Sender(SimpleNamespace(machine=stranger), [frame]):
                await peers(other.address, address)
                await eventually(lambda: watcher.seen()[0] > 0, "a peer's frames do not arrive")
                await peers(other.address)
                before, began = watcher.seen()[0], sent()
                await eventually(lambda: sent() > began + 500, "the stranger sends nothing")
                assert watcher.seen()[0] <= before + 1  # one may have been under way
        finally:
            stranger.close()

    async def test_a_port_is_forgotten_also_when_its_server_cannot_be_told(self, world: World) -> None:
        host = world.hosts[0]
        net, one, _ = await two_guests(world, host)
        hosts_file = f"{host.settings['state']}/served/{net.order.uid}/{dnsmasq.HOSTS}"
        host.machine.run("sh", "-c", f"rm {hosts_file} && mkdir {hosts_file}")
        with pytest.raises(network_world.Died):
            await host.driver.remove_port(one.nic.uid)
        host.machine.run("rmdir", hosts_file)
        driver = host.restart()
        assert one.nic.uid not in (await driver.found()).ports
        assert await driver.mend() != []
        assert await driver.mend() == []


class TestHost:
    """What a host lacks is said with what to do."""

    async def test_a_program_that_is_missing(self, tmp_path: Path) -> None:
        settings = LinuxSettings.model_validate({"state": tmp_path, "dnsmasq": "/nonexistent/dnsmasq"})
        error = await network.refused(LinuxNetwork(settings).prepare())
        assert (error.reason, error.retryable) == ("ProgramMissing", False)
        assert "dnsmasq-base" in str(error)

    async def test_a_host_without_an_underlay(self, tmp_path: Path) -> None:
        driver = LinuxNetwork(LinuxSettings.model_validate({"state": tmp_path}))
        order = TestContract().order(peers=("10.99.0.2",))
        error = await network.refused(driver.ensure_segment(order))
        assert (error.reason, error.retryable) == ("NoUnderlay", False)


async def test_what_serves_a_network_answers_no_address_of_a_pair(world: World) -> None:
    """Else a guest with a range of them fills the host's one table of neighbours."""
    net = await TestContract().network(world)
    four, six = (subnet.service for subnet in net.order.subnets)
    guest = await net.guest(net.hosts[0], pairs=({"cidr": "10.20.30.200/32"}, {"cidr": "fd00:20::200/128"}))
    for own in (four, six):
        await network.reaches(guest, own)
    for address, service in (("10.20.30.200/24", four), ("fd00:20::200/64", six)):
        guest.machine.run("ip", "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        source = address.partition("/")[0]
        assert guest.machine.attempt("busybox", "ping", "-c", "1", "-W", "1", "-I", source, service).returncode != 0
