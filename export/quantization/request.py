"""What of a model folder is to be in 8 bits, and what of it can be."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from safelight.runtime.fidelity import PROOF
from safelight.runtime.manifest import ComponentRecord
from safelight.runtime.model_folder import ModelFolder

#: operators whose weights, and whose inputs, become integers: nearly all of the arithmetic
OPERATORS = ("Conv", "Gemm", "MatMul")
#: layers that stay in float: where the sample enters and leaves a network, and what tells the UNet how noisy it is.
#: They are little of the arithmetic, and much of the error
_SENSITIVE = re.compile(
    r"(^|\.)(conv_in|conv_out|time_embedding|time_emb_proj|add_embedding|class_embedding|(post_)?quant_conv)\."
)
#: flags of /proc/cpuinfo: sums of four 8-bit products in 32 bits, on x86 and on Arm
_INTEGER_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for.

    Raises:
        ValueError: a dtype that there is no quantizer for, or no networks.
    """

    networks: tuple[str, ...] = ("unet",)
    weights: str = "int8"
    activations: str | None = "int8"  # None: the arithmetic stays in float, and the weights alone are smaller

    def __post_init__(self) -> None:
        if self.weights != "int8":
            raise ValueError(f"weights can be quantized to int8, got {self.weights!r}")
        if self.activations not in ("int8", None):
            raise ValueError(f"activations can be int8 or none, got {self.activations!r}")
        if not self.networks:
            raise ValueError("there must be a network to quantize, such as --networks unet")


def is_sensitive(weight: str) -> bool:
    """Whether the layer with this weight stays in float."""
    return _SENSITIVE.search(weight) is not None


def check_request(folder: ModelFolder, request: Request) -> None:
    """Refuses what cannot be quantized, before anything is written.

    Raises:
        FileNotFoundError: the folder carries no proof of its fidelity.
        ValueError: it has no manifest, lacks a network, or has one that is quantized or computes in another dtype; or
            this processor has no arithmetic for integers of 8 bits.
    """
    if folder.manifest is None:
        raise ValueError(f"{folder.path} has no safelight.json: it was not exported by safelight; export it first")
    if PROOF not in folder.manifest.files:
        raise FileNotFoundError(
            f"{folder.path} carries no proof of fidelity, by which the result is judged; make one from its checkpoint: "
            f"safelight validate {folder.path} --checkpoint SOURCE"
        )
    records = folder.manifest.components
    if unknown := [name for name in request.networks if name not in records]:
        raise ValueError(f"{folder.path} has no network {', '.join(unknown)}; it has {', '.join(records)}")
    for name in request.networks:
        _check_network(name, records[name], folder.manifest.dtype)
    if request.activations is not None:
        check_processor()


def _check_network(name: str, record: ComponentRecord, dtype: str) -> None:
    if record.quantization is not None:
        raise ValueError(
            f"{name} is quantized already ({record.quantization.quantizer}): start from the exported folder"
        )
    if (found := record.dtype or dtype) != "fp32":
        raise ValueError(
            f"{name} computes in {found}: quantize an export of --dtype fp32, whose --weights-dtype may be another"
        )


def check_processor(flags: Collection[str] | None = None) -> None:
    """Refuses a processor on which integers of 8 bits are no gain.

    Without such instructions the products of unsigned and signed bytes are summed in 16 bits, which overflow, and no
    faster than floats are. What the system does not say is left to the measurement.

    Args:
        flags: of the processor; those of this one when None, as Linux lists them.

    Raises:
        ValueError: it has none of the instructions.
    """
    found = _flags() if flags is None else set(flags)
    if found and not found & _INTEGER_FLAGS:
        raise ValueError(
            "this processor has no products of 8-bit integers (VNNI, AMX, or Arm's dot product): they would be slower "
            "here, and overflow. Quantize where they are, or use --activations none"
        )


def _flags() -> set[str]:
    if not _CPUINFO.is_file():
        return set()
    lines = (line.partition(":") for line in _CPUINFO.read_text(encoding="utf-8").splitlines())
    return next((set(value.split()) for name, _, value in lines if name.strip() in ("flags", "Features")), set())
