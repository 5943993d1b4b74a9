"""What the API server refuses, and that it says which field; what it takes, and what it makes of it.

Every case goes to a real API server with the generated CRDs. Refusals are tried by dry run, which passes
through all of admission and leaves nothing behind.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from kumulus.api.base import Kind, Resource, Scope
from kumulus.api.claims import IPAddress, SegmentId
from kumulus.api.cloud_init import USER_DATA_MAX
from kumulus.api.compute import VirtualMachine
from kumulus.api.console import ConsoleRequest
from kumulus.api.events import EventSink
from kumulus.api.fabric import HOST_NAME_MAX, Host, Zone
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.image import ClusterImage, Image, ImageStatus, ImageUpload
from kumulus.api.instance_type import InstanceType
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.machine_import import VirtualMachineImport
from kumulus.api.machine_pool import VirtualMachinePool
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.network import Network, NetworkClass, NetworkInterface
from kumulus.api.placement_group import PlacementGroup
from kumulus.api.registry import KINDS
from kumulus.api.remediation import HostRemediation
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.storage import StoragePool, StoragePoolStatus, Volume, VolumeClass
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.api.volumes import Progress
from kumulus.cli.cluster import Cluster
from kumulus.kube import errors
from kumulus_lab import deadline
from kumulus_lab.cluster import NativeCluster

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]

SHA = "0123456789abcdef" * 4
UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
OTHER_UID = "11111111-2222-3333-4444-555555555555"
STRICT = {"fieldValidation": "Strict"}
DRY = {"dryRun": "All", **STRICT}

GONE = object()
"""As a value: take the field away."""

POOL = {"uid": UID, "name": "local", "driver": "dir", "parameters": {"path": "/var/lib/kumulus/pool"}}
NFS: Raw = {"server": "nfs.example.com", "path": "/export/kumulus", "version": "4.2", "mountOptions": ["noatime"]}
RBD: Raw = {"monitors": ["10.0.0.1", "[fd00::1]:6789"], "pool": "vms", "user": "kumulus", "secret": {"name": "ceph"}}
LVM: Raw = {"volumeGroup": "vg0", "thinPool": "thin"}
ORDERED_IMAGE = {"uid": UID, "sha256": SHA, "format": "qcow2"}
LOCKED_IMAGE = {"image": ORDERED_IMAGE, "secret": "luks-1"}
INSTANCE = {
    "uid": UID,
    "epoch": 3,
    "power": "Running",
    "restartPolicy": "Always",
    "cpus": 2,
    "memory": 2**31,
    "disks": [{"name": "root", "pool": POOL, "image": ORDERED_IMAGE, "bootOrder": 1}],
    "seed": {"data": {"meta-data": "x"}},
}
FOR = {"kind": "VirtualMachine", "namespace": "default", "name": "web", "uid": UID}

NEAR: Raw = {
    "topologyKey": "kubernetes.io/hostname",
    "labelSelector": {
        "matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "example.com/tier", "operator": "In", "values": ["front", "back"]}],
    },
}

VM: Raw = {
    "resources": {"cpus": 2, "memory": "2Gi", "maxCpus": 2, "maxMemory": "4Gi"},
    "cpu": {"model": "Skylake-Server", "sockets": 1, "threads": 2},
    "machineType": "pc-q35-7.2",
    "firmware": {"type": "UEFI", "secureBoot": True, "tpm": True},
    "watchdog": {"action": "PowerOff"},
    "zone": "z1",
    "placement": {
        "hostSelector": {"disk": "nvme", "example.com/rack": "r1"},
        "tolerations": [{"key": "dedicated", "value": "web"}],
        "affinity": {
            "hostAffinity": {
                "required": [{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["16"]}]}],
                "preferred": [
                    {"weight": 5, "preference": {"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}}
                ],
            },
            "vmAffinity": {"preferred": [{"weight": 9, "term": NEAR}]},
            "vmAntiAffinity": {"required": [NEAR]},
        },
        "topologySpreadConstraints": [{"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {}}],
    },
    "disks": [
        {"name": "root", "ephemeral": {"image": "debian-12", "size": "10Gi"}},
        {"name": "data", "ephemeral": {"image": "empty"}, "bootOrder": 2},
    ],
    "cloudInit": {"userData": "#cloud-config\n", "metaData": {"role": "web"}},
    "sshKeys": [{"publicKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 alice@example"}],
}
IMAGE: Raw = {
    "source": {"http": {"url": "https://images.example.com/debian-12.qcow2?x=1"}},
    "checksum": {"sha256": SHA},
    "format": "qcow2",
    "minDisk": "2Gi",
}

OCI: Raw = {
    "source": {"oci": {"reference": "quay.io/containerdisks/debian:12", "secret": "quay", "layout": "ContainerDisk"}},
    "format": "qcow2",
}

PUBLISHED: Raw = {"source": {"volume": "web-root"}, "format": "qcow2"}

TEMPLATE: Raw = {
    "metadata": {"labels": {"app": "web", "tier": "front"}, "annotations": {"example.com/team": "a"}},
    "spec": VM,
}

GOOD: Mapping[type[Resource], Raw] = {
    VirtualMachine: VM,
    VirtualMachinePool: {
        "replicas": 3,
        "selector": {"app": "web"},
        "template": TEMPLATE,
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 1}},
        "scaleIn": {"policy": "Oldest"},
        "healing": {"replace": ["Failed", "HostUnknown"], "afterSeconds": 60},
    },
    InstanceType: {"cpus": 1, "memory": "512Mi", "allowedNamespaces": ["a", "b"]},
    PlacementGroup: {"policy": "AntiAffinity", "selector": {"matchLabels": {"app": "web"}}, "maxPerTopology": 2},
    ConsoleRequest: {"vm": "web"},
    Image: IMAGE,
    ClusterImage: {**IMAGE, "allowedNamespaces": ["a"]},
    ImageUpload: {"image": "web", "tokenSha256": "ab" * 32},
    StoragePool: {
        "driver": "dir",
        "parameters": {"path": "/var/lib/kumulus/pool"},
        "reserved": "10Gi",
        "thresholds": {"warnAt": 80, "stopNewVolumesAt": 90},
        "allowedNamespaces": ["a"],
    },
    VolumeClass: {
        "poolSelector": {"tier": "nvme"},
        "allowedNamespaces": ["a"],
        "qos": {"iops": 100, "readBytesPerSecond": "10Mi", "burst": {"iops": 200, "seconds": 30}},
        "cache": "directsync",
    },
    Volume: {"size": "1Gi", "class": "fast", "pool": "local", "source": {"image": "debian-12"}},
    VolumeSnapshot: {"volume": "data", "quiesce": {"mode": "Required", "timeoutSeconds": 60}},
    VirtualMachineSnapshot: {"vm": "web", "deletionProtection": False},
    VirtualMachineRestore: {"snapshot": "all", "target": {"newVM": "web-2", "cloneMode": "Linked"}},
    VirtualMachineMigration: {"vm": "web", "targetHost": "h1", "limits": {"timeoutSeconds": 60}},
    VirtualMachineImport: {
        "unmanagedInstance": {"host": "h1", "name": "6f1c4c2e-0d5f-4d5e-9a3b-2f6f6a1f0c11"},
        "template": {
            "namespace": "team",
            "name": "web",
            "disks": [{"target": "vda", "name": "root", "reclaimPolicy": "Retain"}],
            "interfaces": [{"macAddress": "52:54:00:00:00:01", "network": "front", "addresses": ["10.0.0.7"]}],
        },
    },
    EventSink: {
        "http": {"url": "https://hooks.example.com/kumulus", "secret": {"name": "hook", "key": "secret"}},
        "filter": {"kinds": ["VirtualMachine"], "types": ["io.kumulus.vm.*"], "labels": {"app": "web"}},
        "retry": {"attempts": 3},
        "replay": True,
    },
    Network: {
        "class": "fast",
        "cidrs": ["10.0.0.0/24", "fd00:1::/64"],
        "gateway": "10.0.0.254",
        "mtu": 1400,
        "dhcp": {
            "ranges": [{"start": "10.0.0.10", "end": "10.0.0.99"}],
            "options": [{"name": "ntp-server", "values": ["192.0.2.1"]}],
        },
        "dns": {"domain": "example.internal", "servers": ["192.0.2.53"]},
    },
    NetworkInterface: {
        "network": "front",
        "addresses": ["10.0.0.9"],
        "macAddress": "02:00:00:00:00:09",
        "securityGroups": ["web"],
        "allowedAddressPairs": [{"address": "10.0.0.100"}, {"address": "10.0.1.0/24"}],
        "bandwidth": {"inbound": "100M"},
    },
    SecurityGroup: {
        "ingress": [
            {"protocol": "TCP", "ports": ["22", "8000-8100"], "from": {"cidrs": ["192.0.2.0/24"]}},
            {"from": {"securityGroup": "web"}},
        ],
        "egress": [{"to": {"cidrs": ["0.0.0.0/0", "::/0"]}}],
    },
    LoadBalancer: {
        "network": "front",
        "addresses": ["10.0.0.80"],
        "securityGroups": ["web"],
        "listeners": [
            {"port": 80, "protocol": "HTTP", "targetPort": 8080, "stickiness": {"type": "Cookie"}},
            {"port": 443, "protocol": "HTTPS", "targetPort": 8080, "tls": {"secret": "site"}, "proxyProtocol": True},
            {"port": 5432, "algorithm": "LeastConnections", "stickiness": {"type": "SourceIP", "timeoutSeconds": 60}},
        ],
        "members": {"selector": {"app": "web"}},
        "healthCheck": {"type": "HTTP", "path": "/healthz", "intervalSeconds": 2},
        "maxConnections": 1000,
    },
    Router: {
        "networks": ["front", "back"],
        "externalNetwork": "public",
        "sourceNAT": False,
        "staticRoutes": [{"destination": "172.16.0.0/16", "nextHop": "10.0.0.9"}],
    },
    FloatingIP: {
        "externalNetwork": "public",
        "address": "203.0.113.11",
        "portForwards": [
            {"port": 53, "protocol": "UDP", "interface": "dns"},
            {"port": 53, "protocol": "TCP", "targetPort": 5353, "interface": "dns"},
        ],
    },
    ExternalNetwork: {
        "physicalNetwork": "wire",
        "vlan": 7,
        "cidr": "203.0.113.0/24",
        "gateway": "203.0.113.1",
        "ranges": [{"start": "203.0.113.10", "end": "203.0.113.20"}],
        "allowedNamespaces": ["a"],
    },
    PhysicalNetwork: {
        "traffic": "Public",
        "mtu": 9000,
        "uplinks": [{"name": "racks", "hostSelector": {"role": "gateway"}, "device": "br-out.5"}],
    },
    NetworkClass: {"driver": "linux", "mtu": 9000, "restSeconds": 10, "allowedNamespaces": ["a"]},
    IPAddress: {"network": UID, "address": "10.0.0.9", "interface": "web", "interfaceUid": OTHER_UID},
    SegmentId: {"network": UID, "name": "front", "namespace": "default"},
    Zone: {"displayName": "Room 1"},
    Host: {"zone": "z1", "taints": [{"key": "dedicated", "value": "web"}], "reserved": {"cpu": 1, "memory": "1Gi"}},
    HostRemediation: {
        "host": "h1",
        "reason": "smoke",
        "confirmedOff": True,
        "lastRenewal": "2026-11-20T11:00:00.000000Z",
    },
    WorkOrder: {"type": "Instance", "for": FOR, "term": 5, "instance": INSTANCE},
    HostReport: {},
    UnmanagedInstance: {},
}

IPMI: Raw = {"type": "ipmi", "address": "10.0.9.1:623", "credentialsSecret": "bmc"}
BMC: Raw = {"type": "redfish", "address": "https://10.0.9.1", "credentialsSecret": "bmc", "caBundle": "..."}

EXISTING: Raw = {"pool": "local", "host": "h1", "id": UID}

ORDERS: Mapping[str, Raw] = {
    "instance": {"type": "Instance", "instance": INSTANCE},
    "disk": {
        "type": "Disk",
        "disk": {"pool": POOL, "importImage": {"image": ORDERED_IMAGE, "http": {"url": "https://example.com/x"}}},
    },
    "registry": {
        "type": "Disk",
        "disk": {
            "pool": POOL,
            "importImage": {
                "image": {"uid": UID, "format": "raw"},
                "oci": {
                    "reference": "quay.io/a:1",
                    "architecture": "x86_64",
                    "secret": "pull-1",
                    "digest": f"sha256:{SHA}",
                },
            },
        },
    },
    "volume": {"type": "Disk", "disk": {"pool": POOL, "volume": {"uid": UID, "size": 2**30}}},
    "snapshot": {
        "type": "Snapshot",
        "snapshot": {"items": [{"snapshot": UID, "volume": OTHER_UID, "pool": POOL}], "quiesceSeconds": 30},
    },
    "pool": {"type": "Pool", "pool": {"pool": POOL}},
    "segment": {
        "type": "Segment",
        "segment": {
            "uid": UID,
            "driver": "linux",
            "vni": 5000,
            "mtu": 1450,
            "peers": ["192.0.2.2"],
            "subnets": [{"cidr": "10.0.0.0/24", "service": "10.0.0.2"}],
            "dns": {"domain": "example.internal", "records": [{"name": "web", "addresses": ["10.0.0.9"]}]},
            "groups": [{"uid": UID, "ingress": [{"protocol": "TCP", "ports": [{"first": 1, "last": 9}]}]}],
        },
    },
    "gateway": {
        "type": "Gateway",
        "gateway": {
            "uid": UID,
            "driver": "linux",
            "legs": [
                {"network": UID, "mac": "0a:00:00:00:00:01", "mtu": 1450, "addresses": ["10.0.0.1/24"]},
                {"network": OTHER_UID, "mac": "0a:00:00:00:00:02", "mtu": 1500, "uplink": {"device": "out0"}},
            ],
            "redundancy": {"group": 1, "priority": 100, "mac": "0a:00:00:00:00:03"},
            "router": {"routes": [{"destination": "0.0.0.0/0", "via": "203.0.113.1"}]},
        },
    },
    "console": {"type": "Console", "console": {"uid": UID, "maxBytes": 1024}},
    "certificate": {"type": "Certificate", "certificate": {"certificate": "PEM", "authorities": "PEM"}},
    "upload": {
        "type": "Upload",
        "upload": {"image": UID, "tokenSha256": "ab" * 32, "expiresAt": "2026-01-01T00:00:00Z"},
    },
    "awaited": {"type": "Disk", "disk": {"pool": POOL, "importImage": {"image": ORDERED_IMAGE, "upload": {}}}},
    "copy": {
        "type": "Disk",
        "disk": {
            "pool": POOL,
            "importImage": {
                "image": ORDERED_IMAGE,
                "http": {"url": "https://example.com/x"},
                "copy": {
                    "content": {"sha256": "ab" * 32, "size": 1, "format": "qcow2"},
                    "peers": [{"host": "h1", "address": "fd00::1", "port": 9411}],
                },
            },
        },
    },
}


def made(resource: type[Resource], spec: Raw | None = None, *, name: str = "web") -> Raw:
    """A good object of the kind."""
    kind = resource.KIND
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": name},
        "spec": copy.deepcopy(GOOD[resource] if spec is None else spec),
    }


def put(target: Any, path: str, value: object) -> None:
    """Set, or with `GONE` take away, what the dotted path leads to; numbers are places in lists."""
    *way, last = path.split(".")
    for step in way:
        target = target[int(step)] if isinstance(target, list) else target.setdefault(step, {})
    if isinstance(target, list):
        target[int(last)] = copy.deepcopy(value)
    elif value is GONE:
        del target[last]
    else:
        target[last] = copy.deepcopy(value)


@pytest.fixture(scope="module")
def api(cluster: NativeCluster) -> Cluster:
    """The API server, as an administrator."""
    return Cluster.connect(cluster.kubeconfig)


def within(kind: Kind, namespace: str) -> str | None:
    return namespace if kind.namespaced else None


def create(api: Cluster, raw: Raw, kind: Kind, namespace: str, *, query: Mapping[str, str] = STRICT) -> Raw:
    return api.request("POST", kind.path(within(kind, namespace)), query=query, body=raw)


def refusal(api: Cluster, raw: Raw, kind: Kind, namespace: str) -> str:
    """What the API server says against creating it."""
    with pytest.raises(errors.Refused) as refused:
        create(api, raw, kind, namespace, query=DRY)
    assert refused.value.status in (400, 422), refused.value
    return refused.value.message


@dataclass(frozen=True)
class Bad:
    """A good object with one thing wrong, and the field the refusal has to name."""

    resource: type[Resource]
    path: str
    value: object
    field: str = ""

    def __str__(self) -> str:
        text = "absent" if self.value is GONE else repr(self.value)
        return f"{self.resource.KIND.kind}-{self.path}-{text[:24]}"

    @property
    def named(self) -> str:
        return self.field or self.path


def disk(name: str) -> Raw:
    return {"name": name, "ephemeral": {"image": "debian-12"}}


HOSTS = "spec.placement.affinity.hostAffinity.required.0.matchExpressions.0"
OTHERS = "spec.placement.affinity.vmAntiAffinity.required.0"
KEY = {"publicKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 alice@example"}
SECRET = {"name": "alice", "key": "id.pub"}
TOO_LONG = "x" * 64

BAD = [
    # sizes
    *(Bad(VirtualMachine, "spec.resources.cpus", cpus) for cpus in (0, -1, 1025, 10**12, 1.5, "2", True, None)),
    *(
        Bad(VirtualMachine, "spec.resources.memory", memory)
        for memory in ("0", 0, "-1Gi", -1, "15Mi", "17Ti", "1e30", "9" * 33, "lots", "2 Gi", "", "2GiB", True, [], None)
    ),
    *(
        Bad(VirtualMachine, "spec.disks.0.ephemeral.size", size, "spec.disks[0].ephemeral.size")
        for size in ("0", "-1", "1", 0, -5, "257Ti", "8Ei", "ten", False)
    ),
    *(Bad(InstanceType, "spec.cpus", cpus) for cpus in (0, -4, 4096)),
    *(Bad(InstanceType, "spec.memory", memory) for memory in ("0", "-2Gi", "1Pi", 1)),
    *(Bad(Image, "spec.minDisk", size) for size in ("0", "-1Gi", "1Ei")),
    *(Bad(StoragePool, "spec.reserved", amount) for amount in ("-1Gi", "much", "16Ei")),
    *(Bad(StoragePool, "spec.overprovisioning", factor) for factor in (0, 0.5, -1, 101, "2")),
    *(
        Bad(Volume, "spec.source", {"existing": {**EXISTING, "id": id}})
        for id in ("x", "../../etc/shadow-file-of-36-letters-xx", 1)
    ),
    *(
        Bad(Volume, "spec.source", {"existing": {**EXISTING, name: value}})
        for name, value in (("pool", "/"), ("host", ""))
    ),
    Bad(
        Volume,
        "spec.source",
        {"image": "x", "existing": EXISTING},
        "exactly one of image, volume, snapshot and existing",
    ),
    *(Bad(StoragePool, "spec.thresholds.stopNewVolumesAt", share) for share in (0, 101, "90%")),
    Bad(StoragePool, "spec.thresholds.warnAt", 91, "spec.thresholds.warnAt"),
    Bad(StoragePool, "spec.allowedNamespaces", ["A"]),
    *(Bad(Host, "spec.overcommit.cpu", factor) for factor in (0, -1, 1000)),
    *(Bad(Host, "spec.reserved.cpu", count) for count in (-1, 1.5, 2000)),
    Bad(Host, "spec.reserved.memory", "-1"),
    *(Bad(VirtualMachine, "spec.stop.gracePeriodSeconds", seconds) for seconds in (-1, 3601)),
    *(Bad(VirtualMachine, "spec.disks.1.bootOrder", order, "spec.disks[1].bootOrder") for order in (0, -1, 65)),
    *(Bad(ConsoleRequest, "spec.maxBytes", count) for count in (0, -1, 262145)),
    *(Bad(ConsoleRequest, "spec.ttlSeconds", count) for count in (0, 3601)),
    *(Bad(WorkOrder, f"spec.instance.{name}", 0) for name in ("cpus", "memory", "epoch")),
    Bad(WorkOrder, "spec.term", -1),
    # placement
    *(
        Bad(VirtualMachine, f"{at}.{where}", value, f"{at}.{said}".replace(".0", "[0]"))
        for at, where, value, said in (
            (HOSTS, "operator", "Near", "operator"),
            (HOSTS, "values", ["many"], "values"),
            (HOSTS, "values", ["1", "2"], "values"),
            (HOSTS, "values", GONE, "values"),
            (HOSTS, "key", "not a label", "key"),
            (OTHERS, "topologyKey", GONE, "topologyKey"),
            (OTHERS, "topologyKey", "", "topologyKey"),
            (OTHERS, "labelSelector", GONE, "labelSelector"),
            (OTHERS, "labelSelector.matchLabels", {"a b": "c"}, "labelSelector.matchLabels"),
            (OTHERS, "labelSelector.matchLabels", {"a": "b c"}, "labelSelector.matchLabels"),
            (OTHERS, "labelSelector.matchExpressions.0.values", GONE, "labelSelector.matchExpressions.0.values"),
            (OTHERS, "labelSelector.matchExpressions.0.operator", "Gt", "labelSelector.matchExpressions.0.operator"),
            (
                OTHERS,
                "labelSelector.matchExpressions.0.operator",
                "Exists",
                "labelSelector.matchExpressions.0.values",
            ),
            ("spec.placement", "affinity.vmAffinity.preferred.0.weight", 101, "affinity.vmAffinity.preferred.0.weight"),
            ("spec.placement", "topologySpreadConstraints.0.maxSkew", 0, "topologySpreadConstraints.0.maxSkew"),
            ("spec.placement", "profile", "Random", "profile"),
        )
    ),
    Bad(PlacementGroup, "spec.policy", "Near"),
    Bad(PlacementGroup, "spec.policy", "SoftAffinity", "spec.maxPerTopology"),
    Bad(PlacementGroup, "spec.selector", GONE),
    *(Bad(PlacementGroup, "spec.maxPerTopology", most) for most in (0, 10001)),
    Bad(PlacementGroup, "spec.topologyKey", "a/b/c"),
    Bad(Host, "spec.allowedNamespaces", ["A"]),
    # unions
    Bad(VirtualMachine, "spec.instanceType", "small", "exactly one of instanceType and resources"),
    Bad(VirtualMachine, "spec.resources", GONE, "exactly one of instanceType and resources"),
    Bad(VirtualMachine, "spec.cpu", {"sockets": 2, "cores": 2}, "sockets x cores x threads must be maxCpus"),
    Bad(VirtualMachine, "spec.cpu", {"cores": 3}, "sockets x cores x threads must be maxCpus"),
    Bad(VirtualMachine, "spec.cpu", {"model": "a<b"}, "spec.cpu.model"),
    Bad(VirtualMachine, "spec.machineType", "pc", "spec.machineType"),
    Bad(VirtualMachine, "spec.firmware", {"secureBoot": True}, "secureBoot needs the type UEFI"),
    Bad(VirtualMachine, "spec.watchdog", {"action": "Dance"}, "spec.watchdog.action"),
    Bad(Zone, "spec.cpuBaseline", "", "spec.cpuBaseline"),
    Bad(VirtualMachine, "spec.resources.maxCpus", 1, "maxCpus cannot be less than cpus"),
    Bad(VirtualMachine, "spec.resources.maxMemory", "1Gi", "maxMemory cannot be less than memory"),
    Bad(InstanceType, "spec.maxMemory", "511Mi", "maxMemory cannot be less than memory"),
    Bad(VirtualMachine, "spec.cloudInit.userDataSecret", SECRET, "either userData or userDataSecret"),
    Bad(VirtualMachine, "spec.sshKeys", [{}], "spec.sshKeys[0]"),
    Bad(VirtualMachine, "spec.sshKeys", [KEY, {**KEY, "secret": SECRET}], "spec.sshKeys[1]"),
    Bad(VirtualMachine, "spec.disks.0.ephemeral", GONE, "spec.disks[0]"),
    Bad(VirtualMachine, "spec.disks.0.volume", "data", "exactly one of volumeTemplate, volume, ephemeral and cdrom"),
    Bad(VirtualMachine, "spec.disks.0.cdrom", {}, "exactly one of volumeTemplate, volume, ephemeral and cdrom"),
    Bad(VirtualMachine, "spec.disks.0", {"name": "x", "cdrom": {"image": "../x"}}, "spec.disks[0].cdrom.image"),
    Bad(VirtualMachine, "spec.disks.0", {"name": "x", "cdrom": {"bus": "ide"}}, "spec.disks[0].cdrom.bus"),
    Bad(VirtualMachine, "spec.disks", [{"name": f"d{n}", "cdrom": {}} for n in range(5)], "at most 4 CD-ROM drives"),
    Bad(VirtualMachine, "spec.disks.0", {"name": "x", "volumeTemplate": {}}, "spec.disks[0].volumeTemplate.size"),
    Bad(VirtualMachine, "spec.disks.0", {"name": "x", "volume": "../x"}, "spec.disks[0].volume"),
    Bad(Volume, "spec", {"class": "fast"}, "spec.size"),
    Bad(Volume, "spec.source", {}, "exactly one of image, volume, snapshot and existing"),
    Bad(Volume, "spec.source.volume", "other", "exactly one of image, volume, snapshot and existing"),
    Bad(Volume, "spec.source.snapshot", "other", "exactly one of image, volume, snapshot and existing"),
    Bad(Volume, "spec.source.cloneMode", "Linked", "spec.source.cloneMode"),
    Bad(Volume, "spec.source", {"snapshot": "s", "cloneMode": "Shallow"}, "spec.source.cloneMode"),
    Bad(
        VirtualMachine,
        "spec.disks.0",
        {"name": "x", "volumeTemplate": {"source": {"image": "i", "snapshot": "s"}}},
        "exactly one of image and snapshot",
    ),
    Bad(VolumeSnapshot, "spec.volume", GONE),
    *(Bad(VolumeSnapshot, "spec.volume", name) for name in ("", "../x", "A")),
    Bad(VolumeSnapshot, "spec.quiesce.mode", "Always"),
    *(Bad(VolumeSnapshot, "spec.quiesce.timeoutSeconds", seconds) for seconds in (0, 601)),
    Bad(VirtualMachineSnapshot, "spec.vm", "a/b"),
    *(Bad(VirtualMachinePool, "spec.replicas", count) for count in (-1, 1001)),
    *(Bad(VirtualMachinePool, "spec.selector", labels) for labels in ({}, GONE)),
    *(
        Bad(VirtualMachinePool, "spec.template.metadata.labels", labels)
        for labels in ({"tier": "front"}, {"app": "db"}, {"app": "web", "kumulus.io/pool": "x"})
    ),
    *(
        Bad(VirtualMachinePool, "spec.updateStrategy.rollingUpdate.maxSurge", share)
        for share in ("a", "101%", -1, "1.5")
    ),
    Bad(VirtualMachinePool, "spec.template.spec.disks.0", {"name": "d", "volume": "v"}, "spec.template.spec.disks"),
    *(
        Bad(VirtualMachinePool, "spec.template.spec.interfaces", [{"name": "n", **one}])
        for one in ({"interface": "x"}, {"network": "x", "addresses": ["10.0.0.1"]})
    ),
    Bad(VirtualMachinePool, "spec.template.spec.deletionProtection", True),
    Bad(VirtualMachinePool, "spec.template.spec.resources", GONE, "spec.template.spec"),
    Bad(VirtualMachinePool, "spec.healing.replace", ["Tired"]),
    Bad(VirtualMachinePool, "spec.healing.afterSeconds", 1),
    Bad(VirtualMachineMigration, "spec.mode", "PostCopy", "PostCopy is not offered"),
    Bad(VirtualMachineMigration, "spec.limits.timeoutSeconds", 1),
    Bad(
        VirtualMachineMigration, "spec", {"vm": "web", "mode": "PreCopy", "onStall": "Throttle"}, "slows no guest down"
    ),
    Bad(VirtualMachineMigration, "spec.vm", "Not_A_Name"),
    Bad(VirtualMachineImport, "spec.unmanagedInstance.name", "by-hand"),
    Bad(VirtualMachineImport, "spec.template.instanceType", "Big"),
    Bad(VirtualMachineImport, "spec.template.interfaces.0.addresses", ["10.0.0"], "spec.template.interfaces[0]"),
    Bad(EventSink, "spec", {}, "exactly one of http and nats"),
    Bad(EventSink, "spec.nats", {"url": "nats://stream.example.com:4222"}, "exactly one of http and nats"),
    Bad(EventSink, "spec.http.url", "https://user:key@hooks.example.com/", "without user name or password"),
    Bad(EventSink, "spec.http.url", "file:///etc/passwd", "http or https URL"),
    Bad(EventSink, "spec.filter.types", ["vm.*.started"]),
    Bad(EventSink, "spec", {"nats": {"url": "nats://user:key@host:4222"}}, "must be nats://HOST:PORT"),
    Bad(EventSink, "spec", {"nats": {"url": "nats://host:65536"}}, "must be nats://HOST:PORT"),
    Bad(EventSink, "spec", {"nats": {"url": "nats://\\[::1\\]:4222"}}, "must be nats://HOST:PORT"),
    Bad(EventSink, "spec", {"nats": {"url": "nats://host:4222", "subject": "a.>"}}, "spec.nats.subject"),
    Bad(VirtualMachineRestore, "spec.target", {}, "exactly one of vm and newVM"),
    Bad(VirtualMachineRestore, "spec.target.vm", "web", "exactly one of vm and newVM"),
    Bad(VirtualMachineRestore, "spec.target", {"vm": "web", "cloneMode": "Full"}, "spec.target.cloneMode"),
    Bad(VirtualMachineRestore, "spec.ttlSecondsAfterFinished", -1),
    *(Bad(Volume, "spec.size", size) for size in ("0", "-1Gi", "257Ti", "much", 5)),
    *(Bad(Volume, "spec.source.image", name) for name in ("", "../x", "A")),
    Bad(Volume, "spec.reclaimPolicy", "Recycle"),
    Bad(Volume, "spec.pool", "a/b"),
    Bad(VolumeClass, "spec.provisioning", "Fat"),
    *(Bad(VolumeClass, "spec.cache", cache) for cache in ("unsafe", "None", "", "default")),
    *(Bad(VolumeClass, "spec.qos.iops", iops) for iops in (0, -1, 100_000_001, "1k", 1.5)),
    *(
        Bad(VolumeClass, "spec.qos.readBytesPerSecond", rate)
        for rate in ("0", "-1Mi", "201Gi", "fast", 10**18, "1" * 33)
    ),
    Bad(VolumeClass, "spec.qos.readIops", 10, "a total leaves no room"),
    Bad(VolumeClass, "spec.qos.bytesPerSecond", "20Mi", "a total leaves no room"),
    Bad(VolumeClass, "spec.qos.iops", 201, "burst.iops needs a iops that is not above it"),
    Bad(VolumeClass, "spec.qos.burst.writeBytesPerSecond", "1Mi", "burst.writeBytesPerSecond needs"),
    Bad(VolumeClass, "spec.qos.burst.readBytesPerSecond", "9Mi", "burst.readBytesPerSecond needs"),
    Bad(VolumeClass, "spec.encryption", {}, "spec.encryption.secret"),
    *(Bad(VolumeClass, "spec.encryption", {"secret": name}, "spec.encryption.secret") for name in ("", "../x", "A")),
    Bad(VolumeClass, "spec.encryption", {"secret": "k", "key": "a b"}, "spec.encryption.key"),
    Bad(VolumeClass, "spec.qos.burst", {"seconds": 5}, "a burst needs a rate"),
    *(Bad(VolumeClass, "spec.qos.burst.seconds", seconds) for seconds in (0, 3601)),
    Bad(VolumeClass, "spec.poolSelector", {"bad key": "x"}),
    Bad(VolumeClass, "spec.allowedNamespaces", ["A_"], "spec.allowedNamespaces[0]"),
    Bad(
        WorkOrder,
        "spec",
        {**ORDERS["volume"], "for": FOR, "disk": {"pool": POOL}},
        "exactly one of importImage and volume",
    ),
    Bad(WorkOrder, "spec.instance.disks.0.volume", UID, "exactly one of image and volume"),
    Bad(Image, "spec.source.upload", {}, "exactly one of"),
    Bad(ClusterImage, "spec.source", {"upload": {}}, "only an Image can be uploaded"),
    *(Bad(ImageUpload, "spec.tokenSha256", digest) for digest in (GONE, "", "ab" * 31, "AB" * 32)),
    *(Bad(ImageUpload, "spec.ttlSeconds", seconds) for seconds in (0, 59, 86401)),
    *(Bad(ImageUpload, "spec.image", name) for name in (GONE, "", "a.b", "../x")),
    Bad(Image, "spec.cachePolicy", "Nowhere"),
    Bad(StoragePool, "spec.imageCache.maxSize", "-1"),
    Bad(Image, "spec.source", {}, "exactly one of http, oci, upload, volume and snapshot"),
    Bad(Image, "spec.allowedNamespaces", ["A_"], "spec.allowedNamespaces[0]"),
    *(
        Bad(Image, "spec", spec, "an image of a volume or snapshot")
        for spec in (
            {**PUBLISHED, "checksum": {"sha256": SHA}},
            {**PUBLISHED, "format": "raw"},
            {**PUBLISHED, "compression": "xz"},
            {"source": {"snapshot": "s"}, "format": "iso"},
        )
    ),
    *(
        Bad(Image, "spec", {**PUBLISHED, "source": {kind: name}})
        for kind in ("volume", "snapshot")
        for name in ("", "../x", "A")
    ),
    Bad(Image, "spec", {**PUBLISHED, "source": {"volume": "a", "snapshot": "b"}}, "exactly one of http, oci, upload"),
    Bad(Image, "spec", {**PUBLISHED, "source": {"volume": "a", "upload": {}}}, "exactly one of http, oci, upload"),
    Bad(Image, "spec", {**PUBLISHED, "source": {"upload": {}}}, "needs its checksum"),
    Bad(ClusterImage, "spec", PUBLISHED, "no namespace with volumes"),
    Bad(Image, "spec.allowedNamespaces", ["a"] * 300, "spec.allowedNamespaces"),
    Bad(Volume, "spec.source", {"volume": "other", "imageNamespace": "golden"}, "imageNamespace is for image"),
    *(Bad(Volume, "spec.source.imageNamespace", name) for name in ("", "../x", "A", "a.b")),
    *(
        Bad(VirtualMachine, "spec.disks.0.ephemeral.imageNamespace", name, "spec.disks[0].ephemeral.imageNamespace")
        for name in ("", "../x", "A")
    ),
    Bad(Image, "spec.source.http", {"url": "http://images.example.org/i", "secret": "web"}, "sent over TLS only"),
    *(Bad(Image, "spec.source.http.secret", name) for name in ("", "../x", "A")),
    Bad(Image, "spec.source.oci", OCI["source"]["oci"], "exactly one of http, oci, upload, volume and snapshot"),
    Bad(
        WorkOrder,
        "spec",
        {"type": "Disk", "for": FOR, "disk": {"pool": POOL, "importImage": {"image": ORDERED_IMAGE}}},
        "exactly one of http, oci, upload and volume",
    ),
    Bad(
        WorkOrder,
        "spec",
        {"type": "Disk", "for": FOR, "disk": {"pool": POOL, "volume": {"uid": UID, "origin": LOCKED_IMAGE}}},
        "spec.disk.volume.origin.secret",
    ),
    Bad(Image, "spec", {**OCI, "source": {"oci": {}}}, "spec.source.oci.reference"),
    *(
        Bad(Image, "spec", {**OCI, "source": {"oci": {"reference": reference}}}, "spec.source.oci.reference")
        for reference in (
            "",
            "debian",
            "debian:12",
            "library/debian",
            "https://quay.io/a",
            "quay.io",
            "quay.io/",
            "quay.io/A",
            "quay.io/../a",
            "quay.io/a:",
            "quay.io/a@sha256:0",
            "user@quay.io/a",
            "quay.io/a?b",
            "quay.io/a b",
            "quay.io/a\n",
            "quay.io/" + "a" * 600,
        )
    ),
    *(
        Bad(
            Image,
            "spec",
            {**OCI, "source": {"oci": {**OCI["source"]["oci"], field: value}}},
            f"spec.source.oci.{field}",
        )
        for field, value in (
            ("secret", ""),
            ("secret", "../x"),
            ("secret", "A"),
            ("layout", "Docker"),
            ("caBundle", "x" * 70000),
        )
    ),
    Bad(StoragePool, "spec.parameters", GONE, "spec.parameters.path"),
    Bad(StoragePool, "spec.parameters", {}, "spec.parameters.path"),
    Bad(StoragePool, "spec", {"driver": "nfs"}, "spec.parameters.nfs"),
    Bad(StoragePool, "spec", {"driver": "nfs", "parameters": {"rbd": RBD}}, "spec.parameters.rbd"),
    Bad(StoragePool, "spec", {"driver": "nfs", "parameters": {"nfs": NFS, "path": "/x"}}, "spec.parameters.path"),
    Bad(StoragePool, "spec", {"driver": "nfs", "parameters": {"nfs": NFS, "shared": True}}, "spec.parameters.shared"),
    Bad(StoragePool, "spec.parameters.lvm", LVM),
    *(
        Bad(StoragePool, "spec", {"driver": "nfs", "parameters": {"nfs": {**NFS, **wrong}}}, "spec.parameters.nfs")
        for wrong in (
            {"server": ""},
            {"server": "a,b"},
            {"server": "-o"},
            {"server": "nfs.example.com:/x"},
            {"server": "UPPER"},
            {"path": "relative"},
            {"path": "/a,b"},
            {"path": "/a/../b"},
            {"version": "2"},
            {"mountOptions": ["soft"]},
            {"mountOptions": ["nolock"]},
            {"mountOptions": ["noatime,suid"]},
            {"mountOptions": ["nconnect=17"]},
        )
    ),
    *(
        Bad(StoragePool, "spec", {"driver": "rbd", "parameters": {"rbd": {**RBD, **wrong}}}, "spec.parameters.rbd")
        for wrong in (
            {"monitors": []},
            {"monitors": ["a;b"]},
            {"monitors": ["a:b:c"]},
            {"pool": "a/b"},
            {"pool": "-a"},
            {"namespace": "a@b"},
            {"user": "a:key=x"},
            {"secret": {"name": "../x"}},
        )
    ),
    *(
        Bad(StoragePool, "spec", {"driver": "lvm", "parameters": {"lvm": {**LVM, **wrong}}}, "spec.parameters.lvm")
        for wrong in (
            *({"volumeGroup": name} for name in ("a/b", "-a", "..", "", "a,b", "@tag", "$(id)", "x" * 49)),
            *({"thinPool": name} for name in ("a b", "a/b", "--zero", "snapshot1", "pvmove0", "vms_tdata", "x" * 128)),
        )
    ),
    Bad(WorkOrder, "spec.instance", GONE, "field named like spec.type"),
    Bad(WorkOrder, "spec.type", "Pool", "field named like spec.type"),
    Bad(WorkOrder, "spec.pool", {"pool": POOL}, "field named like spec.type"),
    Bad(WorkOrder, "spec.instance.seed.secret", "s", "spec.instance.seed"),
    Bad(WorkOrder, "spec.instance.seed", {}, "spec.instance.seed"),
    # enumerations
    *(Bad(VirtualMachine, "spec.powerState", state) for state in ("running", "Off", "", 1)),
    Bad(VirtualMachine, "spec.restartPolicy", "Sometimes"),
    Bad(VirtualMachine, "spec.stop.mode", "Kill"),
    Bad(VirtualMachine, "spec.placement.profile", "Random"),
    Bad(VirtualMachine, "spec.placement.tolerations.0.operator", "In", "spec.placement.tolerations[0].operator"),
    Bad(VirtualMachine, "spec.placement.tolerations.0.effect", "NoExecute", "spec.placement.tolerations[0].effect"),
    Bad(ConsoleRequest, "spec.type", "Vnc"),
    Bad(Image, "spec.format", "vdi"),
    Bad(Image, "spec.compression", "lz4"),
    Bad(Image, "spec.compression", ""),
    Bad(StoragePool, "spec.driver", "zfs"),
    Bad(Host, "spec.hypervisor", "xen"),
    Bad(Host, "spec.fencing", {"automatic": True}, "spec.fencing"),
    Bad(Host, "spec.bmc", {**BMC, "address": "http://10.0.9.1"}, "spec.bmc.address"),
    Bad(Host, "spec.bmc", {**BMC, "insecureSkipVerify": True}, "spec.bmc"),
    Bad(Host, "spec.bmc", {**IPMI, "address": "https://10.0.9.1"}, "spec.bmc.address"),
    Bad(Host, "spec.bmc", {**IPMI, "caBundle": "..."}, "spec.bmc"),
    Bad(Host, "spec.bmc", {**IPMI, "insecureSkipVerify": True}, "spec.bmc"),
    *(Bad(Host, "spec.bmc", {**BMC, "system": name}, "spec.bmc.system") for name in ("../x", "a/b", "a?b")),
    Bad(HostRemediation, "spec.host", GONE),
    Bad(HostRemediation, "spec.lastRenewal", GONE, "spec.lastRenewal"),
    Bad(HostRemediation, "spec.methods", [], "spec.methods"),
    Bad(HostRemediation, "spec.methods", ["Shout!"], "spec.methods[0]"),
    *(
        Bad(VirtualMachine, f"spec.highAvailability.{name}", -1)
        for name in ("priority", "maxRestarts", "windowSeconds")
    ),
    Bad(Host, "spec.taints.0.effect", "NoExecute", "spec.taints[0].effect"),
    Bad(WorkOrder, "spec.type", "Reboot"),
    Bad(WorkOrder, "spec.instance.power", "On"),
    # types
    Bad(VirtualMachine, "spec.resources", "small"),
    Bad(VirtualMachine, "spec.resources", []),
    Bad(VirtualMachine, "spec.disks", {"root": {}}),
    Bad(VirtualMachine, "spec.disks", "root"),
    Bad(VirtualMachine, "spec.zone", ["z1"]),
    Bad(VirtualMachine, "spec.zone", {"name": "z1"}),
    Bad(VirtualMachine, "spec.deletionProtection", "yes"),
    Bad(VirtualMachine, "spec.restartRequest", 20261120),
    Bad(VirtualMachine, "spec.cloudInit.userData", ["#cloud-config"]),
    Bad(VirtualMachine, "spec.placement.hostSelector", ["nvme"]),
    Bad(VirtualMachine, "spec.placement.hostSelector.disk", 1),
    Bad(VirtualMachine, "spec", GONE),
    Bad(VirtualMachine, "spec", "x"),
    Bad(Image, "spec.source.http.url", ["https://example.com/x"]),
    Bad(Host, "spec.unschedulable", "true"),
    Bad(Host, "spec.maintenance", {"mode": "InPlace", "returnGuests": True}),
    Bad(Host, "spec.maintenance", {"mode": "Drain"}),
    Bad(VirtualMachine, "spec.evictionPolicy", "External"),
    # what has to be there
    Bad(VirtualMachine, "spec.resources.cpus", GONE),
    Bad(VirtualMachine, "spec.disks.0.name", GONE, "spec.disks[0].name"),
    Bad(VirtualMachine, "spec.disks.0.ephemeral.image", GONE, "spec.disks[0].ephemeral.image"),
    Bad(Image, "spec.checksum", GONE),
    Bad(Image, "spec.checksum.sha256", GONE),
    Bad(Image, "spec.format", GONE),
    Bad(Host, "spec.zone", GONE),
    Bad(ConsoleRequest, "spec.vm", GONE),
    Bad(WorkOrder, "spec.for", GONE),
    Bad(WorkOrder, "spec.for.uid", GONE),
    # names
    *(
        Bad(VirtualMachine, "metadata.name", name)
        for name in ("web.example", "Web", "-web", "web-", "web_1", "x" * 64, "web/1", "..", "ünï", "web 1")
    ),
    *(Bad(resource, "metadata.name", "a.b") for resource in KINDS if resource is not VirtualMachine),
    Bad(Host, "metadata.name", "h" * (HOST_NAME_MAX + 1)),
    *(
        Bad(VirtualMachine, "spec.disks.0.name", name, "spec.disks[0].name")
        for name in ("", "Root", "a.b", "../x", "x" * 33, "a\nb", "-a")
    ),
    *(
        Bad(VirtualMachine, "spec.disks.0.ephemeral.image", name, "spec.disks[0].ephemeral.image")
        for name in ("", "Debian", "a/b", "../x", "$(id)", TOO_LONG)
    ),
    *(Bad(VirtualMachine, "spec.zone", zone) for zone in ("", "Z1", "z_1", TOO_LONG)),
    *(Bad(ConsoleRequest, "spec.vm", name) for name in ("", "a.b", "../x")),
    *(Bad(Host, "spec.zone", name) for name in ("", "Z1")),
    Bad(InstanceType, "spec.allowedNamespaces", ["Not_a_namespace"], "spec.allowedNamespaces[0]"),
    # limits
    Bad(VirtualMachine, "spec.cloudInit.userData", "x" * (USER_DATA_MAX + 1)),
    Bad(VirtualMachine, "spec.cloudInit.networkData", "x" * (USER_DATA_MAX + 1)),
    Bad(VirtualMachine, "spec.cloudInit.metaData", {f"k{n}": "" for n in range(33)}),
    Bad(VirtualMachine, "spec.cloudInit.metaData", {"role": "x" * 4097}),
    Bad(VirtualMachine, "spec.restartRequest", "x" * 254),
    Bad(VirtualMachine, "spec.disks", [disk(f"d{n}") for n in range(17)]),
    Bad(VirtualMachine, "spec.sshKeys", [KEY] * 17),
    Bad(VirtualMachine, "spec.placement.tolerations", [{"key": f"k{n}"} for n in range(17)]),
    Bad(VirtualMachine, "spec.placement.hostSelector", {f"k{n}": "" for n in range(33)}),
    Bad(VirtualMachine, "spec.sshKeys.0.publicKey", f"ssh-rsa {'A' * 8192}", "spec.sshKeys[0].publicKey"),
    Bad(InstanceType, "spec.allowedNamespaces", [f"n{n}" for n in range(257)]),
    Bad(Host, "spec.taints", [{"key": f"k{n}"} for n in range(33)]),
    Bad(Zone, "spec.displayName", "x" * 129),
    # said twice
    Bad(VirtualMachine, "spec.disks", [disk("root"), disk("root")], "spec.disks[1]"),
    Bad(InstanceType, "spec.allowedNamespaces", ["a", "a"], "spec.allowedNamespaces[1]"),
    # form
    *(
        Bad(VirtualMachine, "spec.placement.hostSelector", {key: "x"})
        for key in ("bad key", "", "-a", "a/b/c", "Example.com/x", "/x", "x" * 64, "$(id)")
    ),
    *(Bad(VirtualMachine, "spec.placement.hostSelector.disk", value) for value in ("a b", TOO_LONG, "-x", "$(id)")),
    Bad(VirtualMachine, "spec.placement.tolerations.0.key", "a b", "spec.placement.tolerations[0].key"),
    Bad(
        VirtualMachine,
        "spec.placement.tolerations",
        [{"key": "a", "operator": "Exists", "value": "x"}],
        "spec.placement.tolerations[0]",
    ),
    Bad(VirtualMachine, "spec.placement.tolerations", [{}], "spec.placement.tolerations[0]"),
    Bad(Host, "spec.taints.0.key", "", "spec.taints[0].key"),
    Bad(Host, "spec.taints.0.value", "a b", "spec.taints[0].value"),
    *(Bad(VirtualMachine, "spec.cloudInit.metaData", {key: "x"}) for key in ("instance-id", "a b", "1", "a.b", "")),
    *(
        Bad(VirtualMachine, "spec.sshKeys.0.publicKey", key, "spec.sshKeys[0].publicKey")
        for key in ("", "hello", "ssh-rsa", "ssh-rsa A\nssh-rsa B", 'command="id" ssh-rsa AAAA', "ssh-rsa A\n")
    ),
    *(
        Bad(VirtualMachine, f"spec.cloudInit.userDataSecret.{name}", "", f"spec.cloudInit.userDataSecret.{name}")
        for name in ("name", "key")
    ),
    *(
        Bad(Image, "spec.source.http.url", url)
        for url in (
            "",
            "debian.qcow2",
            "/etc/shadow",
            "file:///etc/shadow",
            "ftp://example.com/x",
            "nfs://example.com/x",
            "gopher://example.com/",
            "https://",
            "https:///x",
            "http://:80/x",
            "https://user:secret@example.com/x",
            "https://user@example.com/x",
            "https://example.com/a b",
            "https://example.com/a\nHost: x",
            "https://a\\@b/x",
            "javascript:alert(1)",
            "https://example.com/" + "x" * 2048,
        )
    ),
    *(
        Bad(Image, "spec.checksum.sha256", digest)
        for digest in ("", "abc", SHA[:-1], SHA + "0", SHA.upper(), "g" * 64, f"sha256:{SHA}")
    ),
    *(Bad(Image, "spec.architecture", name) for name in ("", "x86 64", "X86_64", "a" * 17)),
    *(
        Bad(StoragePool, "spec.parameters.path", path)
        for path in (
            "",
            "pool",
            "/",
            "/a/../b",
            "/a/./b",
            "//a",
            "/a/",
            "/a b",
            "/$(id)",
            "/-o",
            "/a\n/b",
            "/" + "x" * 255,
        )
    ),
    *(Bad(WorkOrder, "spec.instance.uid", uid) for uid in ("", "web", "../../etc", UID.upper(), UID + "0")),
    Bad(WorkOrder, "spec.disk", {"pool": {**POOL, "uid": "x"}}, "spec.disk.pool.uid"),
    # unknown
    Bad(VirtualMachine, "spec.cpus", 2, 'unknown field "spec.cpus"'),
    Bad(VirtualMachine, "spec.resources.cpu", 2, 'unknown field "spec.resources.cpu"'),
    Bad(VirtualMachine, "spec.disks.0.nfs", "data", 'unknown field "spec.disks[0].nfs"'),
    Bad(VirtualMachine, "specs", {}, 'unknown field "specs"'),
    Bad(VirtualMachine, "status.nonsense", 1, 'unknown field "status.nonsense"'),
    Bad(Host, "spec.overcommit.disk", 1, 'unknown field "spec.overcommit.disk"'),
    Bad(HostReport, "spec.x", 1, 'unknown field "spec.x"'),
    Bad(WorkOrder, "spec.instance.xml", "<x/>", 'unknown field "spec.instance.xml"'),
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_nonsense_is_refused_by_the_field_s_name(api: Cluster, bad: Bad) -> None:
    raw = made(bad.resource)
    put(raw, bad.path, bad.value)
    message = refusal(api, raw, bad.resource.KIND, "default")
    assert bad.named in message


@pytest.mark.parametrize("length", [54, 55])
def test_a_machine_whose_volume_could_have_no_name_is_refused(api: Cluster, length: int) -> None:
    template = {"name": "scratch8", "volumeTemplate": {"size": "1Gi"}}
    raw = made(VirtualMachine, {"resources": VM["resources"], "disks": [template]}, name="m" * length)
    if length + len("-scratch8") <= 63:
        create(api, raw, VirtualMachine.KIND, "default", query=DRY)
    else:
        assert "take shorter names" in refusal(api, raw, VirtualMachine.KIND, "default")


@pytest.mark.parametrize("length", [48, 49])
def test_a_pool_whose_machines_volumes_could_have_no_names_is_refused(api: Cluster, length: int) -> None:
    raw = made(VirtualMachinePool, name="p" * length)
    put(raw, "spec.template.spec.disks.0", {"name": "scratch8", "volumeTemplate": {"size": "1Gi"}})
    if length + len("-99999-scratch8") <= 63:
        create(api, raw, VirtualMachinePool.KIND, "default", query=DRY)
    else:
        assert "take shorter names" in refusal(api, raw, VirtualMachinePool.KIND, "default")


@dataclass(frozen=True)
class Change:
    """A change of an object that exists, and the field the refusal has to name; `before` makes the object first."""

    resource: type[Resource]
    path: str
    value: object
    field: str = ""
    before: Mapping[str, object] | None = None

    def __str__(self) -> str:
        text = "absent" if self.value is GONE else repr(self.value)
        return f"{self.resource.KIND.kind}-{self.path}-{text[:24]}"


CD: Raw = {"name": "cd", "cdrom": {"image": "installer"}}
SMALL = {"spec.resources": GONE, "spec.instanceType": "small"}
THIRD_UID = UID[:-1] + "0"
THERE: Raw = {**POOL, "uid": OTHER_UID, "name": "other"}
KEPT = {"spec": {"for": FOR, "term": 5, **copy.deepcopy(ORDERS["volume"])}}
MOVED = {**KEPT, "spec.disk.volume.move": {"pool": THERE}}
BACK = {"spec.disk.volume.move.withdrawn": True}
CHANGES = [
    Change(VirtualMachine, "spec.zone", "z2"),
    Change(VirtualMachine, "spec.zone", GONE),
    Change(VirtualMachine, "spec.zone", "z1", before={"spec.zone": GONE}),
    Change(VirtualMachine, "spec.disks", [disk("root")]),
    Change(VirtualMachine, "spec.disks", [*VM["disks"], disk("more")]),
    Change(VirtualMachine, "spec.disks", GONE),
    Change(
        VirtualMachine, "spec.disks.0.volume", "b", "spec.disks", before={"spec.disks": [{"name": "d", "volume": "a"}]}
    ),
    Change(VirtualMachine, "spec.disks", [disk("root"), CD], before={"spec.disks": [disk("root")]}),
    Change(VirtualMachine, "spec.disks", [disk("root")], before={"spec.disks": [disk("root"), CD]}),
    Change(VirtualMachine, "spec.disks", [CD], before={"spec.disks": GONE}),
    Change(VirtualMachine, "spec.disks", GONE, before={"spec.disks": [CD]}),
    Change(VirtualMachine, "spec.disks.0.cdrom.bus", "scsi", "spec.disks", before={"spec.disks": [CD]}),
    Change(VirtualMachine, "spec.disks.0.bootOrder", 2, "spec.disks", before={"spec.disks": [CD]}),
    Change(VirtualMachine, "spec.disks.0", disk("cd"), "spec.disks", before={"spec.disks": [CD]}),
    Change(Volume, "spec.size", "512Mi"),
    Change(Volume, "spec.class", "slow"),
    Change(Volume, "spec.class", GONE),
    Change(Volume, "spec.source.image", "other", "spec.source"),
    Change(Volume, "spec.source", GONE),
    Change(VolumeSnapshot, "spec.volume", "other"),
    Change(VolumeSnapshot, "spec.quiesce.mode", "Never", "spec.quiesce"),
    Change(VirtualMachineSnapshot, "spec.vm", "other"),
    Change(VirtualMachinePool, "spec.selector", {"tier": "front"}),
    Change(VirtualMachineMigration, "spec.vm", "other", "spec"),
    Change(VirtualMachineMigration, "spec.onStall", "Wait", "spec"),
    Change(VirtualMachineImport, "spec.template.name", "other", "spec"),
    Change(VirtualMachineImport, "spec.dryRun", True, "spec"),
    Change(VirtualMachineImport, "spec.unmanagedInstance.host", "h2", "spec", before={"spec.dryRun": True}),
    Change(VirtualMachineMigration, "spec.targetHost", "other", "spec"),
    Change(VirtualMachineRestore, "spec.snapshot", "other", "spec"),
    Change(VirtualMachineRestore, "spec.target.newVM", "other", "spec"),
    Change(VirtualMachineSnapshot, "spec.quiesce", {"mode": "Never"}),
    Change(VirtualMachine, "spec.disks", [disk("root")], before={"spec.disks": GONE}),
    Change(VirtualMachine, "spec.disks.0.ephemeral.image", "other", "spec.disks"),
    Change(VirtualMachine, "spec.disks.0.ephemeral.size", "20Gi", "spec.disks"),
    Change(VirtualMachine, "spec.disks.0.ephemeral.imageNamespace", "other", "spec.disks"),
    Change(Volume, "spec.source.imageNamespace", "other", "spec.source"),
    Change(VirtualMachine, "spec.disks.0.ephemeral.size", GONE, "spec.disks"),
    Change(VirtualMachine, "spec.cloudInit.userData", "#!/bin/sh", "spec.cloudInit"),
    Change(VirtualMachine, "spec.cloudInit", GONE),
    Change(VirtualMachine, "spec.cloudInit", {"userData": "x"}, before={"spec.cloudInit": GONE}),
    Change(VirtualMachine, "spec.firmware", GONE, "spec.firmware"),
    Change(VirtualMachine, "spec.firmware", {"type": "UEFI"}, before={"spec.firmware": GONE}),
    Change(VirtualMachine, "spec.firmware.secureBoot", False, "spec.firmware"),
    Change(VirtualMachine, "spec.firmware.tpm", False, "spec.firmware"),
    Change(ConsoleRequest, "spec.vm", "other", "spec"),
    Change(ConsoleRequest, "spec.maxBytes", 1, "spec"),
    Change(Image, "spec.source.http.url", "https://example.com/other", "spec.source"),
    Change(Image, "spec.checksum.sha256", "f" * 64, "spec.checksum"),
    Change(Image, "spec.checksum", GONE, before={"spec.source": OCI["source"]}),
    Change(Image, "spec.source", OCI["source"]),
    Change(Image, "spec.source.oci.reference", "quay.io/other", "spec.source", before={"spec.source": OCI["source"]}),
    Change(Image, "spec.source.oci.secret", GONE, "spec.source", before={"spec.source": OCI["source"]}),
    Change(Image, "spec.compression", "xz"),
    Change(Image, "spec.format", "raw"),
    Change(ImageUpload, "spec.image", "other", "spec"),
    Change(ImageUpload, "spec.tokenSha256", "cd" * 32, "spec"),
    Change(ClusterImage, "spec.format", "raw"),
    Change(StoragePool, "spec.parameters.path", "/srv/other", "spec.parameters"),
    Change(StoragePool, "spec.parameters.shared", True, "spec.parameters"),
    Change(Host, "spec.zone", "z2"),
    Change(Host, "spec.hypervisor", "simulated"),
    Change(HostRemediation, "spec.host", "h2"),
    Change(HostRemediation, "spec.confirmedOff", False),
    Change(HostRemediation, "spec.lastRenewal", "2026-11-20T12:00:00.000000Z"),
    Change(WorkOrder, "spec.instance.superseded", False, before={"spec.instance.superseded": True}),
    Change(WorkOrder, "spec.term", 4),
    Change(WorkOrder, "spec.instance.epoch", 2),
    Change(WorkOrder, "spec.instance.uid", OTHER_UID),
    Change(WorkOrder, "spec.for.uid", OTHER_UID, "spec.for"),
    Change(WorkOrder, "spec.for.name", "other", "spec.for"),
    Change(WorkOrder, "spec.disk.pool", THERE, before=KEPT),
    Change(WorkOrder, "spec.disk.pool.uid", THIRD_UID, "spec.disk.pool", before=MOVED),
    Change(WorkOrder, "spec.disk.pool", THERE, before=MOVED),
    Change(WorkOrder, "spec.disk.volume.move.pool.uid", THIRD_UID, "spec.disk.volume.move.pool", before=MOVED),
    Change(WorkOrder, "spec.disk.volume.move.withdrawn", False, before={**MOVED, **BACK}),
    Change(WorkOrder, "spec.disk.volume.origin", {"image": ORDERED_IMAGE}, before=KEPT),
]


def test_instance_type_and_resources_can_replace_each_other_and_not_be_both(api: Cluster, namespace: str) -> None:
    raw = create(api, made(VirtualMachine), VirtualMachine.KIND, namespace)
    put(raw, "spec.instanceType", "small")
    assert "exactly one of instanceType and resources" in update_refusal(api, raw, VirtualMachine.KIND, namespace)
    put(raw, "spec.resources", GONE)
    api.request("PUT", VirtualMachine.KIND.path(namespace, raw["metadata"]["name"]), query=DRY, body=raw)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_is_fixed_cannot_change_come_or_go(
    api: Cluster, module_namespace: str, fresh_name: str, change: Change
) -> None:
    kind = change.resource.KIND
    raw = made(change.resource, name=fresh_name)
    if kind.namespaced:
        raw["metadata"]["namespace"] = module_namespace
    for path, value in (change.before or {}).items():
        put(raw, path, value)
    exists = create(api, raw, kind, module_namespace)
    try:
        put(exists, change.path, change.value)
        assert (change.field or change.path) in update_refusal(api, exists, kind, module_namespace)
    finally:
        if not kind.namespaced:
            api.delete(kind, fresh_name)


def test_a_work_order_keeps_its_type(api: Cluster, namespace: str) -> None:
    raw = create(api, made(WorkOrder), WorkOrder.KIND, namespace)
    raw["spec"] = {"for": FOR, "term": 5, **copy.deepcopy(ORDERS["pool"])}
    assert "spec.type" in update_refusal(api, raw, WorkOrder.KIND, namespace)


def update_refusal(api: Cluster, raw: Raw, kind: Kind, namespace: str) -> str:
    """What the API server says against replacing it."""
    path = kind.path(within(kind, namespace), raw["metadata"]["name"])
    with pytest.raises(errors.Refused) as refused:
        api.request("PUT", path, query=DRY, body=raw)
    assert refused.value.status == 422, refused.value
    return refused.value.message


ALLOWED = [
    Change(VirtualMachine, "spec.powerState", "Stopped"),
    Change(VirtualMachine, "spec.resources.memory", "4Gi"),
    Change(VirtualMachine, "spec.restartRequest", "2026-11-20"),
    Change(VirtualMachine, "spec.restartPolicy", "Never"),
    Change(VirtualMachine, "spec.deletionProtection", False),
    Change(VirtualMachine, "spec.sshKeys", []),
    Change(VirtualMachine, "spec.placement.profile", "Pack"),
    Change(VirtualMachine, "spec.disks.0.cdrom.image", "other", before={"spec.disks": [CD, disk("root")]}),
    Change(VirtualMachine, "spec.disks.0.cdrom", {}, before={"spec.disks": [CD, disk("root")]}),
    Change(VirtualMachine, "spec.disks.0.cdrom.image", "new", before={"spec.disks": [{"name": "cd", "cdrom": {}}]}),
    Change(VirtualMachinePool, "spec.replicas", 0),
    Change(VirtualMachinePool, "spec.template.spec.zone", GONE),
    Change(VirtualMachinePool, "spec.template.spec.disks", [disk("other")]),
    Change(VirtualMachinePool, "spec.template.spec.disks.0.ephemeral.image", "debian-13"),
    Change(VirtualMachinePool, "spec.template.spec.cloudInit", {"userData": "#!/bin/sh"}),
    Change(VolumeClass, "spec.qos", GONE),
    Change(VolumeClass, "spec.cache", "writeback"),
    Change(VolumeSnapshot, "spec.deletionProtection", True),
    Change(VirtualMachineRestore, "spec.ttlSecondsAfterFinished", 60),
    Change(VirtualMachineMigration, "spec.ttlSecondsAfterFinished", 60),
    Change(VirtualMachineImport, "spec.dryRun", False, before={"spec.dryRun": True}),
    Change(VirtualMachineImport, "spec.template.name", "other", before={"spec.dryRun": True}),
    Change(Host, "spec.unschedulable", True),
    Change(Host, "spec.maintenance", {}),
    Change(Host, "spec.maintenance", GONE, before={"spec.maintenance": {"mode": "Evacuate", "returnGuests": True}}),
    Change(VirtualMachine, "spec.evictionPolicy", "None"),
    Change(StoragePool, "spec.maintenance", True),
    Change(Volume, "spec.pool", "other"),
    Change(Volume, "spec.pool", GONE),
    Change(Volume, "spec.pool", "other", before={"spec.pool": GONE}),
    Change(WorkOrder, "spec.disk", {"pool": THERE, "volume": KEPT["spec"]["disk"]["volume"]}, before=MOVED),
    Change(WorkOrder, "spec.disk.volume.move", GONE, before=MOVED),
    Change(WorkOrder, "spec.disk.volume.move.withdrawn", True, before=MOVED),
    Change(
        WorkOrder, "spec.disk.volume.origin", GONE, before={**KEPT, "spec.disk.volume.origin": {"image": ORDERED_IMAGE}}
    ),
    Change(Image, "spec.allowedNamespaces", ["a"]),
    Change(StoragePool, "spec.thresholds", GONE),
    Change(StoragePool, "spec.allowedNamespaces", GONE),
    Change(HostRemediation, "spec.confirmedOff", True, before={"spec.confirmedOff": False}),
    Change(WorkOrder, "spec.term", 6),
    Change(WorkOrder, "spec.instance.epoch", 4),
    Change(WorkOrder, "spec.instance.power", "Stopped"),
    Change(WorkOrder, "spec.instance.cpus", 7),
]


@pytest.mark.parametrize("change", ALLOWED, ids=str)
def test_the_rest_can_change(api: Cluster, module_namespace: str, fresh_name: str, change: Change) -> None:
    kind = change.resource.KIND
    raw = made(change.resource, name=fresh_name)
    for path, value in (change.before or {}).items():
        put(raw, path, value)
    exists = create(api, raw, kind, module_namespace)
    try:
        put(exists, change.path, change.value)
        path = kind.path(within(kind, module_namespace), fresh_name)
        after = api.request("PUT", path, query=STRICT, body=exists)
        assert after["metadata"]["generation"] in (1, 2)
        if change.path == "spec.deletionProtection":
            api.patch(
                kind, fresh_name, {"spec": {"deletionProtection": False}}, module_namespace
            )  # let the namespace end
    finally:
        if not kind.namespaced:
            api.delete(kind, fresh_name)


GOOD_VARIANTS = [
    (StoragePool, {"driver": "dir", "parameters": {"path": "/var/lib/kumulus/pools/a", "shared": True}}),
    (StoragePool, {"driver": "nfs", "parameters": {"nfs": NFS}}),
    (StoragePool, {"driver": "nfs", "parameters": {"nfs": {"server": "fd00::1", "path": "/vol"}}}),
    (StoragePool, {"driver": "rbd", "parameters": {"rbd": RBD}}),
    (StoragePool, {"driver": "lvm", "parameters": {"lvm": LVM}}),
    *((resource, None) for resource in GOOD),
    *((WorkOrder, {"for": FOR, **order}) for order in ORDERS.values()),
    (VirtualMachine, {"instanceType": "small"}),
    (VirtualMachine, {"resources": {"cpus": 1, "memory": 2**30}}),
    (VirtualMachine, {"resources": {"cpus": 1024, "memory": "16Ti"}}),
    (VirtualMachine, {"resources": {"cpus": 1, "memory": "16Mi"}}),
    (VirtualMachine, {"resources": {"cpus": 1, "memory": "1.5Gi"}}),
    (VirtualMachine, {"resources": {"cpus": 1, "memory": "1e9"}}),
    (VirtualMachine, {**VM, "cloudInit": {"userData": "x" * USER_DATA_MAX}}),
    (VirtualMachine, {**VM, "cloudInit": {"userDataSecret": SECRET}}),
    (VirtualMachine, {**VM, "sshKeys": [{"secret": SECRET}]}),
    (VirtualMachine, {**VM, "placement": {"tolerations": [{"operator": "Exists"}]}}),
    (Image, {**IMAGE, "source": {"http": {"url": "http://[2001:db8::1]:8080/x.img"}}}),
    (Image, {**IMAGE, "source": {"http": {"url": "https://example.com"}}}),
    *(
        (kind, {**OCI, "source": {"oci": {"reference": reference}}})
        for kind in (Image, ClusterImage)
        for reference in (
            "quay.io/a",
            "127.0.0.1:5000/a/b_c/d--e:1.0_x",
            "localhost:5000/a",
            f"r.example/a@sha256:{SHA}",
            f"r.example:1/a:b@sha256:{SHA}",
        )
    ),
    (Image, {**OCI, "checksum": {"sha256": SHA}, "allowedNamespaces": ["team-a", "team-b"]}),
    (Volume, {"source": {"image": "debian", "imageNamespace": "golden"}}),
    (Image, PUBLISHED),
    (Image, {"source": {"snapshot": "before"}, "format": "qcow2"}),
    (VirtualMachine, {**VM, "disks": [{"name": "d", "ephemeral": {"image": "debian", "imageNamespace": "golden"}}]}),
    (
        VirtualMachine,
        {**VM, "disks": [{"name": "d", "volumeTemplate": {"source": {"image": "d", "imageNamespace": "golden"}}}]},
    ),
    (Image, {**IMAGE, "source": {"http": {"url": "https://example.com/a@b?c=@"}}}),
]


@pytest.mark.parametrize(("resource", "spec"), GOOD_VARIANTS)
def test_what_is_good_is_taken_and_read_back(api: Cluster, resource: type[Resource], spec: Raw | None) -> None:
    answer = create(api, made(resource, spec), resource.KIND, "default", query=DRY)
    assert resource.parse(answer).name == "web"


@pytest.mark.parametrize("resource", KINDS)
def test_the_longest_name_is_taken(api: Cluster, resource: type[Resource]) -> None:
    kind = resource.KIND
    longest = "a" * kind.name_max
    create(api, made(resource, name=longest), kind, "default", query=DRY)
    if kind.name_max < 253:
        assert "metadata.name" in refusal(api, made(resource, name=longest + "a"), kind, "default")


def test_defaults_appear(api: Cluster) -> None:
    vm = create(api, made(VirtualMachine, {"instanceType": "small"}), VirtualMachine.KIND, "default", query=DRY)
    assert vm["spec"] == {
        "instanceType": "small",
        "powerState": "Running",
        "evictionPolicy": "LiveMigrate",
        "restartPolicy": "Always",
        "stop": {"mode": "Graceful", "gracePeriodSeconds": 60},
        "placement": {"profile": "Spread"},
        "highAvailability": {"enabled": False, "priority": 100, "maxRestarts": 5, "windowSeconds": 3600},
        "deletionProtection": False,
    }
    host = create(api, made(Host, {"zone": "z1"}), Host.KIND, "default", query=DRY)
    assert host["spec"] == {
        "zone": "z1",
        "hypervisor": "libvirt",
        "unschedulable": False,
        "overcommit": {"cpu": 4, "memory": 1},
        "reserved": {"cpu": 0, "memory": "512Mi"},
        "fencing": {"automatic": False, "watchdog": False},
    }


@pytest.mark.parametrize("resource", KINDS)
def test_the_defaults_of_the_schema_are_those_of_the_model(api: Cluster, resource: type[Resource]) -> None:
    """What the API server fills in is what the model would have: who reads either sees the same."""
    raw = made(resource)
    answer = create(api, raw, resource.KIND, "default", query=DRY)
    ours = resource.parse(raw).to_json().get("spec", {})
    assert resource.parse(answer).to_json().get("spec", {}) == ours


def test_a_tenant_s_status_is_not_taken_at_creation(api: Cluster, namespace: str) -> None:
    raw = made(VirtualMachine)
    raw["status"] = {"phase": "Running", "host": "h1"}
    assert "status" not in create(api, raw, VirtualMachine.KIND, namespace)


def test_status_is_checked_too(api: Cluster, namespace: str) -> None:
    create(api, made(VirtualMachine), VirtualMachine.KIND, namespace)
    path = VirtualMachine.KIND.path(namespace, "web", "status")
    for status, field in (
        ({"phase": "Dancing"}, "status.phase"),
        ({"conditions": [{"type": "Ready", "status": "Yes"}]}, "status.conditions[0].status"),
        ({"conditions": [{"type": "Ready", "status": "True"}] * 2}, "status.conditions[1]"),
    ):
        with pytest.raises(errors.Refused, match="Invalid") as refused:
            api.request("PATCH", path, body={"status": status}, content_type="application/merge-patch+json")
        assert field in refused.value.message


@pytest.mark.parametrize("resource", KINDS)
def test_applying_twice_changes_nothing(
    cluster: NativeCluster, module_namespace: str, fresh_name: str, resource: type[Resource]
) -> None:
    raw = made(resource, name=fresh_name)
    where = ["-n", module_namespace] if resource.KIND.namespaced else []
    apply = [*where, "apply", "--server-side", "-o", "jsonpath={.metadata.resourceVersion}", "-f", "-"]
    try:
        first = cluster.kubectl_run(*apply, stdin=json.dumps(raw)).stdout
        assert cluster.kubectl_run(*apply, stdin=json.dumps(raw)).stdout == first
        assert cluster.kubectl_run(*where, "diff", "--server-side", "-f", "-", stdin=json.dumps(raw)).stdout == ""
    finally:
        if not resource.KIND.namespaced:
            cluster.kubectl_run("delete", f"{resource.KIND.plural}.{resource.KIND.group}", fresh_name)


def test_kubectl_refuses_unknown_fields_by_itself(cluster: NativeCluster, namespace: str) -> None:
    raw = made(VirtualMachine)
    raw["spec"]["resources"]["memmory"] = "2Gi"
    done = cluster.kubectl_run("-n", namespace, "apply", "-f", "-", stdin=json.dumps(raw), check=False)
    assert "spec.resources.memmory" in done.stderr


def test_columns_short_names_and_categories(cluster: NativeCluster, api: Cluster, namespace: str) -> None:
    create(api, made(VirtualMachine), VirtualMachine.KIND, namespace)
    status = {
        "phase": "Running",
        "host": "h1",
        "resources": {"cpus": 2, "memory": "2Gi"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "GuestRuns"}],
    }
    path = VirtualMachine.KIND.path(namespace, "web", "status")
    api.request("PATCH", path, body={"status": status}, content_type="application/merge-patch+json")
    for name in ("vm", "vms", "virtualmachine", "kumulus"):
        heading, line = cluster.kubectl_run("-n", namespace, "get", name).stdout.splitlines()
        assert heading.split() == ["NAME", "PHASE", "HOST", "CPUS", "MEMORY", "AGE"]
        assert line.split()[1:5] == ["Running", "h1", "2", "2Gi"]
    assert "GuestRuns" in cluster.kubectl_run("-n", namespace, "get", "vm", "-o", "wide").stdout


def test_sizes_are_shown_in_the_units_of_people(cluster: NativeCluster, api: Cluster, namespace: str) -> None:
    progress = Progress(bytes=5 * 2**20, total=2**31)
    create(api, made(Image), Image.KIND, namespace)
    create(api, made(StoragePool, name=namespace), StoragePool.KIND, namespace)
    try:
        for kind, where, name, status in (
            (Image.KIND, namespace, "web", ImageStatus(virtual_size=2**31, progress=progress)),
            (StoragePool.KIND, None, namespace, StoragePoolStatus(capacity=105089261568, used=20 * 2**30)),
        ):
            path = kind.path(where, name, "status")
            body = {"status": status.to_json()}
            api.request("PATCH", path, body=body, content_type="application/merge-patch+json")
        _, line = cluster.kubectl_run("-n", namespace, "get", "images", "-o", "wide").stdout.splitlines()
        assert line.split()[2:5] == ["5Mi", "2Gi", "2Gi"], line
        _, line = cluster.kubectl_run("get", "pools", namespace).stdout.splitlines()
        assert line.split()[-3:-1] == ["97.9Gi", "20Gi"]
    finally:
        api.delete(StoragePool.KIND, namespace)


@pytest.mark.parametrize("resource", KINDS)
def test_every_short_name_leads_to_its_kind(
    cluster: NativeCluster, api: Cluster, module_namespace: str, fresh_name: str, resource: type[Resource]
) -> None:
    kind = resource.KIND
    create(api, made(resource, name=fresh_name), kind, module_namespace)
    try:
        # Kubernetes has an IPAddress, too, which the long names mean.
        names = (*kind.short_names, *(() if resource is IPAddress else (kind.kind.lower(), kind.plural)))
        words = [f"{name}/{fresh_name}" for name in names]
        said = cluster.kubectl_run("-n", module_namespace, "get", *words, "-o", "name").stdout.split()
        assert said == [f"{kind.kind.lower()}.{kind.group}/{fresh_name}"] * len(names)
    finally:
        if not kind.namespaced:
            api.delete(kind, fresh_name)


def test_field_selectors(api: Cluster, namespace: str) -> None:
    create(api, made(VirtualMachine, name="one"), VirtualMachine.KIND, namespace)
    create(
        api,
        made(VirtualMachine, {**VM, "zone": "z2", "powerState": "Stopped"}, name="two"),
        VirtualMachine.KIND,
        namespace,
    )
    for fields, names in (
        ("spec.zone=z2", ["two"]),
        ("spec.zone!=z2", ["one"]),
        ("spec.powerState=Running", ["one"]),
        ("spec.zone=z3", []),
        ("metadata.name=one", ["one"]),
    ):
        found = api.objects(VirtualMachine.KIND, namespace, fields=fields)
        assert [item["metadata"]["name"] for item in found] == names
    for name, order in ORDERS.items():
        create(api, made(WorkOrder, {"for": FOR, **order}, name=name), WorkOrder.KIND, namespace)
    found = api.objects(WorkOrder.KIND, namespace, fields="spec.type=Disk")
    assert {item["metadata"]["name"] for item in found} == {
        name for name, order in ORDERS.items() if order["type"] == "Disk"
    }


@pytest.mark.parametrize("resource", KINDS)
def test_explain_has_something_to_say(cluster: NativeCluster, resource: type[Resource]) -> None:
    kind = resource.KIND
    told = {
        path: cluster.kubectl_run("explain", path, f"--api-version={kind.api_version}").stdout
        for path in (kind.plural, f"{kind.plural}.spec")
    }
    for text in told.values():
        assert "<empty>" not in text
        assert "DESCRIPTION:\n    <" not in text
    assert " ".join((resource.__doc__ or "").split())[:40] in " ".join(told[kind.plural].split())


def test_the_policies_are_sound(cluster: NativeCluster) -> None:
    """The API server's own type check has nothing against any expression."""

    def ours() -> list[Raw]:
        policies = json.loads(cluster.kubectl_run("get", "validatingadmissionpolicies", "-o", "json").stdout)["items"]
        return [policy for policy in policies if policy["metadata"]["name"].startswith("kumulus-")]

    deadline.until(
        lambda: all("typeChecking" in policy.get("status", {}) for policy in ours()), "type check", seconds=30
    )
    assert len(ours()) >= 7
    for policy in ours():
        assert policy["spec"]["failurePolicy"] == "Fail"
        assert policy["status"]["typeChecking"].get("expressionWarnings", []) == [], policy["metadata"]["name"]


def test_a_protected_machine_is_not_deleted(api: Cluster, namespace: str) -> None:
    create(api, made(VirtualMachine, {**VM, "deletionProtection": True}), VirtualMachine.KIND, namespace)
    with pytest.raises(errors.Refused) as refused:
        api.delete(VirtualMachine.KIND, "web", namespace)
    assert refused.value.status == 403
    assert "spec.deletionProtection" in refused.value.message
    assert 'deletionProtection":false' in refused.value.message
    with pytest.raises(errors.Refused):
        api.request("DELETE", VirtualMachine.KIND.path(namespace))
    api.patch(VirtualMachine.KIND, "web", {"spec": {"deletionProtection": False}}, namespace)
    api.delete(VirtualMachine.KIND, "web", namespace)
    assert api.find(VirtualMachine.KIND, "web", namespace) is None


def test_a_protected_machine_outlives_the_deletion_of_its_namespace(api: Cluster, cluster: NativeCluster) -> None:
    """The namespace waits, says why, and goes when the protection is taken off."""
    namespaces = Kind(group="", version="v1", kind="Namespace", plural="namespaces", scope=Scope.CLUSTER)
    api.create(namespaces, {"metadata": {"name": "protected"}})
    create(api, made(VirtualMachine, {**VM, "deletionProtection": True}), VirtualMachine.KIND, "protected")
    api.delete(namespaces, "protected")

    def explained() -> bool:
        conditions = api.get(namespaces, "protected").get("status", {}).get("conditions", [])
        return any("spec.deletionProtection" in condition.get("message", "") for condition in conditions)

    deadline.until(explained, "the namespace's explanation", seconds=30)
    assert api.get(VirtualMachine.KIND, "web", "protected")
    api.patch(VirtualMachine.KIND, "web", {"spec": {"deletionProtection": False}}, "protected")
    deadline.until(lambda: api.find(namespaces, "protected") is None, "the end of the namespace", seconds=60)
