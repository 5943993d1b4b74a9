"""Many new connections at once to what `network_talk.py serve` serves. Standard library only.

Reads lines such as `10.0.0.1 80` and `10.0.0.1 53 udp`, tries all of them at once after an empty one, and says which worked,
in the same order.
"""

from __future__ import annotations

import socket
import sys
import threading

SECONDS = 1.0


def works(address: str, port: int, udp: bool) -> bool:
    """Whether a new connection works."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as connection:
        connection.settimeout(SECONDS)
        try:
            connection.connect((address, port))
            connection.sendall(b"hello")
            return connection.recv(4096) == b"hello"
        except OSError:
            return False


def probe() -> None:
    lines: list[list[str]] = []
    for line in sys.stdin:
        if line.strip():
            lines.append(line.split())
            continue
        found = [False] * len(lines)

        def one(at: int, words: list[str], found: list[bool] = found) -> None:
            found[at] = works(words[0], int(words[1]), "udp" in words)

        threads = [threading.Thread(target=one, args=(at, words)) for at, words in enumerate(lines)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.stdout.write(" ".join(str(int(worked)) for worked in found) + "\n")
        sys.stdout.flush()
        lines = []


if __name__ == "__main__":
    probe()
