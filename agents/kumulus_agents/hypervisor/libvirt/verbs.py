"""What is done to one domain, by calls that block. Each may be repeated and takes "already so" for done."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator

import libvirt

from kumulus_agents.hypervisor.libvirt import marks
from kumulus_agents.hypervisor.libvirt.errors import is_code
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import Marks

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
    with _tolerating(libvirt.VIR_ERR_NO_DOMAIN):
        if marks.read(handle.XMLDesc(0)) is not None:
            verb(handle)


def press(handle: DomainHandle) -> None:
    """Press the power button."""
    with _tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


def force_off(handle: DomainHandle) -> None:
    """End QEMU. libvirt sends SIGTERM, then SIGKILL after 10 s, and returns when the process is gone."""
    with _tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.destroy()


def pause(handle: DomainHandle) -> None:
    """Halt the CPUs."""
    with _tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.suspend()


def resume(handle: DomainHandle) -> None:
    """Let the CPUs go on. libvirt calls it invalid on a domain that runs."""
    with _tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.resume()


def remove(handle: DomainHandle) -> None:
    """Force off and forget, also when somebody starts it in between."""
    force_off(handle)
    with _tolerating(libvirt.VIR_ERR_NO_DOMAIN):
        handle.undefineFlags(UNDEFINE)
        force_off(handle)


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
    """Write into the live definition alone that this run began now; seconds since the epoch.

    The domain has ended again already: nothing is written.
    """
    now = time.time()
    with _tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        handle.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            marks.run_xml(now),
            marks.RUN_PREFIX,
            marks.RUN_NAMESPACE,
            libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )
    return now


def direct(path: str) -> bool:
    """Whether the file can be opened with O_DIRECT, which QEMU's cache=none needs. A file that cannot be
    opened at all is left for QEMU to complain about."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def _where(handle: DomainHandle) -> int:
    live: int = libvirt.VIR_DOMAIN_AFFECT_LIVE if handle.isActive() else 0
    persistent: int = libvirt.VIR_DOMAIN_AFFECT_CONFIG if handle.isPersistent() else 0
    return live | persistent


@contextlib.contextmanager
def _tolerating(code: int) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if not is_code(error, code):
            raise
