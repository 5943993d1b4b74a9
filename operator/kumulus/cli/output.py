"""What a command prints: a table for people, or the objects for programs.

Cells hold text that others decided; all of it goes through `terminal.one_line`, and none of it is
read as rich's markup.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kumulus.api.base import Kind
from kumulus.cli.terminal import one_line

Raw = dict[str, Any]
Row = TypeVar("Row")


class Format(StrEnum):
    """How to print objects."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


_STYLES = {
    "Running": "green",
    "Ready": "green",
    "True": "green",
    "Failed": "red",
    "NotReady": "red",
    "CrashLoopBackOff": "red",
    "False": "yellow",
    "Unknown": "magenta",
    "Stopped": "dim",
}


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column: its heading and what of a row is in it."""

    heading: str
    cell: Callable[[Row], str]
    right: bool = False


def qualified(kind: Kind, name: str) -> str:
    """`virtualmachine.compute.kumulus.io/web1`, as `kubectl -o name` writes it."""
    return f"{kind.kind.lower()}{'.' + kind.group if kind.group else ''}/{name}"


class Printer:
    """Writes to stdout what was asked for and to stderr what only accompanies it."""

    def __init__(self, format_: Format = Format.TABLE) -> None:
        self.format = format_
        self.out = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
        self.err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Something to know beside the answer."""
        self.err.print(text)

    def text(self, text: str, *, end: str = "\n") -> None:
        """Plain text as it is, never wrapped or styled: the caller has filtered it."""
        sys.stdout.write(text + end)
        sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """A line for people, wrapped between words on a terminal."""
        self.indented(text, by=0, style=style)

    def objects(self, kind: Kind, raws: Sequence[Raw], *, many: bool) -> bool:
        """Print for programs, if that was asked for. Returns whether it was."""
        if self.format is Format.TABLE:
            return False
        if self.format is Format.NAME:
            for raw in raws:
                self.text(qualified(kind, raw["metadata"]["name"]))
            return True
        shown = [_shown(kind, raw) for raw in raws]
        body: Raw = {"apiVersion": "v1", "kind": "List", "items": shown} if many else shown[0]
        if self.format is Format.JSON:
            self.text(json.dumps(body, indent=2))
        else:
            self.text(yaml.safe_dump(body, sort_keys=False, allow_unicode=False), end="")
        return True

    def done(self, kind: Kind, raw: Raw, what: str) -> None:
        """Say what was done to an object: `virtualmachine.compute.kumulus.io/web1 started`."""
        if not self.objects(kind, [raw], many=False):
            self.text(f"{qualified(kind, raw['metadata']['name'])} {what}")

    def table(self, columns: Sequence[Column[Row]], rows: Iterable[Row], *, empty: str) -> None:
        """A table that fits the terminal; one line of `empty` on stderr when there is nothing."""
        grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            grid.add_column(
                column.heading.upper(),
                no_wrap=True,
                overflow="ellipsis",
                justify="right" if column.right else "left",
            )
        any_ = False
        for row in rows:
            any_ = True
            grid.add_row(*(_cell(column.cell(row)) for column in columns))
        if not any_:
            self.note(empty)
            return
        self._print(grid)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values, a line each; empty values are left out."""
        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column(overflow="fold")
        for name, value in pairs:
            if value:
                grid.add_row(f"{name}:", _cell(value))
        self._print(grid)

    def indented(self, text: str, *, by: int, style: str = "", label: str = "", label_style: str = "") -> None:
        """A paragraph, moved to the right, beside a word that says what it is; wrapped on a terminal only."""
        width = max(self.out.width - by, 20) if self.out.is_terminal else sys.maxsize
        for number, part in enumerate(textwrap.wrap(text, width, break_on_hyphens=False) or [""]):
            left = (f"{label if number == 0 else '':<{by}}", label_style)
            self.out.print(Text.assemble(left, (part, style)), soft_wrap=True)

    def heading(self, text: str) -> None:
        """A title above a part of the answer."""
        self.out.print()
        self.out.print(Text(text, style="bold"), soft_wrap=True)

    def _print(self, grid: Table) -> None:
        if self.out.is_terminal:
            self.out.print(grid)
        else:
            wide = Console(file=sys.stdout, width=10_000, highlight=False, markup=False, no_color=True)
            lines = wide.render_lines(grid, pad=False)
            for line in lines:
                self.text("".join(segment.text for segment in line).rstrip())


def _cell(value: str) -> Text:
    text = one_line(value) or "-"
    return Text(text, style=_STYLES.get(text, ""))


def _shown(kind: Kind, raw: Raw) -> Raw:
    metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    rest = {key: value for key, value in raw.items() if key not in ("apiVersion", "kind", "metadata")}
    return {
        "apiVersion": raw.get("apiVersion", kind.api_version),
        "kind": raw.get("kind", kind.kind),
        "metadata": metadata,
        **rest,
    }
