"""Lines of a watch, however they arrive and however long they are."""

from __future__ import annotations

import pytest

from kumulus.kube.client import _lines


class Content:
    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = list(chunks)

    async def readany(self) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b'{"a":1}\n{"b":2}\n'], [b'{"a":1}', b'{"b":2}']),
        ([b'{"a"', b":1}\n", b'{"b":2}', b"\n\n"], [b'{"a":1}', b'{"b":2}']),
        ([b"x" * 65536] * 40 + [b"\n"], [b"x" * 65536 * 40]),
        ([b'{"a":1}\n', b'{"b":2}'], [b'{"a":1}', b'{"b":2}']),
    ],
)
async def test_lines(chunks: list[bytes], lines: list[bytes]) -> None:
    content: object = Content(chunks)
    assert [line async for line in _lines(content, 9, 9)] == lines  # type: ignore[arg-type]
