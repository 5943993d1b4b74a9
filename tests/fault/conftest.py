"""What these tests share with those of storage."""

from tests.unit.storage.conftest import server, settings

__all__ = ["server", "settings"]
