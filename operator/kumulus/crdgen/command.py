"""The command of a page that is generated: write it, or say that it differs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]


def page_command(
    page: Callable[[], str], path: Path, *, module: str, about: str | None, arguments: Sequence[str] | None = None
) -> int:
    """`python -m MODULE [--check] [--root DIR]` for the page at `path` below the root. May be repeated: what is there is not
    written again. Exit status: 0 when all is well, 1 when `--check` found that the page differs."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page differs")
    parser.add_argument("--root", type=Path, default=CHECKOUT, help="root of the checkout (default: %(default)s)")
    options = parser.parse_args(arguments)
    file: Path = options.root / path
    text = page()
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return 0
    if options.check:
        print(f"{module}: {path} differs from the table; run `make generate`", file=sys.stderr)  # noqa: T201
        return 1
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(path)  # noqa: T201
    return 0
