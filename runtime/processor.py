"""What the CPU can compute with: the instruction sets that engines choose their kernels by."""

import platform
from dataclasses import dataclass
from pathlib import Path

#: flags of Linux -> what they are called, those that matter for the speed of a network, slowest first
_NAMES = {
    "avx2": "AVX2",
    "asimd": "NEON",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "bf16": "BF16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "amx_fp16": "AMX FP16",
}
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A CPU: its name, and which of the instruction sets above it has, as far as the system tells."""

    name: str
    instruction_sets: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.name}, with {', '.join(self.instruction_sets) or 'instruction sets that the system does not tell'}"
        )


def this_processor() -> Processor:
    """The CPU of this machine; its instruction sets are told by Linux alone."""
    if not _CPUINFO.is_file():
        return Processor(name=platform.processor() or platform.machine(), instruction_sets=())
    return parsed(_CPUINFO.read_text())


def parsed(cpuinfo: str) -> Processor:
    """The first processor of a `/proc/cpuinfo`."""
    first = cpuinfo.strip().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    fields = {key.strip().lower(): value.strip() for key, _, value in pairs}
    flags = fields.get("flags", fields.get("features", "")).split()
    names = tuple(name for flag, name in _NAMES.items() if flag in flags)
    return Processor(name=fields.get("model name", platform.machine()), instruction_sets=names)
