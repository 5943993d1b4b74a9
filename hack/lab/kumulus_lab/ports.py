"""Free TCP ports for the daemons of a lab.

Outside the range that the kernel hands to outgoing connections, so that a port stays free while its daemon is down.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Collection

FIRST, LAST = 20_000, 32_000


def free(count: int, taken: Collection[int] = ()) -> list[int]:
    """That many different ports nobody listens on now; none of those that are `taken` by who will."""
    found: list[int] = []
    candidates = random.sample(range(FIRST, LAST), 200 + count)
    for port in candidates:
        if len(found) == count:
            break
        if port not in taken and _is_free(port):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
