"""Which backend runs a model where its user names none."""

import importlib.util
from collections.abc import Collection
from dataclasses import dataclass

from .protocol import AUTO

#: bytes of weights from which on the faster steps of OpenVINO outweigh the seconds that it compiles a network
COMPILED_FROM = 500_000_000


@dataclass(frozen=True)
class Choice:
    """A backend, and why it is the one."""

    backend: str
    reason: str


def chosen_backend(
    weight_bytes: int, device: str, precisions: Collection[str] = (), *, integers: bool = False
) -> Choice:
    """The backend for a model.

    Args:
        weight_bytes: of all its networks.
        device: where it is to run.
        precisions: that its user asks for.
        integers: whether layers of it compute in 8 bits.
    """
    family = device.partition(":")[0]
    if family in ("gpu", "npu"):
        return Choice("openvino", f"{device} is a device of OpenVINO")
    if family != "cpu":
        return Choice("onnxruntime", f"it opens any model on {device}")
    if importlib.util.find_spec("openvino") is None:
        return Choice("onnxruntime", "OpenVINO is not installed: pip install 'safelight[openvino]'")
    if integers:
        return Choice("openvino", "it has the faster kernels for 8 bits")
    if AUTO in precisions:
        return Choice("openvino", "it computes in the fastest precision that the CPU has")
    if other := sorted(set(precisions) - {"fp32"}):
        return Choice("openvino", f"ONNX Runtime does not compute in {' or '.join(other)} on a CPU")
    if weight_bytes >= COMPILED_FROM:
        return Choice("openvino", "its steps are faster")
    return Choice("onnxruntime", "it opens a small model in a fraction of the time, and its steps are as fast")
