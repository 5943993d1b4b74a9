"""Connections between guests: `network_talk.py serve` and `network_talk.py talk ADDRESS PORT SECONDS [udp] [from=PORT]
[size=BYTES]`, `network_talk.py tell PORT` and `network_talk.py hear ADDRESS PORT`. Standard library only.

`serve` echoes on every port it is told of by a line on its input, TCP and UDP, IPv4 and IPv6. `talk` says whether it is
connected within so many seconds, and then for each line of its input, a number, whether something came back within so many.
`tell` says something to one that connects, five times a second; `hear` says for each line of its input how often it heard that.
"""

from __future__ import annotations

import socket
import sys
import threading
import time


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


def tell(port: int) -> None:
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    say("telling")
    connection, _ = server.accept()
    while True:
        connection.sendall(b".")
        time.sleep(0.2)


def hear(address: str, port: int) -> None:
    connection = socket.create_connection((address, port), timeout=10)
    connection.settimeout(None)
    say("connected")
    heard = 0

    def listen() -> None:
        nonlocal heard
        while data := connection.recv(4096):
            heard += len(data)

    threading.Thread(target=listen, daemon=True).start()
    for _ in sys.stdin:
        say(str(heard))


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
    elif sys.argv[1] == "tell":
        tell(int(sys.argv[2]))
    elif sys.argv[1] == "hear":
        hear(sys.argv[2], int(sys.argv[3]))
    else:
        given = dict(word.split("=") for word in sys.argv[5:] if "=" in word)
        numbers = (int(given.get(name, 0)) for name in ("from", "size"))
        talk(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), "udp" in sys.argv[5:], *numbers)
