"""Ages and sizes the way people read them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def moment(text: str | None) -> datetime | None:
    """A time of the API (RFC 3339); None when there is none or it is not one."""
    if not text:
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def duration(seconds: float) -> str:
    """Two units at most, as kubectl writes ages: `45s`, `3m20s`, `5h`, `12d`."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole}s"
    if minutes < 10:
        return f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 48:
        return f"{hours}h"
    return f"{days}d"


def age(since: str | None, now: datetime) -> str:
    """How long ago that was; `-` when it is not known."""
    start = moment(since)
    return duration((now - start).total_seconds()) if start else "-"


def size(count: int | None) -> str:
    """Bytes in the unit that gives a short number: `1.5 GiB`; `-` when not known."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    text = f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    return f"{text} {_UNITS[unit]}"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 host`, `2 hosts`."""
    return f"{number} {one if number == 1 else many or one + 's'}"
