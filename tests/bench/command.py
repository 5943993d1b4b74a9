"""`python -m tests.bench [NAMES...]`: parses, runs, prints, stores."""

from __future__ import annotations

import signal
import sys
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tests.bench import history, machine, report, suite
from tests.bench.scale import SCALES

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_progress = Console(stderr=True, highlight=False)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benches or goals, such as burst or G7; all.")
    ] = None,
    scale: Annotated[str, typer.Option(envvar="SCALE", help="short, full or long.")] = "full",
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of ours and the baseline in turn.")] = None,
    store: Annotated[bool, typer.Option(help="Keep the result in bench-results/.")] = True,
    show: Annotated[bool, typer.Option("--list", help="List the benches and end.")] = False,
) -> None:
    """Measure Kumulus against its goals and against baselines in the same run."""
    if show:
        for each in suite.BENCHES:
            print(f"{each.name:16} {', '.join(each.goals):16} {each.sentence}")
        return
    if scale not in SCALES:
        raise typer.BadParameter(f"there is no scale {scale}; there are: {', '.join(SCALES)}")
    try:
        chosen = suite.select(names or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    began = time.monotonic()

    def say(text: str) -> None:
        seconds = time.monotonic() - began
        _progress.print(f"[dim]{seconds // 60:3.0f}:{seconds % 60:04.1f}[/] {escape(text)}", soft_wrap=True)

    at, commit = history.now(), machine.commit()
    found, failures = suite.run(chosen, SCALES[scale].with_rounds(rounds), say)
    run = history.Run(
        at=at,
        commit=commit,
        scale=scale,
        machine=machine.this(),
        seconds=round(time.monotonic() - began, 1),
        records=tuple(history.stamped(found, commit)),
        failures=failures,
    )
    home = history.directory()
    changes = history.changes(run, history.previous(home, scale))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    report.show(run, changes, console)
    if store and found:
        print(f"kept as {history.save(run, home, report.markdown(run, changes))}")
    if failures:
        raise typer.Exit(1)


def main() -> None:
    """Run the command. SIGTERM ends it as Ctrl-C does: what was started is taken down first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
