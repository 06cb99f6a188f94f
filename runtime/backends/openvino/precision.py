"""What a network is computed in. OpenVINO chooses by itself where it is not told, and not what the graph says."""

from collections import Counter
from typing import Any

from ..protocol import AUTO
from .devices import Device

#: our names -> OpenVINO's
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_OURS = {hint: precision for precision, hint in HINTS.items()}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}

#: operations that a network spends its time in: their dtype is that of its arithmetic
_PRODUCTS = ("Convolution", "MatMul", "ScaledDotProductAttention")


def decided(device: Device, asked: str | None, graph: str) -> str:
    """The precision of a network.

    Args:
        device: that computes it.
        asked: by the user: one of `PRECISIONS`, `AUTO`, or None.
        graph: what the graph says.

    Returns:
        What was asked for; without that, the graph's, or float32, which is wider, where the device lacks it.

    Raises:
        ValueError: the device lacks what was asked for.
    """
    if asked == AUTO:
        return fastest(device)
    if asked is None:
        return graph if has(device, graph) else "fp32"
    if not has(device, asked):
        there = ", ".join(precision for precision in HINTS if has(device, precision))
        raise ValueError(f'{_named(device)} does not compute in {asked}; it has {there}, and "auto" is the fastest')
    return asked


def fastest(device: Device) -> str:
    """The precision that is fastest on a device: on a CPU bf16 where it is native, and never fp16."""
    own = _OURS.get(device.property("INFERENCE_PRECISION_HINT").to_string(), "fp32")  # OpenVINO's choice
    if not device.is_cpu:
        return own
    return "bf16" if own != "fp32" and has(device, "bf16") else "fp32"


def has(device: Device, precision: str) -> bool:
    """Whether a device computes in a precision natively; OpenVINO would emulate it elsewhere."""
    return precision == "fp32" or _CAPABILITIES[precision] in device.capabilities


def of_graph(model: Any) -> str:
    """The precision that most products of a graph (`openvino.Model`) are computed in."""
    found = Counter(
        node.get_output_element_type(0).to_string() for node in model.get_ops() if node.get_type_name() in _PRODUCTS
    )
    counted = {_OURS[hint]: count for hint, count in found.items() if hint in _OURS}
    return max(counted, key=counted.__getitem__, default="fp32")


def keep_angles(model: Any) -> tuple[str, ...]:
    """Has a CPU compute in float32 the angles of a graph's sines and cosines, whatever it computes the rest in.

    They are products of timesteps, or of sizes in pixels, with frequencies: hundreds of radians, of which bfloat16 has
    three digits. OpenVINO computes in the lower precision what comes before a product of matrices, and in float32 what
    lies between the last one and an output. So sines and cosines become outputs; nobody asks for them.

    Args:
        model: `openvino.Model`, which is changed.

    Returns:
        The nodes that have become outputs.
    """
    waves = [node for node in model.get_ordered_ops() if node.get_type_name() in ("Sin", "Cos")]
    model.add_outputs([node.output(0) for node in waves])
    return tuple(node.get_friendly_name() for node in waves)


def _named(device: Device) -> str:
    return f"this {device.name}, {device.property('FULL_DEVICE_NAME')},"
