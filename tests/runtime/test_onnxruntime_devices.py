"""Where ONNX Runtime's sessions run: what is asked of each execution provider, and what the errors say to install."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from safelight.runtime import bundled_model
from safelight.runtime.backends import COMPILED, ON_GPU, backend_module, open_network
from safelight.runtime.backends.onnxruntime import cuda, tensorrt
from safelight.runtime.backends.onnxruntime import open_network as open_onnxruntime
from safelight.runtime.backends.onnxruntime.engine_cache import engine_folder
from safelight.runtime.backends.onnxruntime.session import Place, open_session
from safelight.runtime.onnx_file import border_dtypes

UNET = bundled_model() / "unet" / "model.onnx"
RTX_MODULE = "safelight.runtime.backends.onnxruntime.tensorrt_rtx"
#: the backends that are other execution providers of ONNX Runtime
PROVIDERS = [backend for backend in ON_GPU if backend not in COMPILED]
GPU_BUILD = "CUDAExecutionProvider" in ort.get_available_providers()
plain_build = pytest.mark.skipif(GPU_BUILD, reason="this is the GPU build of ONNX Runtime")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a driver and the GPU build."""
    monkeypatch.setattr(cuda, "is_gpu_build", lambda: True)
    monkeypatch.setattr(cuda, "has_driver", lambda: True)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Opened:
    """What takes the place of a network: the place it would run in."""

    def __init__(self, graph: Path, place: Place, **options: Any) -> None:
        self.graph, self.place, self.options = graph, place, options


# CUDA


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)])
def test_a_cuda_device_has_its_number_everywhere(device: str, index: int) -> None:
    place = cuda.cuda_place(device)
    assert place.provider == "CUDAExecutionProvider"
    assert place.options["device_id"] == str(index)
    assert place.memory is not None
    assert (place.memory.kind, place.memory.index) == ("cuda", index)
    assert [name for name, _ in place.others] == ["CPUExecutionProvider"]
    assert place.options["enable_skip_layer_norm_strict_mode"] == "1"


@pytest.mark.usefixtures("gpu")
def test_options_of_the_provider_take_the_place_of_the_usual_ones() -> None:
    place = cuda.cuda_place("cuda", {"sdpa_kernel": "8", "arena_extend_strategy": "kNextPowerOfTwo"})
    assert place.options["sdpa_kernel"] == "8"
    assert place.options["arena_extend_strategy"] == "kNextPowerOfTwo"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("version", "captures"), [("1.30.2", False), ("1.31.0", True), ("1.32.0", True), ("2.0", True)]
)
def test_older_versions_make_no_cuda_graphs(version: str, captures: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    assert (cuda.cuda_place("cuda").capture is not None) == captures
    monkeypatch.delattr(ort.InferenceSession.__mro__[1], "release_captured_graph")
    assert cuda.cuda_place("cuda").capture is None


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "is_gpu_build", lambda: True)
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    with pytest.raises(
        ValueError, match=r"device 'cuda:1' is not usable: this machine has no driver for an NVIDIA GPU"
    ):
        open_network(UNET, device="cuda:1")


@plain_build
@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-tensorrt"])
def test_the_plain_build_names_the_gpu_build(backend: str) -> None:
    with pytest.raises(
        ValueError, match=r"cannot be installed beside .*: pip uninstall .* pip install 'safelight\[gpu\]'"
    ):
        open_network(UNET, backend=backend, device="cuda")


@plain_build
@pytest.mark.usefixtures("gpu")
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_provider_that_does_not_start_is_no_silent_cpu() -> None:
    with pytest.raises(ValueError, match=r"could not load the libraries of CUDAExecutionProvider; .*safelight\[gpu\]"):
        open_network(UNET, device="cuda")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            'Parse Unknown provider option: "nonsense".',
            "device 'cuda' is not usable: Unknown provider option: \"nonsense\".",
        ),
        (
            "cuda.cc:154 CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ;",
            "CUDA failure 100: no CUDA-capable",
        ),
        (
            "Invalid device ID: 3, must be between 0 (inclusive) and 1 (exclusive).",
            "Invalid device ID: 3, must be between",
        ),
        (
            "pybind_state.cc:729 Please install TensorRT libraries as mentioned",
            "not usable: Please install TensorRT libraries",
        ),
    ],
)
def test_what_is_wrong_with_a_device_is_said_of_the_device(
    message: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(ValueError, match="device 'cuda' is not usable: ") as caught:
        open_session(UNET, Place(device="cuda"))
    assert said in str(caught.value)


def test_a_network_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("cuda_call.cc:154 CUDA failure 2: out of memory ; GPU=0 ;")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(
        MemoryError, match=r"memory of cuda is used up, opening .*model\.onnx: CUDA failure 2: out of mem"
    ):
        open_session(UNET, Place(device="cuda"))


def test_options_of_a_provider_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def session(graph: Path, options: Any, **others: Any) -> Any:
        given.update(others)
        return SimpleNamespace(get_providers=lambda: ["A"])

    monkeypatch.setattr(ort, "InferenceSession", session)
    place = Place(provider="A", options={"x": "1"}, others=(("B", {"y": "2"}),), capture=cuda.CAPTURE)
    open_session(UNET, place)
    assert given["providers"] == [("A", {"x": "1", "enable_cuda_graph": "1"}), ("B", {"y": "2"})]
    assert not given["enable_fallback"]
    open_session(UNET, place.without_capture())
    assert given["providers"] == [("A", {"x": "1"}), ("B", {"y": "2"})]


@pytest.mark.parametrize("backend", ["onnxruntime", *PROVIDERS])
@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cuda1"])
@pytest.mark.usefixtures("gpu", "plugin")
def test_other_devices_are_refused_by_name(backend: str, device: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown device '{device}' for the {backend} backend; it knows .*cuda:N"):
        open_network(UNET, backend=backend, device=device)


@pytest.mark.usefixtures("gpu", "plugin")
@pytest.mark.parametrize("backend", PROVIDERS)
def test_gpu_backends_know_no_cpu(backend: str) -> None:
    with pytest.raises(ValueError, match=f"unknown device 'cpu' for the {backend} backend; it knows cuda and cuda:N"):
        open_network(UNET, backend=backend, device="cpu")


# TensorRT


def graph_of(folder: Path, dtype: int, name: str = "model.onnx") -> Path:
    """A graph whose border is of a dtype, and whose weight is of float32."""
    value = [helper.make_tensor_value_info(side, kind, [2]) for side, kind in (("x", TensorProto.INT64), ("y", dtype))]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "w"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=dtype),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [weight])
    folder.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), folder / name)
    return folder / name


def test_the_dtypes_of_a_border_are_read_without_an_engine(tmp_path: Path) -> None:
    assert border_dtypes(graph_of(tmp_path, TensorProto.FLOAT16)) == {TensorProto.INT64, TensorProto.FLOAT16}
    assert border_dtypes(graph_of(tmp_path, TensorProto.BOOL)) == {TensorProto.INT64, TensorProto.BOOL}
    assert border_dtypes(UNET) == {TensorProto.FLOAT}


@pytest.mark.usefixtures("gpu", "cache")
@pytest.mark.parametrize(("dtype", "half"), [(TensorProto.FLOAT, "0"), (TensorProto.FLOAT16, "1")])
def test_tensorrt_computes_in_half_precision_where_the_graph_does(
    dtype: int, half: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "OnnxRuntimeNetwork", Opened)
    opened: Any = open_network(graph_of(tmp_path / "g", dtype), backend="onnxruntime-tensorrt", device="cuda:1")
    options, place = opened.place.options, opened.place
    assert options["trt_fp16_enable"] == half
    assert options["device_id"] == "1"
    assert Path(options["trt_engine_cache_path"]).parent == cache / "onnxruntime-tensorrt"
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert place.capture is not None
    assert place.capture.provider_option == "trt_cuda_graph_enable"
    assert [name for name, _ in place.others] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert place.others[0][1]["device_id"] == "1"


@pytest.mark.usefixtures("gpu", "cache")
def test_profiles_are_given_to_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "OnnxRuntimeNetwork", Opened)
    graph = graph_of(tmp_path / "g", TensorProto.FLOAT)
    profile = {f"trt_profile_{size}_shapes": "x:2" for size in ("min", "opt", "max")}
    opened: Any = tensorrt.open_network(graph, provider_options=profile)
    assert profile.items() <= opened.place.options.items()
    assert opened.place.device == "cuda"


@pytest.mark.usefixtures("gpu", "cache", "plugin")
@pytest.mark.parametrize("backend", PROVIDERS)
def test_a_graph_that_is_missing_is_named(backend: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.onnx does not exist"):
        open_network(tmp_path / "none.onnx", backend=backend, device="cuda")


def test_gpu_backends_read_the_graph_for_tensorrt() -> None:
    assert tensorrt.target("cuda") == "tensorrt"


# the folder of engines


def test_other_graphs_weights_and_versions_have_other_folders(cache: Path, tmp_path: Path) -> None:
    graph = tmp_path / "unet" / "model.onnx"
    graph.parent.mkdir()
    graph.write_bytes(UNET.read_bytes())
    weights = graph.with_name("model.onnx_data")
    weights.write_bytes(UNET.with_name("model.onnx_data").read_bytes())

    def folder(*versions: str, **initializers: Any) -> Path:
        return engine_folder("engines", graph, initializers, *(versions or ("1.0",)))

    first = folder()
    assert first == folder()
    assert first.parent == cache / "engines"
    assert first.stat().st_mode & 0o777 == first.parent.stat().st_mode & 0o777 == 0o700
    found = {first, folder("1.1"), folder(w=np.zeros(2, np.float32)), folder(w=np.ones(2, np.float32))}
    os.utime(weights, ns=(1, 1))
    found.add(folder())
    graph.write_bytes(UNET.read_bytes() + b"\x0a\x00")  # an empty domain
    assert len({*found, folder()}) == 6


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no such permissions here")
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(mode: int, cache: Path) -> None:
    folder = engine_folder("engines", UNET, {})
    for opened in (folder, folder.parent):
        opened.chmod(mode)
        with pytest.raises(PermissionError, match=rf"{opened} can be written by others .*: chmod go-w {opened}$"):
            engine_folder("engines", UNET, {})
        opened.chmod(0o700)
    assert engine_folder("engines", UNET, {}) == folder


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no such permissions here")
def test_a_folder_of_another_user_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = engine_folder("engines", UNET, {})
    owner = folder.stat().st_uid or 12345
    os.chown(folder, owner, -1) if os.getuid() == 0 else None
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match=f"belongs to the user {owner}"):
        engine_folder("engines", UNET, {})


# the plugin of TensorRT for RTX


class Plugin:
    """ONNX Runtime with a plugin that finds some GPUs when it is registered."""

    def __init__(self, gpus: int) -> None:
        self.gpus, self.registered = gpus, 0
        self.failure: Exception | None = None

    def register(self, name: str, path: str) -> None:
        assert (name, path) == ("NvTensorRTRTXExecutionProvider", "plugin.so")
        if self.failure is not None:
            raise self.failure
        self.registered += 1

    def devices(self) -> list[Any]:
        names = ["CPUExecutionProvider"] + ["NvTensorRTRTXExecutionProvider"] * self.gpus * bool(self.registered)
        return [
            SimpleNamespace(ep_name=name, number=number, memory_info=lambda kind: f"memory {kind}")
            for number, name in enumerate(names)
        ]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugin]:
    made = Plugin(gpus=2)
    module = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    attributes: Mapping[str, Any] = {
        "__version__": "0.5.0",
        "get_ep_name": lambda: "NvTensorRTRTXExecutionProvider",
        "get_library_path": lambda: "plugin.so",
    }
    for name, value in attributes.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", module)
    monkeypatch.delitem(sys.modules, RTX_MODULE, raising=False)
    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    monkeypatch.setattr(ort, "register_execution_provider_library", made.register)
    monkeypatch.setattr(ort, "get_ep_devices", made.devices)
    yield made
    sys.modules.pop(RTX_MODULE, None)  # which has this plugin


@pytest.mark.usefixtures("cache")
def test_the_plugin_is_registered_once_and_given_the_gpu(
    plugin: Plugin, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = backend_module("onnxruntime-tensorrt-rtx")
    monkeypatch.setattr(module, "OnnxRuntimeNetwork", Opened)
    for device, number in (("cuda", 1), ("cuda:1", 2)):
        opened: Any = open_network(UNET, backend="onnxruntime-tensorrt-rtx", device=device)
        (gpu,) = opened.place.plugin_devices
        assert gpu.number == number
        assert opened.place.memory.info == f"memory {ort.OrtDeviceMemoryType.DEFAULT}"
        assert Path(opened.place.options["nv_runtime_cache_path"]).parent == cache / "onnxruntime-tensorrt-rtx"
        assert opened.place.capture.run_option == "cuda_graph_annotation_id"
    assert plugin.registered == 1
    assert module.target("cuda") == "tensorrt"
    assert module.describe() == f"onnxruntime {ort.__version__} with TensorRT for RTX, plugin 0.5.0"


def test_a_plugin_is_asked_by_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Options(ort.SessionOptions):  # type: ignore[misc]  # ONNX Runtime has no types
        def add_provider_for_devices(self, devices: Any, options: Any) -> None:
            given.append((devices, options))

    def session(graph: Path, options: Any, **others: Any) -> Any:
        assert others["providers"] is None
        return SimpleNamespace(get_providers=lambda: ["P"])

    monkeypatch.setattr(ort, "SessionOptions", Options)
    monkeypatch.setattr(ort, "InferenceSession", session)
    open_session(UNET, Place(provider="P", options={"x": "1"}, plugin_devices=("gpu",), capture=cuda.CAPTURE))
    assert given == [(["gpu"], {"x": "1", "enable_cuda_graph": "1"})]


def test_what_the_plugin_lacks_is_said(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"device 'cuda:2' is not usable: TensorRT for RTX finds 2 GPUs .* 8\.9, 12\.0"
    ):
        open_network(UNET, backend="onnxruntime-tensorrt-rtx", device="cuda:2")
    plugin.registered, plugin.failure = 0, RuntimeError("libnvidia-ml.so.1: cannot open shared object file")
    with pytest.raises(ValueError, match=r"the plugin cannot be loaded: libnvidia-ml\.so\.1"):
        open_network(UNET, backend="onnxruntime-tensorrt-rtx", device="cuda")
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    with pytest.raises(ValueError, match="this machine has no driver"):
        open_network(UNET, backend="onnxruntime-tensorrt-rtx", device="cuda")


def test_a_missing_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    monkeypatch.delitem(sys.modules, RTX_MODULE, raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'safelight\[onnxruntime-tensorrt-rtx\]', without onnx"):
        open_network(UNET, backend="onnxruntime-tensorrt-rtx", device="cuda")


def test_measurements_may_choose_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.runtime.backends.onnxruntime.OnnxRuntimeNetwork", Opened)
    monkeypatch.setattr(cuda, "is_gpu_build", lambda: True)
    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    opened: Any = open_onnxruntime(UNET, device="cuda", provider_options={"sdpa_kernel": "8"})
    assert opened.place.options["sdpa_kernel"] == "8"
