"""`kumulusctl image upload`: bring a file from here into an image, and go on where it was cut.

The token is made up here and told to nobody but the host, over TLS that trusts the certificates the cluster names and no
others. The cluster has the token's digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import secrets
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import urlsplit

import typer

from kumulus.api.image import Compression, Image, ImageFormat, ImagePhase, ImageUpload
from kumulus.cli.amounts import duration, size
from kumulus.cli.problem import Problem, Usage
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line
from kumulus.kube import errors

Raw = dict[str, Any]

PART = 32 << 20
"""Bytes of a request: what is lost at most when it is cut before the host has kept any of it."""
BLOCK = 256 << 10
SOCKET_SECONDS = 60.0
ADMIT_SECONDS = 60.0
IN_VAIN = 8
"""Attempts in a row that bring nothing new."""
TTL_SECONDS = 3600


class _Again(Exception):
    """It did not work this time. `seconds` to wait, `anew`: with another token."""

    def __init__(self, why: str, *, seconds: float = 2.0, anew: bool = False) -> None:
        super().__init__(why)
        self.seconds, self.anew = seconds, anew


@dataclass(frozen=True, slots=True)
class Door:
    """Where to bring it to."""

    url: str
    server_name: str
    ca_bundle: str
    token: str


class Meter:
    """Bytes, rate and how long it takes still: on a terminal as one line, else every tenth."""

    def __init__(self, session: Session, what: str, total: int) -> None:
        self._session = session
        self._what = what
        self._total = total
        self._began: tuple[float, int] | None = None
        self._told = -1.0

    def at(self, done: int) -> None:
        """So many bytes are done."""
        now = self._session.monotonic()
        if self._began is None:
            self._began = (now, done)
        terminal = self._session.printer.err.is_terminal
        step = now if terminal else 10.0 * (10 * done // max(self._total, 1))
        if step - self._told < (0.2 if terminal else 1.0) and done < self._total:
            return
        self._told = step
        self._session.printer.err.print(self.line(done, now), end="\r" if terminal and done < self._total else "\n")

    def line(self, done: int, now: float) -> str:
        """`Uploading: 1.2 GiB of 4 GiB, 30%, 98 MiB/s, 29s left`."""
        began, first = self._began or (now, done)
        rate = (done - first) / (now - began) if now > began else 0.0
        speed = f", {size(int(rate))}/s, {duration((self._total - done) / rate)} left" if rate > 0 else ""
        return f"{self._what}: {size(done)} of {size(self._total)}, {100 * done // max(self._total, 1)}%{speed}"


def digest_of(file: BinaryIO, meter: Meter) -> str:
    """SHA-256 of the file."""
    found, done = hashlib.sha256(), 0
    while data := file.read(4 << 20):
        found.update(data)
        done += len(data)
        meter.at(done)
    return found.hexdigest()


def ensure_image(session: Session, name: str, wanted: Raw) -> Image:
    """The Image, made if there is none. Raises `Problem` when there is one that is not like this."""
    raw = session.cluster.find(Image.KIND, name, session.namespace)
    if raw is None:
        body = {"metadata": {"name": name}, "spec": wanted}
        try:
            raw = session.cluster.create(Image.KIND, body, session.namespace)
        except errors.AlreadyExists:
            raw = session.cluster.get(Image.KIND, name, session.namespace)
    image = Image.parse(raw)
    if image.spec.source.upload is None:
        raise Problem(f"The image {name} comes from elsewhere and is not uploaded; choose another name.")
    sha256 = image.spec.checksum.sha256 if image.spec.checksum is not None else None
    if sha256 != wanted["checksum"]["sha256"]:
        raise Problem(
            f"The image {name} is of another file: it has the SHA-256 {sha256}, this file "
            f"{wanted['checksum']['sha256']}. Upload that file, or choose another name."
        )
    return image


@contextlib.contextmanager
def door(session: Session, name: str) -> Iterator[Door]:
    """A way in, for one token, closed at the end."""
    token = secrets.token_urlsafe(32)
    body = {
        "metadata": {"generateName": f"{name[:40]}-"},
        "spec": {
            "image": name,
            "tokenSha256": hashlib.sha256(token.encode()).hexdigest(),
            "ttlSeconds": TTL_SECONDS,
        },
    }
    made = session.cluster.create(ImageUpload.KIND, body, session.namespace)
    try:
        yield _admitted(session, made["metadata"]["name"], token)
    finally:
        with contextlib.suppress(errors.KubeError):  # it deletes itself after its time
            session.cluster.delete(
                ImageUpload.KIND, made["metadata"]["name"], session.namespace, uid=made["metadata"]["uid"]
            )


def _admitted(session: Session, name: str, token: str) -> Door:
    why = "nobody has answered; the controllers may be down"
    for raw in session.cluster.follow(ImageUpload.KIND, name, session.namespace, seconds=ADMIT_SECONDS):
        if raw is None:
            raise Problem("The upload was deleted before it began; try again.")
        status = ImageUpload.parse(raw).status
        ready = status.condition("Ready")
        why = one_line(ready.message) if ready is not None and ready.message else why
        if status.phase == "Failed":
            raise Problem(f"Nothing can be uploaded: {why}")
        if status.phase == "Complete":
            raise _Done
        if status.url and status.server_name and status.ca_bundle:
            return Door(status.url, status.server_name, status.ca_bundle, token)
    raise Problem(f"No host takes the image after {ADMIT_SECONDS:g}s: {why}")


class _Done(Exception):
    """All of it has arrived."""


class Sender:
    """One file, to one door."""

    def __init__(self, at: Door, file: BinaryIO, total: int, meter: Meter) -> None:
        self._at = at
        self._file = file
        self._total = total
        self._meter = meter
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_verify_locations(cadata=at.ca_bundle)

    def offset(self) -> int:
        """How much has arrived. Raises `_Done`, `_Again`, `Problem`."""
        return self._exchange("HEAD", {}, None)

    def send(self, start: int) -> int:
        """Bring the next part; how much has arrived then. Raises `_Done`, `_Again`, `Problem`."""
        end = min(start + PART, self._total)
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{self._total}", "Content-Length": str(end - start)}
        return self._exchange("PUT", headers, self._blocks(start, end))

    def _blocks(self, start: int, end: int) -> Iterator[bytes]:
        self._file.seek(start)
        at = start
        while at < end:
            data = self._file.read(min(BLOCK, end - at))
            if not data:
                raise Problem("The file has become shorter while it was uploaded.")
            yield data
            at += len(data)
            self._meter.at(at)

    def _exchange(self, method: str, headers: dict[str, str], body: Iterator[bytes] | None) -> int:
        parts = urlsplit(self._at.url)
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=SOCKET_SECONDS)
        try:
            plain = socket.create_connection((parts.hostname or "", parts.port or 443), timeout=SOCKET_SECONDS)
            try:
                connection.sock = self._context.wrap_socket(plain, server_hostname=self._at.server_name)
            except BaseException:
                plain.close()
                raise
            authorization = {"Authorization": f"Bearer {self._at.token}", "Connection": "close"}
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before the end
                connection.request(method, parts.path, body=body, headers={**authorization, **headers})
            response = connection.getresponse()
            data = response.read(65536)
        except ssl.SSLCertVerificationError as error:
            raise Problem(
                f"{parts.hostname} did not prove that it is the host it should be ({error.verify_message})."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Again(f"the connection to {parts.hostname} failed ({type(error).__name__})") from error
        finally:
            connection.close()
        return _judged(response.status, dict(response.getheaders()), data)


def _judged(status: int, headers: dict[str, str], data: bytes) -> int:
    """What an answer means: how much has arrived. Pure."""
    known = {name.lower(): value for name, value in headers.items()}
    if known.get("upload-complete") == "?1":
        raise _Done
    offset = known.get("upload-offset", "")
    if status in (200, 409) and offset.isdigit():
        return int(offset)
    try:
        said = json.loads(data or b"{}")
    except ValueError:
        said = {}
    message = one_line(str(said.get("message", f"HTTP {status}"))) if isinstance(said, dict) else f"HTTP {status}"
    if status == 401:
        raise _Again(message, anew=True)
    if status in (400, 408, 503) or (status >= 500 and status != 507):
        after = known.get("retry-after", "")
        raise _Again(message, seconds=min(float(after), 30.0) if after.isdigit() else 2.0)
    raise Problem(f"The host refuses the upload: {message}")


def bring(session: Session, name: str, file: BinaryIO, total: int) -> None:
    """Bring all of the file to the host that waits for it, however often that is cut."""
    meter = Meter(session, "Uploading", total)
    in_vain, best = 0, -1
    while True:
        try:
            with door(session, name) as at:
                sender = Sender(at, file, total, meter)
                while True:
                    try:
                        offset = sender.offset()
                        if offset > best:
                            in_vain, best = 0, offset
                        meter.at(offset)
                        while True:
                            offset = sender.send(offset)
                            in_vain, best = 0, max(best, offset)
                    except _Again as again:
                        in_vain += 1
                        if in_vain > IN_VAIN:
                            raise Problem(
                                f"The upload does not get on: {again}. What has arrived is kept for a day; repeat the "
                                "command to go on."
                            ) from again
                        session.printer.note(f"{again}; going on where it was cut")
                        session.sleep(again.seconds)
                        if again.anew or in_vain % 3 == 0:
                            break  # the host may be another by now
        except _Done:
            return


def await_ready(session: Session, name: str, seconds: float) -> None:
    """Wait until the image can be used, saying what is done to it."""
    told = ""
    for raw in session.cluster.follow(Image.KIND, name, session.namespace, seconds=seconds):
        if raw is None:
            raise Problem(f"The image {name} was deleted meanwhile.")
        image = Image.parse(raw)
        ready = image.status.condition("Ready")
        if image.status.phase is ImagePhase.READY:
            session.printer.done(Image.KIND, raw, "is ready")
            return
        if image.status.phase is ImagePhase.FAILED:
            why = one_line(ready.message) if ready is not None else "no reason was given"
            raise Problem(f"The image {name} is refused: {why}")
        stage = ready.reason if ready is not None else ""
        if stage and stage != told:
            told = stage
            session.printer.note(f"{name}: {one_line(stage)}")
    raise Problem(f"All of {name} has arrived, but it is not ready after {seconds:g}s; `kumulusctl image show {name}`.")


def _upload(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the image; made when there is none.")],
    file: Annotated[Path, typer.Option("--file", "-f", help="The file.", exists=True, dir_okay=False)],
    format_: Annotated[ImageFormat, typer.Option("--format", help="What the file is, unpacked.")] = ImageFormat.QCOW2,
    compression: Annotated[Compression, typer.Option(help="How the file is packed.")] = Compression.NONE,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait until it is ready, once uploaded.")] = 3600,
) -> None:
    """Bring a file from here into an image. Cut off, it goes on where it was when it is repeated."""
    try:
        opened = file.open("rb")
    except OSError as error:
        raise Usage(f"--file {file} cannot be read: {error.strerror}.") from error
    with opened:
        total = os.fstat(opened.fileno()).st_size
        if not total:
            raise Usage(f"--file {file} is empty.")
        sha256 = digest_of(opened, Meter(session, "Reading", total))
        wanted = {
            "source": {"upload": {}},
            "checksum": {"sha256": sha256},
            "format": format_.value,
            "compression": compression.value,
        }
        image = ensure_image(session, name, wanted)
        if image.status.phase is not ImagePhase.READY:
            bring(session, name, opened, total)
    await_ready(session, name, timeout)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "upload")(_upload)
