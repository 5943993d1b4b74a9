"""A web server that does what a test tells it to, wrong things included. Plain sockets: a library would not lie."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Answer:
    """One answer. The defaults are an honest server's."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    etag: str | None = None
    ranges: bool = True
    """Honours `Range` (and `If-Range`)."""
    length: bool = True
    """Says how long the body is; otherwise it is chunked."""
    more_length: int = 0
    """Added to the length it says, without sending more (or less)."""
    cut: int | None = None
    """Closes the connection after so many bytes of the body."""
    stall: int | None = None
    """Says nothing any more after so many bytes of the body."""
    range_shift: int = 0
    """Added to the start it claims in `Content-Range`."""
    login: str | None = None
    """Refuses whoever does not send this as `Authorization`."""


@dataclass
class Request:
    """What a client asked."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class Server:
    """Answers by path; the last answer of a path repeats."""

    host: str
    port: int = 0
    scheme: str = "http"
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    _answers: dict[str, list[Answer]] = field(default_factory=dict)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def on(self, path: str, *answers: Answer) -> str:
        """Set what a path answers; returns its URL."""
        self._answers[path] = list(answers)
        return self.url(path)

    def url(self, path: str, host: str | None = None) -> str:
        """The URL of a path."""
        return f"{self.scheme}://{host or self.host}:{self.port}{path}"

    def asked(self, path: str) -> list[Request]:
        """Requests for that path."""
        return [request for request in self.requests if request.target == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            self.requests.append(Request(method, target, headers))
            answers = self._answers.get(target, [Answer(status=404)])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer.login not in (None, headers.get("authorization")):
                answer = Answer(status=401, headers=(("WWW-Authenticate", 'Basic realm="images"'),))
            await self._answer(answer, headers, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()  # who does not read on keeps it open: see `stop`

    async def _answer(self, answer: Answer, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
        body, status, headers = answer.body, answer.status, list(answer.headers)
        if answer.etag:
            headers.append(("ETag", answer.etag))
        wanted = re.fullmatch(r"bytes=(\d+)-", asked.get("range", ""))
        same = asked.get("if-range", answer.etag) == answer.etag
        if status == 200 and wanted and answer.ranges and same:
            start = int(wanted[1])
            if start >= len(body):
                status, body = 416, b""
                headers.append(("Content-Range", f"bytes */{len(answer.body)}"))
            else:
                status, body = 206, body[start:]
                shown = start + answer.range_shift
                headers.append(("Content-Range", f"bytes {shown}-{len(answer.body) - 1}/{len(answer.body)}"))
        if answer.length:
            headers.append(("Content-Length", str(len(body) + answer.more_length)))
        else:
            headers.append(("Transfer-Encoding", "chunked"))
        lines = [f"HTTP/1.1 {status} X", "Connection: close", *(f"{name}: {value}" for name, value in headers)]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        stop = min(n for n in (answer.cut, answer.stall, len(body)) if n is not None)
        for at in range(0, stop, 1 << 16):
            piece = body[at : min(at + (1 << 16), stop)]
            writer.write(piece if answer.length else b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if answer.stall is not None:
            self.stalled.set()
            await asyncio.Event().wait()
        if answer.cut is None and not answer.length:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        closing = [asyncio.create_task(writer.wait_closed()) for writer in self._writers]
        if closing:
            await asyncio.wait(closing, timeout=0.2)
        for writer, closed in zip(self._writers, closing, strict=True):
            if not closed.done():
                writer.transport.abort()
        await asyncio.gather(*closing, return_exceptions=True)


def certificate(path: Path, *hosts: str) -> tuple[str, ssl.SSLContext]:
    """A certificate that is its own authority, in PEM, and what serves with it; with its key in `path`/server.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([_subject(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (path / "server.pem").write_bytes(pem + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "server.pem")
    return pem.decode(), context


def _subject(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@asynccontextmanager
async def serving(host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server on that address until the block ends."""
    server = Server(host, scheme="https" if tls else "http")
    listener = await asyncio.start_server(server.serve, host, port, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await server.stop()
        await listener.wait_closed()
