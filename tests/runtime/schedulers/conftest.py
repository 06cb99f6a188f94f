"""Makes `parity`, which the tests of this folder share, importable."""

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("parity", Path(__file__).with_name("parity.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
sys.modules["parity"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["parity"])
