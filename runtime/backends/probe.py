"""Whether an engine does what is asked of it, before it opens a network of gigabytes."""

import tempfile
from pathlib import Path

from . import open_network
from .protocol import Tuning

#: a graph in ONNX's format, opset 18: y = Identity(x), of one float32
GRAPH = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)


def check_engine(backend: str, device: str, tuning: Tuning) -> None:
    """Opens a graph of one node, with a backend that opens graphs.

    Args:
        backend: a key of `BACKENDS`.
        device: where it is to run.
        tuning: how it is to compute.

    Raises:
        ValueError: an unknown backend, or a device, a precision or an option that it does not have.
        ModuleNotFoundError: the engine is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "model.onnx")
        graph.write_bytes(GRAPH)
        open_network(graph, backend=backend, device=device, tuning=tuning).close()
