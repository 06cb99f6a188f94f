"""Bound memory and CUDA graphs: on the CPU's memory, which is bound in the same way, and with sessions that pretend."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from safelight.runtime import bundled_model
from safelight.runtime.backends import Array, open_network
from safelight.runtime.backends.onnxruntime import OnnxRuntimeNetwork, binding, network
from safelight.runtime.backends.onnxruntime.session import (
    DeviceMemory,
    GraphCapture,
    Place,
    is_out_of_memory,
    open_session,
    reason,
)
from safelight.runtime.backends.recently_used import RecentlyUsed

UNET = bundled_model() / "unet" / "model.onnxruntime-cpu.onnx"
TEXT_ENCODER = bundled_model() / "text_encoder" / "model.onnxruntime-cpu.onnx"
BOUND = Place(device="cuda", memory=DeviceMemory("cpu", 0))
CAPTURE = GraphCapture(provider_option="enable_cuda_graph", run_option="gpu_graph_id", uncaptured="-1")
CAPTURING = Place(device="cuda", memory=DeviceMemory("cpu", 0), capture=CAPTURE)
OUT_OF_MEMORY = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 9"
)


def arrays(batch: int = 1, size: int = 8, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((batch, 4, size, size), dtype=np.float32),
        "timestep": np.full((batch,), 10.0, np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, 5, 96), dtype=np.float32),
    }


@pytest.fixture(scope="module")
def plain() -> OnnxRuntimeNetwork:
    return OnnxRuntimeNetwork(UNET, Place())


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all memory that is bound from now on."""
    shapes: list[tuple[int, ...]] = []
    allocate = DeviceMemory.allocate

    def counted(memory: DeviceMemory, array: Array) -> Any:
        shapes.append(array.shape)
        return allocate(memory, array)

    monkeypatch.setattr(DeviceMemory, "allocate", counted)
    return shapes


# bound memory


def test_results_are_those_of_a_plain_session_and_the_callers(plain: OnnxRuntimeNetwork) -> None:
    bound = OnnxRuntimeNetwork(UNET, BOUND)
    first = bound(arrays())["out_sample"]
    kept = first.copy()
    for number in range(1, 5):
        inputs = arrays(seed=number)
        before = {name: array.copy() for name, array in inputs.items()}
        np.testing.assert_array_equal(bound(inputs)["out_sample"], plain(inputs)["out_sample"])
        assert all(np.array_equal(array, before[name]) for name, array in inputs.items())
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(first, plain(arrays())["out_sample"])
    assert first.flags.owndata
    assert first.flags.writeable


def test_memory_is_reused_and_each_set_of_shapes_has_its_own(
    plain: OnnxRuntimeNetwork, allocations: list[tuple[int, ...]]
) -> None:
    bound = OnnxRuntimeNetwork(UNET, BOUND)
    sizes = [(1, 8), (2, 8), (1, 12)]
    for seed in range(3):
        for batch, size in sizes:
            inputs = arrays(batch, size, seed)
            np.testing.assert_array_equal(bound(inputs)["out_sample"], plain(inputs)["out_sample"])
    assert len(allocations) == len(sizes) * 4  # three inputs and an output
    assert allocations[:4] == [(1, 4, 8, 8), (1,), (1, 5, 96), (1, 4, 8, 8)]


def test_only_the_outputs_that_are_wanted_are_bound(allocations: list[tuple[int, ...]]) -> None:
    bound, plain = OnnxRuntimeNetwork(TEXT_ENCODER, BOUND), open_network(TEXT_ENCODER)
    ids = {"input_ids": np.arange(14).reshape(2, 7)}
    expected = plain(ids)
    for names in (["hidden_states.1", "pooler_output"], ["pooler_output"], None):
        for _ in range(2):
            found = bound(ids, names)
            assert list(found) == (names or list(expected))
            for name, values in found.items():
                np.testing.assert_array_equal(values, expected[name])
    assert len(allocations) == (1 + 2) + (1 + 1) + (1 + len(expected))


def test_the_memory_of_the_shapes_that_were_not_used_for_longest_is_given_back(
    allocations: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "MOST_BUCKETS", 2)
    bound = OnnxRuntimeNetwork(UNET, BOUND)

    def runs(*batches: int) -> int:
        before = len(allocations)
        for batch in batches:
            bound(arrays(batch))
        return (len(allocations) - before) // 4

    assert runs(1, 2, 1) == 2
    assert runs(3) == 1  # in place of 2
    assert runs(1, 3) == 0
    assert runs(2) == 1


def test_a_failing_run_leaves_the_session_usable(plain: OnnxRuntimeNetwork) -> None:
    bound = OnnxRuntimeNetwork(UNET, BOUND)
    wrong = {**arrays(2), "encoder_hidden_states": np.zeros((3, 5, 96))}
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"unet failed on sample \(2, 4, 8, 8\)"):
            bound(wrong)
    np.testing.assert_array_equal(bound(arrays())["out_sample"], plain(arrays())["out_sample"])
    bound.close()
    with pytest.raises(RuntimeError, match="unet is closed"):
        bound(arrays())


# CUDA graphs


class Pretending:
    """A session on the CPU that takes the options of CUDA graphs, and does with a run what a test wants."""

    def __init__(self, session: Any, before_run: Callable[[str | None], None]) -> None:
        self._session, self._before_run = session, before_run
        self.graphs: list[str | None] = []
        self.released: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, bound: Any, options: Any) -> None:
        try:
            graph = options.get_run_config_entry("gpu_graph_id")
        except RuntimeError:
            graph = None
        self.graphs.append(graph)
        self._before_run(graph)
        self._session.run_with_iobinding(bound, options)

    def release_captured_graph(self, number: int) -> None:
        self.released.append(number)


class Sessions:
    """Opens graphs as a GPU would, and remembers the sessions."""

    def __init__(self) -> None:
        self.opened: list[weakref.ref[Pretending]] = []
        self.places: list[Place] = []
        self.before_run: Callable[[str | None], None] = lambda graph: None
        self.refusal: str | None = None

    def __call__(self, graph: Path, place: Place, **options: Any) -> Pretending:
        self.places.append(place)
        if place.capture is not None and self.refusal is not None:
            raise ValueError(self.refusal)
        session = Pretending(open_session(graph, place.without_capture(), **options), self.before_run)
        self.opened.append(weakref.ref(session))
        return session

    @property
    def last(self) -> Pretending:
        session = self.opened[-1]()
        assert session is not None
        return session


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    made = Sessions()
    monkeypatch.setattr(network, "open_session", made)
    yield made
    gc.collect()


def test_each_set_of_shapes_is_a_graph_from_its_second_run_on(sessions: Sessions) -> None:
    captured = OnnxRuntimeNetwork(UNET, CAPTURING)
    for batch in (1, 2, 1, 1, 2, 1):
        captured(arrays(batch))
    assert sessions.last.graphs == ["-1", "-1", "1", "1", "3", "1"]
    assert sessions.last.released == []


def test_a_graph_is_released_with_its_memory(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "MOST_BUCKETS", 1)
    captured = OnnxRuntimeNetwork(UNET, CAPTURING)
    for batch in (1, 1, 2, 1, 1):
        captured(arrays(batch))
    assert sessions.last.graphs == ["-1", "1", "-1", "-1", "5"]  # a number is never used twice
    assert sessions.last.released == [1, 3]


def test_where_every_run_is_of_some_graph_the_first_is_of_one_that_never_comes_again(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    always = GraphCapture(provider_option="enable_cuda_graph", run_option="gpu_graph_id", uncaptured=None)
    captured = OnnxRuntimeNetwork(UNET, Place(memory=DeviceMemory("cpu", 0), capture=always))
    for batch in (1, 1, 2, 2, 1):
        captured(arrays(batch))
    assert sessions.last.graphs == ["2", "1", "4", "3", "1"]


def test_a_place_without_graphs_has_no_option_of_a_run(sessions: Sessions) -> None:
    bound = OnnxRuntimeNetwork(UNET, BOUND)
    bound(arrays())
    bound(arrays())
    assert sessions.last.graphs == [None, None]


def test_a_session_that_refuses_graphs_is_opened_without(
    sessions: Sessions, plain: OnnxRuntimeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    sessions.refusal = (
        "model.onnx cannot be opened by ONNX Runtime: [ONNXRuntimeError] : 1 : FAIL : This session cannot use the "
        "graph capture feature as requested by the user as all compute graph nodes have not been partitioned to the "
        "CUDAExecutionProvider"
    )
    refused = OnnxRuntimeNetwork(UNET, CAPTURING)
    assert [place.capture for place in sessions.places] == [CAPTURE, None]
    for _ in range(3):
        np.testing.assert_array_equal(refused(arrays())["out_sample"], plain(arrays())["out_sample"])
    assert sessions.last.graphs == [None] * 3
    (record,) = caplog.records
    assert record.getMessage().startswith("unet runs without CUDA graphs: ")
    assert "all compute graph nodes have not been partitioned" in record.getMessage()


def test_another_refusal_is_the_callers(sessions: Sessions) -> None:
    sessions.refusal = "device 'cuda' is not usable"
    with pytest.raises(ValueError, match="device 'cuda' is not usable"):
        OnnxRuntimeNetwork(UNET, CAPTURING)
    assert len(sessions.places) == 1


def test_a_capture_that_fails_is_made_good(
    sessions: Sessions, plain: OnnxRuntimeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(graph: str | None) -> None:
        if graph is not None and graph != "-1":
            raise RuntimeError("cuda_call.cc:154 CUDA failure 900: operation not permitted when stream is capturing ;")

    sessions.before_run = fail
    captured = OnnxRuntimeNetwork(UNET, CAPTURING)
    for seed in range(3):
        inputs = arrays(seed=seed)
        np.testing.assert_array_equal(captured(inputs)["out_sample"], plain(inputs)["out_sample"])
    assert [place.capture for place in sessions.places] == [CAPTURE, None]
    (record,) = caplog.records
    assert record.getMessage() == (
        "unet runs without CUDA graphs: CUDA failure 900: operation not permitted when stream is capturing"
    )
    gc.collect()
    assert sessions.opened[0]() is None


def test_threads_take_turns(sessions: Sessions, plain: OnnxRuntimeNetwork) -> None:
    """A run that takes its time: nobody else writes into its inputs meanwhile."""
    sessions.before_run = lambda graph: time.sleep(0.01)
    bound = OnnxRuntimeNetwork(UNET, BOUND)
    found: dict[int, Array] = {}

    def call(seed: int) -> None:
        found[seed] = bound(arrays(seed=seed))["out_sample"]

    call(0)
    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for seed, result in found.items():
        np.testing.assert_array_equal(result, plain(arrays(seed=seed))["out_sample"])


# memory that is used up


@pytest.mark.parametrize("place", [BOUND, CAPTURING])
def test_used_up_memory_is_given_back_and_the_next_call_works(
    place: Place, sessions: Sessions, plain: OnnxRuntimeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    fails = [False]

    def fail(graph: str | None) -> None:
        if fails[0]:
            raise RuntimeError(OUT_OF_MEMORY)

    sessions.before_run = fail
    bound = OnnxRuntimeNetwork(UNET, place)
    bound(arrays())
    for _ in range(2):
        fails[0] = True
        with pytest.raises(MemoryError) as caught:
            bound(arrays())
        assert str(caught.value).startswith(
            "unet: the memory of cuda is used up, on sample (1, 4, 8, 8), timestep (1,), encoder_hidden_states (1, 5, "
        )
        assert "Failed to allocate memory for requested buffer of size 9" in str(caught.value)
        gc.collect()
        assert sessions.opened[-1]() is None  # although the error is still there
        fails[0] = False
        np.testing.assert_array_equal(bound(arrays())["out_sample"], plain(arrays())["out_sample"])
    assert len(sessions.opened) == 3
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("message", "used_up", "said"),
    [
        (OUT_OF_MEMORY, True, OUT_OF_MEMORY),
        (
            "/onnxruntime_src/cuda_call.cc:154 std::conditional_t<THRW, void, onnxruntime::common::Status>\n"
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=vm ; file=conv.cc ; line=70 ; expr=cudaMalloc(&p, size);",
            True,
            "CUDA failure 2: out of memory",
        ),
        (
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
            True,
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        ),
        ("Available memory of 0 is smaller than requested bytes of 64", True, None),
        (
            "/onnxruntime_src/cuda_call.cc:154 std::conditional_t<...> CUDA failure 35: CUDA driver version is "
            "insufficient for CUDA runtime version ; GPU=-1 ; hostname=vm ;",
            False,
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
        ),
        ("Got invalid dimensions for input\nsecond line", False, "Got invalid dimensions for input"),
        ("", False, "RuntimeError"),
    ],
)
def test_what_errors_mean(message: str, used_up: bool, said: str | None) -> None:
    error = RuntimeError(message)
    assert is_out_of_memory(error) == used_up
    assert reason(error) == (message if said is None else said)


# what is kept


class Thing:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def close(self) -> None:
        self.log.append(self.name)


def test_what_was_not_used_for_longest_goes_first() -> None:
    log: list[str] = []
    things: RecentlyUsed[Thing] = RecentlyUsed(2)

    def get(name: str) -> Thing:
        return things.get(name, lambda: Thing(log, name))

    a = get("a")
    get("b")
    assert get("a") is a
    get("c")
    assert log == ["b"]
    assert get("a") is a
    things.drop("a")
    things.drop("a")
    things.drop("nothing")
    assert log == ["b", "a"]
    assert [thing.name for thing in things] == ["c"]
    assert get("a") is not a
    get("d")
    assert log == ["b", "a", "c"]


def test_room_is_made_before_the_new_is() -> None:
    log: list[str] = []
    things: RecentlyUsed[Thing] = RecentlyUsed(1)
    things.get("a", lambda: Thing(log, "a"))

    def fail() -> Thing:
        assert log == ["a"]
        raise MemoryError

    with pytest.raises(MemoryError):
        things.get("b", fail)
    assert list(things) == []


def test_onnx_runtime_has_what_is_pretended() -> None:
    """The names of the installed version, for the fakes here are only as good as they."""
    assert callable(ort.InferenceSession.release_captured_graph)
    session = open_session(UNET, Place())
    options = ort.RunOptions()
    options.add_run_config_entry(CAPTURE.run_option, "7")
    assert options.get_run_config_entry("gpu_graph_id") == "7"
    session.release_captured_graph(7)
