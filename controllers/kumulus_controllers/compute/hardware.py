"""What a machine is made of: what its spec asks, what it has, and what waits for its next start. Pure.

The processor that was resolved once is kept until the spec names another one: a zone whose baseline changes does not change
machines behind their owners' backs. The board of the first start is kept until the spec names one.
"""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.compute import VirtualMachine, VirtualMachineCondition
from kumulus.api.hardware import HOST_MODEL, NEWEST_MACHINE_TYPE, Firmware, FirmwareType, Shape, features_of
from kumulus.api.instance_order import InstanceFacts, InstanceOrder
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.planning import hardware
from kumulus_controllers.planning.views import HostView

DEFAULT = Shape()


@dataclass(frozen=True, slots=True)
class Made:
    """What the order says that a machine is made of."""

    shape: Shape | None = None
    machine_type: str | None = None


def cpu_model(vm: VirtualMachine, baseline: str | None, ordered: InstanceOrder | None = None) -> str | None:
    """The processor: the spec's, else the one that it has got, else the zone's; None: whatever the host gives."""
    asked = vm.spec.cpu.model if vm.spec.cpu is not None else None
    if asked is not None:
        return asked
    if ordered is not None:
        return ordered.shape.cpu_model if ordered.shape is not None else None
    if vm.status.machine_type is not None:  # it was started before the zone had one
        return vm.status.cpu_model or HOST_MODEL
    return vm.status.cpu_model or baseline


def shape(vm: VirtualMachine, baseline: str | None, ordered: InstanceOrder | None = None) -> Shape | None:
    """What the order says; None when all is as it is by default."""
    cpu, firmware, watchdog = vm.spec.cpu, vm.spec.firmware or Firmware(), vm.spec.watchdog
    found = Shape(
        cpu_model=cpu_model(vm, baseline, ordered),
        sockets=cpu.sockets if cpu is not None else None,
        cores=cpu.cores if cpu is not None else None,
        threads=cpu.threads if cpu is not None else None,
        uefi=firmware.type is FirmwareType.UEFI,
        secure_boot=firmware.secure_boot,
        tpm=firmware.tpm,
        watchdog=watchdog.action if watchdog is not None else None,
    )
    return found if found != DEFAULT else None


def machine_type(vm: VirtualMachine) -> str | None:
    """The board that the order says: the spec's, or the one that it had at its first start."""
    return vm.spec.machine_type or vm.status.machine_type


def ordered(order: InstanceOrder) -> Made:
    """What it was ordered to be made of."""
    return Made(order.shape, order.machine_type)


def granted(vm: VirtualMachine, order: InstanceOrder, host: HostView | None) -> tuple[Made, Problem | None]:
    """What a machine that has its place is made of at its next start; what was ordered, and why, when its spec asks for what
    it cannot be there."""
    before = ordered(order)
    wanted = Made(shape(vm, None, order), vm.spec.machine_type or order.machine_type)
    if wanted == before:
        return before, None
    asked = wanted.shape or DEFAULT
    why = topology_lack(vm, order.max_cpus or order.cpus)
    if why is None and host is not None:
        features = features_of(vm.spec.firmware, vm.spec.watchdog)
        lacks = hardware.lack(host, asked.cpu_model or HOST_MODEL, wanted.machine_type, features)
        why = f"its host {host.name} is {lacks}" if lacks is not None else None
    if why is None:
        return wanted, None
    message = (
        f"It cannot be made as its spec says: {why}. What it was to be before stays in force until that is otherwise."
    )
    return before, Problem("HardwareUnsuited", message, VirtualMachineCondition.RESTART_REQUIRED, hinders=False)


def topology_lack(vm: VirtualMachine, cpus: int) -> str | None:
    """Why so many CPUs cannot be what the spec says of sockets, cores and threads; None when they can."""
    cpu = vm.spec.cpu
    if cpu is None:
        return None
    said = {"sockets": cpu.sockets, "cores": cpu.cores, "threads": cpu.threads}
    count = 1
    for number in said.values():
        count *= number or 1
    whole = cpu.sockets is not None and cpu.cores is not None
    if cpus % count == 0 and (not whole or count == cpus):
        return None
    asked = " x ".join(f"{number} {name}" for name, number in said.items() if number is not None)
    return f"{cpus} CPUs cannot be {asked}"


def changes(order: InstanceOrder | None, facts: InstanceFacts | None) -> list[str]:
    """What a restart changes of a machine that is on, in words."""
    if order is None or facts is None or facts.cpus is None:  # it is off, or its agent is too old to say
        return []
    has, wanted = facts.shape or DEFAULT, order.shape or DEFAULT
    said = [
        f"{name} {one} to {other}"
        for name, one, other in (
            ("CPU model", has.cpu_model or "of the host", wanted.cpu_model or "of the host"),
            ("CPU topology", _topology(has), _topology(wanted)),
            ("firmware", _firmware(has), _firmware(wanted)),
            ("TPM", _yes(has.tpm), _yes(wanted.tpm)),
            ("watchdog", has.watchdog or "none", wanted.watchdog or "none"),
        )
        if one != other
    ]
    board = order.machine_type
    if board not in (None, NEWEST_MACHINE_TYPE) and facts.machine_type not in (None, board):
        said.append(f"machine type {facts.machine_type} to {board}")
    if facts.adopted:
        said.append("devices of a machine in place of those that its domain was defined with")
    return said


def _topology(found: Shape) -> str:
    if (found.sockets, found.cores, found.threads) == (None, None, None):
        return "of one socket"
    return " x ".join(str(number or "any") for number in (found.sockets, found.cores, found.threads))


def _firmware(found: Shape) -> str:
    return ("UEFI with Secure Boot" if found.secure_boot else "UEFI") if found.uefi else "BIOS"


def _yes(has: bool) -> str:
    return "yes" if has else "no"
