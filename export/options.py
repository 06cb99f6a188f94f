"""How to export: the options of the command, and what can be said of them without a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from . import lowering
from .lora import LoraFile

#: of the arithmetic and of the storage
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export; the defaults are the command's."""

    opset: int = 23  # of model.onnx, the graph that any engine can read
    dtype: str = "fp32"  # of the arithmetic, and of a network's floating-point inputs and outputs
    weights_dtype: str | None = None  # of the storage; that of the arithmetic when None
    full_precision: tuple[str, ...] = ()  # networks whose arithmetic stays in float32, beside those that must
    targets: tuple[str, ...] | None = None  # engines to lower for; all that take the dtype when None
    device: str = "cpu"  # where the written graphs are run against the reference
    atol: float | None = None  # the largest absolute error that passes; derived limits when None
    validate: bool = True
    loras: tuple[LoraFile, ...] = ()  # fused into the weights, in this order
    cache_branch_id: int | None = None  # of the UNet, which DeepCache's graphs are cut at; None writes none

    def __post_init__(self) -> None:
        """Checks what can be checked without a checkpoint.

        Raises:
            ValueError: an option that no export can have.
        """
        for name in {self.dtype, self.weights_dtype or self.dtype}:
            if name not in DTYPES:
                raise ValueError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
        if self.opset not in lowering.OPSETS:
            raise ValueError(f"opset must be one of {', '.join(map(str, lowering.OPSETS))}, got {self.opset}")
        if self.atol is not None and not self.atol > 0:
            raise ValueError(f"atol must be above 0, got {self.atol}")
        if self.cache_branch_id is not None and self.cache_branch_id < 0:
            raise ValueError(f"cache_branch_id must be 0 or more, got {self.cache_branch_id}")
        if unknown := [name for name in self.targets or () if name not in lowering.TARGETS]:
            raise ValueError(f"unknown target {', '.join(unknown)}; known: {', '.join(lowering.TARGETS)}")

    @property
    def storage(self) -> torch.dtype:
        """The dtype of the weight files."""
        return DTYPES[self.weights_dtype or self.dtype]
