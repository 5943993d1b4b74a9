"""Packed files: what is in them comes out, bounded; what is damaged or more than one thing is refused."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
import subprocess
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.image import Compression
from kumulus_agents.storage import unpacking
from kumulus_agents.storage.compressed import MAGIC
from kumulus_agents.storage.rejection import Rejected, TooLarge
from kumulus_agents.storage.unpacking import NoRoom, Sparse
from tests.unit.storage.material import MIB, PACK, disk

DATA = random.Random(5).randbytes(300_001)
ALL = pytest.mark.parametrize("compression", list(PACK))


class File:
    """What would be on the disk."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.calls: list[int] = []

    def write(self, data: memoryview, offset: int) -> int:
        self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data
        self.calls.append(len(data))
        return len(data)


def unpacked(packed: bytes, compression: str, limit: int = 64 * MIB) -> bytes:
    file = File()
    target = Sparse(file.write, limit, limit)
    read = []

    def pread(offset: int, length: int) -> bytes:
        assert length <= MIB
        return packed[offset : offset + length]

    unpacking.unpack(pread, compression, target, read.append)
    assert read == sorted(read)
    assert not read or read[-1] <= len(packed)
    assert target.taken == sum(file.calls)
    return bytes(file.data).ljust(target.size, b"\0")


@ALL
@pytest.mark.parametrize("data", [b"", b"x", DATA, bytes(3 * MIB), disk(2 * MIB)], ids=len)
def test_what_was_packed_comes_out(compression, data) -> None:
    assert unpacked(PACK[compression](data), compression) == data


@ALL
def test_parts_behind_each_other_are_one(compression) -> None:
    pack = PACK[compression]
    assert unpacked(pack(DATA) + pack(b"") + pack(b"more"), compression) == DATA + b"more"


@pytest.mark.parametrize("compression", ["gzip", "xz"])
@pytest.mark.parametrize("zeros", [4, 512, 200_000])
def test_zeros_behind_it_and_between_parts_are_nothing(compression, zeros) -> None:
    pack = PACK[compression]
    assert unpacked(pack(DATA) + bytes(zeros) + pack(b"more") + bytes(zeros), compression) == DATA + b"more"


@ALL
@pytest.mark.parametrize("more", [b"#!/bin/sh", b"\0\0\0\0x", DATA[:100_000]], ids=len)
def test_something_behind_it_is_refused(compression, more) -> None:
    with pytest.raises(Rejected, match="something behind"):
        unpacked(PACK[compression](DATA) + more, compression)


@ALL
@pytest.mark.parametrize("kept", [9, 20, 0.3, 0.99, -9, -1])
def test_what_was_cut_off_is_refused(compression, kept) -> None:
    packed = PACK[compression](DATA)
    cut = packed[: int(kept * len(packed))] if isinstance(kept, float) else packed[:kept]
    with pytest.raises(Rejected, match="cut off"):
        unpacked(cut, compression)


@ALL
def test_what_was_changed_is_refused(compression) -> None:
    frames = {"zstd": zstandard.ZstdCompressor(write_checksum=True).compress}
    packed = bytearray(frames.get(compression, PACK[compression])(DATA))
    packed[len(packed) // 2] ^= 1
    with pytest.raises(Rejected, match="damaged"):
        unpacked(bytes(packed), compression)


@ALL
@pytest.mark.parametrize("data", [b"", b"x", bytes(MIB), disk(MIB)], ids=len)
def test_what_is_not_packed_so_is_refused(compression, data) -> None:
    with pytest.raises(Rejected, match=f"not compressed with {compression}"):
        unpacked(data, compression)


@ALL
@pytest.mark.parametrize("other", list(PACK))
def test_what_is_packed_otherwise_is_refused(compression, other) -> None:
    if other != compression:
        with pytest.raises(Rejected, match=f"not compressed with {compression}"):
            unpacked(PACK[other](DATA), compression)


@ALL
def test_a_bomb_ends_at_the_limit(compression) -> None:
    packed = PACK[compression](bytes(8 * MIB))
    assert len(packed) < 64 << 10
    assert len(unpacked(packed, compression, limit=8 * MIB)) == 8 * MIB
    with pytest.raises(TooLarge):
        unpacked(packed, compression, limit=8 * MIB - 1)


@ALL
def test_no_decoder_gives_much_at_a_time(compression, monkeypatch) -> None:
    """Whatever the ratio: memory stays bounded. zstd packs 10,000 to one, and knows no bound of its own."""
    size = (128 if compression == "zstd" else 4) * MIB
    largest = 0
    add = Sparse.add

    def watched(self: Sparse, data: bytes) -> None:
        nonlocal largest
        largest = max(largest, len(data))
        add(self, data)

    monkeypatch.setattr(Sparse, "add", watched)
    unpacked(PACK[compression](bytes(size)), compression, limit=size)
    assert largest <= (80 * MIB if compression == "zstd" else MIB)


def test_zeros_become_holes() -> None:
    file = File()
    target = Sparse(file.write, 64 * MIB, 64 << 10)
    target.add(bytes(MIB) + b"x" + bytes(MIB - 1) + bytes(5 * MIB))
    assert (target.size, target.taken) == (7 * MIB, 64 << 10)
    with pytest.raises(NoRoom):
        target.add(b"x")


def test_a_file_of_countless_empty_parts_is_refused() -> None:
    with pytest.raises(Rejected, match="parts"):
        unpacked(gzip.compress(b"") * 20_000, "gzip")


def test_frames_that_are_skipped_are_skipped() -> None:
    skip = struct.pack("<II", 0x184D2A53, 5) + b"hello"
    packed = PACK["zstd"](DATA)
    assert unpacked(skip + packed + skip + packed, "zstd") == DATA * 2


def test_decoders_that_want_too_much_memory_are_refused() -> None:
    frame = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=frame).compressobj()
    with pytest.raises((MemoryError, Rejected)):
        unpacked(stream.compress(DATA) + stream.flush(), "zstd")
    header = bytearray(lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    header[16] = 36  # a dictionary of 1 GiB
    header[20:24] = struct.pack("<I", zlib.crc32(header[12:20]))
    with pytest.raises(MemoryError):
        unpacked(bytes(header), "xz")


@pytest.mark.parametrize(
    "program", [("xz", "-9"), ("xz", "-T2", "--block-size=100000"), ("zstd", "--ultra", "-22", "-c")]
)
def test_what_the_programs_pack_comes_out(program) -> None:
    done = subprocess.run([*program], input=DATA + bytes(MIB), capture_output=True, check=True)
    assert unpacked(done.stdout, program[0]) == DATA + bytes(MIB)


@given(st.sampled_from(list(PACK)), st.binary(max_size=512))
def test_random_bytes_never_surprise(compression, data) -> None:
    for start in (b"", MAGIC[compression], PACK[compression](b"")):
        try:
            unpacked(start + data, compression)
        except (Rejected, MemoryError) as error:
            assert str(error) or isinstance(error, MemoryError)


def test_all_ways_are_known() -> None:
    assert {str(way) for way in Compression} - {"None"} == set(MAGIC) == set(PACK)
