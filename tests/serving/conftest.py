"""Loads what the tests of the server share."""

import importlib.util
import sys
from pathlib import Path

if "served" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("served", Path(__file__).parent / "served.py")
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["served"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["served"])
