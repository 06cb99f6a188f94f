"""Numbers of a test that are kept: `SAFELIGHT_RECORD=FILE make test-full` writes them there."""

import json
import os
from pathlib import Path
from typing import Any


def record(name: str, **numbers: Any) -> None:
    """Adds numbers to what is kept under a name."""
    if file := os.environ.get("SAFELIGHT_RECORD"):
        path = Path(file)
        content = json.loads(path.read_text()) if path.exists() else {}
        content[name] = {**content.get(name, {}), **numbers}
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
