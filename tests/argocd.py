"""What Argo CD would show of an object: the generated scripts, in a Lua runtime with no more than Argo CD gives them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from lupa.lua51 import LuaRuntime  # Argo CD's is Lua 5.1 as well

from kumulus.crdgen.files import ARGO_CD

PREFIX = "resource.customizations.health."
GIVEN = ("assert", "error", "ipairs", "next", "pairs", "select", "tonumber", "tostring", "type", "unpack")
LIBRARIES = ("string", "table", "math")


@cache
def scripts() -> dict[str, str]:
    """The scripts that are handed out, by group and kind."""
    text = (Path(__file__).parents[1] / ARGO_CD).read_text()
    return {name.removeprefix(PREFIX): script for name, script in yaml.safe_load(text)["data"].items()}


def health(item: dict[str, Any]) -> tuple[str, str]:
    """Status and message of an object as the API server gives it."""
    group = item["apiVersion"].split("/")[0]
    lua = LuaRuntime(unpack_returned_tuples=True, register_eval=False, register_builtins=False)
    world = lua.globals()
    for name in set(world) - {*GIVEN, *LIBRARIES, "_G"}:
        world[name] = None
    world.obj = _lua(lua, item)
    said = lua.execute(scripts()[f"{group}_{item['kind']}"])
    return said.status, said.message


def _lua(lua: LuaRuntime, item: Any) -> Any:
    """The same in tables, lists from 1 on."""
    if isinstance(item, dict):
        return lua.table_from({key: _lua(lua, value) for key, value in item.items()})
    if isinstance(item, list):
        return lua.table_from([_lua(lua, value) for value in item])
    return item
