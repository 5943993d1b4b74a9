"""The part of libvirt-python that the driver uses, with types: the binding has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol


class DomainHandle(Protocol):
    """`libvirt.virDomain`. Only `name` and `UUIDString` are answered without asking libvirtd."""

    def name(self) -> str: ...
    def connect(self) -> ConnectionHandle: ...
    def UUIDString(self) -> str: ...  # noqa: N802
    def XMLDesc(self, flags: int) -> str: ...  # noqa: N802
    def state(self, flags: int = 0) -> tuple[int, int]: ...
    def diskErrors(self, flags: int = 0) -> Mapping[str, int]: ...  # noqa: N802
    def isActive(self) -> int: ...  # noqa: N802
    def isPersistent(self) -> int: ...  # noqa: N802
    def createWithFlags(self, flags: int) -> int: ...  # noqa: N802
    def destroy(self) -> int: ...
    def suspend(self) -> int: ...
    def resume(self) -> int: ...
    def shutdownFlags(self, flags: int) -> int: ...  # noqa: N802
    def undefineFlags(self, flags: int) -> int: ...  # noqa: N802
    def attachDeviceFlags(self, xml: str, flags: int) -> int: ...  # noqa: N802
    def detachDeviceFlags(self, xml: str, flags: int) -> int: ...  # noqa: N802
    def updateDeviceFlags(self, xml: str, flags: int) -> int: ...  # noqa: N802
    def setMemoryFlags(self, memory: int, flags: int) -> int: ...  # noqa: N802
    def setVcpusFlags(self, nvcpus: int, flags: int) -> int: ...  # noqa: N802
    def blockInfo(self, path: str, flags: int = 0) -> Sequence[int]: ...  # noqa: N802
    def blockResize(self, disk: str, size: int, flags: int) -> int: ...  # noqa: N802
    def setBlockIoTune(self, disk: str, params: Mapping[str, int], flags: int) -> int: ...  # noqa: N802
    def snapshotCreateXML(self, xml: str, flags: int) -> object: ...  # noqa: N802
    def blockCommit(self, disk: str, base: str, top: str, bandwidth: int, flags: int) -> int: ...  # noqa: N802
    def blockCopy(self, disk: str, destxml: str, params: Mapping[str, int], flags: int) -> int: ...  # noqa: N802
    def blockJobInfo(self, disk: str, flags: int = 0) -> Mapping[str, int]: ...  # noqa: N802
    def blockJobAbort(self, disk: str, flags: int) -> int: ...  # noqa: N802
    def agentSetResponseTimeout(self, timeout: int, flags: int) -> int: ...  # noqa: N802
    def guestInfo(self, types: int, flags: int) -> Mapping[str, object]: ...  # noqa: N802
    def fsFreeze(self, mountpoints: None = None, flags: int = 0) -> int: ...  # noqa: N802
    def fsThaw(self, mountpoints: None = None, flags: int = 0) -> int: ...  # noqa: N802
    def managedSave(self, flags: int) -> int: ...  # noqa: N802
    def managedSaveRemove(self, flags: int) -> int: ...  # noqa: N802
    def managedSaveGetXMLDesc(self, flags: int) -> str: ...  # noqa: N802
    def managedSaveDefineXML(self, xml: str, flags: int) -> int: ...  # noqa: N802
    def hasManagedSaveImage(self, flags: int) -> int: ...  # noqa: N802
    def migrateToURI3(self, uri: str, params: Mapping[str, str | int | list[str]], flags: int) -> int: ...  # noqa: N802
    def migrateSetMaxDowntime(self, downtime: int, flags: int) -> int: ...  # noqa: N802
    def jobStats(self, flags: int = 0) -> Mapping[str, int]: ...  # noqa: N802
    def abortJob(self) -> int: ...  # noqa: N802
    def setMetadata(  # noqa: N802
        self, type: int, metadata: str | None, key: str, uri: str, flags: int
    ) -> int: ...


class SecretHandle(Protocol):
    """`libvirt.virSecret`."""

    def setValue(self, value: bytes, flags: int) -> int: ...  # noqa: N802
    def undefine(self) -> int: ...


Stats = Sequence[tuple[DomainHandle, Mapping[str, int]]]

LifecycleCallback = Callable[["ConnectionHandle", DomainHandle, int, int, None], None]
MetadataCallback = Callable[["ConnectionHandle", DomainHandle, int, str, None], None]
TunableCallback = Callable[["ConnectionHandle", DomainHandle, Mapping[str, object], None], None]
DeviceCallback = Callable[["ConnectionHandle", DomainHandle, str, None], None]
AmountCallback = Callable[["ConnectionHandle", DomainHandle, str, int, None], None]
BalloonCallback = Callable[["ConnectionHandle", DomainHandle, int, None], None]
CloseCallback = Callable[["ConnectionHandle", int, None], None]


class ConnectionHandle(Protocol):
    """`libvirt.virConnect`."""

    def close(self) -> int: ...
    def setKeepAlive(self, interval: int, count: int) -> int: ...  # noqa: N802
    def registerCloseCallback(self, callback: CloseCallback, opaque: None) -> int: ...  # noqa: N802
    def unregisterCloseCallback(self) -> int: ...  # noqa: N802
    def domainEventRegisterAny(  # noqa: N802
        self,
        domain: None,
        event: int,
        callback: LifecycleCallback
        | MetadataCallback
        | TunableCallback
        | DeviceCallback
        | AmountCallback
        | BalloonCallback,
        opaque: None,
    ) -> int: ...
    def domainEventDeregisterAny(self, callback: int) -> int: ...  # noqa: N802
    def lookupByUUIDString(self, uuid: str) -> DomainHandle: ...  # noqa: N802
    def listAllDomains(self, flags: int) -> Sequence[DomainHandle]: ...  # noqa: N802
    def defineXML(self, xml: str) -> DomainHandle: ...  # noqa: N802
    def secretDefineXML(self, xml: str, flags: int) -> SecretHandle: ...  # noqa: N802
    def secretLookupByUUIDString(self, uuid: str) -> SecretHandle: ...  # noqa: N802
    def getAllDomainStats(self, stats: int, flags: int) -> Stats: ...  # noqa: N802
    def domainListGetStats(self, domains: Sequence[DomainHandle], stats: int, flags: int) -> Stats: ...  # noqa: N802
    def getCapabilities(self) -> str: ...  # noqa: N802
    def getDomainCapabilities(  # noqa: N802
        self, emulator: str | None, arch: str | None, machine: str | None, virtualisation: str | None, flags: int = 0
    ) -> str: ...
    def getVersion(self) -> int: ...  # noqa: N802
    def getLibVersion(self) -> int: ...  # noqa: N802
    def getMemoryStats(self, cell: int, flags: int = 0) -> Mapping[str, int]: ...  # noqa: N802
