"""Runs programs on files that nobody trusts: in a cage with nothing else in it.

Inside there are the files that were handed over as open descriptors, /usr read-only if a program is
run, and nothing more: no other file, no network, no process, no capability, an unprivileged user, an
empty environment, limits on memory, CPU, file size and time. What comes out is bounded too. How it is
done is in `cell`; it needs root, and Linux 5.12 or later.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kumulus_agents.storage import cell
from kumulus_agents.storage.blocking import to_the_end
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import CageSettings

_CELL = str(Path(cell.__file__).resolve())
_INSPECTOR = "kumulus_agents.storage.inspector"
_UNPACKER = "kumulus_agents.storage.unpacker"
_OUTPUT = 64 << 10


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caged program may use."""

    address_space: int
    cpu_seconds: float
    wall_seconds: float
    file_size: int = 0
    """Largest file it may make or extend, in bytes."""
    open_files: int = 64


@dataclass(frozen=True, slots=True)
class Handed:
    """An open file that exists inside, under a name in the root directory."""

    fd: int
    name: str
    write: bool = False
    copied: bool = False
    """Only a copy of its first 4 KiB exists inside, in memory: for what has no name on this host."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a caged program ended."""

    status: int
    """Exit status; 128 and the signal's number when a signal ended it."""
    output: str
    """Standard output, the first 64 KiB."""
    errors: str
    """Standard error, the first 64 KiB."""

    def ended_by(self, number: signal.Signals) -> bool:
        """Whether that signal ended it."""
        return self.status == 128 + number


async def run(
    program: Sequence[str],
    handed: Sequence[Handed],
    *,
    limits: Limits,
    settings: CageSettings,
    on_output: Callable[[bytes], None] | None = None,
) -> Outcome:
    """Run a program below /usr in the cage, with the files it is handed. No shell, no environment.

    Cancelling kills it with all it has started. Raises `StorageError`: CageUnavailable without root or
    when the kernel cannot, ImageTimeout when it takes longer than allowed.
    """
    plan = _plan(handed, limits, settings, programs=True)
    argv = [sys.executable, "-I", "-S", "-B", _CELL, plan, *program]
    return await _spawn(argv, handed, limits, on_output=on_output)


async def inspect(fd: int, declared: str, max_virtual_size: int, *, settings: CageSettings) -> dict[str, object]:
    """What the inspector, caged, says of the open file: `format` and `virtualSize`, or `rejected`."""
    limits = Limits(settings.address_space, settings.inspect_seconds, settings.inspect_seconds)
    plan = _plan((), limits, settings, programs=False)
    argv = [sys.executable, "-I", "-B", "-m", _INSPECTOR, plan, declared, str(max_virtual_size)]
    return _answer(await _spawn(argv, (), limits, stdin=fd), "inspect")


async def unpack(
    fd: int,
    target: int,
    compression: str,
    limit: int,
    room: int,
    *,
    settings: CageSettings,
    on_output: Callable[[bytes], None],
) -> dict[str, object]:
    """What the unpacker, caged, says: the `size` of what it made of the open file, or why there is none.

    That is `rejected`, `tooLarge` for more than `limit` bytes, `noRoom` for more than `room` that are not zeros, or
    `failed`, an error number of the target.
    """
    seconds = settings.convert_seconds
    limits = Limits(settings.address_space, seconds, seconds, file_size=limit)
    handed = [Handed(target, "target", write=True)]
    plan = _plan(handed, limits, settings, programs=False)
    argv = [sys.executable, "-I", "-B", "-m", _UNPACKER, plan, compression, "/target", str(limit), str(room)]
    return _answer(await _spawn(argv, handed, limits, stdin=fd, on_output=on_output), "unpack")


def _answer(outcome: Outcome, doing: str) -> dict[str, object]:
    """The JSON object that is the last line of a program of our own."""
    if outcome.status >= 128:
        return {"rejected": f"takes too much time or memory to {doing}"}
    try:
        answer = json.loads(outcome.output.rpartition("\n")[2])
    except ValueError:
        answer = None
    if outcome.status or not isinstance(answer, dict):
        last = outcome.errors.strip().rpartition("\n")[2]
        raise StorageError(f"The program that is to {doing} images does not work: {last}.", reason="CageUnavailable")
    return answer


def _plan(handed: Sequence[Handed], limits: Limits, settings: CageSettings, *, programs: bool) -> str:
    cpu = max(1, int(limits.cpu_seconds))
    return json.dumps(
        {
            "uid": settings.uid,
            "parent": os.getpid(),
            "programs": programs,
            "mounts": [{"fd": h.fd, "target": h.name, "write": h.write} for h in handed if not h.copied],
            "copies": [{"fd": h.fd, "target": h.name} for h in handed if h.copied],
            "limits": {
                "RLIMIT_AS": limits.address_space,
                "RLIMIT_CPU": cpu,
                "RLIMIT_FSIZE": min(limits.file_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1] & (1 << 63) - 1),
                "RLIMIT_NOFILE": limits.open_files,
                "RLIMIT_CORE": 0,
                "RLIMIT_STACK": 1 << 20,
                "RLIMIT_MEMLOCK": 0,
            },
        }
    )


async def _spawn(
    argv: Sequence[str],
    handed: Sequence[Handed],
    limits: Limits,
    *,
    stdin: int = asyncio.subprocess.DEVNULL,
    on_output: Callable[[bytes], None] | None = None,
) -> Outcome:
    if os.geteuid() != 0:
        raise StorageError(
            "Images can only be inspected and converted by root: run the agent as root.",
            reason="CageUnavailable",
            retryable=False,
        )
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[h.fd for h in handed],
        env={},
        cwd="/",
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limits.wall_seconds), asyncio.TaskGroup() as group:
            output = group.create_task(_read(process.stdout, on_output))
            errors = group.create_task(_read(process.stderr, None))
            group.create_task(process.wait())
    except TimeoutError:
        raise StorageError(
            "The image took too long to read. Use a smaller or a repaired image.",
            reason="ImageTimeout",
            retryable=False,
        ) from None
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None  # what `on_output` raised
    finally:
        await _end(process)
    outcome = Outcome(process.returncode or 0, output.result(), errors.result())
    if outcome.status == cell.BROKEN:
        raise StorageError(f"Images cannot be read safely: {outcome.errors.strip()}.", reason="CageUnavailable")
    return outcome


async def _read(stream: asyncio.StreamReader | None, on_output: Callable[[bytes], None] | None) -> str:
    """The stream's first bytes; the rest is read and dropped, so that nothing blocks and nothing grows."""
    kept = bytearray()
    while stream is not None and (data := await stream.read(1 << 16)):
        kept += data[: _OUTPUT - len(kept)]
        if on_output is not None:
            on_output(data)
    return kept.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of it and reap it. Its pid namespace takes everything along, so its pipes end."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    async def reap() -> None:
        await process.wait()
        for stream in (process.stdout, process.stderr):
            while stream is not None and await stream.read(1 << 16):
                pass

    await to_the_end(asyncio.ensure_future(reap()))
