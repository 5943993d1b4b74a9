"""What is done to one domain, by calls that block. Each may be repeated and takes "already so" for done."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator

import libvirt

from kumulus.api.qos import Qos
from kumulus_agents.hypervisor.domain import DomainDisk, DomainNic, Marks
from kumulus_agents.hypervisor.libvirt import attached, domain_xml, iotune, marks, secrets, state
from kumulus_agents.hypervisor.libvirt.errors import UNPLUGGING, is_code, translate
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.storage.source import DiskSource, RbdSource

Verb = Callable[[DomainHandle], None]

UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


def lookup(connection: ConnectionHandle, uid: str) -> DomainHandle | None:
    """The domain with that UUID, ours or not."""
    try:
        return connection.lookupByUUIDString(uid)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise


def if_ours(uid: str, verb: Verb, connection: ConnectionHandle) -> None:
    """Do it to the domain of that machine. Gone, or not Kumulus' own: nothing."""
    handle = lookup(connection, uid)
    if handle is None:
        return
    with tolerating(libvirt.VIR_ERR_NO_DOMAIN):
        if marks.read(handle.XMLDesc(0)) is not None:
            verb(handle)


def press(handle: DomainHandle) -> None:
    """Press the power button."""
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


def force_off(handle: DomainHandle) -> None:
    """End QEMU. libvirt sends SIGTERM, then SIGKILL after 10 s, and returns when the process is gone."""
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.destroy()


def pause(handle: DomainHandle) -> None:
    """Halt the CPUs."""
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.suspend()


def resume(handle: DomainHandle) -> None:
    """Let the CPUs go on. libvirt calls it invalid on a domain that runs."""
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.resume()


def remove(handle: DomainHandle) -> None:
    """Force off and forget, also when somebody starts it in between."""
    force_off(handle)
    with tolerating(libvirt.VIR_ERR_NO_DOMAIN):
        handle.undefineFlags(UNDEFINE)
        force_off(handle)


def attach_disk(disk: DomainDisk, handle: DomainHandle) -> None:
    """Attach a volume to the definition, then to the guest: who dies in between does the rest the next time."""
    if disk.volume is None or not handle.isActive():
        return
    xmls = definitions(handle)
    targets = (attached.target_of(xml, disk.volume) for xml in xmls.values())
    target = next((found for found in targets if found is not None), None) or attached.free_target(list(xmls.values()))
    xml = domain_xml.render_volume(disk, target, direct=direct(disk.source))
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID), secrets.lent(handle.connect(), (disk,)):
        for where, now in xmls.items():
            if attached.target_of(now, disk.volume) is None:
                handle.attachDeviceFlags(xml, where)


def detach_disk(volume: str, handle: DomainHandle) -> None:
    """Take a volume out of the definition, then ask the guest to let go of it; waits 5 s at most for that.

    Not by `virDomainDetachDeviceAlias`, which does not wait: libvirtd 9.0 dies of a second request beside the first.
    """
    _detach(handle, lambda xml: attached.xml_of(xml, volume))


def _detach(handle: DomainHandle, find: Callable[[str], str | None]) -> None:
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        for where, now in definitions(handle).items():
            xml = find(now)
            if xml is None:
                continue
            try:
                handle.detachDeviceFlags(xml, where)
            except libvirt.libvirtError as error:
                if translate(error).reason == UNPLUGGING:
                    continue  # asked before, and the guest thinks about it
                # It may have gone while we asked, or by the request of an agent that has died since.
                if find(definitions(handle).get(where, "<domain/>")) is not None:
                    raise


def attach_nic(nic: DomainNic, handle: DomainHandle) -> None:
    """Give the definition the interface, then the guest: who dies in between does the rest the next time."""
    if not handle.isActive():
        return
    xml = domain_xml.render_nic(nic)
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        for where, now in definitions(handle).items():
            if attached.nic_xml(now, nic.uid) is None:
                handle.attachDeviceFlags(xml, where)


def detach_nic(uid: str, handle: DomainHandle) -> None:
    """Take the interface out of the definition, then ask the guest to let go of it; waits 5 s at most for that."""
    _detach(handle, lambda xml: attached.nic_xml(xml, uid))


def resize_disk(uid: str, volume: str, size: int, connection: ConnectionHandle) -> bool:
    """Have QEMU grow the disk that is this volume; False when the machine is off, gone or has not got it."""
    handle = lookup(connection, uid)
    if handle is None or not handle.isActive():
        return False
    xml = handle.XMLDesc(0)
    target = attached.target_of(xml, volume)
    if marks.read(xml) is None or target is None:
        return False
    capacity = handle.blockInfo(target)[0]
    if capacity < size:  # blockResize would shrink it as well
        handle.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    return True


def limit_disk(volume: str, qos: Qos, handle: DomainHandle) -> None:
    """Limit a volume in the definition, then in QEMU: who dies in between does the rest the next time."""
    if not handle.isActive():
        return
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        for where, now in definitions(handle).items():
            if (target := attached.target_of(now, volume)) is not None:
                handle.setBlockIoTune(target, iotune.parameters(qos), where)


def definitions(handle: DomainHandle) -> dict[int, str]:
    """What the domain is, by the flag that changes it: persistent first, then live, as far as it has them."""
    found: dict[int, str] = {}
    if handle.isPersistent():
        found[libvirt.VIR_DOMAIN_AFFECT_CONFIG] = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    if handle.isActive():
        found[libvirt.VIR_DOMAIN_AFFECT_LIVE] = handle.XMLDesc(0)
    return found


def state_now(handle: DomainHandle) -> tuple[int, int]:
    """State and reason; the reason `state.NO_SPACE` for a guest that was paused because a disk is full."""
    now, why = handle.state()
    if now == libvirt.VIR_DOMAIN_PAUSED and why == libvirt.VIR_DOMAIN_PAUSED_IOERROR:
        with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
            if libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE in handle.diskErrors().values():
                return now, state.NO_SPACE
    return now, why


def write_marks(wanted: Marks, handle: DomainHandle) -> None:
    """Write the marks where the domain is: live, persistent or both. Says when the run began, if nothing does."""
    text = marks.instance_xml(wanted)
    for last in (False, True):
        try:
            handle.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, marks.PREFIX, marks.NAMESPACE, _where(handle))
            break
        except libvirt.libvirtError as error:
            # It went on or off between the question and the call.
            if last or not is_code(error, libvirt.VIR_ERR_OPERATION_INVALID):
                raise
    if handle.isActive():
        record = marks.read(handle.XMLDesc(0))
        if record is not None and record.started_at is None:
            write_run(handle)


def write_run(handle: DomainHandle) -> float:
    """Write into the live definition alone that this run began now; seconds since the epoch, as the definition says them.

    The domain has ended again already: nothing is written.
    """
    now = round(time.time(), marks.DECIMALS)
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            marks.run_xml(now),
            marks.RUN_PREFIX,
            marks.RUN_NAMESPACE,
            libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )
    return now


def note_rest(asked: bool, handle: DomainHandle) -> None:
    """Write into the live definition alone that the guest is asked to bring its file systems to rest, or that it has gone
    on. The domain has ended: nothing is written."""
    with tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            marks.REST_XML if asked else None,
            marks.REST_PREFIX,
            marks.REST_NAMESPACE,
            libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )


def direct(source: DiskSource) -> bool:
    """Whether the file can be opened with O_DIRECT, which QEMU's cache=none needs. A file that cannot be
    opened at all is left for QEMU to complain about."""
    if isinstance(source, RbdSource):
        return True  # it is librbd's cache that is off then
    try:
        os.close(os.open(source.path, os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def _where(handle: DomainHandle) -> int:
    live: int = libvirt.VIR_DOMAIN_AFFECT_LIVE if handle.isActive() else 0
    persistent: int = libvirt.VIR_DOMAIN_AFFECT_CONFIG if handle.isPersistent() else 0
    return live | persistent


@contextlib.contextmanager
def tolerating(code: int) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if not is_code(error, code):
            raise
