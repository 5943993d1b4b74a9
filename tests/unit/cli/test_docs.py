"""Every command of ours on the pages is one that exists, with options that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kumulus.cli import process
from kumulus.cli.people import main
from kumulus_agents.agent import command as agent
from kumulus_lab import command as lab

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:kumulusctl|kubectl kumulus) [^`]+)`")
_OURS = ("kumulusctl ", "kubectl kumulus ")
_PROGRAMS = {"kumulus": process.app, "kumulus-agent": agent.app, "kumulus-lab": lab.app}


def scripts(text: str) -> Iterator[str]:
    """The lines of a page's scripts."""
    for block in _BLOCK.findall(text):
        for line in block.splitlines():
            yield line.removeprefix("$ ")


def commands() -> Iterator[str]:
    """The lines of the pages that call us, without their comments; every one once."""
    lines: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text()
        for line in (*scripts(text), *_INLINE.findall(text)):
            if line.startswith(_OURS):
                lines[" ".join(shlex.split(line, comments=True))] = None
    yield from lines


def others() -> Iterator[list[str]]:
    """The words of the lines that call another program of ours, or make something; every one once."""
    lines: dict[str, None] = {}
    for page in PAGES:
        for line in scripts(page.read_text()):
            words = line.removeprefix('eval "$(').partition(')"')[0]
            if (
                found := re.match(r"(?:KUMULUS_\w+=\S+ )?(?:\.venv/bin/)?((?:kumulus|kumulus-\w+|make) .*)", words)
            ) is not None:
                lines[" ".join(shlex.split(found[1], comments=True))] = None
    yield from (line.split(" ") for line in lines)


def test_there_are_commands_in_the_guides() -> None:
    assert len(list(commands())) > 20
    assert {words[0] for words in others()} == {*_PROGRAMS, "make"}


@pytest.mark.parametrize("words", list(others()), ids=" ".join)
def test_another_program_has_what_the_pages_ask_of_it(words: list[str]) -> None:
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
        return
    told = CliRunner().invoke(_PROGRAMS[program], [*rest, "--help"])
    assert told.exit_code == 0 and "Usage" in told.output, told.output


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_of_the_pages_exists(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.removeprefix("kubectl ").split()[1:]
    assert main([*words, "--help"]) == 0, capsys.readouterr().err
    assert "Usage" in capsys.readouterr().out
