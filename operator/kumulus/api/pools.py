"""What a driver has to know of a pool, and whether hosts share it. Shared by pools and work orders."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.base import Model, Rule, cel

OPERATORS_NAMESPACE = "kumulus-system"
"""Where operators keep the Secrets of pools."""

_LVM_NAME = r"^[A-Za-z0-9_+][A-Za-z0-9_+.-]*$"
_LVM_RESERVED = (
    "^(snapshot|pvmove)|_(cdata|cmeta|corig|cpool|cvol|imeta|iorig|mimage|mlog|pmspare|rimage|rmeta|tdata|tmeta|vdata"
    "|vorigin|wcorig)"
)
_CEPH_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
_ABSOLUTE = r"^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$"


class PoolDriver(StrEnum):
    """How a pool keeps its disks."""

    DIR = "dir"
    NFS = "nfs"
    RBD = "rbd"
    LVM = "lvm"


SHARED_DRIVERS = frozenset({PoolDriver.NFS, PoolDriver.RBD})
"""Drivers whose pools are one and the same on all hosts. Of a `dir` its parameters say it."""


class NfsVersion(StrEnum):
    """Version of the protocol."""

    V3 = "3"
    V4 = "4"
    V4_1 = "4.1"
    V4_2 = "4.2"


NfsMountOption = Annotated[
    str,
    StringConstraints(
        max_length=32,
        pattern=r"^(noatime|nodiratime|noresvport|sync|nordirplus|proto=(tcp6?|rdma6?)|sec=(sys|krb5|krb5i|krb5p)"
        r"|nconnect=([1-9]|1[0-6])|[rw]size=[0-9]{4,7}|timeo=[1-9][0-9]{0,4}|retrans=[1-9][0-9]?)$",
    ),
]


class NfsParameters(Model):
    """An export of an NFS server. The pool owns all of it: it makes its directories there."""

    server: str = Field(
        description="Address or name of the server.",
        max_length=253,
        json_schema_extra=cel(
            Rule(
                r"isIP(self) || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
                "must be an IP address or a DNS name in lower case",
            )
        ),
    )
    path: str = Field(description="Path of the export, absolute.", max_length=255, pattern=_ABSOLUTE)
    version: NfsVersion | None = Field(
        default=None, description="Version of the protocol; the newest that both sides know when empty."
    )
    mount_options: tuple[NfsMountOption, ...] = Field(
        default=(),
        description="Further options for the kernel's client: of speed, time limits and security. It always mounts hard,"
        " nosuid, nodev and noexec, and with locks. QEMU's own client does not know them.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


CephMonitor = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=262,
        pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?$",
    ),
]


class PoolSecret(Model):
    """A Secret in the namespace of the operators (kumulus-system)."""

    name: str = Field(
        description="Name of the Secret.",
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    )


class RbdParameters(Model):
    """A pool of a Ceph cluster."""

    monitors: tuple[CephMonitor, ...] = Field(
        description="Addresses of its monitors, `host` or `host:port`; IPv6 addresses in brackets.",
        min_length=1,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    pool: str = Field(description="Name of the pool there.", max_length=100, pattern=_CEPH_NAME)
    namespace: str | None = Field(
        default=None, description="Namespace within the pool.", max_length=100, pattern=_CEPH_NAME
    )
    user: str = Field(description="Name of the Ceph user, without `client.`.", max_length=100, pattern=_CEPH_NAME)
    secret: PoolSecret = Field(
        description="A Secret in kumulus-system whose key `key` is the user's key. Hosts of the pool get a copy."
    )


class LvmParameters(Model):
    """A thin pool on each host: its own, of disks that no other host uses."""

    volume_group: str = Field(
        description="Name of the volume group, the same on each host.",
        max_length=48,
        pattern=_LVM_NAME,
    )
    thin_pool: str = Field(
        description="Name of its thin pool, which must zero the blocks it gives out (`lvcreate --zero y`).",
        max_length=127,
        pattern=_LVM_NAME,
        json_schema_extra=cel(
            Rule(
                f"!self.matches('{_LVM_RESERVED}')",
                "LVM keeps such names for itself (lvm(8), reserved names)",
            )
        ),
    )


class PoolParameters(Model):
    """What the driver has to know."""

    path: str | None = Field(
        default=None,
        description="dir: directory on each host, an absolute path below one of the roots the agents allow.",
        max_length=255,
        pattern=_ABSOLUTE,
    )
    shared: bool | None = Field(
        default=None,
        description="dir: the directory is one and the same on all hosts of the pool, a shared file system that is mounted"
        " there. Say it only when it is so: disks would be lost otherwise.",
    )
    nfs: NfsParameters | None = Field(default=None, description="nfs: the export.")
    rbd: RbdParameters | None = Field(default=None, description="rbd: the Ceph pool.")
    lvm: LvmParameters | None = Field(default=None, description="lvm: the thin pool on each host.")


_OF_DRIVER = {PoolDriver.DIR: "path", PoolDriver.NFS: "nfs", PoolDriver.RBD: "rbd", PoolDriver.LVM: "lvm"}

PARAMETER_RULES = (
    *(
        Rule(
            f"(self.driver == '{driver}') == (has(self.parameters) && has(self.parameters.{parameter}))",
            f"driver {driver} needs parameters.{parameter}, and no other driver has it",
            field=f".parameters.{parameter}",
        )
        for driver, parameter in _OF_DRIVER.items()
    ),
    Rule(
        "self.driver == 'dir' || !has(self.parameters) || !has(self.parameters.shared)",
        "parameters.shared is for driver dir: of other drivers it is known",
        field=".parameters.shared",
    ),
)
"""Rules of what has a `driver` and its `parameters`."""


def secret_of(parameters: PoolParameters) -> str | None:
    """Name of the Secret that a driver needs for the pool; None when it needs none."""
    return parameters.rbd.secret.name if parameters.rbd is not None else None


def is_shared(driver: PoolDriver, parameters: PoolParameters) -> bool:
    """Whether a pool is one and the same on all of its hosts, rather than one on each."""
    return driver in SHARED_DRIVERS or (driver is PoolDriver.DIR and parameters.shared is True)
