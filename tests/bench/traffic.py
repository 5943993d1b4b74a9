"""Traffic between two namespaces: `traffic.py serve` and `traffic.py ask ADDRESS TCP-PORT UDP-PORT`. Standard library only.

`serve` says the ports it got, takes what TCP brings and sends back what UDP does, until it is ended. `ask` reads a line a
measurement and says a number a line: `pour SECONDS` how many bytes a second were sent and taken in by one TCP connection,
`trips TIMES` the median of as many round trips of 64 bytes by UDP, in seconds, one after the other.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

CHUNK = 1 << 20
SIZE = 64
ANY = "0.0.0.0"


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def serve() -> None:
    taking = socket.create_server((ANY, 0))
    threading.Thread(target=sink, args=(taking,), daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((ANY, 0))
        say(f"{taking.getsockname()[1]} {server.getsockname()[1]}")
        while True:
            data, who = server.recvfrom(SIZE)
            server.sendto(data, who)


def sink(server: socket.socket) -> None:
    buffer = bytearray(CHUNK)
    while True:
        connection, _ = server.accept()
        with connection:
            while connection.recv_into(buffer):
                pass
            connection.sendall(b"!")


def ask(address: str, tcp: int, udp: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((address, udp))
        for line in sys.stdin:
            what, much = line.split()
            say(pour(address, tcp, float(much)) if what == "pour" else trips(client, int(much)))


def pour(address: str, port: int, seconds: float) -> float:
    data, sent = bytes(CHUNK), 0
    with socket.create_connection((address, port), timeout=30) as connection:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            sent += connection.send(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # all of it was taken in
        return sent / (time.perf_counter() - began)


def trips(client: socket.socket, times: int) -> float:
    data, took = bytes(SIZE), []
    for _ in range(times):
        began = time.perf_counter()
        client.send(data)
        client.recv(SIZE)
        took.append(time.perf_counter() - began)
    return sorted(took)[len(took) // 2]


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "serve":
        serve()
    else:
        ask(words[0], int(words[1]), int(words[2]))
