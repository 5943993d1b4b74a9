"""What two runs of a plan have to have in common: objects, hosts, and what was made and removed on the way there.

Names stand for uids, and what chance or time decides (MAC addresses, times, versions) is struck out; everything else counts.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kumulus.api.fabric import host_namespace
from kumulus.api.maintenance import FOR_MAINTENANCE
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from tests.fault.memory_api import schemas
from tests.fault.world import UUID, World, contents

Raw = dict[str, Any]
UNCOMPARED = {"hosts", "hostreports", "zones", "storagepools"}
"""Kinds whose status counts what is on hosts and in pools, and follows after a while."""
UNKNOWN = frozenset({"ports", "lastExit", "attempts", "progress"})
"""Fields of a status that are not compared: how many ports a network had when the agent last made it; how the last run of a
guest ended, which nobody knows any more when the agent that saw it died before it could say so; how often a host was switched
off until somebody heard that it is; how far a guest was on its way when that was last told."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
STRUCK = (
    (TIME, "<time>"),
    (re.compile(r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b"), "<mac>"),
    (re.compile(r"\bk[a-z]([0-9a-f]{8})\b"), "<device>"),
    (re.compile(r"\bimage-[0-9a-f-]{20,}"), "<image order>"),
    (re.compile(r'(vni"?[=:] ?)\d+'), r"\1<vni>"),
    (re.compile(r'^(segmentids .*"name": )"\d+"'), r"\1<vni>"),
    (re.compile(r"\bone-[0-9a-f]{10}\b"), "<remediation>"),
    (re.compile(r"started_at=[0-9.]+"), "started_at=<time>"),
)


@dataclass(frozen=True, slots=True)
class State:
    """What there is, in words."""

    objects: tuple[str, ...]
    hosts: tuple[str, ...]
    deeds: tuple[str, ...]
    """What was made, removed and started since the steps began, and how often."""

    def __sub__(self, other: State) -> list[str]:
        """What differs: `-` lines are expected, `+` lines are found."""
        return self.apart(other)

    def apart(self, other: State, *, again: bool = False) -> list[str]:
        """The same; with `again` what was made and removed once more is no difference, but a machine that was started is."""
        lines: list[str] = []
        for part in ("objects", "hosts", "deeds"):
            ours, theirs = getattr(self, part), getattr(other, part)
            if again and part == "deeds":
                ours, theirs = ([line for line in some if line.startswith("started")] for some in (ours, theirs))
            found, right = Counter(ours), Counter(theirs)
            missing, more = sorted((right - found).elements()), sorted((found - right).elements())
            for line in list(missing):
                near = difflib.get_close_matches(line, more, 1, 0.9)
                if near:
                    missing.remove(line)
                    more.remove(near[0])
                    lines.append(_apart(line, near[0]))
            lines += [f"- {line}" for line in missing] + [f"+ {line}" for line in more]
        return lines


def _apart(right: str, found: str) -> str:
    """Where two long lines differ, with a little around it."""
    match = difflib.SequenceMatcher(None, right, found, autojunk=False)
    places = [op for op in match.get_opcodes() if op[0] != "equal"]
    told = ", ".join(
        f"...{right[max(0, i - 60) : i]}[{right[i:k]} -> {found[j:n]}]{right[k : k + 20]}..."
        for _, i, k, j, n in places[:6]
    )
    name = re.search(r'"name": "([^"]+)", "namespace"', right)
    return f"~ {right.split(' ')[0]} {name[1] if name else ''} {told}"


COUNTS = frozenset({"allocated", "hosts", "members"})
"""Fields of a status that count, and follow some seconds later."""


async def observe(world: World, made: int, runs: int, uncounted: frozenset[str] = frozenset()) -> State:
    """What there is now, without the fields `uncounted` of statuses; deeds from these places in the books on."""
    objects = sorted([line async for line in _objects(world, UNKNOWN | uncounted)])
    hosts = [
        *(f"{name}: {line}" for name, site in world.sites.items() for line in site.inventory()),
        *(f"in common: {line}" for pool in world.shared.values() for line in contents(pool)),
    ]
    deeds = Counter(world.books.made[made:])
    deeds.update(f"{'came' if run.came else 'started'} {run.uid} on {run.host}" for run in world.books.runs[runs:])
    words = _Words(world.names)
    return State(
        tuple(objects),
        tuple(sorted(words.of(line) for line in hosts)),
        tuple(sorted(f"{words.of(line)}: {times}" for line, times in deeds.items())),
    )


def words(world: World, lines: Iterable[str]) -> list[str]:
    """Lines with names for uids."""
    named = _Words(world.names)
    return [named.of(line) for line in lines]


async def _objects(world: World, unknown: frozenset[str]) -> Any:
    words = _Words(world.names)
    paths = [f"/apis/{group}/v1alpha1/{plural}" for group, plural in sorted(schemas()) if plural not in UNCOMPARED] + [
        SECRET.path(host_namespace(name)) for name in world.sites
    ]
    for path, items in zip(paths, await asyncio.gather(*(_list(world.user, path) for path in paths)), strict=True):
        for item in items:
            meta = item["metadata"]
            world.names.setdefault(meta["uid"], f"<{item.get('kind') or path.rpartition('/')[2]} {meta['name']}>")
    for path, items in zip(paths, await asyncio.gather(*(_list(world.user, path) for path in paths)), strict=True):
        for item in items:
            if FOR_MAINTENANCE in item["metadata"].get("labels", {}):
                continue  # as many as it took
            yield words.of(f"{path.rpartition('/')[2]} {json.dumps(_stripped(item, unknown), sort_keys=True)}")


async def _list(client: KubeClient, path: str) -> Iterable[Raw]:
    found: list[Raw] = (await client.request("GET", path))["items"]
    return found


def _stripped(item: Raw, unknown: frozenset[str]) -> Raw:
    meta = item["metadata"]
    kept = {key: meta[key] for key in ("name", "namespace", "labels", "annotations", "finalizers") if meta.get(key)}
    kept["owners"] = sorted(one["uid"] for one in meta.get("ownerReferences", ()))
    kept["deleting"] = "deletionTimestamp" in meta
    found = {"metadata": kept, "spec": item.get("spec"), "status": item.get("status")}
    return {
        part: _without(value, meta.get("generation"), unknown if part == "status" else frozenset({"term"}))
        for part, value in found.items()
    }


def _without(value: Any, generation: int | None, fields: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: (one == generation if key == "observedGeneration" else _without(one, generation, fields))
            for key, one in value.items()
            if key not in fields
        }
    return [_without(one, generation, fields) for one in value] if isinstance(value, list) else value


class _Words:
    """Names for uids. Work orders have uids in their names, so names are looked up twice."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def of(self, text: str) -> str:
        """The text with names for uids and without what chance decides."""
        for _ in range(3):
            text = UUID.sub(lambda found: self._names.get(found[0], "<uid>"), text)
        for pattern, word in STRUCK:
            text = pattern.sub(word, text)
        return text
