"""What somebody who asks all the time takes for an answer, and for how long there was none."""

from __future__ import annotations

import struct

import pytest

from tests.bench import floor, pinger
from tests.bench.roaming import gap


def test_a_question_is_one_that_kernels_answer() -> None:
    asked = pinger.request(0x1234, 70_000)
    assert pinger.checksum(asked) == 0, "RFC 1071: the sum of what carries its checksum"
    assert struct.unpack("!BBxxHH", asked) == (pinger.REQUEST, 0, 0x1234, 70_000 & 0xFFFF)


@pytest.mark.parametrize(("kind", "whose", "ours"), [(0, 7, True), (8, 7, False), (0, 8, False)])
def test_an_answer_is_one_to_our_questions(kind: int, whose: int, ours: bool) -> None:
    header = bytes([0x45, *[0] * 19])
    assert pinger.answers(header + struct.pack("!BBHHH", kind, 0, 0, whose, 1), 7) is ours
    assert not pinger.answers(header, 7)


def test_the_longest_time_without_an_answer() -> None:
    assert gap([0.5, 1.0, 1.01, 1.3, 9.0], 1.0, 1.5) == pytest.approx(0.29)
    assert gap([], 1.0, 4.0) == 3.0


def test_an_equal_domain_can_be_where_both_hosts_see_it() -> None:
    xml = "<domain><name>a</name><devices><disk device='disk'><source file='/p/v.qcow2'/></disk></devices></domain>"
    made, disk, copies = floor.equal(xml, "floor", "u", directory="/shared")
    assert 'file="/shared/floor.qcow2"' in made
    assert (disk, copies) == ("/p/v.qcow2", {})
