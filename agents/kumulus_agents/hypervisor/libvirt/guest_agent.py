"""Asks the agent in a guest, by calls that block.

libvirt first makes sure that it is heard, and waits five seconds for that, however long the answer may take. A guest that is
busy or boots needs longer. Nothing was asked of it then, so it is asked again.
https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainAgentSetResponseTimeout
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import libvirt

from kumulus_agents.hypervisor.libvirt import attached
from kumulus_agents.hypervisor.libvirt.errors import is_code
from kumulus_agents.hypervisor.libvirt.handles import DomainHandle

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
