"""Options, threads and devices: OpenVINO gets what was said, and what it does not know is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
import pytest

from safelight.runtime.backends.openvino.devices import Device
from safelight.runtime.backends.openvino.network import OpenVinoNetwork

Opened = Callable[..., Any]


def compiled_with(network: OpenVinoNetwork) -> Callable[[str], Any]:
    """The properties of what a network compiles."""
    compiled = network._compile({"sample": (1, 4, 8, 8), "timestep": (1,), "encoder_hidden_states": (1, 5, 96)})
    return lambda name: compiled.get_property(name)


def test_latency_threads_and_options_are_openvinos(opened: Opened) -> None:
    value = compiled_with(opened(threads=1, ENABLE_CPU_PINNING=False, PERF_COUNT=True, cache=False))
    assert value("PERFORMANCE_HINT") == "LATENCY"
    assert value("INFERENCE_NUM_THREADS") == 1
    assert value("PERF_COUNT") == "YES"
    assert value("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert value("NUM_STREAMS") == 1


def test_networks_do_not_share_their_properties(opened: Opened) -> None:
    first = opened(threads=1, PERF_COUNT=True, cache=False)
    opened(threads=2)
    value = compiled_with(first)
    assert value("INFERENCE_NUM_THREADS") == 1
    assert value("PERF_COUNT") == "YES"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"NOTHING": 1},
            r"has no option 'NOTHING' on CPU; known: static_shapes, most_compiled, cache, CPU_DENORM.*NUM_STREAMS",
        ),
        ({"FULL_DEVICE_NAME": "x"}, "has no option 'FULL_DEVICE_NAME'"),
        ({"NUM_STREAMS": "many"}, "option NUM_STREAMS of the openvino backend cannot be 'many': Could not read number"),
        ({"ENABLE_CPU_PINNING": 3}, r"option ENABLE_CPU_PINNING .* cannot be 3: Wrong value 3 ?for property key"),
        ({"PERF_COUNT": {}}, r"option PERF_COUNT .* cannot be \{\}: "),
        ({"INFERENCE_NUM_THREADS": -4}, r"cannot be -4: Wrong value .*non negative"),
        ({"INFERENCE_PRECISION_HINT": "bf16"}, "is set by precision, such as precision='bf16'"),
        ({"threads": 1, "INFERENCE_NUM_THREADS": 2}, "is set by threads: give one of them"),
        ({"static_shapes": "no"}, "option static_shapes of the openvino backend must be true or false, got 'no'"),
        ({"most_compiled": -1}, "option most_compiled .* must be an integer from 0, got -1"),
        ({"most_compiled": True}, "option most_compiled .* must be an integer from 0, got True"),
        ({"device": "cuda"}, "unknown device 'cuda' for the openvino backend; it knows cpu, gpu, gpu:N and npu"),
        ({"device": "gpu:one"}, "unknown device 'gpu:one'"),
        ({"device": "cpu:1"}, "device 'cpu:1' is not usable: OpenVINO finds cpu"),
        ({"device": "gpu:99"}, "device 'gpu:99' is not usable: OpenVINO finds cpu"),
    ],
)
def test_what_openvino_does_not_take_is_refused_by_name(options: dict[str, Any], message: str, opened: Opened) -> None:
    with pytest.raises(ValueError, match=message):
        opened(**options)


@pytest.mark.parametrize(
    ("device", "there", "expected"),
    [
        ("cpu", ["CPU"], "CPU"),
        ("gpu", ["CPU", "GPU"], "GPU"),
        ("gpu:0", ["CPU", "GPU"], "GPU.0"),
        ("gpu", ["CPU", "GPU.0", "GPU.1"], "GPU"),
        ("gpu:1", ["CPU", "GPU.0", "GPU.1"], "GPU.1"),
        ("npu", ["CPU", "NPU"], "NPU"),
        ("gpu:1", ["CPU", "GPU"], None),
        ("npu", ["CPU", "GPU.0", "GPU.1"], None),
    ],
)
def test_devices_have_openvinos_names(
    device: str, there: list[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Core:
        available_devices = there

    monkeypatch.setattr(openvino, "Core", Core)
    if expected is not None:
        assert Device.named(device).name == expected
        return
    listed = ", ".join(name.lower().replace(".", ":") for name in there)
    with pytest.raises(ValueError, match=f"device '{device}' is not usable: OpenVINO finds {listed} here"):
        Device.named(device)


def test_without_openvino_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    import sys

    from safelight.runtime.backends import open_network

    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it fails
    for name in [name for name in sys.modules if name.startswith("safelight.runtime.backends.openvino")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r"needs: pip install 'safelight\[openvino\]'"):
        open_network(graph, backend="openvino")
