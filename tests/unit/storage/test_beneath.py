"""Nothing below a directory leads out of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from kumulus_agents.storage.beneath import Directory


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    (tmp_path / "in").mkdir()
    with Directory.trusted(PurePosixPath(tmp_path / "in")) as made:
        yield made


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "x\0", "x" * 256])
def test_only_names_of_one_component(directory, name) -> None:
    for call in (directory.open, directory.directory, directory.remove, directory.exists, directory.fresh):
        with pytest.raises((OSError, ValueError)):
            call(name)


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory", "device"])
def test_only_regular_files_are_opened(directory, tmp_path, kind) -> None:
    place = tmp_path / "in" / "x"
    (tmp_path / "out").write_text("secret")
    match kind:
        case "link":
            place.symlink_to("../out")
        case "dangling":
            place.symlink_to("../made")
        case "fifo":
            os.mkfifo(place)
        case "directory":
            place.mkdir()
        case "device":
            if os.geteuid() != 0:
                pytest.skip("needs root")
            os.mknod(place, 0o020600, os.makedev(1, 5))
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with pytest.raises(OSError) as error:
            directory.open("x", flags)
        assert error.value.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO)
    assert not (tmp_path / "made").exists()


def test_a_race_of_a_thousand_swaps_never_leads_out(directory, tmp_path) -> None:
    """A file and a link to a canary take each other's place all the time (CVE-2026-7374, CVE-2025-64433)."""
    import threading

    inside, canary = tmp_path / "in", tmp_path / "canary"
    canary.write_text("secret")
    canary.chmod(0o644)
    (inside / "a").write_text("fine")
    (inside / "b").symlink_to(canary)
    swaps, stop = 0, threading.Event()

    def swap() -> None:
        nonlocal swaps
        while not stop.is_set():
            (inside / "a").rename(inside / "t")
            (inside / "b").rename(inside / "a")
            (inside / "t").rename(inside / "b")
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        while swaps < 1000:
            try:
                seen.add(directory.read("a"))
            except OSError as error:
                assert error.errno == errno.ELOOP
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"fine", None}
    assert canary.read_text() == "secret"
    assert canary.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_what_was_there(directory, tmp_path, monkeypatch) -> None:
    directory.write("x", b"old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError):
        directory.write("x", b"new")
    assert directory.read("x") == b"old"
    assert directory.names() == ["x"]
