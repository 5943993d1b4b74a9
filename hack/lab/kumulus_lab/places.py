"""Where the lab keeps things: the checkout, the cache that outlives labs, and the labs themselves.

Only names of directories; makes and removes nothing.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
"""The root of the source tree this package runs from."""


def cache() -> Path:
    """The directory for what is dear to make and the same for every lab."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kumulus"


def labs() -> Path:
    """The directory with one directory for each lab."""
    chosen = os.environ.get("KUMULUS_LAB_DIR")
    return Path(chosen).resolve() if chosen else CHECKOUT / ".lab"


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Held while something of the cache is made or chosen, by one process at a time."""
    lock = cache() / f"{name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def script(name: str) -> Path:
    """A console script of the environment this process runs in, such as `kumulusctl`."""
    return Path(sys.executable).parent / name
