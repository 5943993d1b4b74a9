"""libvirt's errors as the protocol's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import libvirt

from kumulus_agents.hypervisor.protocol import HypervisorError

UNAVAILABLE = "HypervisorUnavailable"
TIMEOUT = "HypervisorTimeout"
UNPLUGGING = "Unplugging"

LOST = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_CANCELLED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    }
)
"""Codes that say there is no connection, whatever was asked."""

REASONS: Mapping[int, tuple[str, bool]] = {
    libvirt.VIR_ERR_XML_ERROR: ("InvalidDomain", False),
    libvirt.VIR_ERR_XML_DETAIL: ("InvalidDomain", False),
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: ("UnsupportedByHost", False),
    libvirt.VIR_ERR_DOM_EXIST: ("DomainConflict", False),
    libvirt.VIR_ERR_NO_MEMORY: ("OutOfMemory", True),
    libvirt.VIR_ERR_OPERATION_TIMEOUT: ("HypervisorBusy", True),
    libvirt.VIR_ERR_RESOURCE_BUSY: ("HypervisorBusy", True),
    libvirt.VIR_ERR_ACCESS_DENIED: ("AccessDenied", False),
}

TEXTS: Sequence[tuple[str, str, bool]] = (
    ("cannot set up guest memory", "OutOfMemory", True),
    ("Cannot allocate memory", "OutOfMemory", True),
    ("already exists with uuid", "DomainConflict", False),
    ('Failed to get "write" lock', "DiskInUse", True),
    ('Failed to get shared "write" lock', "DiskInUse", True),
    ("No such file or directory", "FileMissing", True),
    ("Invalid password, cannot unlock", "WrongPassphrase", False),
    ("Permission denied", "AccessDenied", True),
    ("No space left on device", "NoSpace", True),
    ("is already in the process of unplug", UNPLUGGING, True),
    ("No more available PCI slots", "NoFreeSlot", True),
    ("unknown machine type", "UnsupportedByHost", False),
    ("exceeds maximum", "UnsupportedByHost", False),
    ("greater than max", "UnsupportedByHost", False),
)
"""QEMU has no codes; libvirt passes on what it printed."""

SENTENCES: Mapping[str, str] = {
    "WrongPassphrase": "A volume of the machine was encrypted with another passphrase than its host was given for it: put that"
    " one back into the Secret that its class names, and tell your operator.",
}
"""What is said in place of what libvirt says, by reason."""

MESSAGE_MAX = 1024


def translate(error: libvirt.libvirtError) -> HypervisorError:
    """The protocol's error for one of libvirt's."""
    code: int | None = error.get_error_code()
    message = f"libvirt: {(error.get_error_message() or str(error)).strip()}"[:MESSAGE_MAX]
    if code in LOST or (code is not None and error.get_error_domain() == libvirt.VIR_FROM_RPC):
        return HypervisorError(message, reason=UNAVAILABLE)
    if code is not None and code in REASONS:
        reason, retryable = REASONS[code]
        return HypervisorError(message, reason=reason, retryable=retryable)
    for text, reason, retryable in TEXTS:
        if text in message:
            return HypervisorError(SENTENCES.get(reason, message), reason=reason, retryable=retryable)
    return HypervisorError(message)


def is_code(error: libvirt.libvirtError, *codes: int) -> bool:
    """Whether the error has one of the codes."""
    return error.get_error_code() in codes
