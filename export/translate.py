"""torch's exported program to ONNX, without the two passes of torch's exporter that these networks do not need.

Decomposing every operator and promoting types take nine tenths of the exporter's time on a UNet, and change nothing:
the reference uses operators that translate as they are, and one dtype. Leaving them out means replacing two functions
of torch's private modules while it runs. Where a torch lacks them, or cannot translate without them, the exporter runs
as it is.
"""

import contextlib
import importlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from onnxscript import opset23

from .opset import CANONICAL_OPSET

logger = logging.getLogger(__name__)

_PASSES = "torch.onnx._internal.exporter._fx_passes"


def translate(
    exported: torch.export.ExportedProgram,
    examples: tuple[Any, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> torch.onnx.ONNXProgram:
    """The ONNX program of an exported one, not optimized.

    Args:
        exported: what `torch.export.export` gave.
        examples: the inputs that it was traced with.
        input_names: of the graph, in order.
        output_names: of the graph, in order.
    """
    options: dict[str, Any] = {
        "dynamo": True,
        "opset_version": CANONICAL_OPSET,
        "optimize": False,
        "verbose": False,
        "input_names": list(input_names),
        "output_names": list(output_names),
    }
    try:
        with _without_needless_passes():
            program = torch.onnx.export(
                exported, examples, custom_translation_table={torch.ops.aten.to.dtype: _to_dtype}, **options
            )
    except (AttributeError, ImportError, torch.onnx.errors.OnnxExporterError) as error:
        logger.info("translating with all of torch's passes: %s", error)
        program = torch.onnx.export(exported, examples, **options)
    assert program is not None  # None only when it writes a file itself
    return program


@contextlib.contextmanager
def _without_needless_passes() -> Iterator[None]:
    """Makes torch's exporter leave the program as it is; raises AttributeError where it is built otherwise."""
    passes = importlib.import_module(_PASSES)
    with (
        mock.patch.object(passes, "decompose_with_registry", _as_it_is),
        mock.patch.object(passes, "insert_type_promotion_nodes"),
    ):
        yield


def _as_it_is(program: torch.export.ExportedProgram, _registry: object) -> torch.export.ExportedProgram:
    return program


def _to_dtype(tensor: Any, dtype: int) -> Any:
    """`tensor.to(dtype)`, which the exporter translates only after its decomposition."""
    return opset23.Cast(tensor, to=dtype)
