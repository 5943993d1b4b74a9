"""The cage: what is in it, what is not, and that nothing outlives it. As hostile as the program in it can be."""

# ruff: noqa: ASYNC110 - small files and waits with a deadline, in tests

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from kumulus_agents.storage import cage
from kumulus_agents.storage.cage import Handed, Limits
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import CageSettings
from tests.patience import PATIENCE
from tests.unit.storage.material import MIB, needs_root
from tests.unit.storage.server import serving

pytestmark = needs_root

SETTINGS = CageSettings()
LIMITS = Limits(address_space=1 << 30, cpu_seconds=20, wall_seconds=20, file_size=MIB)
PERL = "/usr/bin/perl"
"""An interpreter that is on every Debian: the hostile program."""


async def perl(script: str, *handed: Handed, limits: Limits = LIMITS) -> cage.Outcome:
    """Run the script in the cage; it is a file there, for `perl -e` wants a /dev/null."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(script.encode())
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        program = Handed(file.fileno(), "script")
        return await cage.run([PERL, "/script"], [program, *handed], limits=limits, settings=SETTINGS)


async def test_nothing_is_inside_but_usr_and_what_was_handed_over(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("hello")
    (tmp_path / "given").chmod(0o644)
    fd = os.open(tmp_path / "given", os.O_RDONLY)
    outcome = await perl(
        'opendir D, "/"; print join " ", sort readdir D; print "|", `/bin/cat /source`', Handed(fd, "source")
    )
    os.close(fd)
    listing, _, content = outcome.output.partition("|")
    assert set(listing.split()) <= {".", "..", "bin", "sbin", "lib", "lib64", "lib32", "usr", "source", "script"}
    assert content == "hello"


@pytest.mark.parametrize(
    "place", ["/etc/shadow", "/proc/1/environ", "/proc/self/fd/0", "/dev/null", "/sys/kernel", "/root"]
)
async def test_files_of_the_host_do_not_exist(place: str) -> None:
    outcome = await perl(f'print((-e "{place}") ? "there" : "gone")')
    assert outcome.output == "gone"


async def test_a_canary_is_not_read_though_everybody_may(tmp_path: Path) -> None:
    canary = Path("/tmp") / f"canary-{os.getpid()}"
    canary.write_text("secret")
    canary.chmod(0o666)
    os.utime(canary, (1, 1))
    try:
        up = "/".join([".."] * 12)
        outcome = await perl(f'chroot "{up}"; for ("{canary}", "{up}{canary}") {{ open F, "<", $_ and print <F> }}')
        assert "secret" not in outcome.output
        assert canary.stat().st_atime == 1
    finally:
        canary.unlink()


async def test_a_listener_on_loopback_cannot_be_reached() -> None:
    async with serving("0.0.0.0") as canary:
        script = f"""use IO::Socket::INET; for my $h ("127.0.0.1", "10.0.0.1", "8.8.8.8") {{
            print IO::Socket::INET->new(PeerAddr => $h, PeerPort => {canary.port}, Timeout => 1) ? "yes" : "no " }}"""
        outcome = await perl(script)
        assert outcome.output == "no no no "
        assert canary.connections == 0


async def test_abstract_sockets_of_the_host_cannot_be_reached(tmp_path) -> None:
    name = f"kumulus-canary-{os.getpid()}"
    reached: list[object] = []
    listener = await asyncio.start_unix_server(lambda r, w: reached.append(w), f"\0{name}")
    outcome = await perl(
        f'use Socket; socket S, PF_UNIX, SOCK_STREAM, 0; print connect(S, pack_sockaddr_un("\\0{name}")) ? "yes" : "no"'
    )
    listener.close()
    await listener.wait_closed()
    assert (outcome.output, reached) == ("no", [])


async def test_it_is_nobody_without_rights() -> None:
    script = r"""my $root = "/"; print "$< $> $( $)|", (kill 0, -1) ? "sees" : "alone", "|", (mkdir "/x") ? "writes" : "",
        "|", (syscall(272, 0x10000000) == 0) ? "userns" : "", "|", (syscall(155, $root, $root) == 0) ? "pivots" : "";"""
    outcome = await perl(script)
    ids, alone, writes, userns, pivots = outcome.output.split("|")
    assert set(ids.split()) == {str(SETTINGS.uid)}
    assert (alone, writes, pivots) == ("alone", "", "")
    assert userns in ("", "userns")  # a user namespace of its own would give rights over nothing


async def test_set_uid_programs_give_nothing(tmp_path) -> None:
    outcome = await perl("print `/usr/bin/su -c id 2>&1`, `/usr/bin/id -u`")
    assert outcome.output.strip().endswith(str(SETTINGS.uid))


async def test_nothing_of_the_agent_s_environment_gets_in(monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    outcome = await cage.run(["/usr/bin/env"], (), limits=LIMITS, settings=SETTINGS)
    assert outcome.output == "MALLOC_ARENA_MAX=1\n"


async def test_only_what_was_handed_over_is_open(tmp_path) -> None:
    secret = os.open("/etc/shadow", os.O_RDONLY)
    os.set_inheritable(secret, True)
    outcome = await perl(
        'for (3..200) { open F, "<&=$_" and -e F and (stat F)[1] != (stat "/script")[1] and print "$_ " }'
    )
    os.close(secret)
    assert outcome.output == ""


async def test_the_source_cannot_be_written_and_the_target_can(tmp_path) -> None:
    fds = []
    for name in ("source", "target"):
        fd = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT)
        os.fchown(fd, SETTINGS.uid, SETTINGS.uid)
        fds.append(fd)
    script = 'for ("/source", "/target") { print((open F, "+<", $_) ? "rw " : "ro ") } print F "x"; unlink "/target"'
    outcome = await perl(script, Handed(fds[0], "source"), Handed(fds[1], "target", write=True))
    for fd in fds:
        os.close(fd)
    assert outcome.output == "ro rw "
    assert (tmp_path / "target").read_text() == "x"


async def test_limits_hold(tmp_path) -> None:
    memory = await perl('$x = "x" x (2 << 30); print "got it"', limits=Limits(256 << 20, 20, 20))
    assert memory.status != 0
    assert memory.output == ""
    cpu = await perl("while (1) {}", limits=Limits(1 << 30, 1, 20))
    assert cpu.ended_by(signal.SIGKILL) or cpu.ended_by(signal.SIGXCPU)
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    os.fchown(fd, SETTINGS.uid, SETTINGS.uid)
    size = await perl(
        'open F, "+<", "/target"; print F "x" x (4 << 20); close F or print $!', Handed(fd, "target", write=True)
    )
    os.close(fd)
    assert size.output == "File too large"
    assert (tmp_path / "target").stat().st_size <= MIB


async def test_output_is_bounded() -> None:
    outcome = await perl('for (1..200) { print "x" x 100000 } print STDERR "y" x 1000000')
    assert (len(outcome.output), len(outcome.errors)) == (65536, 65536)


SLEEP = f"sleep {100_000 + os.getpid()}"
"""What no other run of these tests on this machine does."""


def sleepers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if SLEEP in " ".join(p.info["cmdline"] or ())]


async def until(gone: object) -> None:
    async with asyncio.timeout(10 * PATIENCE):
        while sleepers() if gone else not sleepers():
            await asyncio.sleep(0.01)


CHILDREN = f'exec "/usr/bin/setsid", "-f", "/bin/sh", "-c", "{SLEEP} & {SLEEP}" unless fork; {SLEEP}'


async def test_too_long_is_an_error_and_nothing_stays() -> None:
    with pytest.raises(StorageError) as error:
        await perl(CHILDREN, limits=Limits(1 << 30, 20, 0.3))
    assert error.value.reason == "ImageTimeout"
    await until(gone=True)


async def test_cancelling_kills_it_with_its_children() -> None:
    running = asyncio.ensure_future(perl(CHILDREN))
    await until(gone=False)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(gone=True)


async def test_it_dies_with_the_agent() -> None:
    code = f"""
import asyncio
from kumulus_agents.storage import cage
from kumulus_agents.storage.settings import CageSettings
asyncio.run(cage.run(["/usr/bin/setsid", "/bin/sh", "-c", "{SLEEP} & {SLEEP}"], (), limits=cage.Limits(1 << 30, 20, 60), settings=CageSettings()))
"""
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await until(gone=False)
    agent.kill()
    await agent.wait()
    await until(gone=True)


async def test_a_program_that_is_not_there_is_said() -> None:
    with pytest.raises(StorageError) as error:
        await cage.run(["/usr/bin/no-such-program"], (), limits=LIMITS, settings=SETTINGS)
    assert error.value.reason == "CageUnavailable"


async def test_without_root_there_is_no_cage(monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StorageError) as error:
        await perl("1")
    assert (error.value.reason, error.value.retryable) == ("CageUnavailable", False)


async def test_no_mount_stays_on_the_host() -> None:
    """In a mount namespace of its own: others mount and unmount on this machine at any time."""
    code = """
import asyncio
from pathlib import Path
from tests.unit.storage.test_cage import perl
before = Path("/proc/self/mountinfo").read_text()
asyncio.run(perl("1"))
assert Path("/proc/self/mountinfo").read_text() == before
"""
    command = ("unshare", "--mount", sys.executable, "-c", code)
    done = await asyncio.create_subprocess_exec(*command, cwd=Path(__file__).parents[3])
    assert await done.wait() == 0


async def test_the_inspector_sees_only_its_file(tmp_path) -> None:
    (tmp_path / "i").write_bytes(bytes(MIB))
    fd = os.open(tmp_path / "i", os.O_RDONLY)
    answer = await cage.inspect(fd, "raw", 1 << 40, settings=SETTINGS)
    os.close(fd)
    assert json.loads(json.dumps(answer)) == {"format": "raw", "virtualSize": MIB}


async def test_a_parser_that_trips_refuses_the_image(tmp_path) -> None:
    """A declared format nobody knows stands for any surprise inside the cage."""
    fd = os.open("/dev/null", os.O_RDONLY)
    answer = await cage.inspect(fd, "floppy", 1 << 40, settings=SETTINGS)
    os.close(fd)
    assert "not supported" in str(answer["rejected"])


async def test_an_inspector_that_cannot_be_loaded_is_not_the_images_fault(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cage, "_INSPECTOR", "kumulus_agents.storage.nowhere")
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(StorageError) as error:
        await cage.inspect(fd, "raw", 1 << 40, settings=SETTINGS)
    os.close(fd)
    assert (error.value.reason, error.value.retryable) == ("CageUnavailable", True)


async def test_an_inspector_without_memory_refuses_the_image(tmp_path) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    answer = await cage.inspect(fd, "raw", 1 << 40, settings=CageSettings(inspect_seconds=30, address_space=64 << 20))
    os.close(fd)
    assert "rejected" in answer
