"""What every driver must do with networks that are VLANs of a trunk. A driver's tests inherit `VlanContract` and give it a
`world` with a `Trunk`. Tags are seen on the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kumulus.api.segments import SegmentOrder, Uplink
from kumulus_agents.network.linux import names
from tests.contract import network, network_frames
from tests.contract.network import Net, NetworkContract, four, honest, party, reaches
from tests.contract.network_frames import Party
from tests.contract.network_programs import Sender, Tags, Watcher, Wired
from tests.contract.network_world import Host, Machine, World, eventually

DEVICE = "trunk0"
PAUSE = 20
"""Milliseconds between frames: the wire takes each to everybody, and an emulated machine has to keep up."""
VLANS = 4900
"""A network that would have VXLAN 5001 has VLAN 101."""


class Trunk:
    """A wire that each host has an end of, `trunk0`, and somebody else, who sees all of it: it learns nothing."""

    def __init__(self, world: World) -> None:
        world.wire.run("ip", "link", "add", "name", "trunk", "type", "bridge", "ageing_time", "0")
        world.wire.run("ip", "link", "set", "dev", "trunk", "up")
        self.machine = Machine("building")
        ends = [(host.machine, f"t{number}", DEVICE) for number, host in enumerate(world.hosts)]
        for machine, end, device in [*ends, (self.machine, "tb", "eth0")]:
            world.wire.add_link(end, mtu=1500, to=machine, peer=["name", device])
            world.wire.run("ip", "link", "set", "dev", end, "master", "trunk", "up")
        self.machine.run("ip", "link", "set", "dev", "eth0", "up")


def hosts_of(kind: type[Host]) -> Iterator[tuple[World, Trunk]]:
    """Two hosts, and the trunk."""
    made = World(2, kind)
    try:
        trunk = Trunk(made)
        try:
            yield made, trunk
        finally:
            trunk.machine.close()
    finally:
        made.close()


def by_vlan(order: SegmentOrder) -> SegmentOrder:
    """The same network as a VLAN."""
    if order.vni is None:
        return order
    return order.model_copy(update={"vni": None, "uplink": Uplink(device=DEVICE, vlan=order.vni - VLANS)})


def tagged(vlan: int, frame: bytes) -> bytes:
    """The frame with a tag (802.1Q)."""
    return frame[:12] + b"\x81\x00" + vlan.to_bytes(2, "big") + frame[12:]


def in_its_place(outsider: Party, service: Party) -> list[bytes]:
    """What somebody on the wire says in the place of what serves the network: that he has its address, and what an address
    a guest is to have. Each has the mark of what is honest."""
    lease = network_frames.udp(67, 68, network_frames.TRUE)
    lease6 = network_frames.udp6(outsider.six, "ff02::1", (547, 546), network_frames.TRUE)
    claim = network_frames.six(service.six) + network_frames.TRUE
    advertisement = network_frames.icmp6(outsider.six, "ff02::1", 136, b"\x20\0\0\0" + claim)
    everybody, all_nodes = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"
    answer = network_frames.arp(2, outsider.mac, service.four, everybody, service.four, network_frames.TRUE)
    packets = (
        (everybody, 0x0806, answer),
        (everybody, 0x0800, network_frames.ip4(outsider.four, "255.255.255.255", 17, lease)),
        (all_nodes, 0x86DD, network_frames.ip6(outsider.six, "ff02::1", 58, advertisement)),
        (all_nodes, 0x86DD, network_frames.ip6(outsider.six, "ff02::1", 17, lease6)),
    )
    return [network_frames.ethernet(outsider.mac, to, kind, packet) for to, kind, packet in packets]


class VlanContract:
    """The contract."""

    networks: NetworkContract
    """That of the driver's networks, with orders of VLANs."""

    def breakages(self, net: Net) -> list[str]:
        """Commands that harm the network's way, on a host."""
        raise NotImplementedError

    async def test_frames_have_the_tag_between_hosts_and_reach_nobody_else(self, world: World, trunk: Trunk) -> None:
        first, other = world.hosts
        net = await self.networks.network(world, mtu=1500)
        twin = await self.networks.network(world, vni=5002, mtu=1500)
        with Tags(Wired(trunk.machine)) as tags:
            one, far = await net.guest(first), await net.guest(other)
            theirs = await twin.guest(first, mac="02:00:00:00:02:01")
            lonely = await twin.guest(other, mac="02:00:00:00:02:02")
            assert (four(one), four(far)) == (four(theirs), four(lonely))
            with Watcher(lonely) as stranger, Watcher(far) as arrives:
                with Sender(one, [honest(party(one), party(far))], pause=PAUSE):
                    await eventually(lambda: arrives.seen()[0] > 10, "the honest frame does not arrive")
                assert stranger.seen() == (0, 0)
            assert tags.of(one.nic.mac) == {101}
        with Tags(Wired(trunk.machine)) as tags:
            await reaches(lonely, four(theirs))
            assert tags.of(lonely.nic.mac) == {102}
            # A packet as large as the wire carries: a VLAN takes nothing of it.
            whole = await asyncio.to_thread(
                one.machine.attempt, "busybox", "ping", "-c", "3", "-W", "2", "-s", "1472", four(far)
            )
            assert whole.returncode == 0
            # Each host serves its own guests: what does so is not on the wire.
            assert one.reaches("10.20.30.2")
            assert lonely.reaches("10.20.30.2")
            assert tags.of(names.service_mac(net.order.uid)) == set()

    async def test_who_is_in_the_vlan_already(self, world: World, trunk: Trunk) -> None:
        """The building's own machines, which are nobody's guests."""
        first, other = world.hosts
        net = await self.networks.network(world, mtu=1500)
        twin = await self.networks.network(world, vni=5002, mtu=1500)
        inside, far = await net.guest(first), await net.guest(other)
        elsewhere = await twin.guest(first, mac="02:00:00:00:02:01")
        outsider = Party("02:00:00:00:77:77", "10.20.30.77", "fd00:20::77")
        service = Party(names.service_mac(net.order.uid), "10.20.30.2", "fd00:20::2")
        frame = honest(outsider, party(inside))
        with Watcher(inside) as sees, Watcher(elsewhere) as other_sees, Watcher(far) as far_sees:
            astray = [tagged(103, frame), frame, tagged(101, honest(service, party(inside)))]
            astray += [tagged(101, lie) for lie in in_its_place(outsider, service)]
            with Sender(Wired(trunk.machine), [*astray, tagged(102, honest(outsider, party(elsewhere)))], pause=PAUSE):
                await eventually(lambda: other_sees.seen()[0] > 10, "VLAN 102 does not arrive")
            assert sees.seen() == (0, 0)
            with Sender(Wired(trunk.machine), [tagged(101, frame)], pause=PAUSE):
                await eventually(lambda: sees.seen()[0] > 10, "VLAN 101 does not arrive")
            assert far_sees.seen()[1] == 0
        with Tags(Wired(trunk.machine)) as tags, Sender(inside, [honest(party(inside), outsider)], pause=PAUSE):
            await eventually(lambda: tags.of(inside.nic.mac) == {101}, "what a guest sends does not come to the wire")

    @pytest.mark.wide
    async def test_the_way_is_mended(self, world: World, trunk: Trunk) -> None:
        first, other = world.hosts
        net = await self.networks.network(world)
        one, far = await net.guest(first), await net.guest(other)
        await reaches(one, four(far))
        assert await first.driver.mend() == []
        for command in self.breakages(net):
            first.machine.run(*command.split())
            assert await first.driver.mend() != [], command
            assert await first.driver.mend() == [], command
            await eventually(lambda: one.reaches(four(far)), f"after {command}: not reached")

    async def test_what_a_host_lacks_is_said(self, world: World, trunk: Trunk) -> None:
        host = world.hosts[0]
        known = await host.driver.uplinks()
        assert known.lack is None
        assert DEVICE in known.devices
        assert not [name for name in known.devices if names.is_ours(name)]
        for device, mtu, reason in (("none0", 1450, "UplinkMissing"), (DEVICE, 9000, "UplinkMtuTooSmall")):
            order = self.networks.order(mtu=mtu).model_copy(update={"uplink": Uplink(device=device, vlan=101)})
            error = await network.refused(host.driver.ensure_segment(order))
            assert error.reason == reason
            assert device in str(error)
            await host.driver.remove_segment(order.uid)

    @pytest.mark.wide
    async def test_another_device_becomes_the_way(self, world: World, trunk: Trunk) -> None:
        first, other = world.hosts
        net = await self.networks.network(world)
        one, far = await net.guest(first), await net.guest(other)
        await reaches(one, four(far))
        world.wire.add_link("tn", mtu=1500, to=first.machine, peer=["name", "trunk1"])
        try:
            world.wire.run("ip", "link", "set", "dev", "tn", "master", "trunk", "up")
            await first.driver.ensure_segment(
                net.order.model_copy(update={"uplink": Uplink(device="trunk1", vlan=101), "peers": ()})
            )
            world.wire.run("ip", "link", "set", "dev", "t0", "down")
            await eventually(lambda: one.reaches(four(far)), "by another device it is not reached")
            assert await first.driver.mend() == []
        finally:
            world.wire.run("ip", "link", "set", "dev", "t0", "up")
            await world.clear()
            world.wire.run("ip", "link", "delete", "dev", "tn")


@pytest.fixture
def trunk(hosts: tuple[World, Trunk]) -> Trunk:
    return hosts[1]
