"""Connections between guests: `network_talk.py serve` and `network_talk.py talk ADDRESS PORT SECONDS [udp] [from=PORT]
[size=BYTES]`. Standard library only.

`serve` echoes on every port it is told of by a line on its input, TCP and UDP, IPv4 and IPv6. `talk` says whether it is
connected within so many seconds, and then for each line of its input, a number, whether something came back within so many.
"""

from __future__ import annotations

import socket
import sys
import threading


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


def talk(address: str, port: int, seconds: float, udp: bool, source: int, size: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    connection.settimeout(seconds)
    if source:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("", source))
    try:
        connection.connect((address, port))
    except OSError:
        say("refused")
        return
    say("connected")
    for number, wait in enumerate(sys.stdin):
        connection.settimeout(float(wait))
        line = f"{'.' * size}line {number}\n".encode()
        heard = b""
        try:
            connection.sendall(line)
            while not heard.endswith(line):
                heard += connection.recv(4096)
            say("came back")
        except OSError:
            say("nothing")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        given = dict(word.split("=") for word in sys.argv[5:] if "=" in word)
        numbers = (int(given.get(name, 0)) for name in ("from", "size"))
        talk(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), "udp" in sys.argv[5:], *numbers)
