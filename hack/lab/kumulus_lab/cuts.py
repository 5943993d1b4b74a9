"""Cuts in the links of a lab: what a bridge of it does not carry, though the cables are plugged in.

All of it is one table of nftables beside the bridge, in sets, so what is cut can be read back. Nothing changes in the hosts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kumulus_lab import commands

API = "api"
"""Stands for the API server where an end of a link is named."""
OUTSIDE = "outside"
"""Stands for the outside network."""


class Direction(StrEnum):
    """Which way is cut, as the first end sees it."""

    BOTH = "both"
    INBOUND = "in"
    OUTBOUND = "out"

    @property
    def out(self) -> bool:
        """Whether what the first end sends is lost."""
        return self is not Direction.INBOUND

    @property
    def inward(self) -> bool:
        """Whether what is sent to the first end is lost."""
        return self is not Direction.OUTBOUND


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """One way that is cut."""

    source: str
    """A port of the bridge; empty: whoever sends."""
    target: str
    """A port of the bridge; empty: whoever gets it."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A bridge of the lab, with what it does not carry."""

    table: str
    server: str | None = None
    """The API server's address on the bridge, which `API` stands for."""
    enter: tuple[str, ...] = ()
    """The command that goes to the network namespace where the bridge is."""

    def cut(self, port: str, other: str = "", direction: Direction = Direction.BOTH) -> None:
        """Carry nothing between that port and the other (a port, `API`, or empty for all), that way. May be repeated."""
        self._nft(f"{self._frame()}{self._elements('add', _cuts(port, other, direction))}")

    def heal(self, port: str, other: str = "") -> None:
        """Undo every cut between that port and the other; of that port, when no other is named. May be repeated."""
        ended = [cut for cut in self.cuts() if port in (cut.source, cut.target)]
        if other:
            ended = [cut for cut in ended if other in (cut.source, cut.target)]
        if ended:
            self._nft(self._elements("delete", ended))

    def cuts(self) -> list[Cut]:
        """What is cut."""
        listed = commands.run([*self.enter, "nft", "-j", "list", "table", "bridge", self.table], check=False)
        found = []
        for entry in json.loads(listed.stdout or "{}").get("nftables", ()):
            for element in entry.get("set", {}).get("elem", ()):
                found.append(_CUTS[entry["set"]["name"]](element))
        return sorted(found)

    def remove(self) -> None:
        """Carry everything, and leave nothing."""
        self._nft(f"add table bridge {self.table}\ndelete table bridge {self.table}\n")

    def _frame(self) -> str:
        """The table with its rules; what is cut already stays so."""
        lines = [
            *("set sources { type ifname; }", "set targets { type ifname; }", "set pairs { type ifname . ifname; }"),
            *("set askers { type ifname; }", "set answered { type ifname; }"),
        ]
        chains = {
            "prerouting": "iifname @sources drop",
            "postrouting": "oifname @targets drop",
            "forward": "iifname . oifname @pairs drop",
        }
        if self.server:
            chains["input"] = f"iifname @askers ip daddr {self.server} drop"
            chains["output"] = f"oifname @answered ip saddr {self.server} drop"
        lines += [f"chain {hook} {{ type filter hook {hook} priority -350; }}" for hook in chains]
        table = "\n".join(lines)
        rules = "".join(
            f"flush chain bridge {self.table} {hook}\nadd rule bridge {self.table} {hook} {rule}\n"
            for hook, rule in chains.items()
        )
        return f"table bridge {self.table} {{\n{table}\n}}\n{rules}"

    def _elements(self, verb: str, cuts: Iterable[Cut]) -> str:
        lines = []
        for cut in cuts:
            if API in (cut.source, cut.target):
                name, element = ("askers", cut.source) if cut.target == API else ("answered", cut.target)
            elif cut.source and cut.target:
                name, element = "pairs", f'{cut.source}" . "{cut.target}'
            else:
                name, element = ("sources", cut.source) if cut.source else ("targets", cut.target)
            lines.append(f'{verb} element bridge {self.table} {name} {{ "{element}" }}\n')
        return "".join(lines)

    def _nft(self, script: str) -> None:
        commands.run([*self.enter, "nft", "-f", "-"], stdin=script)


_CUTS = {
    "sources": lambda element: Cut(element, ""),
    "targets": lambda element: Cut("", element),
    "pairs": lambda element: Cut(*element["concat"]),
    "askers": lambda element: Cut(element, API),
    "answered": lambda element: Cut(API, element),
}


def _cuts(port: str, other: str, direction: Direction) -> Sequence[Cut]:
    return [
        *([Cut(port, other)] if direction.out else []),
        *([Cut(other, port)] if direction.inward else []),
    ]
