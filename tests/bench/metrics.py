"""Reads the Prometheus metrics that the controllers serve."""

from __future__ import annotations

import asyncio
import re
import urllib.error
import urllib.request

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def parse(text: str) -> dict[tuple[str, str], float]:
    """Value by name and by labels as they are written. Pure."""
    found = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and not line.startswith("#"):
            found[match[1], match[2] or ""] = float(match[3])
    return found


def passes(metrics: dict[tuple[str, str], float], controller: str) -> float:
    """Passes of a controller, whatever they came to, without those it refused because it does not lead."""
    return sum(
        value
        for (name, labels), value in metrics.items()
        if name == "kumulus_passes_total" and f'controller="{controller}"' in labels and "not leading" not in labels
    )


async def read(port: int) -> dict[tuple[str, str], float]:
    """What the process on that port serves; nothing when it does not answer."""

    def fetch() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
                text: str = answer.read().decode()
                return text
        except (urllib.error.URLError, OSError):
            return ""

    return parse(await asyncio.to_thread(fetch))
