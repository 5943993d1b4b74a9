"""Domains that are not ours: what is said of them, what is written, and that nobody floods the API server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.api.compute import PowerState
from kumulus.api.unmanaged import DEVICES_MOST, UnmanagedInstanceStatus
from kumulus.kube.errors import NotFound
from kumulus_agents.agent.report import MachineFacts, Reporter
from kumulus_agents.agent.unmanaged import SHOWN_MOST, Unmanaged, derive, plan
from kumulus_agents.hypervisor.domain import Domain, DomainState, Marks
from kumulus_agents.hypervisor.foreign import ForeignDisk, ForeignDomain, ForeignNic, ForeignShape, NotedNic, Orphan
from kumulus_agents.hypervisor.libvirt import shape
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.hypervisor.simulated_adopting import described

XML = """
<domain type='kvm'>
  <name>by-hand</name><uuid>11111111-2222-3333-4444-555555555555</uuid>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader type='pflash'>/usr/share/OVMF.fd</loader></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/srv/a.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/><auth username='me'><secret type='ceph' uuid='x'/></auth>
      <source protocol='iscsi' name='iqn.x/1'><host name='h'/></source><target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='network'><source protocol='rbd' name='p/i'/><target dev='vdc'/></disk>
    <disk type='volume'><source pool='default' volume='v'/><target dev='vdd'/></disk>
    <disk type='block' device='lun'><source dev='/dev/sdb'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
    <interface type='network'>
      <mac address='52:54:00:AA:00:01'/><source network='default' bridge='virbr0'/><model type='virtio'/>
    </interface>
    <interface type='direct'><mac address='52:54:00:00:00:02'/><source dev='eth0' mode='bridge'/></interface>
    <interface type='user'/>
    <graphics type='vnc' passwd='secret'/>
  </devices>
</domain>
"""


def uuid(number: int) -> str:
    return f"{number:08x}-0000-0000-0000-000000000000"


def domain(number: int, state: str = "running", **more: object) -> ForeignDomain:
    return ForeignDomain(uuid(number), f"vm-{number}", state, 1, 1 << 30, **more)  # type: ignore[arg-type]


def test_what_a_domain_consists_of_is_read_and_nothing_secret() -> None:
    found = shape.read(XML)
    assert (found.machine, found.firmware) == ("pc-q35-7.2", "efi")
    assert [(disk.target, disk.kind, disk.device, disk.source, disk.format) for disk in found.disks] == [
        ("vda", "file", "disk", "/srv/a.qcow2", "qcow2"),
        ("vdb", "network", "disk", "iscsi:iqn.x/1", "raw"),
        ("vdc", "network", "disk", "rbd:p/i", None),
        ("vdd", "volume", "disk", "default/v", None),
        ("sda", "block", "lun", "/dev/sdb", None),
        ("sdb", "file", "cdrom", None, None),
    ]
    assert [(nic.mac, nic.kind, nic.source, nic.model) for nic in found.nics] == [
        ("52:54:00:AA:00:01", "network", "virbr0", "virtio"),
        ("52:54:00:00:00:02", "direct", "eth0", None),
        ("", "user", None, None),
    ]
    assert "secret" not in repr(found) and "me" not in repr([disk.source for disk in found.disks])
    assert shape.read("<domain><os firmware='efi'/></domain>").firmware == "efi"
    assert shape.read("<domain/>") == ForeignShape(firmware="bios")


def test_what_is_said_is_clean_and_bounded() -> None:
    disks = [ForeignDisk(f"vd{number}\n", source="/x\x1b" * 2000) for number in range(40)]
    nics = [ForeignNic("AA:00:00:00:00:01"), ForeignNic("nonsense"), *[ForeignNic("aa:00:00:00:00:02")] * 40]
    shaped = ForeignShape("q" * 99, "efi", [*disks, ForeignDisk("vd1\n"), ForeignDisk("")], nics)
    status = derive(ForeignDomain(uuid(1), "\x1b[31m" + "n" * 400, "running", shape=shaped))
    assert status.name is not None and status.name.startswith("?[31mn") and len(status.name) == 253
    assert len(status.disks) == len(status.nics) == DEVICES_MOST
    assert status.disks[0].target == "vd0?" and len(status.disks[0].source or "") == 1024
    assert status.nics[0].mac_address == "aa:00:00:00:00:01"
    assert UnmanagedInstanceStatus.model_validate(status.to_json()) == status


def test_of_a_machine_of_ours_it_is_said_what_its_disks_and_interfaces_are() -> None:
    noted = NotedNic("eth0", uuid(9), "aa:00:00:00:00:01", ("10.0.0.3",), "shop/front", 5000)
    shaped = ForeignShape(disks=[ForeignDisk("sda", name="root")], nics=[ForeignNic("AA:00:00:00:00:01")])
    others = derive(domain(1, shape=shaped))
    assert (others.disks[0].name, others.nics[0].name) == (None, None), "serials of others are their own affair"
    status = derive(domain(1, shape=shaped, machine=Orphan("shop", "web", 3, (noted,))))
    assert (status.disks[0].name, status.nics[0].name) == ("root", "eth0")
    nic = status.nics[0]
    assert (nic.addresses, nic.network, nic.vni, nic.vlan) == (("10.0.0.3",), "shop/front", 5000, None)


@pytest.mark.parametrize(
    ("departed", "arriving", "state"), [(None, None, "shut off"), ("m", None, "departed"), (None, "m", "arriving")]
)
def test_what_a_migration_left_is_not_told_as_a_machine(departed: str | None, arriving: str | None, state: str) -> None:
    marks = Marks(uuid(1), 2, "shop", "web", PowerState.RUNNING, departed=departed)
    told = derive(described(Domain(marks, DomainState.STOPPED, arriving=arriving)))
    assert told.state == state and told.machine is not None and told.machine.epoch == 2


def test_only_what_differs_is_written() -> None:
    found = [domain(1), domain(2), ForeignDomain("../../x", "bad", "running")]
    first = plan({}, found)
    assert (first.create, first.remove, set(first.say or {})) == ((uuid(1), uuid(2)), (), {uuid(1), uuid(2)})
    known = dict(first.say or {})
    again = plan(known, found)
    assert (again.create, again.remove, again.say) == ((), (), {})
    changed = plan(known, [domain(1, "paused")])
    assert (changed.create, changed.remove, set(changed.say or {})) == ((), (uuid(2),), {uuid(1)})
    # one that was made, and the agent died before it said anything of it
    half = plan({uuid(1): UnmanagedInstanceStatus()}, [domain(1)])
    assert (half.create, set(half.say or {})) == ((), {uuid(1)})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, 2 * SHOWN_MOST), max_size=2 * SHOWN_MOST), max_size=4))
def test_never_too_many_and_who_is_shown_stays(rounds: list[set[int]]) -> None:
    known: dict[str, UnmanagedInstanceStatus] = {}
    for numbers in rounds:
        writes = plan(known, [domain(number) for number in numbers])
        there = {uuid(number) for number in numbers}
        assert set(writes.remove) == known.keys() - there
        stayed = known.keys() & there
        known = {name: known[name] for name in stayed} | dict(writes.say or {})
        assert stayed <= known.keys() <= there
        assert len(known) == min(len(there), max(SHOWN_MOST, len(stayed)))
        assert set(writes.create) == known.keys() - stayed


def test_all_lost_machines_are_shown_however_many_others_there_are() -> None:
    """A rebuild waits for as many as are counted."""
    lost = [domain(number, machine=Orphan("shop", f"vm-{number}", 1)) for number in range(1000, 1000 + SHOWN_MOST + 44)]
    others = [domain(number) for number in range(SHOWN_MOST + 10)]
    shown = dict(plan({}, others).say or {})
    assert len(shown) == SHOWN_MOST
    assert set(plan(shown, [*others, *lost]).create) == {one.uuid for one in lost}
    assert set(plan({}, [*others, *lost]).create) == {one.uuid for one in lost}


class Host:
    """A hypervisor with lost machines, and an API server that has what was written."""

    def __init__(self, lost: int) -> None:
        self.found = [domain(number, machine=Orphan("shop", f"vm-{number}", 1)) for number in range(lost)]
        self.objects: dict[str, dict[str, Any]] = {}

    async def domains(self) -> list[Any]:
        return []

    async def foreign(self, **_: Any) -> list[ForeignDomain]:
        return list(self.found)

    async def list_pages(self, *_: Any) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        yield list(self.objects.values()), "1"

    async def create(self, kind: Any, body: dict[str, Any], namespace: str) -> dict[str, Any]:
        raw = {"metadata": body["metadata"] | {"namespace": namespace, "uid": "u", "resourceVersion": "1"}, "spec": {}}
        return self.objects.setdefault(body["metadata"]["name"], raw)

    async def patch(self, kind: Any, name: str, body: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        if name not in self.objects:
            raise NotFound(404, "NotFound", "")
        self.objects[name] |= body
        return self.objects[name]

    async def delete(self, kind: Any, name: str, namespace: str) -> None:
        del self.objects[name]


async def test_fewer_are_told_of_before_their_objects_go_and_none_by_who_does_not_know_the_orders() -> None:
    """Else a host would seem not to have told of all, again and again while machines are taken over."""
    host, knows, told = Host(2), True, 2

    async def locate(disk: ForeignDisk) -> ForeignDisk:
        return disk

    by = Unmanaged(
        host,  # type: ignore[arg-type]
        "kumulus-host-h1",
        host,  # type: ignore[arg-type]
        locate=locate,
        ordered=lambda uid: False,
        complete=lambda: knows,
        told=lambda: told,
    )
    await by._round(fresh=True)
    assert by.orphan_count == len(host.objects) == 2
    host.found.pop()
    soon = await by._round(fresh=True)
    assert (by.orphan_count, len(host.objects)) == (1, 2) and soon is not None and soon <= 1
    told = 1
    await by._round(fresh=True)
    assert (by.orphan_count, len(host.objects)) == (1, 1)
    # another API server
    host.objects.clear()
    knows = False
    by.doubt()
    await by._round(fresh=True)
    assert by.orphan_count is None and len(host.objects) == 1, "what there is is told again, and not counted"
    gone = host.found.pop()
    await by._round(fresh=True)
    assert set(host.objects) == {gone.uuid}, "who knows no orders yet takes nothing back"
    knows = True
    await by._round(fresh=True)
    await by._round(fresh=True)
    assert by.orphan_count == 0


async def test_a_report_that_is_another_one_is_not_given_what_was_counted_before() -> None:
    class Api:
        uid, statuses = "one", list[dict[str, Any]]()
        missing = False

        def raw(self, status: dict[str, Any]) -> dict[str, Any]:
            metadata = {"name": "h1", "namespace": "n", "uid": self.uid, "resourceVersion": "1"}
            return {"metadata": metadata, "spec": {}, "status": status}

        async def find(self, *_: Any) -> dict[str, Any] | None:
            return None if self.missing else self.raw({})

        async def create(self, *_: Any) -> dict[str, Any]:
            self.uid, self.missing = "two", False
            return self.raw({})

        async def patch(self, kind: Any, name: str, body: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
            if self.missing:
                raise NotFound(404, "NotFound", "")
            self.statuses.append(body["status"])
            return self.raw(body["status"])

    class Away:
        async def inventory(self) -> None:
            raise HypervisorError("away")

    counts: list[int | None] = [4]
    api = Api()
    facts = MachineFacts(addresses=tuple, agent="1", kernel=None, os=None)  # type: ignore[arg-type]
    by = Reporter(
        api,  # type: ignore[arg-type]
        "n",
        "h1",
        Away(),  # type: ignore[arg-type]
        facts,
        every=60,
        expires_at=lambda: None,
        orphans=lambda: counts[0],
        replaced=lambda: counts.__setitem__(0, None),
    )
    await by.report()
    assert api.statuses[-1]["orphanCount"] == by.orphans_told == 4
    counts[0], api.missing = 0, True
    await by.report()
    assert "orphanCount" not in api.statuses[-1] and by.orphans_told is None
