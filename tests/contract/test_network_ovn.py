"""The driver `ovn` on hosts that are namespaces, with real packets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kumulus.api.segments import FilterGroup, Nic
from kumulus_agents.network.linux import names
from kumulus_agents.network.ovn import apart, connections
from kumulus_agents.network.ovn import names as ovn_names
from kumulus_agents.network.ovn.driver import OvnNetwork
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.protocol import Plug, Port
from tests.contract import network, network_ovn, network_world
from tests.contract.network import NetworkContract
from tests.contract.network_ovn import OvnHost
from tests.contract.network_world import Host, Machine, World, eventually

WHY_NOT = network_ovn.why_none()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def hosts() -> Iterator[World]:
    yield from network_world.two_hosts(OvnHost)


@pytest.fixture
async def world(hosts: World) -> AsyncIterator[World]:
    async for world in network_world.emptied(hosts, nothing_left):
        yield world


def nothing_left(host: Host) -> None:
    """Nothing of any network is on the host."""
    network_world.nothing_left(host, names.is_ours)
    for table in (
        "Logical_Switch",
        "Logical_Switch_Port",
        "Port_Group",
        "ACL",
        "Address_Set",
        "QoS",
        "DHCP_Options",
        *ROUTING,
    ):
        assert host.machine.run("ovn-nbctl", "--bare", "--columns=_uuid", "list", table).strip() == "", table
    assert host.machine.run("ovs-vsctl", "list-ports", "br-int").strip() == ""
    assert "zone=" not in host.machine.run("ovs-appctl", "dpctl/ct-get-limits")
    flows = host.machine.run("ovs-ofctl", "dump-flows", "br-kumulus")
    assert "in_port" not in flows


ROUTING = ("Logical_Router", "Logical_Router_Port", "Logical_Router_Policy", "Static_MAC_Binding")


class OvnContract(NetworkContract):
    """The contract, by this driver."""

    driver = "ovn"
    counts_whom_groups_keep_out = True

    def device_of(self, nic: Nic) -> str:
        return names.tap(nic.uid)

    def early(self, plug: Plug, nic: Nic) -> Plug:
        """On OVN's own bridge, as the port that it will be: the bridge in front of it is not there yet."""
        return replace(plug, device=names.tap(nic.uid), bridge="br-int", openvswitch=nic.uid)


@pytest.mark.wide
class TestContract(OvnContract):
    """All of it: two minutes."""


class TestChosen(OvnContract):
    """What stands for the rest: the way, filters, what guests are told, and pretending."""


CHOSEN = {
    "test_guests_of_a_network_reach_each_other_on_all_hosts",
    "test_a_change_keeps_what_is_still_allowed_and_cuts_what_is_not",
    "test_answers_of_a_cut_connection_do_not_pass_either",
    "test_guests_get_their_addresses_by_dhcp",
    "test_guests_get_their_addresses_by_dhcpv6",
    "test_guests_are_told_of_themselves",
    "test_guests_reach_neither_the_host_nor_the_wire",
    "test_names_of_the_network_and_of_the_world",
    "test_no_pretence_arrives",
    "test_what_is_dropped_is_counted_by_whom_and_why",
}
for left in {name for name in dir(NetworkContract) if name.startswith("test_")} - CHOSEN:
    setattr(TestChosen, left, None)  # pytest collects no such test


class TestMending:
    """What was removed or changed by hand is noticed and made so again."""

    async def test_it_is_mended(self, world: World) -> None:
        contract = OvnContract()
        net = await contract.network(world)
        first, other = net.hosts
        one, two = await net.guest(first), await net.guest(other)
        await network.reaches(one, network.four(two))
        uid = net.order.uid
        everybody = ovn_names.everybody(uid)
        assert await first.driver.mend() == []
        assert list(await first.driver.dropped()) == []
        limits = connections.limits(first.machine.run("ovs-appctl", "dpctl/ct-get-limits"))
        assert list(limits.values()) == [65536]
        for command in (
            f"ovs-appctl dpctl/ct-del-limits zone={next(iter(limits))}",
            f"ovn-nbctl ls-del {ovn_names.switch(uid)}",
            f"ovn-nbctl clear port_group {everybody} acls",
            f"ovn-nbctl clear port_group {everybody} external_ids",
            f"ovn-nbctl clear logical_switch_port {one.nic.uid} external_ids",
            f"ovn-nbctl lsp-set-port-security {one.nic.uid}",
            f"ovn-nbctl clear logical_switch_port {one.nic.uid} dhcpv4_options",
            "ovs-ofctl del-flows br-kumulus",
            "ovs-ofctl add-flow br-kumulus table=0,priority=99,actions=drop",
            f"ovs-vsctl del-port {ovn_names.TUNNEL}",
            "ovs-vsctl del-br br-kumulus",
            f"ovs-vsctl del-port {one.plug.device}",
            f"ovs-vsctl del-br {one.plug.bridge}",
            f"ovs-ofctl del-flows {one.plug.bridge} icmp6",
            f"ovs-vsctl del-port {ovn_names.patches(one.nic.uid)[1]}",
            f"ovs-vsctl del-port {names.service(uid)}",
            "ovs-vsctl remove open_vswitch . external_ids ovn-bridge-mappings",
            f"ip link delete dev {names.service(uid)}",
            f"nft flush table inet {apart.TABLE}",
            f"nft delete table arp {apart.TABLE}",
            f"ip netns delete {names.namespace(uid)}",
        ):
            first.machine.run(*command.split())
            assert await first.driver.mend() != [], command
            assert await first.driver.mend() == [], command
            for address in (network.four(two), "10.20.30.2"):
                await eventually(lambda a=address: one.reaches(a), f"after {command}: {address} is not reached", 5)
            assert one.dhcp()["ip"] == network.four(one), command
        first.machine.run("nft", "flush", "ruleset")
        assert await first.driver.guard() == ["This host heard what was for others."]
        assert await first.driver.mend() == []
        stranger = network.Party("02:00:00:00:00:99", "10.20.30.199", "fd00:20::99")
        service = contract.service_of(net, one)
        lies = list(network.spoofs(network.party(one), network.party(two), service, stranger).values())
        truth = network.honest(network.party(one), network.party(two))
        with network.Watcher(two) as watcher, network.Sender(one, [*lies, truth]):
            await eventually(lambda: watcher.seen()[0] > 5, "the honest frame does not arrive")
            contract.nothing_false([watcher])


class TestDeath:
    """The agent dies after any step; the next one completes, or removes, what it finds."""

    @pytest.mark.wide
    async def test_after_a_step(self, world: World) -> None:
        contract = OvnContract()
        host, other = world.hosts[:2]
        steps, died = 0, True
        while died:
            steps += 1
            net = network.Net(world, [host, other], contract.order())
            nic = net.nic()
            driver = host.restart(die_after=steps)
            died = False
            try:
                await net.ensure()
                await driver.ensure_port(Port(nic, nic.uid))
                await driver.remove_port(nic.uid)
                await driver.remove_segment(net.order.uid)
            except network_world.Died:
                died = True
            host.restart()
            if steps % 2:  # either the order has gone meanwhile, or it is still there
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
        assert steps > 10


class TestWaiting:
    """A change is done when it is in force, and not before."""

    @pytest.mark.wide
    async def test_a_change_that_was_not_in_force_in_time(self, world: World) -> None:
        net = await OvnContract().network(world)
        first, group = net.hosts[0], network.new_uid()
        one, target = await net.guest(first), await net.guest(first, groups=(group,))

        async def let(*ports: int) -> None:
            groups = (network.OPEN, FilterGroup(uid=group, ingress=(network.tcp(*ports),)))
            await first.driver.ensure_segment(net.order.model_copy(update={"groups": groups}))

        await let(80, 81)
        with network.Server(target, 80, 81), network.Talk(one, network.four(target), 81) as talk:
            assert talk.works_on()
            controller = first.machine.run("cat", "/run/ovn/ovn-controller.pid").strip()
            first.machine.run("kill", "-STOP", controller)
            try:
                for _ in range(2):  # the second one finds it in the database
                    assert (await network.refused(let(80))).reason == "NotAnswering"
            finally:
                first.machine.run("kill", "-CONT", controller)
            await let(80)
            assert talk.is_cut()
            assert network.Talk.fails(one, network.four(target), 81)
            assert network.Talk.works(one, network.four(target), 80)


class TestHost:
    """What a host lacks is said with what to do."""

    @pytest.mark.wide
    @pytest.mark.skipif(network_ovn.has_module(), reason="The kernel forwards what it has put together.")
    async def test_a_card_that_puts_packets_together_is_of_no_use_to_userspace(self, world: World) -> None:
        """As the operator's guide says of GRO: the same cable carries it all, or next to nothing."""
        host = world.hosts[0].machine
        near, far = Machine("near"), Machine("far")
        try:
            for party, name, address in ((near, "card1", "10.5.0.1"), (far, "card2", "10.5.0.2")):
                host.add_link(name, mtu=1500, to=party, peer=["name", "eth0"])
                host.run("ip", "link", "set", "dev", name, "up")
                party.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
                party.run("ip", "link", "set", "dev", "eth0", "up")
                party.run("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
                host.run("ovs-vsctl", "add-port", "br-phy", name)
            log = "/run/openvswitch/ovs-vswitchd.log"
            server = far.start("busybox", "httpd", "-f", "-p", "80", "-h", "/usr/share/openvswitch")
            try:
                fetch = ("busybox", "wget", "-q", "-O", "/dev/null", "http://10.5.0.2/vswitch.ovsschema")
                await eventually(lambda: near.attempt("timeout", "5", *fetch).returncode == 0, "nothing is fetched")
                assert "Too big" not in host.run("cat", log)
                host.run("ethtool", "-K", "card2", "gro", "on")

                def dropped() -> bool:  # a busy machine may take packets one by one, which is no harm
                    near.attempt("timeout", "2", *fetch)
                    return "card2: Dropped packet: Too big. GRO/TSO enabled?" in host.run("cat", log)

                await eventually(dropped, "what was put together passes")
            finally:
                server.kill()
                server.communicate()
        finally:
            for name in ("card1", "card2"):
                host.run("ovs-vsctl", "--if-exists", "del-port", "br-phy", name)
            near.close()
            far.close()

    async def test_a_program_that_is_missing(self, tmp_path: Path) -> None:
        settings = OvnSettings.model_validate({"state": tmp_path, "ofctl": "/nonexistent/ovs-ofctl"})
        error = await network.refused(OvnNetwork(settings).prepare())
        assert (error.reason, error.retryable) == ("ProgramMissing", False)
        assert "openvswitch-switch" in str(error)

    async def test_daemons_that_do_not_run(self, tmp_path: Path) -> None:
        settings = OvnSettings.model_validate({"state": tmp_path, "openvswitch": tmp_path})
        error = await network.refused(OvnNetwork(settings).prepare())
        assert error.reason == "NotRunning"
        assert "start openvswitch-switch" in str(error)

    async def test_a_host_of_another_ovn_is_left_alone(self, world: World) -> None:
        host = world.hosts[0]
        mine = host.machine.run("ovs-vsctl", "get", "open_vswitch", ".", "external_ids:ovn-remote").strip()
        theirs = "external_ids:ovn-remote=tcp:192.0.2.1:6642"
        host.machine.run("ovs-vsctl", "set", "open_vswitch", ".", theirs)
        try:
            error = await network.refused(host.restart().prepare())
            assert error.reason == "OvnInUse"
            said = host.machine.run("ovs-vsctl", "get", "open_vswitch", ".", "external_ids")
            assert "tcp:192.0.2.1:6642" in said
        finally:
            host.machine.run("ovs-vsctl", "set", "open_vswitch", ".", f"external_ids:ovn-remote={mine}")
