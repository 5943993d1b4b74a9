"""The result as people read it: every number beside its goal, its baseline and the run before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench.history import Change, Run
from tests.bench.record import Record, Spread

HEADINGS = ("goal", "what", "measured", "goal is", "met", "spread (rounds)", "baseline", "ours / baseline", "change")
_MET = {True: "yes", False: "NO", None: ""}
_STYLE = {True: "green", False: "bold red", None: "dim"}


def number(value: float | None) -> str:
    """Three digits that matter; `-` when there is none."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def spread(of: Spread | None) -> str:
    """`least .. most (rounds)`."""
    if of is None or of.rounds < 2:
        return ""
    return f"{number(of.least)} .. {number(of.most)} ({of.rounds})"


def _ratio(of: Spread | None) -> str:
    if of is None:
        return ""
    if of.rounds < 2:
        return f"{number(of.middle)}x"
    return f"{number(of.middle)}x ({number(of.least)} .. {number(of.most)})"


def cells(found: Record, change: Change | None) -> tuple[str, ...]:
    """One line of the table."""
    unit = f" {found.unit}" if found.unit else ""
    baseline = ""
    if found.baseline is not None:
        baseline = f"{number(found.baseline.value)} {found.baseline.name}"
    elif found.note:
        baseline = found.note
    return (
        found.goal.id,
        found.name,
        f"{number(found.value)}{unit}",
        f"{found.goal.text}{unit}" if found.goal.text else "",
        _MET[found.met],
        spread(found.spread),
        baseline,
        _ratio(found.ratio),
        f"{change.by:+.0%}{' WORSE' if change.worse else ''}" if change else "",
    )


def _order(run: Run) -> list[Record]:
    def key(found: Record) -> tuple[int, str]:
        digits = "".join(char for char in found.goal.id if char.isdigit())
        return (int(digits or 0), "")

    return sorted(run.records, key=key)


def show(run: Run, changes: Mapping[str, Change], console: Console) -> None:
    """Print it."""
    table = Table(title=title(run), title_justify="left", show_lines=False)
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for found in _order(run):
        row = [Text(cell) for cell in cells(found, changes.get(found.name))]
        row[4].stylize(_STYLE[found.met])
        if found.name in changes and changes[found.name].worse:
            row[8].stylize("bold red")
        table.add_row(*row)
    console.print(table)
    for line in remarks(run):
        console.print(line, highlight=False, markup=False)


def title(run: Run) -> str:
    """What was measured, where and when."""
    machine = run.machine
    return (
        f"Kumulus {run.commit}, {run.at:%Y-%m-%d %H:%M} UTC, scale {run.scale}, {run.seconds / 60:.0f} min, "
        f"{machine.cpus} x {machine.model}, {machine.memory_mib // 1024} GiB"
    )


def remarks(run: Run) -> Iterator[str]:
    """How busy the machine was, and what could not be measured."""
    loads = [found.load for found in run.records if found.load is not None]
    others = [load.others for load in loads if load.others is not None]
    if loads:
        busiest = max(load.load1 for load in loads)
        yield f"Load of the machine while measured: up to {busiest:.1f} on {run.machine.cpus} CPUs."
    if others:
        yield (
            f"Processes that are not the bench's used {min(others):.2f} to {max(others):.2f} CPUs meanwhile:"
            " the more, the less the times say."
        )
    for name, why in run.failures.items():
        yield f"{name} found nothing: {why}"


def markdown(run: Run, changes: Mapping[str, Change]) -> str:
    """The same as a table of Markdown."""
    lines = [f"# {title(run)}", "", "Written by `make bench`; see docs/benchmarks.md.", ""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for found in _order(run):
        row = [cell.replace("|", "/") for cell in cells(found, changes.get(found.name))]
        lines.append("| " + " | ".join(row) + " |")
    remarked = list(remarks(run))
    return "\n".join([*lines, "", *remarked]) + "\n"
