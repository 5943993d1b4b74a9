"""Asks an address for an echo (RFC 792) all the time: one question each hundredth of a second, and a line for each answer.

`python -m tests.bench.pinger ADDRESS`: until its standard input ends. A line is the moment of the answer, in seconds of the
machine's monotonic clock, which all processes of the machine share.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time

EVERY = 0.01
"""Seconds from one question to the next."""
REQUEST, REPLY = 8, 0


def checksum(data: bytes) -> int:
    """RFC 1071. Of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def request(identity: int, sequence: int) -> bytes:
    """A question."""
    bare = struct.pack("!BBHHH", REQUEST, 0, 0, identity, sequence & 0xFFFF)
    return struct.pack("!BBHHH", REQUEST, 0, checksum(bare), identity, sequence & 0xFFFF)


def answers(packet: bytes, identity: int) -> bool:
    """Whether an IP packet is an answer to one of these questions."""
    start = (packet[0] & 0xF) * 4
    if len(packet) < start + 8:
        return False
    kind, _, _, whose, _ = struct.unpack("!BBHHH", packet[start : start + 8])
    return bool(kind == REPLY and whose == identity)


def main() -> None:
    """Ask until standard input ends."""
    identity = os.getpid() & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.setblocking(False)
        sequence, due = 0, time.monotonic()
        while True:
            ready, _, _ = select.select([raw, sys.stdin], [], [], max(0.0, due - time.monotonic()))
            if sys.stdin in ready:
                return
            if raw in ready and answers(raw.recv(2048), identity):
                print(f"{time.monotonic():.6f}", flush=True)
            if time.monotonic() >= due:
                with contextlib.suppress(OSError):  # no way there now
                    raw.sendto(request(identity, sequence), (sys.argv[1], 0))
                sequence, due = sequence + 1, max(due + EVERY, time.monotonic())


if __name__ == "__main__":
    main()
