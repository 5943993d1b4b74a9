"""Running the programs that build images, with a log of what they said."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO


class BuildError(Exception):
    """One sentence that says what failed."""


class Log:
    """Runs programs and keeps what they say."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def run(self, argv: Sequence[str | Path], *, stdin: str | bytes = b"", cwd: Path | None = None) -> str:
        """Run a program to its end; its output. Raises BuildError with its last words."""
        command = [str(word) for word in argv]
        self._file.write(f"$ {shlex.join(command)}\n")
        self._file.flush()
        given = stdin.encode() if isinstance(stdin, str) else stdin
        try:
            done = subprocess.run(command, input=given, cwd=cwd, capture_output=True, check=False)
        except FileNotFoundError as error:
            raise BuildError(f"{command[0]} is not installed; `make setup` installs what images need") from error
        output, complaint = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        self._file.write(output + complaint)
        self._file.flush()
        if done.returncode != 0:
            words = (complaint.strip() or output.strip() or "no output").splitlines()[-1]
            raise BuildError(f"`{shlex.join(command)[:200]}` failed ({done.returncode}): {words}")
        return output
