"""Frames that guests must not send, and programs that send and see frames. Standard library only.

`network_frames.py send [DEVICE [PAUSE]]` sends the frames it reads as hexadecimal lines, over and over until its input ends, each
so many ms (1), and says how many it sent. `network_frames.py see [DEVICE]` counts frames with a mark in them, and says so for each line of its input. `network_frames.py list
DEVICE` says who sent frames with which tags (802.1Q).
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

FALSE, TRUE = b"KUMULUS-FALSE-FRAME!!!", b"KUMULUS-HONEST-FRAME!!"
"""Marks, 22 bytes each: in what must not arrive, and in what must."""
DEVICE = "eth0"
BROADCAST = "ff:ff:ff:ff:ff:ff"
_ALL_NODES, _ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"


@dataclass(frozen=True)
class Party:
    """Somebody in the network."""

    mac: str
    four: str
    six: str


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, target: str, kind: int, data: bytes) -> bytes:
    return mac(target) + mac(source) + struct.pack("!H", kind) + data


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(source: str, target: str, protocol: int, data: bytes, *, fragment: int = 0) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(data), 7, fragment, 64, protocol, 0),
        *(socket.inet_aton(source), socket.inet_aton(target)),
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + data


def ip6(source: str, target: str, protocol: int, data: bytes, *, hops: int = 255) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(data), protocol, hops)
    return head + six(source) + six(target) + data


def six(address: str) -> bytes:
    return ipaddress.IPv6Address(address).packed


def udp(source: int, target: int, data: bytes) -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(data), 0) + data


def syn(source: str, target: str, ports: tuple[int, int], data: bytes) -> bytes:
    """What opens a connection of TCP, with data."""
    segment = struct.pack("!HHIIBBHHH", *ports, 1, 0, 5 << 4, 2, 1024, 0, 0) + data
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, 6, len(segment))
    return segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]


def udp6(source: str, target: str, ports: tuple[int, int], data: bytes) -> bytes:
    segment = udp(*ports, data)
    pseudo = six(source) + six(target) + struct.pack("!IBBBB", len(segment), 0, 0, 0, 17)
    return segment[:6] + struct.pack("!H", checksum(pseudo + segment)) + segment[8:]


def icmp6(source: str, target: str, kind: int, body: bytes) -> bytes:
    message = struct.pack("!BBH", kind, 0, 0) + body
    pseudo = six(source) + six(target) + struct.pack("!IBBBB", len(message), 0, 0, 0, 58)
    return message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]


def unreachable(packet: bytes) -> bytes:
    """An error of ICMP: nobody listens at the port that this packet was for."""
    message = struct.pack("!BBHI", 3, 3, 0, 0) + packet
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def option(mark: bytes) -> bytes:
    """An option of ND that nobody knows, with the mark in it."""
    return struct.pack("!BB", 253, 3) + mark


def arp(operation: int, sender_mac: str, sender: str, target_mac: str, target: str, mark: bytes) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    body += mac(sender_mac) + socket.inet_aton(sender) + mac(target_mac) + socket.inet_aton(target)
    return body + mark


def link_local(address: str) -> str:
    raw = mac(address)
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]))


def honest(me: Party, other: Party) -> bytes:
    """A frame that may arrive."""
    return ethernet(me.mac, other.mac, 0x0800, ip4(me.four, other.four, 17, udp(9, 9, TRUE)))


def astray(me: Party, other: Party, first: Sequence[str]) -> list[bytes]:
    """Packets to `other`, each given to one of those MACs before it is given to `other`."""
    frames = []
    for port, target in enumerate(first, 2000):
        ports = (port, port)
        packets = (
            (0x0800, ip4(me.four, other.four, 17, udp(*ports, FALSE))),
            (0x0800, ip4(me.four, other.four, 6, syn(me.four, other.four, ports, FALSE))),
            (0x86DD, ip6(me.six, other.six, 17, udp6(me.six, other.six, ports, FALSE))),
        )
        frames += [ethernet(me.mac, to, kind, packet) for kind, packet in packets for to in (target, other.mac)]
    return frames


def as_if_asked(me: Party, other: Party, first: str) -> list[bytes]:
    """A question that `other` did not send, given to that MAC, and the answer to it."""
    question = ip4(other.four, me.four, 17, udp(9, 2000, FALSE))
    answer = ip4(me.four, other.four, 17, udp(2000, 9, FALSE))
    return [ethernet(me.mac, first, 0x0800, question), ethernet(me.mac, other.mac, 0x0800, answer)]


def spoofs(me: Party, other: Party, service: Party, stranger: Party) -> dict[str, bytes]:
    """What `me` must not send, by what it is. `other` would believe it."""
    mine, theirs = link_local(me.mac), link_local(other.mac)
    data4 = ip4(me.four, other.four, 17, udp(9, 9, FALSE))
    nd = icmp6

    def na(source: str, target: str, source_mac: str = me.mac) -> bytes:
        body = struct.pack("!I", 0x20000000) + six(target) + struct.pack("!BB", 2, 1) + mac(me.mac) + option(FALSE)
        return ethernet(
            source_mac, _ALL_NODES_MAC, 0x86DD, ip6(source, _ALL_NODES, 58, nd(source, _ALL_NODES, 136, body))
        )

    def multicast(source: str, kind: int, body: bytes) -> bytes:
        return ethernet(me.mac, _ALL_NODES_MAC, 0x86DD, ip6(source, _ALL_NODES, 58, nd(source, _ALL_NODES, kind, body)))

    def fragmented(kind: int, body: bytes, *, hidden: bool) -> bytes:
        message = nd(mine, _ALL_NODES, kind, body)
        if hidden:
            message = struct.pack("!BBHI", 58, 0, 0, 0) + message
        head = struct.pack("!BBHI", 60 if hidden else 58, 0, 0, 77)
        return ethernet(me.mac, _ALL_NODES_MAC, 0x86DD, ip6(mine, _ALL_NODES, 44, head + message))

    advertisement = struct.pack("!BBHII", 64, 0x80, 1800, 0, 0) + option(FALSE)
    offer = b"\x02\x01\x06\0" + bytes(232) + b"\x63\x82\x53\x63\x35\x01\x02\xff" + FALSE
    tagged = struct.pack("!HH", 5, 0x0800) + data4
    made = {
        "MAC of another": ethernet(other.mac, BROADCAST, 0x0800, ip4(me.four, other.four, 17, udp(9, 9, FALSE))),
        "MAC of a stranger": ethernet(stranger.mac, other.mac, 0x0800, data4),
        "MAC of the service": ethernet(service.mac, other.mac, 0x0800, data4),
        "group bit in the source": ethernet("03:00:00:00:00:01", other.mac, 0x0800, data4),
        "IPv4 of a stranger": ethernet(me.mac, other.mac, 0x0800, ip4(stranger.four, other.four, 17, udp(9, 9, FALSE))),
        "IPv4 of the service": ethernet(me.mac, other.mac, 0x0800, ip4(service.four, other.four, 17, udp(9, 9, FALSE))),
        "IPv4 of metadata": ethernet(
            me.mac, other.mac, 0x0800, ip4("169.254.169.254", other.four, 17, udp(9, 9, FALSE))
        ),
        "IPv4 of nobody": ethernet(me.mac, other.mac, 0x0800, ip4("0.0.0.0", other.four, 17, udp(9, 9, FALSE))),
        "IPv6 of a stranger": ethernet(
            me.mac,
            other.mac,
            0x86DD,
            ip6(stranger.six, other.six, 17, udp6(stranger.six, other.six, (9, 9), FALSE)),
        ),
        "IPv6 link-local of another": ethernet(
            me.mac, _ALL_NODES_MAC, 0x86DD, ip6(theirs, _ALL_NODES, 17, udp6(theirs, _ALL_NODES, (9, 9), FALSE))
        ),
        "ARP reply for another": ethernet(
            me.mac, BROADCAST, 0x0806, arp(2, me.mac, stranger.four, BROADCAST, other.four, FALSE)
        ),
        "ARP reply for the service": ethernet(
            me.mac, other.mac, 0x0806, arp(2, me.mac, service.four, other.mac, other.four, FALSE)
        ),
        "ARP with another's MAC inside": ethernet(
            me.mac, BROADCAST, 0x0806, arp(2, stranger.mac, me.four, BROADCAST, other.four, FALSE)
        ),
        "gratuitous ARP": ethernet(
            me.mac, BROADCAST, 0x0806, arp(1, me.mac, other.four, "00:00:00:00:00:00", other.four, FALSE)
        ),
        "reply to an ARP probe": ethernet(
            me.mac, BROADCAST, 0x0806, arp(2, me.mac, "0.0.0.0", BROADCAST, other.four, FALSE)
        ),
        "inverse ARP": ethernet(me.mac, BROADCAST, 0x0806, arp(8, me.mac, me.four, BROADCAST, other.four, FALSE)),
        "NA for another": na(mine, other.six),
        "NA for another's link-local": na(mine, theirs),
        "NA for the service": na(mine, service.six),
        "NA from another": na(theirs, mine),
        "NS as another": multicast(theirs, 135, bytes(4) + six(me.six) + option(FALSE)),
        "DAD for another": multicast("::", 135, bytes(4) + six(stranger.six) + option(FALSE)),
        "RA": multicast(mine, 134, advertisement),
        "RA in a fragment": fragmented(134, advertisement, hidden=False),
        "RA in a fragment behind a header": fragmented(134, advertisement, hidden=True),
        "redirect": multicast(mine, 137, bytes(4) + six(me.six) + six(other.six) + option(FALSE)),
        "DHCP server": ethernet(me.mac, BROADCAST, 0x0800, ip4(me.four, "255.255.255.255", 17, udp(67, 68, offer))),
        "DHCP server in a fragment": ethernet(
            me.mac,
            BROADCAST,
            0x0800,
            ip4(me.four, "255.255.255.255", 17, udp(67, 68, offer[:256] + FALSE), fragment=0x2000),
        ),
        "DHCPv6 server": ethernet(
            me.mac, _ALL_NODES_MAC, 0x86DD, ip6(mine, _ALL_NODES, 17, udp6(mine, _ALL_NODES, (547, 546), FALSE))
        ),
        "VLAN": ethernet(me.mac, other.mac, 0x8100, tagged),
        "QinQ": ethernet(me.mac, other.mac, 0x88A8, struct.pack("!HH", 5, 0x8100) + tagged),
        "another protocol": ethernet(me.mac, other.mac, 0x88CC, FALSE + bytes(40)),
        "STP": ethernet(me.mac, "01:80:c2:00:00:00", 38, b"\x42\x42\x03" + bytes(13) + FALSE),
        "link-local frame as another": ethernet(stranger.mac, "01:80:c2:00:00:0e", 0x88CC, FALSE + bytes(40)),
        "wake-on-LAN": ethernet(me.mac, BROADCAST, 0x0842, FALSE + bytes(40)),
    }
    return {what: frame.ljust(60, b"\0") for what, frame in made.items()}


def sending(device: str, pause: int = 1) -> None:
    frames = []
    for line in sys.stdin:
        if not line.strip():
            break
        frames.append(bytes.fromhex(line))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        sent = 0
        ends = select.poll()
        ends.register(sys.stdin, select.POLLIN | select.POLLHUP)
        while True:
            for frame in frames:
                try:
                    raw.send(frame)
                    sent += 1
                except OSError:
                    pass  # the device is down yet, or its queue is full
            if ends.poll(pause):
                break
    sys.stdout.write(f"{sent}\n")


def seeing(device: str) -> None:
    everything = 3
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(everything)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        raw.bind((device, everything))
        say("seeing")
        false: list[str] = []
        honest_ones = 0
        outgoing = 4
        while True:
            ready, _, _ = select.select([raw, sys.stdin], [], [])
            if raw in ready:
                frame, who = raw.recvfrom(65536)
                if who[2] != outgoing:
                    if FALSE in frame:
                        false.append(frame.hex())
                    honest_ones += TRUE in frame
                continue
            if not sys.stdin.readline():
                return
            say(f"{honest_ones} {len(false)} {' '.join(false[:3])}")


def listing(device: str) -> None:
    """Which sender had which VLAN: what a device gets, as ``MAC VLAN`` words; 0 is none."""
    found: set[str] = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as gets:
        gets.bind((device, 3))
        gets.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        gets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        say("seeing")
        while True:
            ready, _, _ = select.select([gets, sys.stdin], [], [])
            if gets in ready:
                frame, beside, _, _ = gets.recvmsg(65535, 256)
                vlan = struct.unpack("!H", frame[14:16])[0] & 0xFFF if frame[12:14] == b"\x81\x00" else 0
                for _, kind, data in beside:
                    if kind == _PACKET_AUXDATA and len(data) >= 20:
                        status, _, _, _, _, tag, _ = struct.unpack("IIIHHHH", data[:20])
                        if status & _TAGGED:
                            vlan = tag & 0xFFF
                found.add(f"{frame[6:12].hex(':')}/{vlan}")
            if sys.stdin in ready:
                if not sys.stdin.readline():
                    return
                say(" ".join(["seen", *sorted(found)]))


_SOL_PACKET, _PACKET_AUXDATA, _TAGGED = 263, 8, 1 << 4
"""Of packet(7): the kernel takes the tag out of a frame and says it beside."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    named = sys.argv[2] if len(sys.argv) > 2 else DEVICE
    if sys.argv[1] == "send":
        sending(named, int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    else:
        (seeing if sys.argv[1] == "see" else listing)(named)
