"""Keys of network disks and passphrases of encrypted ones, lent to libvirt while it gives them to an emulator.

Such a secret is in libvirtd's memory only (ephemeral), cannot be read back (private), and is gone when
the emulator has the disk: it gets the key encrypted, over its own socket.
https://libvirt.org/formatsecret.html
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt

from kumulus_agents.hypervisor.domain import DomainDisk, DomainDrive
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle
from kumulus_agents.hypervisor.libvirt.sources import luks_secret_of, secret_of
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import DiskSource, RbdSource

Disks = Iterable[DomainDisk | DomainDrive]


@contextmanager
def lent(connection: ConnectionHandle, disks: Disks) -> Iterator[None]:
    """The keys of these disks are libvirt's inside. Blocks. Raises `libvirtError`."""
    every = list(disks)
    with unlocking(connection, _locked(every)), lent_to(connection, [disk.source for disk in every]):
        yield


def lend(disks: Disks, connection: ConnectionHandle) -> None:
    """The keys of these disks are libvirt's until `take_back`. Blocks. Raises `libvirtError`."""
    every = list(disks)
    _give(connection, _locked(every), _of_ceph([disk.source for disk in every]))


def take_back(disks: Disks, connection: ConnectionHandle) -> None:
    """The keys of these disks are not libvirt's any more. Blocks."""
    every = list(disks)
    _take(connection, _locked(every), _of_ceph([disk.source for disk in every]))


def have_keys(disks: Disks) -> bool:
    """Whether any of these disks has one."""
    every = list(disks)
    return bool(_locked(every) or _of_ceph([disk.source for disk in every]))


def _locked(disks: Disks) -> Sequence[tuple[DiskSource, Passphrase]]:
    return [
        (disk.source, disk.passphrase) for disk in disks if isinstance(disk, DomainDisk) and disk.passphrase is not None
    ]


def _of_ceph(used: Iterable[DiskSource | None]) -> Sequence[RbdSource]:
    return [source for source in used if isinstance(source, RbdSource)]


@contextmanager
def unlocking(connection: ConnectionHandle, locked: Sequence[tuple[DiskSource, Passphrase]]) -> Iterator[None]:
    """The passphrases of what is encrypted are libvirt's inside. Blocks. Raises `libvirtError`."""
    try:
        _give(connection, locked, ())
        yield
    finally:
        _take(connection, locked, ())


@contextmanager
def lent_to(connection: ConnectionHandle, used: Iterable[DiskSource | None]) -> Iterator[None]:
    """The same for what is said by its source alone."""
    sources = _of_ceph(used)
    try:
        _give(connection, (), sources)
        yield
    finally:
        _take(connection, (), sources)


def _give(
    connection: ConnectionHandle, locked: Sequence[tuple[DiskSource, Passphrase]], of_ceph: Sequence[RbdSource]
) -> None:
    for source, passphrase in locked:
        connection.secretDefineXML(_luks_xml(source), 0).setValue(passphrase.text.encode(), 0)
    for ceph in of_ceph:
        connection.secretDefineXML(_xml(ceph), 0).setValue(_value(ceph), 0)


def _take(
    connection: ConnectionHandle, locked: Sequence[tuple[DiskSource, Passphrase]], of_ceph: Sequence[RbdSource]
) -> None:
    for name in (*(luks_secret_of(source) for source, _ in locked), *map(secret_of, of_ceph)):
        with suppress(libvirt.libvirtError):
            connection.secretLookupByUUIDString(name).undefine()


def _luks_xml(source: DiskSource) -> str:
    secret = Element("secret", ephemeral="yes", private="yes")
    SubElement(secret, "uuid").text = luks_secret_of(source)
    usage = SubElement(secret, "usage", type="volume")
    SubElement(usage, "volume").text = source.path
    return tostring(secret, encoding="unicode")


def _xml(source: RbdSource) -> str:
    secret = Element("secret", ephemeral="yes", private="yes")
    SubElement(secret, "uuid").text = secret_of(source)
    usage = SubElement(secret, "usage", type="ceph")
    SubElement(usage, "name").text = f"kumulus {secret_of(source)}"
    return tostring(secret, encoding="unicode")


def _value(source: RbdSource) -> bytes:
    """libvirt gives QEMU the key in base64 again, which is how Ceph writes it."""
    try:
        return binascii.a2b_base64(source.key, strict_mode=True)
    except binascii.Error:
        raise HypervisorError(
            "The key of the Ceph user is no base64. Put the key as `ceph auth get-key` prints it into the pool's Secret.",
            reason="SecretUnreadable",
        ) from None
