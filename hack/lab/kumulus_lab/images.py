"""Guest images, built from distribution packages into the cache, once for each set of inputs.

The builders are in hack/images; here is only which there are, whether one is in the cache, and what it adds up to.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kumulus_lab import places
from kumulus_lab.errors import LabError

NAMES = ("tiny", "debian")
_KEPT = 3
_BUILDER = places.CHECKOUT / "hack" / "images" / "build.py"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """An image of the cache."""

    name: str
    path: Path
    sha256: str
    size: int
    virtual_size: int
    format: str


def ensure(name: str, say: Callable[[str], None] = lambda _: None) -> GuestImage:
    """The image, built when the cache has none for today's inputs."""
    if name not in NAMES:
        raise LabError(f"there is no guest image {name}; there are: {', '.join(NAMES)}")
    directory = places.cache() / "images"
    directory.mkdir(parents=True, exist_ok=True)
    asked = _builder(name, "--key")
    if asked.returncode != 0:
        raise LabError(asked.stderr.strip())
    key = asked.stdout.strip()
    home = directory / f"{name}-{key}"
    if not (home / "manifest.json").exists():
        with places.exclusive(f"images/{name}"):
            if not (home / "manifest.json").exists():
                _build(name, home, say)
    manifest = json.loads((home / "manifest.json").read_text())
    return GuestImage(
        name=name,
        path=home / manifest["file"],
        sha256=manifest["sha256"],
        size=manifest["size"],
        virtual_size=manifest["virtualSize"],
        format=manifest["format"],
    )


def _build(name: str, home: Path, say: Callable[[str], None]) -> None:
    log = home.parent / f"{name}.log"
    for leftover in home.parent.glob(f".{name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    say(f"building guest image {name} (log: {log})")
    done = _builder(name, "--into", str(home), "--log", str(log))
    if done.returncode != 0:
        raise LabError(f"guest image {name} was not built (log: {log}): {done.stderr.strip()}")
    # The few before it may still be served to a lab that runs.
    known = sorted(home.parent.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    for old in known[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _builder(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_BUILDER), name, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
