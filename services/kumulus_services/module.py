"""The module `services`, the parent of all services: nothing but their place in the tree."""

from __future__ import annotations

from kumulus.runtime.modules import Context, Module


async def _setup(_: Context) -> None:
    pass


services = Module(description="Services of the platform, each of which a cloud may do without.", setup=_setup)
