"""The inside of the cage's door: what a process does to itself before it reads what nobody trusts.

Run as a program (`python -I -S cell.py PLAN PROGRAM...`) it goes in and becomes the program; imported
it goes in and returns. Only the standard library, for it also runs without site-packages.

Order, and why: descriptors of what shall exist inside become detached mounts while this process is
still in the host's namespaces; new mount, network, pid, IPC and UTS namespaces; a root of its own in
memory with nothing but those mounts; the fork that makes the pid namespace take effect; limits; the
unprivileged user last, without capabilities and unable to gain any. Sources: mount_setattr(2),
open_tree(2), pivot_root(2), prctl(2), unshare(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""All that a caged program is told. glibc reserves 128 MiB of address space a thread for an arena of its own, and
qemu-img starts more threads the slower the disk is: it would run into RLIMIT_AS and abort."""

BROKEN = 120
"""Exit status when the cage could not be made."""

_CLONE_NEW = 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000  # mount, network, pid, IPC, UTS
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_COPY_MOST = 4096
_MNT_DETACH = 2
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_OPEN_TREE_CLONE = 1
_MOVE_EMPTY_PATH = 4
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

# The same numbers on every architecture, but for pivot_root.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def enter(plan: Mapping[str, Any]) -> None:
    """Go into the cage that the plan describes; returns in a process that is its first.

    Keys: `uid`; `parent` (pid that must be alive); `mounts` (each `fd`, `target`, `write`); `copies` (each `fd` and
    `target`: at most 4 KiB, which exist in the cage's memory alone); `programs`
    (whether /usr exists inside); `limits` (name of an RLIMIT -> number). What was open on 0, 1 and 2
    stays; all else is closed. Exits with `BROKEN` when something does not work: never half caged.
    """
    try:
        _enter(plan)
    except OSError as error:
        _broken(str(error))


def _enter(plan: Mapping[str, Any]) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != plan["parent"]:
        os._exit(BROKEN)
    trees = [(_tree(mount["fd"]), mount["target"], mount["write"]) for mount in plan["mounts"]]
    copies = [(os.pread(copy["fd"], _COPY_MOST, 0), copy["target"]) for copy in plan.get("copies", ())]
    usr = _usr() if plan["programs"] else None
    _check(_libc.unshare(_CLONE_NEW), "unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _root(trees, copies, usr)
    _fork()
    for name, number in plan["limits"].items():
        resource.setrlimit(getattr(resource, name), (number, number))
    _unprivileged(plan["uid"])
    os.closerange(3, 1 << 20)


def _tree(fd: int, flags: int = 0) -> int:
    """A detached mount of what is open, made while that is still of this namespace."""
    return _syscall(_SYS_OPEN_TREE, fd, b"", _AT_EMPTY_PATH | _OPEN_TREE_CLONE | os.O_CLOEXEC | flags)


def _usr() -> tuple[int, dict[str, str | int]]:
    """/usr, and what / has beside it for programs: links into it, or directories on older systems."""
    usr = os.open("/usr", os.O_PATH | os.O_DIRECTORY)
    beside: dict[str, str | int] = {}
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        path = f"/{name}"
        if os.path.islink(path):  # noqa: PTH114
            beside[name] = os.readlink(path)  # noqa: PTH115
        elif os.path.isdir(path):  # noqa: PTH112
            beside[name] = _tree(os.open(path, os.O_PATH | os.O_DIRECTORY))
    return _tree(usr), beside


def _root(
    trees: Sequence[tuple[int, str, bool]],
    copies: Sequence[tuple[bytes, str]],
    usr: tuple[int, dict[str, str | int]] | None,
) -> None:
    """Make a root of nothing but what is given, and go there."""
    base = "/proc"  # any directory that always exists; only this namespace sees the mount
    _mount("cage", base, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "size=64k,nr_inodes=64,mode=755")
    os.chdir(base)
    os.umask(0o022)
    for tree, target, write in trees:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        _attach(tree, target, _ATTR_NOSUID | _ATTR_NODEV | (0 if write else _ATTR_RDONLY))
    for content, target in copies:
        copy = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444)
        os.write(copy, content)
        os.close(copy)
    if usr is not None:
        tree, beside = usr
        for name, what in (("usr", tree), *beside.items()):
            if isinstance(what, str):
                os.symlink(what, name)  # noqa: PTH211
            else:
                os.mkdir(name)  # noqa: PTH102
                _attach(what, name, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        _broken(f"no cage on {os.uname().machine}")
    _syscall(number, b".", b".")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")
    _mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _fork() -> None:
    """Become the first process of the pid namespace; the outer one waits and answers for it."""
    alive, hold = os.pipe()
    child = os.fork()
    if child:
        os.close(alive)
        _, status = os.waitpid(child, 0)
        os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    os.close(hold)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:
        os._exit(BROKEN)  # the outer one died before it could take this one along


def _unprivileged(uid: int) -> None:
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user forgets it


def _attach(tree: int, target: str, attributes: int) -> None:
    attr = _MountAttr(attributes, 0, _MS_PRIVATE, 0)
    _syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, ctypes.byref(attr), ctypes.sizeof(attr))
    _syscall(_SYS_MOVE_MOUNT, tree, b"", -100, target.encode(), _MOVE_EMPTY_PATH)
    os.close(tree)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind, data)]
    _check(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def _syscall(number: int, *arguments: Any) -> int:
    words = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _check(_libc.syscall(ctypes.c_long(number), *words), f"system call {number}")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _broken(why: str) -> NoReturn:
    os.write(2, f"the cage could not be made: {why}\n".encode())
    os._exit(BROKEN)


if __name__ == "__main__":
    enter(json.loads(sys.argv[1]))
    try:
        os.execve(sys.argv[2], sys.argv[2:], ENVIRONMENT)  # noqa: S606
    except OSError as problem:
        _broken(f"{sys.argv[2]}: {problem}")
