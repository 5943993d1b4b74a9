"""NoCloud seeds: a small ISO 9660 disk with the first-boot data of a guest.

The format is cloud-init's (datasource NoCloud): volume label `cidata`, files `meta-data`, `user-data`,
`vendor-data` and `network-config` in the root directory. Joliet and Rock Ridge both carry the names,
so that Linux and Windows guests find them. The same files make the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from types import ModuleType

import pycdlib
import yaml
from pycdlib import dates, headervd
from pycdlib import pycdlib as mastering

from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.protocol import StorageError

LABEL = "cidata"
FILES = frozenset({"meta-data", "user-data", "vendor-data", "network-config"})
MAX_BYTES = 8 << 20
"""Most that the files of a seed may have together."""


def _still_time() -> ModuleType:
    """A `time` that stands at 2000-01-01T00:00:00Z.

    pycdlib stamps what it makes with its clock and has no setting for that; stamps would make each
    seed another.
    """
    module = ModuleType("time")
    vars(module).update(vars(time), time=lambda: 946684800.0, localtime=time.gmtime)
    return module


for _module in (dates, headervd, mastering):
    _module.time = _still_time()


def meta_data(
    instance_id: str,
    hostname: str,
    public_keys: Sequence[str] = (),
    extra: Mapping[str, object] | None = None,
) -> str:
    """The `meta-data` file. `extra` adds keys, and cannot replace those made from the other arguments."""
    data: dict[str, object] = dict(extra or {})
    data |= {"instance-id": instance_id, "local-hostname": hostname}
    if public_keys:
        data["public-keys"] = list(public_keys)
    return yaml.safe_dump(data, sort_keys=True, allow_unicode=True, width=4096)


def image(files: Mapping[str, str | bytes]) -> bytes:
    """The seed with these files. Pure. Raises `StorageError(reason="SeedInvalid")` for other names or too much."""
    contents = {name: text.encode() if isinstance(text, str) else bytes(text) for name, text in files.items()}
    if unknown := contents.keys() - FILES:
        raise _invalid(f"a seed has no file {sorted(unknown)[0]!r}; there are {', '.join(sorted(FILES))}")
    if sum(map(len, contents.values())) > MAX_BYTES:
        raise _invalid(f"the first-boot data has more than {MAX_BYTES} bytes")
    disk = pycdlib.PyCdlib()
    disk.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    try:
        for name in sorted(contents):
            disk.add_fp(
                BytesIO(contents[name]),
                len(contents[name]),
                iso_path=f"/{name.upper().replace('-', '_')}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
                file_mode=0o100400,
            )
        out = BytesIO()
        disk.write_fp(out)
    finally:
        disk.close()
    return out.getvalue()


async def write(path: Path, files: Mapping[str, str | bytes]) -> None:
    """Make the seed at that path, whole or not at all, mode 0600. The same files: nothing is written.

    The directory must exist; the file itself is not followed if it is a link. Raises `StorageError`.
    """
    with told_as("write the first-boot data"):
        await in_thread(_write, path, image(files))


def _write(path: Path, data: bytes) -> None:
    with Directory.trusted(PurePosixPath(path.parent)) as directory:
        try:
            same = directory.read(path.name, len(data) + 1) == data
        except OSError:
            same = False
        if not same:
            directory.write(path.name, data)


def _invalid(why: str) -> StorageError:
    return StorageError(f"The first-boot data is refused: {why}.", reason="SeedInvalid", retryable=False)
