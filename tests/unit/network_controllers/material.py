"""Objects of networks, as small as they can be."""

from __future__ import annotations

from typing import Any

from kumulus.api.claims import IPAddress
from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.security_groups import SecurityGroup

NS = "ns"
NOW = "2026-01-01T00:00:00Z"
READY = {"vni": 5000, "mtu": 1450, "driver": "linux"}


def uid(name: str) -> str:
    """A uid that follows from a name."""
    return f"00000000-0000-0000-0000-{int.from_bytes(name.encode()) % 10**12:012d}"


def meta(name: str, namespace: str = NS, **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "uid": uid(f"{namespace}{name}"), "generation": 1, **more}


def network(name: str = "net", status: dict[str, Any] | None = None, **spec: Any) -> Network:
    body = {"cidrs": ["10.0.0.0/24"], **spec}
    return Network.parse({"metadata": meta(name), "spec": body, "status": READY if status is None else status})


def interface(
    name: str = "nic", namespace: str = NS, status: dict[str, Any] | None = None, **spec: Any
) -> NetworkInterface:
    known = ("creationTimestamp", "annotations", "deletionTimestamp", "ownerReferences")
    more = {key: spec.pop(key) for key in known if key in spec}
    body = {"network": "net", **spec}
    return NetworkInterface.parse({"metadata": meta(name, namespace, **more), "spec": body, "status": status or {}})


def allocated(name: str, *addresses: str, vm: str | None = None, namespace: str = NS, **spec: Any) -> NetworkInterface:
    status = {
        "network": network().uid,
        "macAddress": f"02:00:00:00:00:{len(name):02x}",
        "addresses": addresses,
        "vm": vm,
        "phase": "Allocated",
    }
    return interface(name, namespace, status, **spec)


def group(name: str, namespace: str = NS, **spec: Any) -> SecurityGroup:
    return SecurityGroup.parse({"metadata": meta(name, namespace), "spec": spec})


def claim(address: str, of: NetworkInterface, **spec: Any) -> IPAddress:
    body = {"network": network().uid, "address": address, "interface": of.name, "interfaceUid": of.uid, **spec}
    return IPAddress.parse({"metadata": meta(f"claim-{address}".replace(".", "-")), "spec": body})


def machine(name: str = "web", **more: Any) -> VirtualMachine:
    interfaces = more.pop("interfaces", [{"name": "eth0", "interface": "nic"}])
    spec = {"resources": {"cpus": 1, "memory": "64Mi"}, "interfaces": interfaces}
    return VirtualMachine.parse({"metadata": meta(name, **more), "spec": spec})


def instance(
    vm: VirtualMachine, *nics: dict[str, Any], host: str = "h1", attached: tuple[dict[str, Any], ...] = ()
) -> WorkOrder:
    order = {
        "uid": vm.uid,
        "epoch": 1,
        "power": "Running",
        "restartPolicy": "Always",
        "cpus": 1,
        "memory": 2**26,
        "nics": nics,
    }
    for_ = {"kind": "VirtualMachine", "namespace": vm.namespace, "name": vm.name, "uid": vm.uid}
    return WorkOrder.parse(
        {
            "metadata": meta(f"instance-{vm.name}", f"kumulus-host-{host}"),
            "spec": {"type": "Instance", "for": for_, "instance": order},
            "status": {"state": "Running", "observedGeneration": 1, "instance": {"nics": attached}},
        }
    )


def ordered(name: str, of: NetworkInterface) -> dict[str, Any]:
    return {"name": name, "uid": of.uid, "network": network().uid, "mac": "02:00:00:00:00:01"}


def has(name: str, of: NetworkInterface, *, attached: bool = True) -> dict[str, Any]:
    return {"name": name, "uid": of.uid, "attached": attached}
