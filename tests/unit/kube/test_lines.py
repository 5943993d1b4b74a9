"""Lines of a watch, however they arrive and however long they are."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kumulus.kube.client import _lines


class Content:
    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    async def iter_any(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


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
    assert [line async for line in _lines(content)] == lines  # type: ignore[arg-type]
