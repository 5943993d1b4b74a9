"""Asks the agent in a guest, by calls that block.

libvirt first makes sure that it is heard, and waits five seconds for that, however long the answer may take. A guest that is
busy or boots needs longer. Nothing was asked of it then, so it is asked again.
https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainAgentSetResponseTimeout
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping

import libvirt
import libvirt_qemu

from kumulus_agents.hypervisor.domain import GuestSays
from kumulus_agents.hypervisor.libvirt import attached, marks, verbs
from kumulus_agents.hypervisor.libvirt.errors import is_code
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle

_PAUSE = 0.2
_NOT_ASKED = ("not available for now", "is not connected")
"""What libvirt says when nobody heard it. It says the first also when what was asked takes too long: all of the time."""


def ask(handle: DomainHandle, seconds: int, call: Callable[[], object]) -> None:
    """Make the call, which has the guest's agent do something, for so many seconds in all.

    Raises `libvirt.libvirtError`: what the last attempt ended with. Nothing was asked of the agent before that.
    """
    end = time.monotonic() + seconds
    while True:
        handle.agentSetResponseTimeout(max(1, math.ceil(end - time.monotonic())), 0)
        try:
            call()
        except libvirt.libvirtError as error:
            if time.monotonic() >= end or not _unheard(error) or not attached.has_agent(handle.XMLDesc(0)):
                raise
        else:
            return
        time.sleep(_PAUSE)


def _unheard(error: libvirt.libvirtError) -> bool:
    said = error.get_error_message() or ""
    return is_code(error, libvirt.VIR_ERR_AGENT_UNSYNCED) or any(words in said for words in _NOT_ASKED)


SAYS_MOST = 1 << 16
"""A longer answer to who the agent is, in characters, is none."""
_ANSWER_SECONDS = 2
"""While an agent is asked libvirt 9.0 makes others wait who want to change the domain (measured), so it is not asked for longer.
"""


def says(uid: str, connection: ConnectionHandle) -> GuestSays | None:
    """See `protocol.Hypervisor.ask_guest`. Blocks for so many seconds at most for each of four questions."""
    handle = verbs.lookup(connection, uid)
    if handle is None or not handle.isActive():
        return None
    xml = handle.XMLDesc(0)
    if marks.read(xml) is None or not attached.has_agent(xml):
        return None
    try:
        handle.agentSetResponseTimeout(_ANSWER_SECONDS, 0)
        version = _version(libvirt_qemu.qemuAgentCommand(handle, '{"execute":"guest-info"}', _ANSWER_SECONDS, 0))
    except libvirt.libvirtError:
        return None  # it does not answer, or has ended
    found: dict[str, object] = {}
    for kind in (
        libvirt.VIR_DOMAIN_GUEST_INFO_HOSTNAME,
        libvirt.VIR_DOMAIN_GUEST_INFO_OS,
        libvirt.VIR_DOMAIN_GUEST_INFO_INTERFACES,
    ):
        try:
            found.update(handle.guestInfo(kind, 0))
        except libvirt.libvirtError as error:  # an older agent cannot say all of it
            if is_code(error, libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_OPERATION_INVALID):
                return None
    addresses = (value for name, value in found.items() if re.fullmatch(r"if\.\d+\.addr\.\d+\.addr", name))
    return GuestSays(
        hostname=_said(found, "hostname"),
        os=_said(found, "os.pretty-name") or _said(found, "os.name"),
        agent_version=version,
        addresses=tuple(text for text in addresses if isinstance(text, str)),
    )


def _said(found: Mapping[str, object], name: str) -> str | None:
    text = found.get(name)
    return text if isinstance(text, str) else None


def _version(answer: str) -> str | None:
    if len(answer) > SAYS_MOST:
        return None
    try:
        version = json.loads(answer)["return"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) else None
