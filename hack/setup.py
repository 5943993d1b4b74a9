#!/usr/bin/env python3
"""Set up what a checkout needs: distribution packages, and `.venv` with the locked dependencies and the project.

Runs with the system's Python and its standard library only. Done steps leave a stamp, so that a second call is
quick. What cannot be had is said in one sentence; simulated hosts need neither root nor packages.

usage: hack/setup.py [--simulated | --tests]
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"
UV = "uv==0.13.8"
LOCKS = ("requirements.lock", "requirements-libvirt.lock")
PACKAGES = ("host", "image", "controllers")
TEST_PACKAGES = ("test",)
"""What only tests need: servers that they talk to, and programs that make what they read."""
ENVIRONMENT = {**os.environ, "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"}


def main() -> int:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(description="Set up what a checkout needs.")
    parser.add_argument("--simulated", action="store_true", help="only what simulated hosts need")
    parser.add_argument("--tests", action="store_true", help="what tests talk to, too")
    chosen = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - this runs with whatever Python a machine has
        return fail(f"Kumulus needs Python 3.11 or later; this is {sys.version.split()[0]}.")
    with Lock():
        packages(simulated=chosen.simulated, names=PACKAGES + (TEST_PACKAGES if chosen.tests else ()))
        if not environment():
            return 1
    return 0


def cache() -> Path:
    """Where logs and things that outlive the checkout are."""
    base = os.environ.get("XDG_CACHE_HOME")
    path = (Path(base) if base else Path.home() / ".cache") / "kumulus"
    path.mkdir(parents=True, exist_ok=True)
    return path


class Lock:
    """Held while setting up, so that two calls do not install into each other."""

    def __enter__(self) -> None:
        self._file = (cache() / "setup.lock").open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def say(text: str) -> None:
    sys.stderr.write(f"· {text}\n")


def fail(text: str) -> int:
    sys.stderr.write(f"setup: {text}\n")
    return 1


def step(what: str, commands: list[list[str]], log: Path, env: dict[str, str] | None = None) -> bool:
    """Run commands, telling how long it takes; their output goes to the log."""
    say(f"{what} (log: {log})")
    start = time.monotonic()
    with log.open("w") as output:
        for command in commands:
            output.write(f"$ {' '.join(command)}\n")
            output.flush()
            done = subprocess.run(
                command, cwd=CHECKOUT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            if done.returncode != 0:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-6:])
                fail(f"{what} failed; the log is {log}:\n{tail}")
                return False
    say(f"{what}: done in {time.monotonic() - start:.0f} s")
    return True


def packages(*, simulated: bool, names: tuple[str, ...]) -> None:
    """The distribution packages that are missing; without them, what needs them says so.

    Simulated hosts need none, but Debian's Python cannot make virtual environments before python3-venv is there.
    """
    venv = [] if importlib.util.find_spec("ensurepip") else ["python3-venv"]
    if simulated:
        if venv and os.geteuid() == 0 and shutil.which("apt-get"):
            install(venv)
        return
    wanted = venv + [
        line
        for name in names
        for line in (CHECKOUT / "hack" / "packages" / f"{name}.txt").read_text().split("\n")
        if line and not line.startswith("#")
    ]
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        say("libvirt hosts and guest images need packages of Debian, which this is not; simulated hosts work without.")
        return
    query = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in query.stdout.splitlines() if line.endswith(" installed")}
    missing = [name for name in wanted if name not in installed]
    if not missing:
        return
    if os.geteuid() != 0:
        say(f"libvirt hosts and guest images need root to install {' '.join(missing)}; simulated hosts work without.")
        return
    if not install(missing):
        say("without them there are no libvirt hosts and no guest images; simulated hosts work without.")


def install(missing: list[str]) -> bool:
    """Install distribution packages, as root on Debian."""
    apt = [
        "apt-get",
        "-q",
        "-y",
        "--no-remove",
        "-o",
        "Dpkg::Options::=--force-confold",
        "-o",
        "DPkg::Lock::Timeout=300",
    ]
    commands = [[*apt, "update"], [*apt, "install", "--no-install-recommends", *missing]]
    env = {**ENVIRONMENT, "DEBIAN_FRONTEND": "noninteractive"}
    what = f"installing the distribution packages {' '.join(missing)}"
    return step(what, commands, cache() / "packages.log", env)


def environment() -> bool:
    """`.venv` has what the lock files say, libvirt's binding where it can be built, and the project itself."""
    python = VENV / "bin" / "python"
    libvirt = libvirt_headers()
    stamp = VENV / ".kumulus-setup"
    digest = hashlib.sha256(f"{UV} {sys.version} {libvirt} {CHECKOUT}".encode())
    for name in (*LOCKS, "pyproject.toml"):
        digest.update((CHECKOUT / name).read_bytes())
    if python.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest():
        return True
    log = cache() / "environment.log"
    if not python.exists():
        shutil.rmtree(VENV, ignore_errors=True)
        make = [[sys.executable, "-m", "venv", str(VENV)]]
        if not step("making .venv", make, log):
            fail("this Python cannot make virtual environments; on Debian, `apt-get install python3-venv` adds that.")
            return False
    stamp.unlink(missing_ok=True)
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(python)]
    commands = [
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV],
        [*uv, "--require-hashes", "-r", LOCKS[0]],
    ]
    if libvirt:
        commands.append([*uv, "--require-hashes", "-r", LOCKS[1]])
    commands.append([*uv, "--no-deps", "--editable", str(CHECKOUT)])
    if not step("installing the locked dependencies into .venv", commands, log, ENVIRONMENT):
        return False
    stamp.write_text(digest.hexdigest())
    return True


def libvirt_headers() -> bool:
    """Whether libvirt's Python binding can be built here."""
    if shutil.which("pkg-config") is None or shutil.which("gcc") is None:
        return False
    return subprocess.run(["pkg-config", "--exists", "libvirt"], check=False).returncode == 0  # noqa: S607


if __name__ == "__main__":
    sys.exit(main())
