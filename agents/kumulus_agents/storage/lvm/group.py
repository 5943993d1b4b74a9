"""Runs LVM's commands on one volume group, and what copies data in it: processes with a deadline, and never a shell.

A disk that does not answer hangs whoever asks for it in the kernel, where nothing ends it: such a process is left
behind, so that it hangs nobody else. A command of LVM that changes something is never killed: it may have suspended
devices that machines use.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import LvmParameters
from kumulus_agents.storage.blocking import in_thread, to_the_end
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.lvm import commands, faults, kernel, report
from kumulus_agents.storage.lvm.report import Listing, ThinPool
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings

_PROCESSES = 4
_OUTPUT = 64 << 20
_GRACE = 2.0
"""Seconds that a process may take to die."""


class VolumeGroup:
    """One thin pool of a volume group of this host. Belongs to one event loop."""

    def __init__(self, pool: PoolRef, parameters: LvmParameters, settings: StorageSettings) -> None:
        self.pool = pool.name
        self.name = parameters.volume_group
        self.thin_pool = parameters.thin_pool
        self._settings = settings.lvm
        self._qemu_img = settings.cage.qemu_img
        self._slots = asyncio.Semaphore(_PROCESSES)
        self._checked = False

    async def check(self) -> None:
        """Nothing, when this host can have thin pools; that stays so. Raises `StorageError` as `kernel.check`."""
        if not self._checked:
            await in_thread(kernel.check, self.pool, self._settings, self._qemu_img)
            self._checked = True

    async def listing(self) -> Listing:
        """What there is. Raises `StorageError`: DriverUnsupported, ToolsMissing, VolumeGroupMissing, ThinPoolMissing,
        PoolStalled, PoolFailed."""
        await self.check()
        output = await self._lvm(commands.report(self.name), self._settings.answer_seconds)
        try:
            listing = report.read(output, self.thin_pool)
        except ValueError:
            raise StorageError("LVM answered what cannot be read.", reason="PoolFailed") from None
        if listing.pool is None:
            raise faults.no_thin_pool(self.pool, self.name, self.thin_pool)
        return listing

    def usable(self, listing: Listing) -> ThinPool:
        """The thin pool, when volumes may be made in it. Raises `StorageError`: ThinPoolNotZeroing, ThinPoolFailed."""
        return faults.usable(listing, self.pool, self.name, self.thin_pool)

    async def do(self, command: Sequence[str]) -> None:
        """Have a command of LVM change something; cancelling waits for its end. Raises `StorageError`: Busy, NoSpace,
        PoolStalled, PoolFailed."""
        work = self._lvm(command, self._settings.change_seconds, killed=False)
        await to_the_end(asyncio.ensure_future(work))

    async def copy(self, source: str, target: str, progress: Callable[[bytes], None], *, fd: int | None = None) -> None:
        """Fill the logical volume `target`, at least as large and all zeros, with all that `source` has: another one, or
        with `fd` that open raw file. Only what is not zero is written, and it is on the medium afterwards. What is
        copied is read as bytes, never as a format.
        """
        opened = self._opened(source) if fd is None else f"driver=raw,file.driver=file,file.filename=/proc/self/fd/{fd}"
        argv = [
            *(str(self._qemu_img), "convert", "-p", "-n", "--target-is-zero", "-t", "none", "-W", "-m", "8"),
            *("--image-opts", "--target-image-opts", opened, self._opened(target)),
        ]
        status, _, errors = await self._run(
            argv, self._settings.copy_seconds, on_output=progress, fds=() if fd is None else (fd,)
        )
        if (error := faults.judged_copy(status, errors, self.pool)) is not None:
            raise error
        with told_as("write what was copied to the medium"):
            await in_thread(_flush, self.device(target))

    async def reserve(self, name: str) -> None:
        """Have the logical volume take all of its space: it is overwritten with zeros."""
        argv = [str(self._settings.blkdiscard), "--zeroout", self.device(name)]
        status, _, errors = await self._run(argv, self._settings.copy_seconds)
        if (error := faults.judged_copy(status, errors, self.pool)) is not None:
            raise error

    def device(self, name: str) -> str:
        """Path of the device of a logical volume."""
        return commands.device(self.name, name)

    def _opened(self, name: str) -> str:
        return f"driver=raw,file.driver=host_device,file.filename={self.device(name)}"

    async def _lvm(self, command: Sequence[str], seconds: float, *, killed: bool = True) -> bytes:
        status, output, errors = await self._run([str(self._settings.lvm), *command], seconds, killed=killed)
        if (error := faults.judged(status, errors, self.pool, self.name)) is not None:
            raise error
        return output

    async def _run(
        self,
        argv: Sequence[str],
        seconds: float,
        *,
        on_output: Callable[[bytes], None] | None = None,
        fds: Sequence[int] = (),
        killed: bool = True,
    ) -> tuple[int, bytes, str]:
        """Status, output and errors of a program. Cancelling, or taking longer, kills it if it may be `killed`."""
        async with self._slots:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=fds,
                env=self._environment(),
                cwd="/",
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                    output = group.create_task(_read(process.stdout, on_output))
                    errors = group.create_task(_read(process.stderr, None))
                    group.create_task(process.wait())
            except TimeoutError:
                raise faults.stalled(self.pool, seconds) from None
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None  # what `on_output` raised
            finally:
                if killed:
                    await _end(process)
        return process.returncode or 0, output.result(), errors.result().decode(errors="replace")

    def _environment(self) -> dict[str, str]:
        environment = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LVM_SUPPRESS_FD_WARNINGS": "1"}
        if self._settings.system_dir is not None:
            environment["LVM_SYSTEM_DIR"] = str(self._settings.system_dir)
        return environment


async def _read(stream: asyncio.StreamReader | None, on_output: Callable[[bytes], None] | None) -> bytes:
    kept = bytearray()
    while stream is not None and (data := await stream.read(1 << 16)):
        kept += data[: _OUTPUT - len(kept)]
        if on_output is not None:
            on_output(data)
    return bytes(kept)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of it. One that hangs in the kernel is not waited for."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                await process.wait()


def _flush(device: str) -> None:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
