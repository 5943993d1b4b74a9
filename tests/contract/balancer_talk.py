"""Members of a load balancer, and its clients: run in namespaces by tests. The standard library alone."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import sys
import threading
from typing import Any

PORT = 8080


async def _answer(
    address: str, state: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode(errors="replace"):
            if head.startswith("GET /slow"):
                await asyncio.sleep(float(head.split()[1].removeprefix("/slow/")))
            lines = head.split("\r\n")
            headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines[1:]) if key}
            body = json.dumps({"member": address, "headers": headers, "request": lines[0]}).encode()
            status = b"503 Unwell" if state[address] == "unwell" else b"200 OK"
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def serve(addresses: list[str]) -> None:
    """Answer at each address until told `down ADDRESS`; `up` and `unwell` likewise."""
    servers: dict[str, asyncio.Server] = {}
    state: dict[str, str] = {}

    async def up(address: str) -> None:
        servers[address] = await asyncio.start_server(
            lambda reader, writer: _answer(address, state, reader, writer), address, PORT
        )

    for address in addresses:
        state[address] = "up"
        await up(address)
    print("serving", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, address = line.split()
        before, state[address] = state[address], verb
        if verb == "down":
            servers.pop(address).close()
        elif before == "down":
            await up(address)
        print("done", flush=True)


def _connection(host: str, port: int, authority: str | None) -> http.client.HTTPConnection:
    if authority is None:
        return http.client.HTTPConnection(host, port, timeout=20)
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False
    return http.client.HTTPSConnection(host, port, timeout=20, context=context)


def ask(host: str, port: int, count: int, cookie: str, authority: str) -> None:
    """So many connections with one request each; what was answered, and the cookies that were set, as JSON."""
    said: list[dict[str, Any]] = []
    for _ in range(count):
        connection = _connection(host, port, authority or None)
        connection.request("GET", "/", headers={"Cookie": cookie} if cookie else {})
        answer = connection.getresponse()
        said.append({**json.loads(answer.read()), "cookie": answer.getheader("Set-Cookie")})
        connection.close()
    print(json.dumps(said))


def load(host: str, port: int) -> None:
    """Connections all the time, by several threads, and one that stays open, until a line comes; then what became of them."""
    stop, errors, counts = threading.Event(), [], [0, 0, 0]

    def work(which: int) -> None:
        while not stop.is_set():
            try:
                connection = _connection(host, port, None)
                connection.request("GET", "/")
                connection.getresponse().read()
                connection.close()
                counts[which] += 1
            except OSError as error:
                errors.append(repr(error))
            except http.client.HTTPException as error:
                errors.append(repr(error))

    long = socket.create_connection((host, port), timeout=20)
    workers = [threading.Thread(target=work, args=(which,)) for which in range(len(counts))]
    for worker in workers:
        worker.start()
    print("loading", flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        long.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        print("on" if long.recv(65536).startswith(b"HTTP/1.1 200") else "cut", flush=True)
    stop.set()
    for worker in workers:
        worker.join()
    print(json.dumps({"done": sum(counts), "errors": errors}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2:]))
    elif sys.argv[1] == "load":
        load(sys.argv[2], int(sys.argv[3]))
    else:
        ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6])
