"""The example of a driver (`examples/driver`) is one: found as an installed package's, and it does what methods of fencing do."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import encode_basic_auth, web

from kumulus.api.fabric import Bmc
from kumulus.runtime.modules import Registry
from kumulus_controllers.fabric.fencing import METHODS, Fencer, FencingError, Power, Target

PACKAGE = Path(__file__).resolve().parents[3] / "examples" / "driver"


@pytest.fixture
def fencer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fencer]:
    """The method of an installation that has the package."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"][METHODS]
    (info / "entry_points.txt").write_text(f"[{METHODS}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    for path in (tmp_path, PACKAGE):
        monkeypatch.syspath_prepend(str(path))
    registry = Registry()
    registry.offer(METHODS, METHODS)
    yield registry.plugged(METHODS)["strip"]
    sys.modules.pop("kumulus_strip", None)


class Outlet:
    """An outlet of a strip that wants a password."""

    def __init__(self) -> None:
        self.power = "on"
        self.address = ""

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != encode_basic_auth("fence", "hunter-2"):
            return web.Response(status=401)
        if request.method == "PUT":
            self.power = await request.text()
        return web.Response(text=self.power)

    def target(self, password: str = "hunter-2", **changes: str) -> Target:
        bmc = {"type": "strip", "address": self.address, "system": "3", "credentialsSecret": "strip", **changes}
        return Target("h1", Bmc.model_validate(bmc), "fence", password)


@pytest.fixture
async def outlet() -> AsyncIterator[Outlet]:
    made = Outlet()
    application = web.Application()
    application.add_routes([web.route("*", "/outlets/3", made.answer)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.address = f"127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def test_a_host_is_switched_off_and_is_said_to_be(fencer: Fencer, outlet: Outlet) -> None:
    assert await fencer.power(outlet.target()) is Power.ON
    await fencer.off(outlet.target())
    assert outlet.power == "off" and await fencer.power(outlet.target()) is Power.OFF
    await fencer.off(outlet.target())  # again: nothing


async def test_what_it_does_not_know_is_not_off(fencer: Fencer, outlet: Outlet) -> None:
    outlet.power = "switching"
    assert await fencer.power(outlet.target()) is Power.UNKNOWN


async def test_what_is_wrong_is_said_without_the_password(fencer: Fencer, outlet: Outlet) -> None:
    wrong = {
        "StripRefuses": outlet.target(password="wrong-word"),
        "StripUnreachable": outlet.target(address="127.0.0.1:1"),
        "StripFails": outlet.target(system="4"),
    }
    for reason, target in wrong.items():
        with pytest.raises(FencingError) as refused:
            await fencer.power(target)
        assert refused.value.reason == reason
        assert target.password not in str(refused.value)
