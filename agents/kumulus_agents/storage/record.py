"""Small JSON files that say what the file beside them is."""

from __future__ import annotations

import json

from kumulus_agents.storage.beneath import Directory


def read_record(directory: Directory, name: str) -> dict[str, object] | None:
    """The JSON object in the file, or None when there is none that can be read. Blocks."""
    try:
        record = json.loads(directory.read(name) or b"null")
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def write_record(directory: Directory, name: str, record: dict[str, object], *, flush: bool = True) -> None:
    """Make the file have this object, all at once; `flush` as `Directory.write` has it. Blocks."""
    directory.write(name, json.dumps(record, sort_keys=True).encode(), flush=flush)
