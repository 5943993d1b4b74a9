"""`hack/website.py` as a module: it is a command of developers and in no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

_spec = importlib.util.spec_from_file_location("website", ROOT / "hack" / "website.py")
assert _spec is not None and _spec.loader is not None
website = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = website
_spec.loader.exec_module(website)
