"""How much memory a process can have here."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT, _CGROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def available_memory() -> int | None:
    """The bytes that a process can have here; None where the system does not say."""
    found = []
    if _MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
        if "MemAvailable" in lines:
            found.append(1024 * int(lines["MemAvailable"].split()[0]))
    if _CGROUP_LIMIT.is_file() and (limit := _CGROUP_LIMIT.read_text(encoding="ascii").strip()).isdecimal():
        found.append(int(limit) - int(_CGROUP_USED.read_text(encoding="ascii")))
    return min(found) if found else None
