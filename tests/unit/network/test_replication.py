"""What a gateway's host does about copies of its connections, with a program in the place of each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kumulus.api.gateways import GatewayFunction
from kumulus_agents.network.linux import gateway
from kumulus_agents.network.linux.replication import Replication
from kumulus_agents.network.linux.settings import GatewaySettings
from tests.unit.network.test_gateway import order


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Where the programs write down what they are told."""
    return tmp_path / "told"


@pytest.fixture
def settings(tmp_path: Path, told: Path) -> GatewaySettings:
    programs = {}
    for name in ("keepalived", "nft", "haproxy", "conntrack", "conntrackd", "sysctl", "unshare"):
        programs[name] = tmp_path / name
        programs[name].write_text(
            f"#!{sys.executable}\nimport sys\n"
            f"open({str(told)!r}, 'a').write(' '.join([{name!r}, *sys.argv[1:]]) + '\\n')\n"
        )
        programs[name].chmod(0o755)
    return GatewaySettings.model_validate({"state": tmp_path / "state", **programs})


def test_only_routers_need_conntrack(settings: GatewaySettings, tmp_path: Path) -> None:
    assert gateway.missing(settings, GatewayFunction.ROUTER) is None
    (tmp_path / "conntrack").unlink()
    said = gateway.missing(settings, GatewayFunction.ROUTER)
    assert said is not None
    assert "install the package conntrack." in said
    assert gateway.missing(settings, GatewayFunction.LOAD_BALANCER) is None


async def test_a_missing_program_is_not_the_kernels_fault(settings: GatewaySettings, tmp_path: Path) -> None:
    (tmp_path / "conntrack").unlink()
    one = Replication("some-uid", (), settings)
    assert await one.ensure(order(), active=False, anew=False) == ""
    assert "install the package conntrack." in await one.unkept(order())
    assert not one.notifies(order())
