"""Running other programs to their end, with their complaint as the error."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kumulus_lab.errors import LabError

Finished = subprocess.CompletedProcess[str]


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | bytes | None = None,
    cwd: Path | None = None,
    seconds: float = 120,
    check: bool = True,
) -> Finished:
    """Run a program to its end. Raises LabError with its last words when it fails, is missing or takes too long."""
    command = [str(word) for word in argv]
    text = stdin.decode() if isinstance(stdin, bytes) else stdin
    try:
        done = subprocess.run(
            command,
            env=None if env is None else dict(env),
            input=text if text is not None else "",
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is not installed; `make setup` installs what the lab needs") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(command)}` did not end within {seconds:.0f} s") from error
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-6:]
        raise LabError(f"`{' '.join(command)}` failed ({done.returncode}): " + "\n".join(words))
    return done


def works(argv: Sequence[str | Path], *, seconds: float = 10) -> bool:
    """Whether a program is there and ends well."""
    try:
        return run(argv, seconds=seconds, check=False).returncode == 0
    except LabError:
        return False
