"""`python -m kumulus.crdgen [--check]`: write the generated files, or say which differ."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kumulus.api.registry import KINDS
from kumulus.crdgen import files
from kumulus.crdgen.command import CHECKOUT
from kumulus.crdgen.schema import UnfitModelError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when all is well, 1 when `--check` found differences or a model does not fit a CRD."""
    parser = argparse.ArgumentParser(prog="python -m kumulus.crdgen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the files that differ")
    parser.add_argument("--root", type=Path, default=CHECKOUT, help="root of the checkout (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        wanted = files.generated(KINDS)
    except UnfitModelError as error:
        print(f"crdgen: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if options.check:
        changed = files.differing(options.root, wanted)
        for path in changed:
            print(f"crdgen: {path} differs from the models; run `make generate`", file=sys.stderr)  # noqa: T201
        return 1 if changed else 0
    for path in files.write(options.root, wanted):
        print(path)  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
