"""Programs of the host, started by their arguments and without a shell."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress

from kumulus_agents.network.protocol import NetworkError

SECONDS = 60.0
"""Within which a program has to end."""

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


async def run(argv: Sequence[str], given: str = "") -> str:
    """What the program says. Raises `NetworkError` when it fails, with the last it said."""
    status, out, err = await attempt(argv, given)
    if status != 0:
        said = " ".join((err or out).split())[-400:]
        raise NetworkError(f"{argv[0]} failed: {said or f'status {status}'}.", reason="CommandFailed")
    return out


async def attempt(argv: Sequence[str], given: str = "") -> tuple[int, str, str]:
    """Status, output and complaints of the program. Raises `NetworkError` when it is not there or does not end."""
    # No pipes. Some event loops fail when a program ends before it has read all, or anything, of what it was given; and they
    # leave ends of pipes to what a program leaves behind (keepalived, haproxy), so that one would wait for the end of that.
    files = [_file(given.encode()), _file(b""), _file(b"")]
    try:
        status = await _wait(argv, *files)
        out, err = _content(files[1]), _content(files[2])
    finally:
        for file in files:
            os.close(file)
    return status, out, err


async def _wait(argv: Sequence[str], stdin: int, stdout: int, stderr: int) -> int:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=stdin, stdout=stdout, stderr=stderr, env=ENVIRONMENT
        )
    except OSError as error:
        raise NetworkError(
            f"{argv[0]} cannot be started ({error.strerror}); install the package that has it.",
            reason="ProgramMissing",
            retryable=False,
        ) from error
    try:
        async with asyncio.timeout(SECONDS):
            return await process.wait()
    except TimeoutError as error:
        raise NetworkError(f"{argv[0]} did not end within {SECONDS:g} s.", reason="CommandFailed") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _content(file: int) -> str:
    """All that was written to a file in memory."""
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")


def _file(content: bytes) -> int:
    """A file in memory with that content, to be read from its beginning."""
    descriptor = os.memfd_create("given", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
