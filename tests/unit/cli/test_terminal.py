"""A guest decides what is on its console: nothing of it may reach the terminal as a command."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.cli.terminal import Filter, one_line, printable


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        pytest.param("\x1b[31mred\x1b[0m", "red", id="colours"),
        pytest.param("\x1b[2J\x1b[H\x1b[3Jhidden", "hidden", id="clear the screen"),
        pytest.param("\x1b]0;new title\x07after", "after", id="window title, ended by BEL"),
        pytest.param("\x1b]52;c;cm0gLXJmIH4=\x1b\\after", "after", id="write the clipboard, ended by ST"),
        pytest.param("\x1b]8;;https://evil.example\x1b\\text\x1b]8;;\x1b\\", "text", id="hyperlink"),
        pytest.param("\x1bP$qm\x1b\\after", "after", id="device control string"),
        pytest.param("\x1b_app\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\after", "after", id="APC, PM, SOS"),
        pytest.param("\x9b31mred\x9d0;title\x9cafter", "redafter", id="C1 forms"),
        pytest.param("\x1b[6n\x1b[c\x1b[?1049h\x1b#8\x1b(0\x1bcafter", "after", id="queries, alternate screen, reset"),
        pytest.param("\x1b[31", "", id="cut off at the end"),
        pytest.param("\x1b[31\nnext", "\nnext", id="cut off by a line end"),
        pytest.param("\x1b]0;never ended\nvisible", "\nvisible", id="an open string hides one line at most"),
        pytest.param("\x1b\x1b[31mred", "red", id="two escapes"),
        pytest.param("\x1b[3\x1b[31mred", "red", id="a sequence within a sequence"),
        pytest.param("\x1b[3\x18shown", "shown", id="cancelled"),
        pytest.param("safe\rrm -rf ~", "safe\nrm -rf ~", id="a return does not overwrite"),
        pytest.param("one\r\ntwo\r\r\nthree", "one\ntwo\nthree", id="line ends of a console"),
        pytest.param("abc\b\b\bxyz\x07\x00\x7f", "abcxyz", id="backspace, bell, null, delete"),
        pytest.param("a\u202etxt.exe\u202c\u2066\u200b\ufeff", "atxt.exe", id="directional overrides, zero width"),
        pytest.param("a\u2028b\x0bc\x0cd\x85e", "a\nb\nc\nd\ne", id="other line ends"),
        pytest.param("\U000e0041\ue000\ufdd0\ud800", "", id="tags, private use, unassigned, surrogates"),
        pytest.param("größe 你好 ✓\tgut [red]x[/red]", "größe 你好 ✓\tgut [red]x[/red]", id="text stays as it is"),
    ],
)
def test_what_a_terminal_would_obey_is_left_out(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown


@given(st.text(alphabet=st.one_of(st.sampled_from("\x1b[]P\\;m\x07\n\r\x9b\x9d\x18 a1?\t"), st.characters())))
def test_nothing_but_printable_characters_tabs_and_line_ends_gets_through(text: str) -> None:
    for char in printable(text):
        assert char in "\t\n" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(st.text(alphabet="\x1b[]P\\;m\x07\n\r\x9b a1", max_size=40), st.integers(0, 40))
def test_cutting_the_text_in_pieces_changes_nothing(text: str, at: int) -> None:
    screen = Filter()
    assert screen.feed(text[:at]) + screen.feed(text[at:]) == printable(text)


def test_a_cell_of_a_table_is_one_line() -> None:
    assert one_line("host\n\x1b[2Jh1 \t is\r\ngone") == "host h1 is gone"
