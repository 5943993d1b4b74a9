"""How a simulated domain that somebody else made becomes Kumulus' own, and back."""

from __future__ import annotations

from dataclasses import replace

from kumulus_agents.hypervisor.foreign import ForeignDisk, ForeignDomain, ForeignNic, ForeignShape
from kumulus_agents.hypervisor.protocol import (
    Adoption,
    AttachedDisk,
    AttachedNic,
    Domain,
    DomainNic,
    DomainState,
    HypervisorError,
)
from kumulus_agents.hypervisor.simulated_host import SimulatedHost, plugged

_STATES = {"running": DomainState.RUNNING, "paused": DomainState.PAUSED}


def adopt(host: SimulatedHost, adoption: Adoption) -> None:
    """See `Hypervisor.adopt`. Files are compared where the foreign domain names any."""
    uid = adoption.marks.uid
    if uid in host.domains:
        return
    domain = host.foreign.get(uid)
    if domain is None:
        raise HypervisorError("The simulated domain is not there.", reason="NothingToAdopt", retryable=False)
    disks = [disk for disk in domain.shape.disks if disk.device in (None, "disk")]
    macs = {nic.mac.lower() for nic in domain.shape.nics}
    if len(disks) != len(adoption.disks) or not {nic.mac.lower() for nic in adoption.nics} <= macs:
        raise HypervisorError("The simulated domain is another one.", reason="AdoptionMismatch", retryable=False)
    host.uproot(uid)
    host.put(
        Domain(
            adoption.marks,
            _STATES.get(domain.state, DomainState.STOPPED),
            started_at=host.now() if domain.state in _STATES else None,
            disks=tuple(AttachedDisk(disk.name, disk.path, disk.volume) for disk in adoption.disks),
            nics=tuple(AttachedNic(nic.uid, nic.mac, nic.plug.device, elsewhere=True) for nic in adoption.nics),
            cpus=domain.cpus,
            memory=domain.memory,
        )
    )


def replug(host: SimulatedHost, uid: str, nic: DomainNic) -> None:
    """See `Hypervisor.replug_nic`."""
    domain = host.domains.get(uid)
    if domain is None or domain.state is DomainState.STOPPED:
        return
    nics = tuple(plugged(nic) if one.uid == nic.uid else one for one in domain.nics)
    if nics != tuple(domain.nics):
        host.put(replace(domain, nics=nics))


def disown(host: SimulatedHost, uid: str) -> None:
    """See `Hypervisor.disown`."""
    domain = host.domains.get(uid)
    if domain is None:
        return
    names = {state: name for name, state in _STATES.items()}
    disks = [
        ForeignDisk(f"vd{'abcdefghijklmnopqrstuvwxyz'[number]}", "disk", "virtio", "file", disk.path, "qcow2")
        for number, disk in enumerate(domain.disks)
    ]
    shape = ForeignShape(
        domain.machine_type, "bios", disks, [ForeignNic(nic.mac, "bridge", None, "virtio") for nic in domain.nics]
    )
    host.drop(uid)
    state = names.get(domain.state, "shut off")
    host.plant(ForeignDomain(uid, domain.marks.name, state, domain.cpus, domain.memory, True, shape))
