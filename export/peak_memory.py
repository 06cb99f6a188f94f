"""How much memory this process had."""

import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """The most resident bytes that this process had.

    As Linux counts them where it does: `ru_maxrss` there is never less than what the parent had when it started this
    process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
