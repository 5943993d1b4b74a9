"""IPMI 2.0: a BMC is asked over RMCP+ what the power of its chassis is, and to take it away, by the program `ipmitool`.

This is the only program that controllers run. The password reaches it by its standard input, and nothing else does: it is neither an
argument, nor in the environment, nor in a file. (Debian's fence_ipmilan is not used, because it gives ipmitool the password as an
argument, which everybody on the machine can read.)
"""

from __future__ import annotations

import asyncio
import re
import shutil
from asyncio.subprocess import PIPE
from contextlib import suppress

from kumulus_controllers.fabric.fencing import FencingError, Power, Target

SECONDS = 10.0
"""At most so long does one call take."""
PORT = 623
PASSWORD_MAX = 20
"""Bytes that IPMI 2.0 has for one; ipmitool would cut a longer one off without a word."""
SUITES = (17, 3)
"""Cipher suites (IPMI 2.0, 22.15.2), the better first: HMAC-SHA256 and HMAC-SHA1, both with AES-CBC-128."""
STATES = {"Chassis Power is on": Power.ON, "Chassis Power is off": Power.OFF}
_OUTPUT = 1 << 16
_ADDRESS = re.compile(
    r"\[(?P<six>[0-9A-Fa-f:.]+)\](?::(?P<sixport>\d{1,5}))?|(?P<host>[^:\[\]]+)(?::(?P<port>\d{1,5}))?"
)


class Ipmi:
    """The method `ipmi`."""

    async def power(self, target: Target) -> Power:
        """Whether it is on. Raises `FencingError`."""
        said = await _ask(target, "status")
        return STATES.get(said.strip(), Power.UNKNOWN)

    async def off(self, target: Target) -> None:
        """Take its power away. Raises `FencingError`."""
        if await self.power(target) is not Power.OFF:
            await _ask(target, "off")


def place(address: str) -> tuple[str, int] | None:
    """Host and port of an address such as `10.0.9.1`, `bmc1:6230`, `[fd00::1]:623` or `fd00::1`; None for one that is none. Pure."""
    if address.count(":") > 1 and "[" not in address:
        return address, PORT
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return None
    port = int(found["sixport"] or found["port"] or PORT)
    return (found["six"] or found["host"], port) if 0 < port < 1 << 16 else None


def arguments(host: str, port: int, username: str, suite: int, verb: str) -> tuple[str, ...]:
    """Of ipmitool: it asks three times when nothing comes, each time for a second. Pure."""
    at = ("-I", "lanplus", "-C", str(suite), "-N", "1", "-R", "3", "-H", host, "-p", str(port))
    return ("-v", *at, "-U", username, "-f", "/dev/stdin", "chassis", "power", verb)


async def _ask(target: Target, verb: str) -> str:
    """What ipmitool says. Raises `FencingError`."""
    at = place(target.bmc.address)
    if at is None:
        why = f"The address of the BMC of {target.host} is none for IPMI: such as 10.0.9.1, or 10.0.9.1:623."
        raise FencingError(why, reason="BmcAddress")
    password = target.password.encode()
    if not 0 < len(password) <= PASSWORD_MAX or "\n" in target.password or not target.username.isprintable():
        why = f"IPMI takes passwords of 1 to {PASSWORD_MAX} bytes in one line, and user names that can be printed."
        raise FencingError(why, reason="SecretNotUsable")
    program = shutil.which("ipmitool")
    if program is None:
        raise FencingError("The controllers need the program ipmitool (Debian: ipmitool).", reason="NoIpmitool")
    try:
        async with asyncio.timeout(SECONDS):
            for suite in SUITES:
                code, output, errors = await _run(program, arguments(*at, target.username, suite, verb), password)
                if code == 0:
                    return output
                if "open session response" not in errors:  # it does not know the suite
                    break
    except TimeoutError as error:
        raise _unreachable(target) from error
    except OSError as error:
        raise FencingError(f"ipmitool cannot be run: {error.strerror}.", reason="NoIpmitool") from error
    raise _failure(target, errors)


async def _run(program: str, argv: tuple[str, ...], password: bytes) -> tuple[int, str, str]:
    """Its exit status and what it said. Raises `OSError`."""
    process = await asyncio.create_subprocess_exec(
        program, *argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env={"PATH": "/usr/bin"}
    )
    try:
        output, errors = await process.communicate(password)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    said, failed = (text[:_OUTPUT].decode(errors="replace") for text in (output, errors))
    return process.returncode or 0, said, failed


def _unreachable(target: Target) -> FencingError:
    return FencingError(f"The BMC of {target.host} does not answer by IPMI.", reason="BmcUnreachable")


def _failure(target: Target, said: str) -> FencingError:
    """By the words of ipmitool 1.8, which has no other answers."""
    if "RAKP" in said or "unauthorized" in said or "insufficient privilege" in said.lower():
        why = f"The BMC of {target.host} does not accept the credentials, or the user may not switch the power."
        return FencingError(why, reason="BmcRefuses")
    if "Get Auth Capabilities error" in said or "Address lookup" in said or "Could not open socket" in said:
        return _unreachable(target)
    return FencingError(f"The BMC of {target.host} does not do what it is asked by IPMI.", reason="BmcFails")
