"""How a simulated domain that somebody else made becomes Kumulus' own, and back."""

from __future__ import annotations

from dataclasses import replace

from kumulus_agents.hypervisor.domain import (
    Adoption,
    AttachedDisk,
    AttachedNic,
    Domain,
    DomainNic,
    DomainState,
    leftover,
    orphan_of,
)
from kumulus_agents.hypervisor.foreign import ForeignDisk, ForeignDomain, ForeignNic, ForeignShape
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.hypervisor.simulated_host import SimulatedHost, plugged

_STATES = {"running": DomainState.RUNNING, "paused": DomainState.PAUSED}


def adopt(host: SimulatedHost, adoption: Adoption) -> None:
    """See `Hypervisor.adopt`. Files are not compared."""
    uid, before = adoption.marks.uid, host.domains.get(adoption.marks.uid)
    if before is not None and before.marks.epoch >= adoption.marks.epoch:
        return
    domain = described(before) if before is not None else host.foreign.get(uid)
    if domain is None:
        raise HypervisorError("The simulated domain is not there.", reason="NothingToAdopt", retryable=False)
    disks = [disk for disk in domain.shape.disks if disk.device in (None, "disk")]
    macs = {nic.mac.lower() for nic in domain.shape.nics}
    own = [disk for disk in disks if disk.source in adoption.kept]
    if (
        len(disks) != len(adoption.disks) + len(adoption.kept)
        or len(own) != len(adoption.kept)
        or not {nic.mac.lower() for nic in adoption.nics} <= macs
    ):
        raise HypervisorError("The simulated domain is another one.", reason="AdoptionMismatch", retryable=False)
    host.uproot(uid)
    began = before.started_at if before is not None else host.now()
    host.put(
        Domain(
            adoption.marks,
            _STATES.get(domain.state, DomainState.STOPPED),
            started_at=began if domain.state in _STATES else None,
            disks=(
                *(AttachedDisk(disk.name or "", disk.source or "") for disk in own),
                *(AttachedDisk(disk.name, disk.path, disk.volume) for disk in adoption.disks),
            ),
            nics=tuple(AttachedNic(nic.uid, nic.mac, nic.plug.device, elsewhere=True) for nic in adoption.nics),
            cpus=domain.cpus,
            memory=domain.memory,
            adopted=True,
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
    if (domain := host.domains.get(uid)) is not None:
        host.drop(uid)
        host.plant(replace(described(domain), machine=None))


def described(domain: Domain) -> ForeignDomain:
    """A domain of ours as one is described that is not."""
    names = {state: name for name, state in _STATES.items()}
    disks = [
        ForeignDisk(
            f"vd{'abcdefghijklmnopqrstuvwxyz'[number]}", "disk", "virtio", "file", disk.path, "qcow2", name=disk.name
        )
        for number, disk in enumerate(domain.disks)
    ]
    nics = [ForeignNic(nic.mac, "bridge", None, "virtio") for nic in domain.nics]
    marks = domain.marks
    return ForeignDomain(
        marks.uid,
        marks.name,
        leftover(marks, domain.arriving) or names.get(domain.state, "shut off"),
        domain.cpus,
        domain.memory,
        True,
        ForeignShape(domain.machine_type or "pc-q35-7.2", "bios", disks, nics),
        orphan_of(marks),
    )
