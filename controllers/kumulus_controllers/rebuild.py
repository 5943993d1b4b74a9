"""What hosts tell of machines whose objects were lost, while the control plane is rebuilt from that. Reads caches only.

A host says of whom its domains are, and what it says could be a lie by which it would get a machine that is none of its own.
So it is heeded of hosts alone that an operator has marked (`REBUILD`). That numbers and addresses are in use is a reason to
give others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kumulus.api.fabric import HOST_NAMESPACE_PREFIX, IGNORE_ORPHANS, REBUILD, Host, host_namespace
from kumulus.api.host import HostReport
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches

OF_MACHINE = "orphan-of-machine"
IN_NETWORK = "orphan-in-network"
HAS_NUMBER = "orphan-has-number"
OF_HOST = "orphan-of-host"


@dataclass(frozen=True, slots=True)
class Lost:
    """A domain of a machine that nobody orders."""

    host: str
    item: UnmanagedInstance
    epoch: int
    """The placement that it is of."""
    rebuilt: bool
    """The operator has its host's machines become those of their names again."""


def _of_machine(item: UnmanagedInstance) -> Iterable[str]:
    machine = item.status.machine
    return (f"{machine.namespace}/{machine.name}",) if machine is not None else ()


def _in_network(item: UnmanagedInstance) -> Iterable[str]:
    return {nic.network for nic in item.status.nics if nic.network is not None}


def _has_number(item: UnmanagedInstance) -> Iterable[str]:
    vnis = {f"vni {nic.vni}" for nic in item.status.nics if nic.vni is not None}
    return vnis | {f"vlan {nic.vlan}" for nic in item.status.nics if nic.vlan is not None}


def _of_host(item: UnmanagedInstance) -> Iterable[str]:
    return (item.namespace or "",) if item.status.machine is not None else ()


def _marked(host: Host | None, annotation: str) -> bool:
    return host is not None and host.metadata.annotations.get(annotation) == "true"


class Rebuild:
    """What is told of them."""

    def __init__(self, caches: Caches) -> None:
        self.store = caches.store(UnmanagedInstance)
        self.hosts = caches.store(Host)
        self.reports = caches.store(HostReport)
        self.store.add_index(OF_MACHINE, _of_machine)
        self.store.add_index(IN_NETWORK, _in_network)
        self.store.add_index(HAS_NUMBER, _has_number)
        self.store.add_index(OF_HOST, _of_host)
        self.hosts.add_index(REBUILD, lambda host: ("yes",) if _marked(host, REBUILD) else ())

    def _host(self, item: UnmanagedInstance) -> Host | None:
        return self.hosts.get((item.namespace or "").removeprefix(HOST_NAMESPACE_PREFIX))

    def lost(self, machine: Key) -> Sequence[Lost]:
        """Domains of a machine of that name, the newest placement first. What a host says is left out whose word is not
        heeded (`IGNORE_ORPHANS`)."""
        found = []
        for item in self.store.by(OF_MACHINE, f"{machine.namespace}/{machine.name}"):
            host, said = self._host(item), item.status.machine
            if said is not None and not _marked(host, IGNORE_ORPHANS):
                name = (item.namespace or "").removeprefix(HOST_NAMESPACE_PREFIX)
                found.append(Lost(name, item, said.epoch, _marked(host, REBUILD)))
        return sorted(found, key=lambda one: (-one.epoch, one.host, one.item.name))

    def unheard(self) -> Sequence[str]:
        """Names of the hosts whose machines are to become those of their names again, and that have not told of all yet."""
        return sorted(host.name for host in self.hosts.by(REBUILD, "yes") if self.awaits(host))

    def awaits(self, host: Host | None) -> bool:
        """Whether the host is one of those."""
        return host is not None and _marked(host, REBUILD) and not host.deleting and not self._heard(host)

    def _heard(self, host: Host) -> bool:
        report = self.reports.get(host.name, host_namespace(host.name))
        count = report.status.orphan_count if report is not None else None
        return count is not None and len(self.store.by(OF_HOST, host_namespace(host.name))) >= count

    def addresses(self, network: Key) -> frozenset[str]:
        """Addresses that lost machines have in the network of that name, on hosts whose word counts."""
        name = f"{network.namespace}/{network.name}"
        return frozenset(
            address
            for item in self.store.by(IN_NETWORK, name)
            if _marked(self._host(item), REBUILD)
            for nic in item.status.nics
            if nic.network == name
            for address in nic.addresses
        )

    def numbered(self, *, vni: int | None = None, vlan: int | None = None) -> bool:
        """Whether lost machines of some host are in a network of that number: of a VXLAN, or of a VLAN. What a host
        says is left out whose word is not heeded: it could use all of them up."""
        told = self.store.by(HAS_NUMBER, f"vlan {vlan}" if vlan is not None else f"vni {vni}")
        return any(not _marked(self._host(item), IGNORE_ORPHANS) for item in told)
