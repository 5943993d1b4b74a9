"""What `vm explain` knows of a machine and all that it depends on. Pure; gathered by `explaining`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.image import ClusterImage, Image
from kumulus.api.instance_type import InstanceType
from kumulus.api.storage import StoragePool, Volume
from kumulus.kube.service import Service


class Absence(Enum):
    """Why there is nothing where something was looked for."""

    MISSING = "there is none"
    HIDDEN = "this user may not see it"


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A key of a Secret that the machine's spec names, and the field that names it."""

    name: str
    key: str
    field: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything one explanation has read. None where a thing is not named or not looked for."""

    vm: VirtualMachine
    now: datetime
    instance_type: InstanceType | Absence | None = None
    images: Mapping[str, Image | ClusterImage | Absence] = field(default_factory=dict)
    secrets: Mapping[SecretRef, bool | Absence] = field(default_factory=dict)
    """True: the key is there; False: the Secret is, the key is not."""
    pools: Sequence[StoragePool] = ()
    """Of a machine that found no host; tenants may not see them."""
    volumes: Mapping[str, Volume | Absence] = field(default_factory=dict)
    """Those that its disks are, by name."""
    host: Host | Absence | None = None
    order: WorkOrder | Absence | None = None
    services: Sequence[Service] = ()
    """Services of Kubernetes that select it."""
    controllers: str | None = None
    """What is wrong with the controllers; None when they run or one may not see."""


class Level(StrEnum):
    """How much a finding matters."""

    OK = "OK"
    NOTE = "Note"
    WAITING = "Waiting"
    PROBLEM = "Problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is so, and what to do about it when there is something to do."""

    level: Level
    what: str
    todo: str = ""


def secret_refs(vm: VirtualMachine) -> list[SecretRef]:
    """The keys of Secrets that the spec names."""
    refs = []
    if vm.spec.cloud_init and vm.spec.cloud_init.user_data_secret:
        secret = vm.spec.cloud_init.user_data_secret
        refs.append(SecretRef(secret.name, secret.key, "spec.cloudInit.userDataSecret"))
    for at, key in enumerate(vm.spec.ssh_keys):
        if key.secret:
            refs.append(SecretRef(key.secret.name, key.secret.key, f"spec.sshKeys[{at}].secret"))
    return refs


def image_names(vm: VirtualMachine) -> list[str]:
    """The images its disks are made from, each once, in order; those of other namespaces as `namespace/name`."""
    names = (
        f"{disk.image_namespace}/{disk.image}" if disk.image_namespace is not None else disk.image
        for disk in vm.spec.disks
    )
    return list(dict.fromkeys(name for name in names if name is not None))
