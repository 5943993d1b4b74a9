"""How far qemu-img is. Pure."""

from __future__ import annotations

from collections.abc import Callable

from kumulus_agents.storage.convert import percent_done
from kumulus_agents.storage.pace import Pace


def share(pace: Pace, size: int) -> Callable[[bytes], None]:
    """Turns what qemu-img says into positions in `size` bytes."""

    def on_output(data: bytes) -> None:
        if (percent := percent_done(data)) is not None:
            pace.at(min(size, size * percent // 100), size)

    return on_output
