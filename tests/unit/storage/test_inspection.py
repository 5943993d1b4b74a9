"""Honest images come in; the hostile ones are in tests/security/images."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kumulus_agents.storage import qcow2 as parser
from kumulus_agents.storage import raw
from kumulus_agents.storage.inspection import inspect
from kumulus_agents.storage.rejection import Found, Rejected
from tests.unit.storage.material import MIB, disk, qcow2, qemu_img

MAX = 64 << 40


def look(path: Path, declared: str) -> Found:
    fd = os.open(path, os.O_RDONLY)
    try:
        return inspect(fd, declared, MAX)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("options", "convert"),
    [
        (("compat=0.10",), ()), (("compat=1.1",), ()), (("cluster_size=512",), ()), (("cluster_size=2M",), ()),
        (("compat=1.1", "lazy_refcounts=on"), ()), (("refcount_bits=1",), ()), (("refcount_bits=64",), ()),
        (("preallocation=metadata",), ()), (("preallocation=full",), ()),
        (("extended_l2=on",), ()), (("extended_l2=on", "cluster_size=16k"), ()),
        ((), ("-c",)), (("compression_type=zstd",), ("-c",)), (("compat=0.10",), ("-c",)),
    ],
)  # fmt: skip
def test_qcow2_files_that_qemu_img_makes_come_in(tmp_path, options, convert) -> None:
    path = tmp_path / "i"
    path.write_bytes(qcow2(tmp_path, *options, convert=convert))
    assert look(path, "qcow2") == Found("qcow2", 4 * MIB)


@pytest.mark.parametrize("size", ["1", "512", "1G", "64T"])
def test_empty_qcow2_files_of_all_sizes_come_in(tmp_path, size) -> None:
    path = tmp_path / "i"
    qemu_img("create", "-q", "-f", "qcow2", path, size)
    assert look(path, "qcow2").virtual_size >= 512


def test_a_disk_in_use_that_was_copied_comes_in(tmp_path) -> None:
    """The dirty bit says its reference counts are stale; reading does not need them."""
    path = tmp_path / "i"
    data = bytearray(qcow2(tmp_path, "lazy_refcounts=on"))
    data[79] |= 1
    path.write_bytes(data)
    assert look(path, "qcow2").virtual_size == 4 * MIB


RAW = {
    "nothing": bytes(MIB),
    "mbr": disk(MIB * 2),
    "boot sector without partitions": bytes(510) + b"\x55\xaa" + bytes(MIB),
    "odd boot flag": bytes(446) + b"\x12" + bytes(63) + b"\x55\xaa" + bytes(MIB),
    "gpt": bytes(446)
    + bytes.fromhex("00000200ee8a082001000000ff070000")
    + bytes(48)
    + b"\x55\xaa"
    + b"EFI PART"
    + bytes(MIB),
    "fat": b"\xeb\x3c\x90mkfs.fat" + bytes(5) + b"\x02" + bytes(4) + b"\xf8" + bytes(488) + b"\x55\xaa" + bytes(MIB),
    "ext4": bytes(1080) + b"\x53\xef" + bytes(MIB),
    "text": b"hello, world\n" * 1000,
    "not whole sectors": bytes(1025),
}


@pytest.mark.parametrize("kind", RAW)
def test_raw_disks_come_in(tmp_path, kind) -> None:
    (tmp_path / "i").write_bytes(RAW[kind])
    assert look(tmp_path / "i", "raw") == Found("raw", len(RAW[kind]))


def test_a_large_sparse_disk_is_not_read_through(tmp_path) -> None:
    with (tmp_path / "i").open("wb") as file:
        file.truncate(8 << 40)
    assert look(tmp_path / "i", "raw").virtual_size == 8 << 40


@pytest.mark.parametrize("data", list(RAW.values()), ids=list(RAW))
def test_raw_is_not_qcow2(tmp_path, data) -> None:
    (tmp_path / "i").write_bytes(data)
    with pytest.raises(Rejected):
        look(tmp_path / "i", "qcow2")


def bounded(data: bytes):
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        assert offset >= 0
        assert asked <= 40 * MIB
        return data[offset : offset + length]

    return read


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 111), st.integers(0, 255), st.integers(0, 111), st.integers(0, 255))
def test_a_changed_header_is_let_in_or_refused_but_never_a_surprise(sample, a, x, b, y) -> None:
    data = bytearray(sample)
    data[a], data[b] = x, y
    try:
        found = parser.inspect(bounded(bytes(data)), len(data), MAX)
    except Rejected:
        return
    header = parser.parse(bounded(bytes(data)))
    assert 0 < found.virtual_size <= MAX
    assert not (header.backing_offset or header.crypt_method or header.snapshots or header.incompatible & 0b110)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> bytes:
    return qcow2(tmp_path_factory.mktemp("sample"))


@given(st.binary(max_size=2048))
def test_random_bytes_never_surprise_the_parsers(data) -> None:
    for start in (b"", parser.MAGIC + struct.pack(">I", 3)):
        for look_at in (parser.inspect, raw.inspect):
            try:
                look_at(bounded(start + data), len(start + data), MAX)
            except Rejected as error:
                assert str(error)
