"""Tables for people, objects for programs, and nothing that a terminal would obey."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import StringIO

import pytest
import yaml
from rich.console import Console

from kumulus.api.base import Condition
from kumulus.api.compute import VirtualMachine
from kumulus.cli import conditions
from kumulus.cli.output import Column, Format, Printer, qualified

KIND = VirtualMachine.KIND
RAW = {
    "metadata": {"name": "web1", "namespace": "shop", "managedFields": [{"manager": "x"}]},
    "spec": {"instanceType": "small"},
}
COLUMNS: list[Column[dict[str, str]]] = [
    Column("Name", lambda row: row["name"]),
    Column("What", lambda row: row["what"], right=True),
]


def terminal(printer: Printer, width: int = 80) -> StringIO:
    buffer = StringIO()
    printer.out = Console(file=buffer, force_terminal=True, width=width, highlight=False, markup=False, emoji=False)
    return buffer


def test_a_table_in_a_pipe_is_not_cut_and_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    Printer().table(COLUMNS, [{"name": "web1", "what": long}, {"name": "b", "what": ""}], empty="")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "WHAT"]
    assert lines[1] == f"web1  {long}"
    assert lines[2].split() == ["b", "-"]


def test_a_table_fits_a_terminal_of_80_columns() -> None:
    printer = Printer()
    buffer = terminal(printer)
    printer.table(COLUMNS, [{"name": "n" * 63, "what": "w" * 63}], empty="")
    plain = Console(file=StringIO()).render_str(buffer.getvalue())
    assert max(map(len, str(plain).splitlines())) <= 140  # colours included
    assert "…" in buffer.getvalue()


def test_cells_are_neither_obeyed_nor_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Printer().table(COLUMNS, [{"name": "[red]a[/red] :smile:", "what": "\x1b]0;pwned\x07b\nc"}], empty="")
    out = capsys.readouterr().out
    assert "[red]a[/red] :smile:" in out
    assert "b c" in out
    assert "\x1b" not in out


def test_an_empty_table_says_so_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    Printer().table(COLUMNS, [], empty="There is nothing.")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "There is nothing.\n")


def test_objects_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert not Printer(Format.TABLE).objects(KIND, [RAW], many=False)
    assert Printer(Format.NAME).objects(KIND, [RAW], many=True)
    assert capsys.readouterr().out == "virtualmachine.compute.kumulus.io/web1\n"
    assert Printer(Format.JSON).objects(KIND, [RAW], many=True)
    listed = json.loads(capsys.readouterr().out)
    assert listed["kind"] == "List"
    assert listed["items"][0]["kind"] == "VirtualMachine"
    assert "managedFields" not in listed["items"][0]["metadata"]
    assert Printer(Format.YAML).objects(KIND, [RAW], many=False)
    assert yaml.safe_load(capsys.readouterr().out)["metadata"]["name"] == "web1"


def test_a_message_that_conditions_share_is_told_once() -> None:
    printer = Printer()
    buffer = terminal(printer)
    shared = "no host fits: " + "word " * 30
    both = [
        Condition(type=name, status="False", reason="NoHostFits", message=shared) for name in ("Ready", "Scheduled")
    ]
    conditions.show(printer, both, datetime(2026, 11, 20, tzinfo=UTC))
    assert buffer.getvalue().count("no host fits") == 1
    assert all(len(line) <= 90 for line in buffer.getvalue().splitlines())


def test_names_are_qualified_like_kubectls() -> None:
    assert qualified(KIND, "web1") == "virtualmachine.compute.kumulus.io/web1"
