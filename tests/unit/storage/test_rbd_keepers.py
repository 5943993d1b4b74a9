"""Marks of volumes in Ceph pools: who is shut out is whoever had one and did not give it up, and nobody else (ADR 46)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rbd.faults import Busy, NotThere, judged_rados
from kumulus_agents.storage.rbd.images import RbdImages
from kumulus_agents.storage.rbd.keepers import RbdKeepers, claimed
from tests.unit.storage.material import uid


class Images:
    """One image with its mark, and how often its clients were shut out."""

    def __init__(self, mark: Mapping[str, Any] | None = None, *, made: bool = True, busy: bool = False) -> None:
        self.mark, self.made, self.busy = mark, made, busy
        self.out = 0

    async def record(self, name: str, key: str) -> Mapping[str, Any] | None:
        return self.mark if self.made else None

    async def keep_record(self, name: str, record: Mapping[str, object], key: str) -> None:
        if not self.made and not name.startswith("new-"):
            raise NotThere
        self.mark = {**record, "of": name}

    async def shut_out(self, name: str) -> frozenset[str]:
        if self.busy:
            raise Busy
        self.out += 1
        return frozenset()


def keepers(images: Images) -> RbdKeepers:
    return RbdKeepers(cast(RbdImages, images))


HOSTS = st.sampled_from("abc")


@given(st.lists(st.tuples(HOSTS, st.booleans(), st.booleans()), max_size=8))
async def test_each_host_that_did_not_give_it_up_is_shut_out_once(handed: list[tuple[str, bool, bool]]) -> None:
    """Each has it in turn: it gives it up or not, and the agent is started again in between or not."""
    images, volume = Images(), uid()
    holder: str | None = None
    expected = 0
    for epoch, (host, gives_up, again) in enumerate(handed):
        one = keepers(images)
        await one.claim(volume, host, epoch)
        await one.shut_out(volume, host, epoch, used=False)
        if again:
            await keepers(images).claim(volume, host, epoch)
            await keepers(images).shut_out(volume, host, epoch, used=False)
        expected += holder not in (None, host)
        assert images.out == expected
        holder = host
        if gives_up:
            await one.release(volume, host, epoch)
            holder = None


async def test_nobody_is_let_off_because_the_next_host_died_too() -> None:
    images, volume = Images(busy=True), uid()
    await keepers(images).claim(volume, "a", 0)
    await keepers(images).claim(volume, "b", 1)
    with pytest.raises(Busy):
        await keepers(images).shut_out(volume, "b", 1, used=False)
    images.busy = False
    await keepers(images).claim(volume, "b", 1)
    await keepers(images).claim(volume, "a", 2)  # even the one who began
    with pytest.raises(StorageError, match="newer order"):
        await keepers(images).claim(volume, "b", 1)
    await keepers(images).shut_out(volume, "b", 1, used=False)
    assert images.out == 0
    await keepers(images).shut_out(volume, "a", 2, used=False)
    assert images.out == 1


async def test_a_machine_that_is_here_already_is_not_shut_out_then_or_later() -> None:
    images, volume = Images(), uid()
    await keepers(images).claim(volume, "a", 0)
    for used in (True, False):
        await keepers(images).claim(volume, "b", 1)
        await keepers(images).shut_out(volume, "b", 1, used=used)
    assert images.out == 0


async def test_a_volume_is_marked_when_it_is_made_and_one_of_an_older_agent_says_nothing() -> None:
    volume, images = uid(), Images(made=False)
    one = keepers(images)
    await one.claim(volume, "a", 0)
    assert images.mark is None
    await one.made(volume, f"new-volume-{volume}")
    assert images.mark is not None and images.mark["host"] == "a" and images.mark["held"]
    old = Images({"epoch": 3, "host": "a"})
    await keepers(old).claim(volume, "b", 4)
    await keepers(old).shut_out(volume, "b", 4, used=False)
    assert old.out == 0
    assert claimed({"epoch": 3, "host": "a"}, "a", 3)["held"], "and one that goes on is told of now"


@pytest.mark.parametrize(
    ("status", "errors", "reason"),
    [
        (0, "", None),
        (1, "error getting xattr vms/x/note: (2) No such file or directory", "NotThere"),
        (1, "error getting xattr vms/x/note: (61) No data available", "NotThere"),
        (1, "error opening pool vms: (2) No such file or directory", "PoolMissing"),
        (1, "error setting xattr vms/x/note: (1) Operation not permitted", "PoolForbidden"),
        (1, "error setting xattr vms/x/note: (28) No space left on device", "NoSpace"),
        (1, "2026-11-30T00:00:00.000+0000 7f -1 monclient: (2) \nfailed to fetch mon config", "PoolForbidden"),
        (errno.ETIMEDOUT, "", "PoolStalled"),
    ],
)
def test_how_rados_ends(status: int, errors: str, reason: str | None) -> None:
    error = judged_rados(status, errors, "far", "vms")
    assert (error.reason if error is not None else None) == reason
