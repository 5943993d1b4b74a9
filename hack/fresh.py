#!/usr/bin/env python3
"""Try this commit on a machine where nothing was installed: a minimal Debian 12 in a directory, with empty caches.

What is there besides is what README.md asks for: Python, make, git and Go. The commands that a newcomer types run in
it one after the other, and how long each took is told at the end. Everything is in mount and process namespaces of its
own, so that nothing stays mounted and nothing runs on. Uncommitted changes are not part of it.

usage: hack/fresh.py [--directory DIR] [--keep] [COMMAND ...]     (as root)
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "git", "make", "python3", "python3-venv")
COMMANDS = ("make demo", "make demo", "make demo-down", "bash .ci/run")
INSIDE = "KUMULUS_FRESH"
"""In the environment of the process that has the namespaces."""
HANDED_ON = ("GOFLAGS", "GOPROXY", "GOSUMDB", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "PIP_DEFAULT_TIMEOUT")
"""How this machine reaches the registries."""
TRUST = ("SSL_CERT_FILE", "PIP_CERT", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")
"""Variables that name a file of certificates which this machine trusts; the file goes along."""


def main() -> int:
    """Make the machine, run the commands, remove it. 1 when a command failed."""
    parser = argparse.ArgumentParser(description="Try this commit on a machine where nothing was installed.")
    parser.add_argument("--directory", type=Path, help="where the machine is made; a new one in /var/tmp when left out")
    parser.add_argument("--keep", action="store_true", help="leave the machine and its logs there")
    parser.add_argument("commands", nargs="*", default=COMMANDS, help="what to run in the checkout")
    chosen = parser.parse_args()
    missing = [name for name in ("go", "mmdebstrap", "tini") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        return fail("this needs root, Go, mmdebstrap and tini; `make setup` installs the latter two.")
    if INSIDE not in os.environ:
        # A root of its own that is a mount, and processes that all end with the first one.
        apart = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "tini",  # reaps what is orphaned, as any machine's first process does
            "--",
        ]
        env = {**os.environ, INSIDE: "1"}
        return subprocess.run([*apart, sys.executable, *sys.argv], env=env, check=False).returncode
    root = chosen.directory or Path(tempfile.mkdtemp(prefix="kumulus-fresh-", dir="/var/tmp"))
    if chosen.directory is not None and root.exists():
        return fail(f"{root} is there already: name a directory that is not.")
    try:
        make(root)
        return run(root, chosen.commands)
    finally:
        if chosen.keep:
            say(f"the machine is in {root}, its logs in {root}/root")
        else:
            remove(root)


def make(root: Path) -> None:
    """A minimal Debian with Go and a clone of this commit in it."""
    log = root.with_name(f"{root.name}.log")
    say(f"making a minimal Debian in {root} (log: {log})")
    with log.open("w") as output:
        command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, root]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=True)
    log.unlink()
    mount("--bind", root, root)
    mount("-t", "proc", "proc", root / "proc")
    for name in ("sys", "dev"):
        mount("--rbind", f"/{name}", root / name)
    mount("-t", "tmpfs", "tmpfs", root / "run")
    go = Path(capture("go", "env", "GOROOT"))
    inside = root / "usr/local/go"
    inside.mkdir(parents=True)
    mount("--bind", go, inside)
    for file in ("/etc/resolv.conf", "/etc/hosts"):
        shutil.copyfile(file, root / file[1:])
    for trusted in {os.environ[name] for name in TRUST if name in os.environ}:
        target = root / trusted.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(trusted, target)
    commit = capture("git", "-C", str(CHECKOUT), "rev-parse", "HEAD")
    clone = ["git", "clone", "--quiet", "--no-hardlinks", str(CHECKOUT), str(root / "root/kumulus")]
    subprocess.run(clone, check=True)
    subprocess.run(["git", "-C", str(root / "root/kumulus"), "checkout", "-q", "--detach", commit], check=True)  # noqa: S607
    say(f"it has commit {commit[:7]}")


def run(root: Path, commands: list[str]) -> int:
    """Run them one after the other, each with a log; tell how long each took."""
    env = {name: os.environ[name] for name in (*HANDED_ON, *TRUST) if name in os.environ}
    env |= {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    told, failed = [], False
    for number, command in enumerate(commands, 1):
        log = root / f"root/{number}.log"
        say(f"{command} (log: {log})")
        began = time.monotonic()
        with log.open("w") as output:
            # No chroot alone: what a program in namespaces of its own has open would be told with the directory's name.
            enter = 'cd "$0" && pivot_root . mnt && exec chroot . /bin/sh -c "umount -l /mnt; cd /root/kumulus && $1"'
            apart = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", enter, str(root), command]
            done = subprocess.run(
                apart, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
            )
        told.append(f"{time.monotonic() - began:6.0f} s  {'ok    ' if done.returncode == 0 else 'failed'}  {command}")
        if done.returncode != 0:
            failed = True
        sys.stderr.write("".join(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-3:]))
    sys.stdout.write("\n".join(told) + "\n")
    return int(failed)


def remove(root: Path) -> None:
    """The machine and what is mounted in it. What is still mounted is never descended into."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        place = line.split()[1]
        if place == str(root) or place.startswith(f"{root}/"):
            subprocess.run(["umount", "--lazy", place], check=False)  # noqa: S607
    subprocess.run(["rm", "-rf", "--one-file-system", str(root)], check=False)  # noqa: S607


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)  # noqa: S607


def capture(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def say(text: str) -> None:
    sys.stderr.write(f"· {text}\n")


def fail(text: str) -> int:
    sys.stderr.write(f"fresh: {text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
