"""libvirt's event loop, in one thread of its own for the life of the process.

libvirt wants its event implementation registered once and before the first connection is opened
(https://libvirt.org/html/libvirt-libvirt-event.html), and cannot take it back. Callbacks run in that
thread: they must do nothing but hand over. (libvirtaio is not safe when other threads call libvirt.)
"""

from __future__ import annotations

import threading
import time
from functools import cache

import libvirt


@cache
def ensure_running() -> None:
    """Start the event loop unless it runs. libvirt stops printing its errors to standard error."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run, name="libvirt-events", daemon=True).start()


def _run() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            # Not known to happen; without a pause a lasting fault would take a core.
            time.sleep(0.1)
