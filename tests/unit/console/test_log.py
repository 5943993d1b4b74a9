"""The end of a console's log, whatever a guest or an attacker made of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kumulus_agents.console import log

NAME = "console.log"


def write(directory: Path, **files: bytes) -> None:
    """Files by their suffix: `now`, and the rotated `r0`, `r1`, ..."""
    for suffix, data in files.items():
        name = NAME if suffix == "now" else f"{NAME}.{suffix.removeprefix('r')}"
        (directory / name).write_bytes(data)


def test_no_log_yet(tmp_path: Path) -> None:
    assert log.tail(tmp_path, NAME, 100) == ""
    assert log.tail(tmp_path / "missing", NAME, 100) == ""


def test_the_whole_log_when_it_is_short(tmp_path: Path) -> None:
    write(tmp_path, now=b"hello\r\n")
    assert log.tail(tmp_path, NAME, 100) == "hello\r\n"


@pytest.mark.parametrize(
    ("limit", "text"), [(1, "8"), (3, "678"), (4, "5678"), (6, "345678"), (8, "12345678"), (99, "12345678"), (0, "")]
)
def test_it_goes_back_over_rotated_files(tmp_path: Path, limit: int, text: str) -> None:
    write(tmp_path, now=b"678", r0=b"45", r1=b"123", r3=b"never: there is a gap")
    assert log.tail(tmp_path, NAME, limit) == text


def test_just_rotated_with_nothing_new_yet(tmp_path: Path) -> None:
    write(tmp_path, r0=b"before")
    assert log.tail(tmp_path, NAME, 100) == "before"


def test_a_file_that_is_rotated_meanwhile_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, now=b"text")
    os.link(tmp_path / NAME, tmp_path / f"{NAME}.0")
    assert log.tail(tmp_path, NAME, 100) == "text"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path, now=b"a\xff\xc3(b\x00\x1b[2J")
    assert log.tail(tmp_path, NAME, 100) == "a\ufffd\ufffd(b\x00\x1b[2J"


def test_a_character_that_the_limit_cuts_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, now="a\u4e16b".encode())
    assert [log.tail(tmp_path, NAME, limit) for limit in (1, 2, 3, 4, 5)] == ["b", "b", "b", "\u4e16b", "a\u4e16b"]


def test_garbage_alone_does_not_disappear(tmp_path: Path) -> None:
    write(tmp_path, now=b"\x80" * 50)
    assert log.tail(tmp_path, NAME, 10) == "\ufffd" * 10


def test_more_than_the_limit_of_all_limits_is_never_read(tmp_path: Path) -> None:
    write(tmp_path, now=b"x" * (log.LIMIT + 10))
    assert len(log.tail(tmp_path, NAME, 1 << 40)) == log.LIMIT


@pytest.mark.parametrize("name", ["", ".", "..", "../console.log", "/etc/shadow", "a/b"])
def test_only_plain_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain"):
        log.tail(tmp_path, name, 10)


@pytest.mark.parametrize("suffix", ["", ".0"])
def test_links_are_not_followed(tmp_path: Path, suffix: str) -> None:
    canary = tmp_path / "canary"
    canary.write_text("secret")
    directory = tmp_path / "instance"
    directory.mkdir()
    (directory / f"{NAME}{suffix}").symlink_to(canary)
    with pytest.raises(OSError, match="symbolic"):
        log.tail(directory, NAME, 100)


def test_a_directory_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, now=b"secret")
    (tmp_path / "instance").symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        log.tail(tmp_path / "instance", NAME, 100)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(OSError, match="plain file"):
        log.tail(tmp_path, NAME, 100)
