"""What a server has to hold to, and how a measurement of it ends."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .machine import machine, versions

_SHOWN = 20  # of the failures


@dataclass
class Verdict:
    """What has to be true, and whether it is."""

    failures: list[str] = field(default_factory=list)

    def check(self, holds: bool, failure: str) -> None:
        """Notes what is not as it should be."""
        if not holds:
            self.failures.append(failure)

    def concluded(self, file: Path | None, *, backend: str, plan: Mapping[str, Any], result: Mapping[str, Any]) -> int:
        """Prints what is not as it should be, and writes everything.

        Args:
            file: of JSON; none is written when None.
            backend: of the server.
            plan: what was to be done.
            result: what was measured.

        Returns:
            The exit status: 1 where something is not as it should be.
        """
        for failure in self.failures[:_SHOWN]:
            print(f"FAILED: {failure}")
        if file is not None:
            content = {
                "machine": machine(),
                "versions": versions(),
                "model": "emoji",
                "backend": backend,
                "plan": dict(plan),
                "failures": self.failures,
                **result,
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return 1 if self.failures else 0
