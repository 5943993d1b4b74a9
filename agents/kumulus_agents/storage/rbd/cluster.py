"""Commands on one Ceph pool: `rbd` and `qemu-img` as processes with a deadline, so that a dead cluster hangs nobody.

librbd blocks for ever when its cluster is gone, and a thread that hangs in it cannot be ended; a process
can. Arguments are made of names that derive from uids and of parameters that admission has bounded; the
user's key is in a file of mode 0600 in a private directory, and never an argument.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kumulus.api.order_names import pool_secret_name
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import RbdParameters
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread, to_the_end
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.protocol import StorageError, Usage
from kumulus_agents.storage.rbd.faults import (
    Crashed,
    Judge,
    NotThere,
    forbidden,
    judged,
    judged_copy,
    judged_rados,
    stalled,
    unknown_key,
)
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.source import RbdSource

KEY = "key"
"""Of the Secret with the user's key."""

_PROCESSES = 8
_NOTES = 4
"""So many processes besides, for what must not wait for copies."""
_OUTPUT = 16 << 20
_CONF, _KEYRING = "ceph.conf", "keyring"
_NOTE = "note"
"""The attribute of an object that has the text of a note."""
BLOCK_SECONDS = 30 * 24 * 3600
"""A client that is cut off for so long, and was shut out meanwhile, does not hear of it when it comes back: what it had not sent
is written then."""
_CLIENT = re.compile(r"(v[12]:)?(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-fA-F:]{2,39}\]):\d{1,5}/[1-9]\d{0,19}")
"""One client, never all of an address: those have the number 0."""
_PULSE = "kumulus-pulse"
"""An image that nobody makes: whoever hears that it is not there has heard from the cluster."""


class Cluster:
    """One pool of a cluster as this host reaches it. Belongs to one event loop."""

    def __init__(self, pool: PoolRef, parameters: RbdParameters, settings: StorageSettings, secrets: Secrets) -> None:
        self.name = pool.name
        self._uid = pool.uid
        self._parameters = parameters
        self._settings = settings.ceph
        self._qemu_img = str(settings.cage.qemu_img)
        self._secrets = secrets
        self._key: str | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(_PROCESSES)
        self._notes = asyncio.Semaphore(_NOTES)
        self._silent_until = 0.0

    async def ask(self, *command: str) -> Any:
        """What an `rbd` command answers, parsed from JSON, or None for nothing; within the time for questions.

        Raises `StorageError`: NotThere, PoolStalled, PoolForbidden, PoolMissing, PoolFailed.
        """
        question, seconds = (*command, "--format", "json"), self._settings.answer_seconds
        try:
            output = await self._rbd(question, seconds)
        except Crashed:  # as `rbd` does once in a while when it ends
            output = await self._rbd(question, seconds)
        try:
            return json.loads(output) if output.strip() else None
        except ValueError:
            raise StorageError("The rbd command answered what cannot be read.", reason="PoolFailed") from None

    async def do(self, *command: str, long: bool = False, soon: bool = False) -> None:
        """Have an `rbd` command change something. It may take its time as long as the cluster answers; `long` for one
        that touches all data of an image, `soon` for one that has the time of a question and no more: it may come to be
        all the same when it was given up.

        Raises `StorageError` as `ask`, and AlreadyThere, Busy, NoSpace.
        """
        settings = self._settings
        seconds = settings.copy_seconds if long else settings.change_seconds
        await self._rbd(command, settings.answer_seconds if soon else seconds)

    async def digest(self, image: str, progress: Callable[[int], None]) -> str:
        """SHA-256 of all bytes of a snapshot `image@snapshot` of the pool. `progress` is told how many were read."""
        digest, done = hashlib.sha256(), 0

        def take(data: bytes) -> None:
            nonlocal done
            digest.update(data)
            done += len(data)
            progress(done)

        name, _, snapshot = image.partition("@")
        command = ("export", "--no-progress", self.at(name, snapshot), "-")
        await self._rbd(command, self._settings.copy_seconds, on_output=take)
        return digest.hexdigest()

    async def copy(self, source: str, target: str, progress: Callable[[bytes], None], *, fd: int | None = None) -> None:
        """Fill the image `target`, at least as large and all zeros, with all that `source` has.

        `source` is an image or snapshot of the pool; with `fd` that open raw file. Only what is not zero is
        written. What is copied is read as bytes, never as a format.
        """
        opened = self._opened(source) if fd is None else f"driver=raw,file.driver=file,file.filename=/proc/self/fd/{fd}"
        await self._run(
            [
                *(self._qemu_img, "convert", "-p", "-n", "--target-is-zero", "-W", "-m", "8"),
                *("--image-opts", "--target-image-opts", opened, self._opened(target)),
            ],
            self._settings.copy_seconds,
            judge=judged_copy,
            on_output=progress,
            fds=() if fd is None else (fd,),
        )

    async def copy_out(self, source: str, fd: int, progress: Callable[[bytes], None]) -> None:
        """Fill the open, empty qcow2 file, which is of our own making and as large, with all that the image or snapshot
        `source` has. What is copied is read as bytes, never as a format."""
        target = f"driver=qcow2,file.driver=file,file.filename=/proc/self/fd/{fd}"
        await self._run(
            [
                *(self._qemu_img, "convert", "-p", "-n", "--target-is-zero"),
                *("--image-opts", "--target-image-opts", self._opened(source), target),
            ],
            self._settings.copy_seconds,
            judge=judged_copy,
            on_output=progress,
            fds=(fd,),
        )

    async def usage(self) -> Usage:
        """Room of the pool, replicas counted once."""
        await self._open()
        output = await self._run(
            [str(self._settings.ceph), *self._login(), "df", "--format", "json"], self._settings.answer_seconds
        )
        try:
            pools = {pool["name"]: pool["stats"] for pool in json.loads(output)["pools"]}
            if not pools:
                raise StorageError(
                    f"The Ceph cluster of the pool {self.name} does not say how much room it has. Look whether it has an"
                    " active manager daemon (`ceph status`).",
                    reason="PoolFailed",
                )
            if self._parameters.pool not in pools:
                raise judged(2, "error opening pool", self.name, self._parameters.pool) or NotThere()
            stats = pools[self._parameters.pool]
            used = int(stats["stored"])
            return Usage(capacity=used + int(stats["max_avail"]), used=used)
        except (ValueError, KeyError, TypeError):
            raise StorageError("The ceph command answered what cannot be read.", reason="PoolFailed") from None

    async def leave_note(self, name: str, text: str) -> None:
        """Leave a short text under that name in the pool, beside all images, in place of the one before. Raises `StorageError` as `ask`."""
        await self._rados("setxattr", name, _NOTE, text)

    async def note(self, name: str) -> str | None:
        """The text that was left under that name; None: there is none. Raises `StorageError` as `ask`."""
        with suppress(NotThere):
            return (await self._rados("getxattr", name, _NOTE)).decode(errors="replace").strip()
        return None

    async def shut_out(self, address: str) -> None:
        """Have the cluster refuse all that the client of that address asks for, now and for as long as `BLOCK_SECONDS`; others of its
        host are let in. The address is one that the cluster itself has named.

        Raises `StorageError` as `ask`.
        """
        if _CLIENT.fullmatch(address) is None:
            raise StorageError(
                f"The Ceph cluster names a client that cannot be shut out: {address[:64]!r}.", reason="PoolFailed"
            )
        await self._open()
        block = ("osd", "blocklist", "add", address, str(BLOCK_SECONDS))
        await self._run([str(self._settings.ceph), *self._login(), *block], self._settings.answer_seconds)

    async def check(self) -> None:
        """Nothing, when the pool can be used. Raises `StorageError` as `ask`."""
        with suppress(NotThere):
            await self.ask("info", self.at(_PULSE))

    async def source(self, image: str) -> RbdSource:
        """The image as an emulator opens it."""
        key = await self._open()
        parameters = self._parameters
        return RbdSource(parameters.monitors, parameters.pool, image, parameters.user, key)

    def at(self, image: str, snapshot: str | None = None) -> str:
        """The image, or a snapshot of it, as an argument."""
        return f"{self._parameters.pool}/{image}" + ("" if snapshot is None else f"@{snapshot}")

    @property
    def pool(self) -> str:
        """The name of the pool in the cluster."""
        return self._parameters.pool

    @property
    def answer_seconds(self) -> float:
        """Within which the cluster answers a question, or is taken for stalled."""
        return self._settings.answer_seconds

    async def _rbd(
        self, command: Sequence[str], seconds: float, *, on_output: Callable[[bytes], None] | None = None
    ) -> bytes:
        await self._open()
        return await self._run([str(self._settings.rbd), *self._login(), *command], seconds, on_output=on_output)

    async def _rados(self, *command: str) -> bytes:
        await self._open()
        argv = [str(self._settings.rados), *self._login(), "--pool", self._parameters.pool, *command]
        return await self._run(argv, self._settings.answer_seconds, judge=judged_rados, slots=self._notes)

    def _login(self) -> tuple[str, ...]:
        return ("--conf", str(self._directory / _CONF), "--id", self._parameters.user)

    def _opened(self, image: str) -> str:
        """As qemu-img opens an image of the pool, `image@snapshot` too."""
        name, _, snapshot = image.partition("@")
        return (
            f"driver=raw,file.driver=rbd,file.pool={self._parameters.pool},file.image={name},"
            + (f"file.snapshot={snapshot}," if snapshot else "")
            + f"file.user={self._parameters.user},file.conf={self._directory / _CONF}"
        )

    @property
    def _directory(self) -> Path:
        return Path(self._settings.runtime) / self._uid

    async def _open(self) -> str:
        """The user's key, which is then in the keyring too. Read from its Secret when it is not known."""
        async with self._opening:
            if self._key is None:
                try:
                    key = (await self._secrets.read(pool_secret_name(self._uid)))[KEY].decode("ascii").strip()
                except (KeyError, UnicodeDecodeError):
                    key = ""
                if not key or not key.isprintable() or " " in key:
                    raise StorageError(
                        f"The Secret of the pool {self.name} has no key of a Ceph user under `{KEY}`. Put there what"
                        " `ceph auth get-key` prints.",
                        reason="SecretUnreadable",
                    )
                with told_as("keep the pool's configuration"):
                    await in_thread(self._configure, key)
                self._key = key
            return self._key

    def _configure(self, key: str) -> None:
        parameters, runtime = self._parameters, Path(self._settings.runtime)
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Directory.trusted(self._settings.runtime) as above, above.directory(self._uid, make=True) as directory:
            directory.write(_KEYRING, f"[client.{parameters.user}]\n\tkey = {key}\n".encode(), flush=False)
            directory.write(
                _CONF,
                "\n".join(
                    (
                        "[global]",
                        f"mon_host = {' '.join(parameters.monitors)}",
                        f"keyring = {self._directory / _KEYRING}",
                        "log_to_stderr = false",
                        "err_to_stderr = true",
                        "log_file = /dev/null",
                        "admin_socket =",
                        # Of the first format: its parents cannot lose a snapshot that has children.
                        "rbd_default_clone_format = 1",
                        # Whose lock is broken is shut out, for as long as we say.
                        f"rbd_blocklist_expire_seconds = {BLOCK_SECONDS}",
                        "",
                    )
                ).encode(),
                flush=False,
            )

    async def _run(
        self,
        argv: Sequence[str],
        seconds: float,
        *,
        judge: Judge = judged,
        on_output: Callable[[bytes], None] | None = None,
        fds: Sequence[int] = (),
        slots: asyncio.Semaphore | None = None,
    ) -> bytes:
        """The output of a program that ended well. Cancelling, or taking longer, kills it."""
        loop, patience = asyncio.get_running_loop(), self._settings.answer_seconds
        if loop.time() < self._silent_until:
            raise stalled(self.name, patience)
        async with slots or self._slots:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=fds,
                env={"LC_ALL": "C", "CEPH_ARGS": ""},
                cwd="/",
                start_new_session=True,
            )
            try:
                output, errors = await self._waited_for(process, seconds, on_output)
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None  # a stall, or what `on_output` raised
            finally:
                await to_the_end(asyncio.ensure_future(_end(process)))
        error = judge(process.returncode or 0, errors.decode(errors="replace"), self.name, self._parameters.pool)
        if error is not None:
            if error.reason == "PoolForbidden":
                self._key = None  # it may have been changed
            raise error
        return output

    async def _waited_for(
        self, process: asyncio.subprocess.Process, seconds: float, on_output: Callable[[bytes], None] | None
    ) -> tuple[bytes, bytes]:
        """What it says until it ends. While it lasts the cluster is asked for a sign of life now and then."""
        patience = self._settings.answer_seconds
        said = bytearray()
        async with asyncio.TaskGroup() as group:
            output = group.create_task(_read(process.stdout, on_output))
            errors = group.create_task(_read(process.stderr, said.extend))
            work = group.create_task(process.wait())
            deadline = asyncio.get_running_loop().time() + seconds
            while not work.done():
                left = deadline - asyncio.get_running_loop().time()
                await asyncio.wait([work], timeout=min(patience, max(left, 0)))
                if work.done():
                    break
                if left <= patience:
                    await _kill(process)
                    if unknown_key(said.decode(errors="replace")):
                        self._key = None
                        raise forbidden(self.name, self._parameters.pool)
                    self._fell_silent(patience)
                    raise stalled(self.name, seconds)
                await self._pulse()
        return output.result(), errors.result()

    async def _pulse(self) -> None:
        """Raises `StorageError(reason="PoolStalled")` when the cluster does not answer."""
        patience = self._settings.answer_seconds
        process = await asyncio.create_subprocess_exec(
            *(str(self._settings.rbd), *self._login(), "info", self.at(_PULSE)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(patience):
                await process.wait()
        except TimeoutError:
            self._fell_silent(patience)
            raise stalled(self.name, patience) from None
        finally:
            await to_the_end(asyncio.ensure_future(_end(process)))

    def _fell_silent(self, seconds: float) -> None:
        """Who asks within the next seconds is told so without asking again."""
        self._silent_until = asyncio.get_running_loop().time() + seconds


async def _read(stream: asyncio.StreamReader | None, on_output: Callable[[bytes], None] | None) -> bytes:
    kept = bytearray()
    while stream is not None and (data := await stream.read(1 << 16)):
        kept += data[: _OUTPUT - len(kept)]
        if on_output is not None:
            on_output(data)
    return bytes(kept)


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of it, reap it and let its pipes end."""
    await _kill(process)
    await process.wait()
    for stream in (process.stdout, process.stderr):
        while stream is not None and await stream.read(1 << 16):
            pass
