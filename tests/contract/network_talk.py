"""Connections between guests: `network_talk.py serve`, `network_talk.py talk ADDRESS PORT [udp]` and `network_talk.py probe`.
Standard library only.

`serve` echoes on every port it is told of by a line on its input, TCP and UDP, IPv4 and IPv6. `talk` says whether it is
connected, and then for each line of its input whether it came back within a second. `probe` reads lines such as
`10.0.0.1 80` and `10.0.0.1 53 udp`, tries all of them at once after an empty one, and says which worked, in the same order.
"""

from __future__ import annotations

import socket
import sys
import threading

SECONDS = 1.0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(4096):
        connection.sendall(data)


def serve() -> None:
    for line in sys.stdin:
        port = int(line)
        tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.bind(("::", port))
        threading.Thread(target=accepting, args=(tcp,), daemon=True).start()
        threading.Thread(target=answering, args=(udp,), daemon=True).start()
        say("serving")


def accepting(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def answering(server: socket.socket) -> None:
    while True:
        data, who = server.recvfrom(4096)
        server.sendto(data, who)


def talk(address: str, port: int, udp: bool) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    connection.settimeout(SECONDS)
    try:
        connection.connect((address, port))
    except OSError:
        say("refused")
        return
    say("connected")
    for number, _ in enumerate(sys.stdin):
        line = f"line {number}\n".encode()
        heard = b""
        try:
            connection.sendall(line)
            while not heard.endswith(line):
                heard += connection.recv(4096)
            say("came back")
        except OSError:
            say("nothing")


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
        say(" ".join(str(int(worked)) for worked in found))
        lines = []


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    elif sys.argv[1] == "probe":
        probe()
    else:
        talk(sys.argv[2], int(sys.argv[3]), "udp" in sys.argv[4:])
