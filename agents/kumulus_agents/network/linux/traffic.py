"""How much has passed each interface, read from the kernel's counters of its device.

The tap's other end is the guest: what the host received from it the guest has sent. One file has all devices (proc(5),
/proc/net/dev), so it is read once however many guests there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.protocol import Traffic

_FILE = Path("/proc/self/net/dev")


def read(layout: Layout) -> Sequence[Traffic]:
    """Of all ports that have a device now. Blocks."""
    return parse(_FILE.read_text(), layout)


def parse(listing: str, layout: Layout) -> Sequence[Traffic]:
    """From the file: after two lines of headings, name, eight numbers of what was received, and eight of what was sent."""
    taps = {names.tap(uid): place.port.nic for uid, place in layout.places.items()}
    found = []
    for line in listing.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        nic = taps.get(name.strip())
        values = [int(number) for number in numbers.split()]
        if nic is not None and len(values) >= 10:
            found.append(
                Traffic(
                    network=nic.network,
                    interface=nic.uid,
                    received_bytes=values[8],
                    received_packets=values[9],
                    sent_bytes=values[0],
                    sent_packets=values[1],
                )
            )
    return sorted(found, key=lambda one: one.interface)
