"""What a driver with a record does when something fails; what it does to a host is in the contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from kumulus_agents.network.linux.driver import LinuxNetwork
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.linux.record import Record
from kumulus_agents.network.linux.settings import LinuxSettings
from kumulus_agents.network.protocol import NetworkError
from tests.unit.network.material import NETWORK, layout
from tests.unit.network.test_gateway import GATEWAY, order

LAST = GATEWAY[:-1] + "f"


class Unenforceable(LinuxNetwork):
    """No rules can be loaded; the first network and the first gateway have no disk to be mended on."""

    def __init__(self, state: Path, known: Layout) -> None:
        super().__init__(LinuxSettings(state=PurePosixPath(state)))
        self._known = known

    async def _layout(self) -> Layout:
        assert self._known is not None
        return self._known

    async def _enforce(self, layout: Layout) -> None:
        raise NetworkError("nft does not take it", reason="NotInForce")

    async def _mend_whole(self) -> Sequence[str]:
        return ()

    async def _mend(self, uid: str) -> Sequence[str]:
        raise OSError("No space left on device")

    async def _mend_gateway(self, uid: str) -> Sequence[str]:
        if uid == GATEWAY:
            raise OSError("No space left on device")
        return [uid]


async def test_a_gateway_that_is_not_in_force_is_not_on_record(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.load()
    with pytest.raises(NetworkError):
        await Unenforceable(tmp_path, layout()).ensure_gateway(order())
    assert record.load().gateways == {}
    record.keep_gateway(order())
    with pytest.raises(NetworkError):
        await Unenforceable(tmp_path, layout().with_gateway(order())).ensure_gateway(order(router={}))
    assert record.load().gateways == {GATEWAY: order()}


async def test_what_cannot_be_written_for_one_holds_up_no_other(tmp_path: Path) -> None:
    known = layout().with_gateway(order()).with_gateway(order(uid=LAST))
    assert NETWORK in known.networks
    assert await Unenforceable(tmp_path, known).mend() == [LAST]
