"""The page about what an agent does: that of the checkout is up to date, and it leaves nothing out."""

from __future__ import annotations

from pathlib import Path

import pytest

from kumulus.api.compute import PowerState
from kumulus_agents.agent.instance_plan import ENDINGS
from kumulus_agents.agent.instance_scope import Situation
from kumulus_agents.agent.state_table import PAGE, main, page


def test_the_page_of_the_checkout_is_up_to_date() -> None:
    assert main(["--check"]) == 0


def test_every_situation_has_a_step_for_every_wish_and_a_meaning() -> None:
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in page().splitlines() if "|" in line]
    for situation in Situation:
        steps, meaning = (cells[1:] for cells in lines if cells[0] == f"**{situation}**")
        assert len(steps) == len(PowerState)
        assert len(meaning) == 1
        assert all(cell.endswith(".") for cell in (*steps, *meaning)), situation
    for reason, _ in ENDINGS.values():
        assert f"`{reason}`" in page()


def test_a_page_that_differs_is_named_and_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    assert main(["--check", *root]) == 1
    assert str(PAGE) in capsys.readouterr().err
    assert main(root) == 0
    assert main(["--check", *root]) == 0
    (tmp_path / PAGE).write_text("by hand")
    assert main(["--check", *root]) == 1
    assert main(root) == 0
    assert (tmp_path / PAGE).read_text() == page()
