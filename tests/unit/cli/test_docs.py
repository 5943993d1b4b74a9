"""Every command in the guides is one that exists, with options that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus.cli.people import main

ROOT = Path(__file__).resolve().parents[3]
GUIDES = ("docs/user-guide.md", "docs/operator-guide.md")
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:kumulusctl|kubectl kumulus) [^`]+)`")
_OURS = ("kumulusctl ", "kubectl kumulus ")


def commands() -> Iterator[str]:
    """The lines of the guides that call us, without their comments; every one once."""
    lines: dict[str, None] = {}
    for guide in GUIDES:
        text = (ROOT / guide).read_text()
        found = [line for block in _BLOCK.findall(text) for line in block.splitlines()] + _INLINE.findall(text)
        for line in found:
            if line.startswith(_OURS):
                lines[" ".join(shlex.split(line, comments=True))] = None
    yield from lines


def test_there_are_commands_in_the_guides() -> None:
    assert len(list(commands())) > 20


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_of_the_guides_exists(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.removeprefix("kubectl ").split()[1:]
    assert main([*words, "--help"]) == 0, capsys.readouterr().err
    assert "Usage" in capsys.readouterr().out
