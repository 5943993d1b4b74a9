"""What every driver of networks must do. A driver's tests inherit `NetworkContract` and give it a `world`.

Guests are network namespaces, plugged in as the driver says; hosts are namespaces too, each with a driver. Everything is
shown by packets that arrive or do not.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

import pytest
from pydantic import ValidationError

from kumulus.api.segments import (
    AddressPair,
    Dns,
    DnsRecord,
    FilterGroup,
    FilterRule,
    Nic,
    Ports,
    Protocol,
    SegmentOrder,
    Subnet,
)
from kumulus_agents.network.protocol import NetworkError, Plug, Port
from tests.contract import cloud_init
from tests.contract.network_frames import Party, as_if_asked, astray, honest, spoofs
from tests.contract.network_programs import Listener, Sender, Server, Talk, Teller, Watcher
from tests.contract.network_world import WORLD_ADDRESS, WORLD_NAME, Guest, Host, World, eventually
from tests.patience import PATIENCE

ANY = FilterRule()


def new_uid() -> str:
    return str(uuid.uuid4())


def tcp(*ports: int, cidrs: Sequence[str] = (), group: str | None = None) -> FilterRule:
    ranges = tuple(Ports(first=port, last=port) for port in ports)
    return FilterRule(protocol=Protocol.TCP, ports=ranges, cidrs=tuple(cidrs), group=group)


OPEN = FilterGroup(uid=new_uid(), ingress=(ANY,), egress=(ANY,))
"""Lets everything through."""


@dataclass
class Net:
    """A network on hosts, as controllers would order it."""

    world: World
    hosts: Sequence[Host]
    order: SegmentOrder
    count: int = 10
    guests: list[Guest] = field(default_factory=list)

    async def ensure(self, **changes: object) -> None:
        """Have it on its hosts, changed."""
        self.order = self.order.model_copy(update=changes)
        for host in self.hosts:
            peers = tuple(other.address for other in self.hosts if other is not host)
            await host.driver.ensure_segment(self.order.model_copy(update={"peers": peers}))

    def nic(self, **more: object) -> Nic:
        """A new interface."""
        self.count += 1
        number = self.count
        values: dict[str, object] = {
            "name": f"nic{number}",
            "uid": new_uid(),
            "network": self.order.uid,
            "mac": f"02:00:00:00:00:{number:02x}",
            "addresses": tuple(str(ip_network(subnet.cidr)[number]) for subnet in self.order.subnets),
            "groups": (OPEN.uid,),
        }
        return Nic.model_validate(values | more)

    async def guest(self, host: Host, *, addressed: bool = True, **more: object) -> Guest:
        """A guest of the network on that host."""
        made = await self.world.guest(host, self.nic(**more), addressed=addressed)
        self.guests.append(made)
        return made


SUBNETS = (
    Subnet(cidr="10.20.30.0/24", service="10.20.30.2"),
    Subnet(cidr="fd00:20::/64", service="fd00:20::2"),
)


def four(guest: Guest) -> str:
    return next(address for address in guest.nic.addresses if "." in address)


def six(guest: Guest) -> str:
    return next(address for address in guest.nic.addresses if ":" in address)


def party(guest: Guest) -> Party:
    return Party(guest.nic.mac, four(guest), six(guest))


async def reaches(guest: Guest, address: str) -> None:
    await eventually(lambda: guest.reaches(address), f"{guest.nic.name} does not reach {address}")


async def refused(attempt: object) -> NetworkError:
    with pytest.raises(NetworkError) as caught:
        await attempt  # type: ignore[misc]
    return caught.value


def asked(host: Host) -> int:
    """How often the host itself was asked for an echo (ICMP)."""
    labels, numbers = (
        line for line in host.machine.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Icmp:")
    )
    return int(dict(zip(labels.split(), numbers.split(), strict=True))["InEchos"])


class NetworkContract:
    """The contract. `world` is a `World` with at least two hosts, empty."""

    driver = "linux"
    """Its name."""
    counts_whom_groups_keep_out = False
    """Whether it says whose interface it was when no group let something through, or only in which network."""

    @pytest.fixture
    async def net(self, world: World) -> AsyncIterator[Net]:
        """A network on two hosts, of both families, with a group that lets everything through."""
        made = await self.network(world)
        yield made

    async def network(self, world: World, **more: object) -> Net:
        net = Net(world, world.hosts[:2], self.order(**more))
        await net.ensure()
        return net

    def order(self, **more: object) -> SegmentOrder:
        """A new network."""
        values: dict[str, object] = {
            "uid": new_uid(),
            "driver": self.driver,
            "vni": 5001,
            "mtu": 1450,
            "subnets": SUBNETS,
            "groups": (OPEN,),
        }
        return SegmentOrder.model_validate(values | more)

    # Who reaches whom

    async def test_guests_of_a_network_reach_each_other_on_all_hosts(self, net: Net) -> None:
        first, other = net.hosts
        one, near, far = await net.guest(first), await net.guest(first), await net.guest(other)
        for target in (near, far):
            await reaches(one, four(target))
            await reaches(one, six(target))
        await reaches(far, four(near))

    async def test_networks_with_the_same_range_are_apart(self, world: World, net: Net) -> None:
        twin = await self.network(world, vni=5002)
        first, other = net.hosts
        mine, theirs = await net.guest(first), await twin.guest(first)
        assert four(mine) == four(theirs)
        lonely = await twin.guest(other)
        twin_of_lonely = await net.guest(other)
        await reaches(theirs, four(lonely))
        await reaches(mine, four(twin_of_lonely))
        watcher = Watcher(lonely)
        with Sender(mine, [honest(party(mine), party(lonely))]), Watcher(twin_of_lonely) as other_watcher:
            await eventually(lambda: other_watcher.seen()[0] > 10, "the honest frame does not arrive")
        assert watcher.seen() == (0, 0)
        watcher.close()

    async def test_a_segment_without_ranges_carries_and_serves_nothing(self, world: World) -> None:
        net = await self.network(world, subnets=())
        first, other = net.hosts
        one, two = await net.guest(first), await net.guest(other)
        for number, guest in enumerate((one, two), 1):
            guest.machine.run("ip", "address", "add", f"172.31.0.{number}/24", "dev", "eth0")
        await reaches(one, "172.31.0.2")
        # Nobody answers what was not asked, though anybody may say to have any address.
        shy = FilterGroup(uid=new_uid(), egress=(ANY,))
        await net.ensure(groups=(OPEN, shy))
        target = await net.guest(first, groups=(shy.uid,))
        here, there = Party(one.nic.mac, "172.31.0.1", "::"), Party(target.nic.mac, "172.31.0.3", "::")
        lies = as_if_asked(here, there, two.nic.mac)
        truth = honest(here, Party(two.nic.mac, "172.31.0.2", "::"))
        with Watcher(target) as watcher, Watcher(two) as arrives, Sender(one, [*lies, truth]):
            await eventually(lambda: arrives.seen()[0] > 50, "honest frames do not arrive")
            self.nothing_false([watcher])

    # Security groups

    async def test_nothing_passes_that_no_group_lets_through(self, net: Net) -> None:
        first, other = net.hosts
        one, closed, far = await net.guest(first), await net.guest(first, groups=()), await net.guest(other)
        await reaches(one, four(far))
        for guest, target in ((one, closed), (closed, one), (far, closed)):
            assert not guest.reaches(four(target))
            assert not guest.reaches(six(target))
        # Nor when the same packet went first to somebody who may have it.
        near = await net.guest(first)
        service = self.service_of(net, one)
        with (
            Watcher(closed) as watcher,
            Watcher(one) as other_watcher,
            Watcher(near) as arrives,
            Sender(closed, astray(party(closed), party(one), [service.mac])),
        ):
            for guest, ways in ((one, (service.mac, far.nic.mac, near.nic.mac)), (far, (service.mac, near.nic.mac))):
                before = arrives.seen()[0]
                with Sender(guest, [*astray(party(guest), party(closed), ways), honest(party(guest), party(near))]):
                    await eventually(lambda b=before: arrives.seen()[0] > b + 50, "honest frames do not arrive")
            await eventually(lambda: closed.sent() > 300, "nothing is sent")
            self.nothing_false([watcher, other_watcher])

    async def test_rules_of_groups(self, net: Net) -> None:
        web, data, host = new_uid(), new_uid(), net.hosts
        client = await net.guest(host[0])
        front = await net.guest(host[0], groups=(web,))
        back = await net.guest(host[1], groups=(data,))
        groups = (
            OPEN,
            FilterGroup(
                uid=web,
                ingress=(tcp(80, 443, cidrs=[f"{four(client)}/32", f"{six(client)}/128"]),),
                egress=(tcp(5432, group=data), FilterRule(protocol=Protocol.ICMP, cidrs=("10.20.30.0/24",))),
                members=front.nic.addresses,
            ),
            FilterGroup(uid=data, ingress=(tcp(5432, group=web),), members=back.nic.addresses),
        )
        await net.ensure(groups=groups)
        with Server(front, 80, 81, 443), Server(back, 5432, 5433), Server(client, 5432, 80):
            for address in (four, six):
                assert Talk.works(client, address(front), 80)
                assert Talk.works(client, address(front), 443)
                assert Talk.works(front, address(back), 5432)
                shut = (
                    (client, front, 81, False),
                    (client, front, 80, True),
                    (front, back, 5433, False),
                    (client, back, 5432, False),
                    (front, client, 5432, False),
                    (back, client, 80, False),
                )
                tried = (asyncio.to_thread(Talk.fails, a, address(b), port, udp=udp) for a, b, port, udp in shut)
                assert await asyncio.gather(*tried) == [True] * len(shut)
        await reaches(front, four(client))
        assert not client.reaches(four(front))
        assert not front.reaches(six(client))

    async def test_members_come_and_go(self, net: Net) -> None:
        data, web = new_uid(), new_uid()
        first, other = net.hosts
        one, two = await net.guest(first), await net.guest(other, groups=(data,))
        no_members = FilterGroup(uid=web)
        rules = FilterGroup(uid=data, ingress=(tcp(22, group=web),))
        await net.ensure(groups=(OPEN, no_members, rules))
        with Server(two, 22):
            assert Talk.fails(one, four(two), 22)
            await net.ensure(groups=(OPEN, no_members.model_copy(update={"members": (four(one),)}), rules))
            with Talk(one, four(two), 22) as talk:
                assert talk.works_on()
                await net.ensure(groups=(OPEN, no_members, rules))
                assert talk.is_cut()
            assert Talk.fails(one, four(two), 22)

    async def test_a_change_keeps_what_is_still_allowed_and_cuts_what_is_not(self, net: Net) -> None:
        group = new_uid()
        first, other = net.hosts
        near, far = await net.guest(first), await net.guest(other)
        target = await net.guest(first, groups=(group,))

        def let(*rules: FilterRule) -> tuple[FilterGroup, ...]:
            return (OPEN, FilterGroup(uid=group, ingress=rules))

        await net.ensure(groups=let(tcp(80, 81)))
        with (
            Server(target, 80, 81),
            Talk(near, four(target), 80) as near_kept,
            Talk(far, six(target), 80) as far_kept,
            Talk(near, four(target), 81) as near_cut,
            Talk(far, six(target), 81) as far_cut,
        ):
            for talk in (near_kept, far_kept, near_cut, far_cut):
                assert talk.works_on()
            await net.ensure(groups=let(tcp(80), tcp(1000)))
            for talk in (near_kept, far_kept):
                assert talk.works_on()
            for talk in (near_cut, far_cut):
                assert talk.is_cut()

    async def test_answers_of_a_cut_connection_do_not_pass_either(self, net: Net) -> None:
        """The guest that was reached goes on sending, and nobody asks it again."""
        group = new_uid()
        one, target = await net.guest(net.hosts[0]), await net.guest(net.hosts[1], groups=(group,))
        rule = FilterRule(protocol=Protocol.UDP, ports=(Ports(first=9, last=9),))
        await net.ensure(groups=(OPEN, FilterGroup(uid=group, ingress=(rule,))))
        answer = honest(party(target), party(one))
        with Watcher(one) as watcher, Sender(target, [answer]):
            with Sender(one, [honest(party(one), party(target))]), Watcher(target) as opened:
                await eventually(lambda: opened.seen()[0] > 0, "the question does not arrive")
                await eventually(lambda: watcher.seen()[0] > 0, "the answer does not arrive")
            await net.ensure(groups=(OPEN, FilterGroup(uid=group)))
            before = watcher.seen()[0]
            await asyncio.to_thread(one.reaches, four(target))
            assert watcher.seen()[0] <= before + 1  # one may have been under way

    async def test_a_connection_goes_on_at_another_host_also_when_the_other_end_speaks_first(self, net: Net) -> None:
        group, (here, there) = new_uid(), net.hosts
        await net.ensure(groups=(OPEN, FilterGroup(uid=group, egress=(FilterRule(),))))
        peer, mover = await net.guest(here), await net.guest(here, groups=(group,))
        with Teller(peer, 7001), Listener(mover, four(peer), 7001) as listener:
            await eventually(lambda: listener.heard() > 1, "nothing is heard at first")
            told = await here.driver.connections(mover.nic)
            assert [(c[0], c[2], c[3]) for c in told] == [(four(mover), four(peer), 7001)]
            await mover.move(there)
            before = listener.heard()
            await asyncio.sleep(1)
            assert listener.heard() == before, "its filter does not know it"
            await there.driver.know(mover.nic, told)
            await eventually(lambda: listener.heard() > before + 2, "the connection does not go on")

    # What guests are told

    async def test_guests_get_their_addresses_by_dhcp(self, net: Net) -> None:
        gateway = SUBNETS[0].model_copy(update={"gateway": "10.20.30.1"})
        options = ({"name": "ntp-server", "values": ["10.20.30.123"]},)
        dns = Dns(domain="corp.example")
        order = SegmentOrder.model_validate(net.order.model_dump() | {"options": options})
        waits = (await net.guest(net.hosts[0], addressed=False)).dhcp()
        assert "router" not in waits and int(waits["opt58"], 16) == 60, "it asks again, for there may be one"
        assert int(waits["lease"]) == 3600, "and keeps its address all the same"
        await net.ensure(subnets=(gateway, SUBNETS[1]), options=order.options, dns=dns)
        for host in net.hosts:
            guest = await net.guest(host, addressed=False, hostname="db1")
            told = guest.dhcp()
            assert told["ip"] == four(guest)
            assert told["mask"] == "24"
            assert told["mtu"] == "1450"
            assert told["router"] == "10.20.30.1"
            assert int(told.get("opt58", "708"), 16) == 1800
            assert told["dns"] == told["serverid"] == "10.20.30.2"
            assert told["hostname"] == "db1"
            assert told["ntpsrv"] == "10.20.30.123"
            assert told["search"] == "corp.example"
            assert told["staticroutes"].split() == ["169.254.169.254/32", "10.20.30.2", "0.0.0.0/0", "10.20.30.1"]
            guest.machine.run("ip", "address", "add", f"{told['ip']}/{told['mask']}", "dev", "eth0")
            guest.machine.run("ip", "route", "add", "169.254.169.254/32", "via", "10.20.30.2")
            await reaches(guest, "169.254.169.254")

    async def test_guests_are_told_of_themselves(self, net: Net) -> None:
        """By HTTP, each by its own host, and by who asks: the address is one that nobody else can send from."""
        for host in net.hosts:
            guests = [await net.guest(host), await net.guest(host)]
            try:
                await host.driver.describe(net.order, *(guest.nic for guest in guests))
                for guest in guests:
                    assert guest.told("/latest/meta-data/instance-id") == guest.nic.uid
                    assert guest.told("/latest/meta-data/local-ipv4") == four(guest)
                    assert f'"{guest.nic.name}"' in guest.told("/openstack/latest/meta_data.json")
                stranger = await net.guest(host)
                assert stranger.told("/latest/meta-data/instance-id") == ""
                stranger.machine.run("ip", "address", "flush", "dev", "eth0")
                stranger.machine.run("ip", "address", "add", f"{four(guests[0])}/24", "dev", "eth0")
                assert stranger.told("/latest/meta-data/instance-id", seconds=1) == ""
            finally:
                await host.driver.describe(net.order)

    @pytest.mark.parametrize("platform", ["aws", "unknown"])
    async def test_cloud_init_configures_itself_by_ec2s_path(self, net: Net, platform: str) -> None:
        """Its own DataSourceEc2: on AWS it asks for a session token and with that alone (IMDSv2), elsewhere without."""
        if cloud_init.packages() is None:
            pytest.skip("Debian's cloud-init cannot be had here.")
        guest = await net.guest(net.hosts[0], hostname="db1.corp.example")
        key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE alice@example.org"
        meta = json.dumps({"instance-id": guest.nic.uid, "local-hostname": "db1", "public-keys": [key]})
        written = {"meta-data": meta, "user-data": "#cloud-config\nruncmd: [date]\n"}
        await guest.host.driver.describe(net.order, guest.nic, seed=written)
        try:
            guest.machine.run("ip", "route", "replace", "169.254.169.254/32", "dev", "eth0")
            said = json.loads(guest.machine.run(*cloud_init.command(platform, "eth0")).splitlines()[-1])
        finally:
            await guest.host.driver.describe(net.order)
        assert (said["found"], said["token"]) == (True, platform == "aws")
        assert (said["instance"], said["hostname"], said["keys"]) == (guest.nic.uid, "db1", [key])
        assert said["userData"] == written["user-data"]
        asked = [with_token for path, with_token in said["asked"] if "/api/token" not in path]
        assert asked and set(asked) == {platform == "aws"}
        (device,) = said["network"]["ethernets"].values()
        assert device["match"]["macaddress"] == guest.nic.mac
        assert device["dhcp4"] is True

    async def test_what_tenants_write_stays_a_value(self, net: Net) -> None:
        """CVE-2021-40085: whatever passes the order's types arrives as it was written, and changes nothing else."""
        values = {
            "tftp-server": "dhcp-script",
            "bootfile-name": "conf-file/bin:sh_1.efi",
            "domain-search": "server.local",
        }
        options = [{"name": name, "values": [value]} for name, value in values.items()]
        records = (DnsRecord(name="address.conf-dir", addresses=("10.20.30.66",)),)
        order = SegmentOrder.model_validate(net.order.model_dump() | {"options": options})
        await net.ensure(options=order.options, dns=Dns(domain="dhcp-script.example", records=records))
        guest = await net.guest(net.hosts[0], hostname="no-dhcp-interface.log-facility")
        told = guest.dhcp()
        assert (told["tftp"], told["bootfile"]) == (values["tftp-server"], values["bootfile-name"])
        assert (told["search"], told["hostname"]) == (values["domain-search"], "no-dhcp-interface")
        assert guest.look_up("address.conf-dir.dhcp-script.example", "10.20.30.2") == {"10.20.30.66"}
        for wrong in ("a\ndhcp-script=/bin/sh", "a,b", "a b", "a=b"):
            with pytest.raises(ValidationError):
                net.nic(hostname=wrong)
            with pytest.raises(ValidationError):
                SegmentOrder.model_validate(
                    net.order.model_dump() | {"options": [{"name": "bootfile-name", "values": [wrong]}]}
                )

    async def test_no_gateway_no_route(self, net: Net) -> None:
        guest = await net.guest(net.hosts[0], addressed=False)
        told = guest.dhcp()
        assert "router" not in told
        assert told["staticroutes"].split() == ["169.254.169.254/32", "10.20.30.2"]

    async def test_guests_get_their_addresses_by_dhcpv6(self, net: Net) -> None:
        guest = await net.guest(net.hosts[1], addressed=False)
        assert guest.dhcp6()["new_ip6_address"] == six(guest)
        guest.machine.run("ip", "address", "add", f"{six(guest)}/128", "dev", "eth0")
        other = await net.guest(net.hosts[0])
        await reaches(guest, six(other))  # by the route that the router advertisement has told
        assert "1450" in guest.machine.run("ip", "-6", "route", "show", "dev", "eth0") or (
            guest.machine.run("sysctl", "-n", "net.ipv6.conf.eth0.mtu").strip() == "1450"
        )

    async def test_who_is_not_ordered_gets_nothing(self, net: Net) -> None:
        guest = await net.guest(net.hosts[0], addresses=())
        assert guest.dhcp(seconds=2) == {}

    async def test_an_address_goes_to_another_at_once(self, net: Net) -> None:
        host = net.hosts[0]
        guest = await net.guest(host, addressed=False)
        assert guest.dhcp()["ip"] == four(guest)
        guest.unplug()
        await host.driver.remove_port(guest.nic.uid)
        heir = await net.guest(host, addressed=False, addresses=guest.nic.addresses)
        assert heir.dhcp()["ip"] == four(guest)

    async def test_names_of_the_network_and_of_the_world(self, net: Net) -> None:
        records = (
            DnsRecord(name="db", addresses=("10.20.30.77", "fd00:20::77")),
            DnsRecord(name="www", addresses=("10.20.30.78",)),
        )
        await net.ensure(dns=Dns(domain="corp.example", records=records))
        guest = await net.guest(net.hosts[0])
        assert guest.look_up("db.corp.example", "10.20.30.2") == {"10.20.30.77", "fd00:20::77"}
        assert guest.look_up("www.corp.example", "fd00:20::2") == {"10.20.30.78"}
        assert guest.look_up("none.corp.example", "10.20.30.2") == set()
        assert guest.look_up(WORLD_NAME, "10.20.30.2") == {WORLD_ADDRESS}
        records = (DnsRecord(name="db", addresses=("10.20.30.79",)),)
        await net.ensure(dns=Dns(domain="corp.example", records=records))
        await eventually(
            lambda: guest.look_up("db.corp.example", "10.20.30.2") == {"10.20.30.79"}, "the new record is not served"
        )

    async def test_guests_reach_neither_the_host_nor_the_wire(self, net: Net) -> None:
        host = net.hosts[0]
        guest = await net.guest(host)
        guest.machine.run("ip", "route", "add", "default", "via", "10.20.30.2")
        guest.machine.run("ip", "-6", "route", "add", "default", "via", "fd00:20::2", "dev", "eth0")
        await reaches(guest, "10.20.30.2")
        for address in (host.address, "10.99.0.254", "fe80::1%eth0"):
            assert not guest.reaches(address)
        # Nor by asking for it on its own cable, by whatever address the host's end may have.
        guest.machine.run("ip", "route", "add", f"{host.address}/32", "dev", "eth0")
        assert not guest.reaches(host.address)
        end = host.machine.links()[guest.plug.device]["address"]
        guest.machine.run("ip", "neighbour", "replace", host.address, "lladdr", end, "dev", "eth0")
        before = asked(host)
        assert not guest.reaches(host.address)
        assert asked(host) == before
        for found in json.loads(host.machine.run("ip", "-json", "-6", "address", "show", "dev", guest.plug.device)):
            for one in found.get("addr_info", ()):
                assert not guest.reaches(f"{one['local']}%eth0")

    # Pretending

    async def test_no_pretence_arrives(self, net: Net) -> None:
        first, other = net.hosts
        victims = [await net.guest(first), await net.guest(other)]
        service = self.service_of(net, victims[0])
        cidrs = ("10.20.30.0/29", "fd00:20::/125")
        pairs = [AddressPair(cidr=cidr, mac=mac) for cidr in cidrs for mac in (None, service.mac)]
        liar = await net.guest(first, pairs=tuple(pairs))
        stranger = Party("02:00:00:00:00:99", "10.20.30.199", "fd00:20::99")
        lies = [frame for victim in victims for frame in spoofs(party(liar), party(victim), service, stranger).values()]
        truths = [honest(party(liar), party(victim)) for victim in victims]
        watchers = [Watcher(victim) for victim in victims]
        try:
            # Steady.
            with Sender(liar, [*lies, *truths]) as sender:
                for watcher in watchers:
                    await eventually(lambda w=watcher: w.seen()[0] > 50, "honest frames do not arrive")
                # While rules change, and the agent dies and comes back.
                for round_ in range(8):
                    group = FilterGroup(uid=new_uid(), ingress=(tcp(round_ + 1),))
                    await net.ensure(groups=(OPEN, group))
                first.restart()
                await net.ensure(groups=(OPEN,))
                await first.driver.ensure_port(Port(liar.nic, liar.nic.uid))
                await first.driver.mend()
            assert sender.sent > 10_000
            self.nothing_false(watchers)
            # At the start: the device is there, is plugged in, and sends before anybody ordered it.
            early = net.nic()
            plug = self.early(liar.plug, early)
            guest = Guest(first, early, plug)
            net.guests.append(guest)
            me = Party(early.mac, *early.addresses)
            lies = [frame for victim in victims for frame in spoofs(me, party(victim), service, stranger).values()]
            before = [watcher.seen()[0] for watcher in watchers]
            try:
                with Sender(guest, [*lies, *(honest(me, party(victim)) for victim in victims)]) as sender:
                    await eventually(lambda: guest.sent() > 1000, "nothing is sent")
                    assert [watcher.seen()[0] for watcher in watchers] == before
                    await first.driver.ensure_port(Port(early, early.uid))
                    for watcher, had in zip(watchers, before, strict=True):
                        await eventually(lambda w=watcher, h=had: w.seen()[0] > h, "honest frames do not arrive")
                self.nothing_false(watchers)
            finally:
                guest.close()
        finally:
            for watcher in watchers:
                watcher.close()

    def nothing_false(self, watchers: Sequence[Watcher]) -> None:
        for watcher in watchers:
            _, false = watcher.seen()
            assert false == 0, f"{false} arrived, such as {watcher.examples}"

    def service_of(self, net: Net, guest: Guest) -> Party:
        """Who serves the network, as a guest sees it."""
        guest.reaches(SUBNETS[0].service)
        for neighbour in guest.machine.run("ip", "neighbour", "show", SUBNETS[0].service).split("\n"):
            if "lladdr" in neighbour:
                return Party(neighbour.split("lladdr ")[1].split()[0], *(subnet.service for subnet in SUBNETS))
        raise AssertionError("nobody serves the network")

    def device_of(self, nic: Nic) -> str:
        """Name of the device that the driver will ask for."""
        raise NotImplementedError

    def early(self, plug: Plug, nic: Nic) -> Plug:
        """How somebody plugs that interface in whom nobody ordered, from the plug of one that was."""
        return replace(plug, device=self.device_of(nic))

    async def test_pairs_allow_more_addresses(self, net: Net) -> None:
        pairs = (
            AddressPair(cidr="10.20.30.200/32"),
            AddressPair(cidr="fd00:20::200/128"),
            AddressPair(cidr="10.20.30.201/32", mac="02:00:5e:00:01:01"),
        )
        one, other = await net.guest(net.hosts[0], pairs=pairs), await net.guest(net.hosts[1])
        await reaches(one, four(other))
        for address in ("10.20.30.200", "fd00:20::200"):
            one.machine.run(
                "ip", "address", "add", f"{address}/64" if ":" in address else f"{address}/24", "dev", "eth0"
            )
            await reaches(other, address)
        assert not other.reaches("10.20.30.201")
        one.machine.run("ip", "address", "add", "10.20.30.202/24", "dev", "eth0")
        assert not other.reaches("10.20.30.202")

    async def test_a_guest_sees_only_what_is_for_it(self, net: Net) -> None:
        first, other = net.hosts
        one, two, third = await net.guest(first), await net.guest(other), await net.guest(first)
        with Watcher(third) as curious, Watcher(two) as watcher, Sender(one, [honest(party(one), party(two))]):
            await eventually(lambda: watcher.seen()[0] > 10, "the honest frame does not arrive")
            assert curious.seen()[0] == 0

    async def test_bandwidth(self, net: Net) -> None:
        limited = await net.guest(net.hosts[0], bandwidth={"outbound": 800_000, "inbound": 800_000})
        free = await net.guest(net.hosts[0])
        frame = honest(party(limited), party(free)).ljust(1400, b"\0")
        with Watcher(free) as watcher:
            with Sender(limited, [frame] * 50) as sender:
                await eventually(lambda: limited.sent() > 20_000, "nothing is sent")
            assert 0 < watcher.seen()[0] < sender.sent / 2
        lost = [one for one in await limited.host.driver.dropped() if one.why == "over its bandwidth"]
        assert [one.interface for one in lost] == [limited.nic.uid]
        assert lost[0].packets > sender.sent / 3

    async def test_what_passes_is_counted_as_the_guest_counts_it(self, net: Net) -> None:
        one, other = await net.guest(net.hosts[0]), await net.guest(net.hosts[1])
        with Watcher(other) as watcher, Sender(one, [honest(party(one), party(other))]):
            await eventually(lambda: watcher.seen()[0] > 50, "the honest frame does not arrive")
        for guest in (one, other):
            deadline = time.monotonic() + 20 * PATIENCE
            while True:
                before = guest.counted()
                (said,) = [item for item in await guest.host.driver.traffic() if item.interface == guest.nic.uid]
                counted = (said.received_bytes, said.received_packets, said.sent_bytes, said.sent_packets)
                if counted == before:
                    break
                assert guest.counted() != before and time.monotonic() < deadline, (counted, before)
            assert said.network == net.order.uid
        assert (said.received_packets > 50) and (said.received_packets > said.sent_packets), (
            "other hears, and is silent"
        )
        one.unplug()
        assert [item for item in await one.host.driver.traffic() if item.interface == one.nic.uid] == []

    async def test_what_is_dropped_is_counted_by_whom_and_why(self, net: Net) -> None:
        host = net.hosts[0]
        liar, deaf = await net.guest(host), await net.guest(host, groups=())
        lies = spoofs(
            party(liar), party(deaf), self.service_of(net, liar), Party("02:00:00:00:00:99", "10.20.30.199", "::9")
        )
        whys = {
            "IPv4 of a stranger": "not its own",
            "MAC of the service": "service MAC",
            "DHCP server": "DHCP server",
            "DHCPv6 server": "DHCP server",
            "RA": "router advertisement",
            "redirect": "redirect",
            "NA for the service": "service address",
        }
        closed = (deaf.nic.uid if self.counts_whom_groups_keep_out else "", "no group lets it through")
        frames = [*(lies[name] for name in whys), honest(party(liar), party(deaf))]

        async def said() -> Counter[tuple[str, str]]:
            """What both lost, and what groups did not let through."""
            there: Counter[tuple[str, str]] = Counter()
            for one in await host.driver.dropped():
                assert one.network in (net.order.uid, "")
                if one.interface or one.why == closed[1]:
                    there[one.interface, one.why] += one.packets
            return there

        async def become(wanted: Counter[tuple[str, str]]) -> None:
            deadline = time.monotonic() + 5 * PATIENCE
            while (now := await said()) != wanted:
                assert time.monotonic() < deadline, (now, wanted)

        wanted = await said()
        for groups in ((OPEN,), (OPEN, FilterGroup(uid=new_uid(), ingress=(tcp(80),)))):
            await net.ensure(groups=groups)  # what was counted stays
            enough = liar.sent() + 500
            with Sender(liar, frames) as sender:
                await eventually(lambda n=enough: liar.sent() > n, "nothing is sent")
            rounds, rest = divmod(sender.sent, len(frames))
            assert rest == 0
            for whose in [*((liar.nic.uid, why) for why in whys.values()), closed]:
                wanted[whose] += rounds
            await become(wanted)
        # What is gone is counted no more.
        liar.close()
        net.guests.remove(liar)
        await host.driver.remove_port(liar.nic.uid)
        assert all(one.interface != liar.nic.uid for one in await host.driver.dropped())

    # Life

    async def test_verbs_may_be_repeated(self, net: Net) -> None:
        host = net.hosts[0]
        guest = await net.guest(host)
        for _ in range(2):
            await net.ensure()
            assert await host.driver.ensure_port(Port(guest.nic, guest.nic.uid)) == guest.plug
        assert (await refused(host.driver.remove_segment(net.order.uid))).reason == "SegmentInUse"
        found = await host.driver.found()
        assert guest.nic.uid in found.ports
        assert net.order.uid in found.segments
        guest.unplug()
        for _ in range(2):
            await host.driver.remove_port(guest.nic.uid)
        for _ in range(2):
            await host.driver.remove_segment(net.order.uid)
        found = await host.driver.found()
        assert (found.ports, found.segments) == (frozenset(), frozenset())

    async def test_a_hundred_ports(self, net: Net) -> None:
        host = net.hosts[0]
        nics = [net.nic() for _ in range(100)]
        await asyncio.gather(*(host.driver.ensure_port(Port(nic, nic.uid)) for nic in nics))
        one, last = await net.world.guest(host, nics[0]), await net.world.guest(host, nics[-1], addressed=False)
        assert last.dhcp()["ip"] == four(last)
        last.address()
        await reaches(one, four(last))
        assert len((await host.driver.found()).ports) == 100

    async def test_a_port_needs_its_network(self, world: World, net: Net) -> None:
        nic = net.nic(network=new_uid())
        assert (await refused(net.hosts[0].driver.ensure_port(Port(nic, nic.uid)))).reason == "SegmentNotReady"

    async def test_guests_are_served_while_there_is_no_agent(self, net: Net) -> None:
        host = net.hosts[0]
        one, other = await net.guest(host), await net.guest(net.hosts[1])
        host.driver.kill()
        await reaches(one, four(other))
        assert one.dhcp()["ip"] == four(one)
        assert not one.reaches("10.20.30.250")
        host.restart()
        wrong = await host.driver.mend()
        assert wrong == [], wrong

    async def test_what_is_not_its_own_is_told_and_left_alone(self, net: Net) -> None:
        host = net.hosts[0]
        host.machine.run("ip", "link", "add", "name", "br-mine", "type", "bridge")
        host.machine.run("ip", "link", "add", "name", "veth-a", "type", "veth", "peer", "name", "veth-b")
        host.machine.run("ip", "link", "set", "dev", "veth-a", "master", "br-mine")
        host.machine.run("nft", "add", "table", "inet", "mine")
        try:
            foreign = {one.name: one for one in (await host.driver.found()).foreign}
            assert foreign["br-mine"].kind == "bridge"
            assert foreign["veth-a"].bridge == "br-mine"
            assert "eth0" in foreign
            assert not [name for name in foreign if name.startswith(("kb", "kx", "ks", "kt", "ku"))]
            await host.driver.mend()
            await host.driver.remove_segment(net.order.uid)
            assert {"br-mine", "veth-a"} <= host.machine.links().keys()
            assert "table inet mine" in host.machine.run("nft", "list", "tables")
        finally:
            host.machine.run("ip", "link", "delete", "dev", "br-mine")
            host.machine.run("ip", "link", "delete", "dev", "veth-a")
            host.machine.run("nft", "delete", "table", "inet", "mine")
