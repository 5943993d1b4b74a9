"""What these tests share with those of storage and with those on real hosts, and the table that they end with."""

from __future__ import annotations

import pytest

from tests.fault.campaign import SEED, TABLE
from tests.system.conftest import world as real_world
from tests.unit.storage.conftest import server, settings

__all__ = ["real_world", "server", "settings"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Plans, faults that were tried, failures, seconds."""
    if TABLE.rows or TABLE.numbers:
        terminalreporter.section("plans and faults")
        terminalreporter.write_line(f"KUMULUS_SEED={SEED}")
        for line in TABLE.lines():
            terminalreporter.write_line(line)
