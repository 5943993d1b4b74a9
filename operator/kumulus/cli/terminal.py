"""Text that somebody else decided, made safe for a terminal. Pure.

A guest decides what is on its console, and a host's agent what is in a message. A terminal obeys what
is in the text: it can be made to move the cursor, rename its window, answer back as if somebody had
typed, or show one thing and hold another. So nothing gets through but printable characters, tabs and
line ends.

Source: ECMA-48 (escape sequences and C1 controls), Unicode TR 36 and 9 (directional controls).
"""

from __future__ import annotations

import unicodedata
from enum import Enum, auto

_ESC = "\x1b"
_STRINGS = frozenset("]PX^_")
"""After ESC: OSC, DCS, SOS, PM and APC, which run until a terminator."""
_C1_CSI = "\x9b"
_C1_STRINGS = frozenset("\x90\x98\x9d\x9e\x9f")
_STRING_ENDS = frozenset("\x07\x9c")
_CANCEL = frozenset("\x18\x1a")
_LINE_ENDS = frozenset("\n\x0b\x0c\x85\u2028\u2029")
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
"""Controls, formats (directional overrides, zero width), surrogates, private use, unassigned."""


class _State(Enum):
    TEXT = auto()
    ESCAPE = auto()
    CSI = auto()
    STRING = auto()
    STRING_ESCAPE = auto()


class Filter:
    """Feed it text in any pieces; a sequence that is cut by a piece's end is still recognised.

    A string sequence that does not end is over at the line's end, so that a guest cannot hide the rest
    of its log behind one.
    """

    def __init__(self) -> None:
        self._state = _State.TEXT
        self._return = False

    def feed(self, text: str) -> str:
        """What of `text` may be shown."""
        return "".join(map(self._take, text))

    def _take(self, char: str) -> str:
        held = "\n" if self._return and char not in "\n\r" else ""
        self._return = False if char != "\r" else self._return
        if char in _LINE_ENDS:
            self._state = _State.TEXT
            return "\n"
        if char == "\r":
            return self._carriage_return()
        return held + self._step(char)

    def _carriage_return(self) -> str:
        """A return alone would let later text overwrite a line: it becomes a line end, once, unless one follows."""
        self._return = True
        if self._state in (_State.STRING, _State.STRING_ESCAPE):
            self._state = _State.TEXT
        return ""

    def _step(self, char: str) -> str:
        if char in _CANCEL:
            self._state = _State.TEXT
            return ""
        match self._state:
            case _State.STRING | _State.STRING_ESCAPE:
                self._in_string(char)
                return ""
            case _State.CSI if char != _ESC:
                if "@" <= char <= "~":
                    self._state = _State.TEXT
                elif not " " <= char <= "?":
                    return self._restart(char)
                return ""
            case _State.ESCAPE if char != _ESC:
                return self._after_escape(char)
        return self._restart(char)

    def _in_string(self, char: str) -> None:
        if self._state is _State.STRING_ESCAPE:
            self._state = _State.TEXT if char == "\\" else _State.STRING
        elif char == _ESC:
            self._state = _State.STRING_ESCAPE
        elif char in _STRING_ENDS:
            self._state = _State.TEXT

    def _after_escape(self, char: str) -> str:
        if char == "[":
            self._state = _State.CSI
        elif char in _STRINGS:
            self._state = _State.STRING
        elif " " <= char <= "/":
            pass  # an intermediate byte; the final one follows
        elif "0" <= char <= "~":
            self._state = _State.TEXT
        else:
            return self._restart(char)
        return ""

    def _restart(self, char: str) -> str:
        self._state = _State.TEXT
        if char == _ESC:
            self._state = _State.ESCAPE
        elif char == _C1_CSI:
            self._state = _State.CSI
        elif char in _C1_STRINGS:
            self._state = _State.STRING
        elif char == "\t" or unicodedata.category(char) not in _DROPPED:
            return char
        return ""


def printable(text: str) -> str:
    """The text with nothing in it that a terminal would obey; lines are kept."""
    return Filter().feed(text)


def one_line(text: str) -> str:
    """The same, as a single line, for a cell of a table or an error message."""
    return " ".join(printable(text).split())
