"""What of a machine's size and make keeps it on its host (docs/adr/0029, 0031). Pure.

What waits for its next start goes along in its order, and does not keep it: only a size does, for the target takes a guest
of the size that was ordered and no other.
"""

from __future__ import annotations

from collections.abc import Sequence

from kumulus.api.fabric import CpuInfo
from kumulus.api.hardware import HOST_PASSTHROUGH
from kumulus.api.instance_order import InstanceFacts, InstanceOrder
from kumulus_controllers.compute.size import MEMORY_UNIT, ROOM_UNIT
from kumulus_controllers.storage.volume_plan import Lack

KVM = "kvm"


def keeps(instance: InstanceOrder, said: InstanceFacts | None, here: CpuInfo | None) -> Sequence[Lack]:
    """All of it. `here`: the processor of the host that it is on."""
    found = list[Lack]()
    if said is None or not (_has_its_size(instance, said) and _has_its_room(instance, said)):
        found.append(Lack("PendingChanges", "It gets another size at its next start: restart it first."))
    if said is not None and said.adopted:
        message = "It has devices that somebody else defined, until it is started the next time: restart it first."
        found.append(Lack("AdoptedDevices", message))
    shape = said.shape if said is not None else None
    if shape is not None and shape.cpu_model == HOST_PASSTHROUGH and here is not None and here.acceleration == KVM:
        message = f"It has the very processor of its host ({HOST_PASSTHROUGH}), which another host has not got."
        found.append(Lack("HostPassthrough", message))
    return found


def _has_its_size(instance: InstanceOrder, said: InstanceFacts) -> bool:
    return (said.cpus, _whole(said.memory or 0)) == (instance.cpus, _whole(instance.memory))


def _has_its_room(instance: InstanceOrder, said: InstanceFacts) -> bool:
    """Whether it can get as much while it is on as it is ordered to; room for memory is rounded up."""
    cpus = (said.max_cpus or said.cpus) == (instance.max_cpus or instance.cpus)
    most = (said.max_memory or said.memory or 0) - (instance.max_memory or instance.memory)
    return cpus and -MEMORY_UNIT < most < ROOM_UNIT


def _whole(memory: int) -> int:
    """Hypervisors give memory in whole MiB."""
    return -(-memory // MEMORY_UNIT) * MEMORY_UNIT
