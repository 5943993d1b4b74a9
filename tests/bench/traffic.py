"""Traffic between two namespaces: `traffic.py sink`, `traffic.py pour ADDRESS PORT SECONDS`, `traffic.py echo`,
`traffic.py ask ADDRESS PORT TIMES`. Standard library only; each says one line.

`sink` and `echo` say the port they got and serve one peer. `pour` says how many bytes a second were sent and taken in by one
TCP connection; `ask` the median of as many round trips of 64 bytes by UDP, in seconds, one after the other.
"""

from __future__ import annotations

import socket
import sys
import time

CHUNK = 1 << 20
SIZE = 64
ANY = "0.0.0.0"


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def sink() -> None:
    server = socket.create_server((ANY, 0))
    say(server.getsockname()[1])
    connection, _ = server.accept()
    buffer = bytearray(CHUNK)
    while connection.recv_into(buffer):
        pass
    connection.sendall(b"!")


def pour(address: str, port: int, seconds: float) -> None:
    data, sent = bytes(CHUNK), 0
    with socket.create_connection((address, port), timeout=30) as connection:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            sent += connection.send(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # all of it was taken in
        say(sent / (time.perf_counter() - began))


def echo() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((ANY, 0))
        say(server.getsockname()[1])
        while True:
            data, who = server.recvfrom(SIZE)
            server.sendto(data, who)


def ask(address: str, port: int, times: int) -> None:
    data, took = bytes(SIZE), []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((address, port))
        for _ in range(times):
            began = time.perf_counter()
            client.send(data)
            client.recv(SIZE)
            took.append(time.perf_counter() - began)
    say(sorted(took)[len(took) // 2])


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "sink":
        sink()
    elif what == "echo":
        echo()
    elif what == "pour":
        pour(words[0], int(words[1]), float(words[2]))
    else:
        ask(words[0], int(words[1]), int(words[2]))
