#!/usr/bin/env python3
"""Build a guest image from distribution packages: `build.py tiny|debian --into DIRECTORY [--log FILE]`.

`--key` prints what the image depends on as one word, so that a cache knows when it is stale. The directory appears
by one rename, with the image and a manifest.json (sha256, sizes, format); a cut build is never seen. Needs the
packages of hack/packages/image.txt, and root for `debian`. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import debian_image
import tiny_image
from tools import BuildError, Log

HERE = Path(__file__).resolve().parent
KINDS = {"tiny": tiny_image, "debian": debian_image}


def key(name: str) -> str:
    """A digest of the builder's sources for that image and of the packages it takes."""
    digest = hashlib.sha256()
    sources = [HERE / "tools.py", HERE / "disk.py", HERE / f"{name}_image.py", *sorted((HERE / name).rglob("*"))]
    for path in sources:
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    query = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *KINDS[name].PACKAGES],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if query.returncode != 0:
        raise BuildError(f"image {name} is built from packages that `make setup` installs as root on Debian")
    digest.update(query.stdout.encode())
    return digest.hexdigest()[:12]


def build(name: str, into: Path, log: Log) -> None:
    """Make the image and its manifest."""
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{name}-") as scratch:
        work, out = Path(scratch, "work"), Path(scratch, "out")
        work.mkdir(mode=0o755)
        out.mkdir(mode=0o755)
        Path(scratch).chmod(0o755)
        image = out / f"{name}.qcow2"
        KINDS[name].build(work, image, log)
        info = json.loads(log.run(["qemu-img", "info", "-f", "qcow2", "--output=json", image]))
        with image.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = {
            "name": name,
            "file": image.name,
            "format": "qcow2",
            "sha256": sha256,
            "size": image.stat().st_size,
            "virtualSize": info["virtual-size"],
        }
        (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(into, ignore_errors=True)
        out.rename(into)


def main() -> int:
    """Build, or print the key."""
    parser = argparse.ArgumentParser(description="Build a guest image.")
    parser.add_argument("name", choices=sorted(KINDS))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", action="store_true")
    what.add_argument("--into", type=Path)
    parser.add_argument("--log", type=Path, default=Path(os.devnull))
    chosen = parser.parse_args()
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    try:
        if chosen.key:
            sys.stdout.write(key(chosen.name) + "\n")
        else:
            with chosen.log.open("w") as file:
                build(chosen.name, chosen.into.resolve(), Log(file))
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
