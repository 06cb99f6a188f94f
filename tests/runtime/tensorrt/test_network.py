"""A compiled network on a simulated GPU: its buffers, its graphs, its memory, and what it refuses."""

import gc
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from simulated_gpu import MisuseError, SimulatedCuda
from simulated_machine import ACTIVATIONS, OWN, Machine, bucket, make_machine

from safelight.runtime.backends import Array, open_network
from safelight.runtime.backends.tensorrt import cuda
from safelight.runtime.backends.tensorrt.network import MOST_EXECUTIONS

LATENTS_BYTES = 4 * 4  # of a pixel of latents: channels, float32


def latents(batch: int = 1, side: int = 8, seed: int = 0) -> dict[str, Array]:
    """What the decoder takes."""
    return {"latent_sample": np.random.default_rng(seed).standard_normal((batch, 4, side, side), dtype=np.float32)}


@pytest.fixture(scope="module")
def decode() -> Callable[[dict[str, Array]], Array]:
    """The decoder on the CPU."""
    from safelight.runtime import bundled_model

    network = open_network(bundled_model() / "vae_decoder" / "model.onnxruntime-cpu.onnx")
    return lambda inputs: network(inputs)["sample"]


def test_answers_are_the_callers(machine: Machine, decode: Any) -> None:
    machine.build("vae_decoder")
    network = machine.open("vae_decoder")
    first = network(latents(seed=1))["sample"]
    kept = first.copy()
    for seed in (2, 3, 4):
        np.testing.assert_array_equal(network(latents(seed=seed))["sample"], decode(latents(seed=seed)))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(first, decode(latents(seed=1)))
    network.close()


def test_only_what_is_wanted_is_copied(rtx: Machine) -> None:
    rtx.build("text_encoder")
    network = rtx.open("text_encoder")
    before = rtx.cuda.counts["copies out"]
    assert list(network({"input_ids": np.ones((1, 32))}, ["pooler_output"])) == ["pooler_output"]
    assert rtx.cuda.counts["copies out"] - before == 1
    assert len(network({"input_ids": np.ones((1, 32), np.int32)})) == 5
    with pytest.raises(ValueError, match="text_encoder: unknown output text_embeds; it has hidden"):
        network({"input_ids": np.ones((1, 32))}, ["text_embeds"])
    network.close()


def test_specs_have_the_folders_names(rtx: Machine) -> None:
    rtx.build("unet")
    network = rtx.open("unet")
    assert [str(spec) for spec in network.inputs] == [
        "float32 (batch, 4, height, width)",
        "float32 (batch)",
        "float32 (batch, sequence_length, 96)",
    ]
    network.close()


def test_the_arena_grows_under_captured_graphs(machine: Machine, decode: Any) -> None:
    """An engine with larger activations moves the memory that the graphs of another have the address of."""
    machine.build("vae_decoder")
    machine.build("text_encoder", memory=[5 * ACTIVATIONS])
    decoder, encoder = machine.open("vae_decoder"), machine.open("text_encoder")
    for seed in range(3):
        decoder(latents(seed=seed))
    assert machine.cuda.counts["launches"] == 2
    encoder({"input_ids": np.ones((1, 32))})
    for seed in range(3):
        np.testing.assert_array_equal(decoder(latents(seed=seed))["sample"], decode(latents(seed=seed)))
    assert machine.cuda.counts["captures"] == 2
    assert machine.cuda.counts["launches"] == 4
    decoder.close()
    assert machine.cuda.used() >= 5 * ACTIVATIONS  # the other one's
    encoder.close()


def test_engines_share_their_activations(rtx: Machine) -> None:
    for network, memory in (("vae_decoder", 300_000), ("text_encoder", 200_000)):
        rtx.build(network, memory=[memory])
    decoder, encoder = rtx.open("vae_decoder"), rtx.open("text_encoder")
    decoder(latents(1, 5))
    encoder({"input_ids": np.ones((1, 32))})
    assert 300_000 <= rtx.cuda.used() < 400_000
    decoder.close()
    encoder.close()


def test_the_tightest_profile_is_used(rtx: Machine) -> None:
    rtx.build("vae_decoder", [OWN, bucket(20, 32)], memory=[900_000, 100_000])
    network = rtx.open("vae_decoder")
    network(latents(1, 8))
    assert rtx.cuda.used() < 200_000
    network(latents(1, 9))
    assert rtx.cuda.used() > 900_000
    network.close()


def test_out_of_memory_is_reported_and_survived(decode: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = make_machine("tensorrt-rtx", monkeypatch, tmp_path, SimulatedCuda(memory=100_000))
    machine.build("vae_decoder")
    network = machine.open("vae_decoder")
    small, large = latents(1, 8), latents(4, 16)  # 12 kB of pictures, and 196 kB
    for _ in range(3):
        network(small)
    with pytest.raises(
        cuda.CudaOutOfMemoryError,
        match=r"out of GPU memory: sample of vae_decoder, 4x3x64x64 needs 0\.2 MB, 0\.1 MB are free; a smaller picture",
    ):
        network(large)
    assert machine.cuda.used() <= ACTIVATIONS
    np.testing.assert_array_equal(network(small)["sample"], decode(small))
    network.close()
    machine.check_nothing_is_left()


def test_out_of_memory_for_activations(decode: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = make_machine("tensorrt", monkeypatch, tmp_path, SimulatedCuda(memory=100_000))
    machine.build("vae_decoder", [bucket(20, 32), bucket(36, 64)], memory=[10_000, 99_000])
    network = machine.open("vae_decoder")
    small, large = latents(1, 8), latents(1, 16)
    network(small)
    with pytest.raises(cuda.CudaOutOfMemoryError, match=r"what vae_decoder computes on the way needs 0\.1 MB"):
        network(large)
    assert machine.cuda.used() == 0
    np.testing.assert_array_equal(network(small)["sample"], decode(small))
    network.close()
    machine.check_nothing_is_left()


def test_what_other_shapes_hold_makes_room(decode: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = make_machine("tensorrt", monkeypatch, tmp_path, SimulatedCuda(memory=100_000))
    machine.build("vae_decoder")
    network = machine.open("vae_decoder")
    for batch in (1, 2, 1):  # 53 kB a picture
        np.testing.assert_array_equal(network(latents(batch, 14))["sample"], decode(latents(batch, 14)))
    network.close()
    machine.check_nothing_is_left()


def test_tensorrt_is_out_of_memory_itself(machine: Machine) -> None:
    machine.build("vae_decoder")
    machine.library.out_of_memory = "engine"
    with pytest.raises(cuda.CudaOutOfMemoryError, match=r"vae_decoder: .*\(out of memory\)"):
        machine.open("vae_decoder")
    machine.library.out_of_memory = ""
    network = machine.open("vae_decoder")
    machine.library.out_of_memory = "context"
    with pytest.raises(cuda.CudaOutOfMemoryError, match=r"vae_decoder: .*context.*\(out of memory\)"):
        network(latents())
    machine.library.out_of_memory = ""
    network(latents())
    network.close()


def test_what_cannot_be_captured_runs_plainly(machine: Machine, decode: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine.build("vae_decoder")
    machine.cuda.refuse_capture = True
    network = machine.open("vae_decoder")
    for seed in range(4):
        np.testing.assert_array_equal(network(latents(seed=seed))["sample"], decode(latents(seed=seed)))
    assert [record.getMessage()[:42] for record in caplog.records] == ["vae_decoder runs without a CUDA graph, whi"]
    assert machine.cuda.counts["launches"] == 0
    network.close()


def test_graphs_are_bounded(rtx: Machine) -> None:
    """And what goes is what was not used for longest."""
    rtx.build("vae_decoder")
    network = rtx.open("vae_decoder")
    sides = range(5, 5 + MOST_EXECUTIONS + 1)
    for side in (*sides[:-1], sides[0], sides[-1]):  # the last one takes the place of the second
        network(latents(1, side))
    assert len(network._executions) == MOST_EXECUTIONS
    assert len(rtx.library.alive) == MOST_EXECUTIONS + 1
    assert rtx.cuda.counts["captures"] == 1
    network(latents(1, sides[0]))
    assert (rtx.cuda.counts["captures"], rtx.cuda.counts["launches"]) == (1, 2)
    network(latents(1, sides[1]))  # plainly again
    assert rtx.cuda.counts["captures"] == 1
    network.close()


def test_devices_by_index(two_gpus: Machine, decode: Any) -> None:
    two_gpus.build("vae_decoder")
    first, second = two_gpus.open("vae_decoder", "cuda:0"), two_gpus.open("vae_decoder", "cuda:1")
    for seed in range(3):
        for network in (second, first):
            np.testing.assert_array_equal(network(latents(seed=seed))["sample"], decode(latents(seed=seed)))
    assert two_gpus.cuda.used(0) == two_gpus.cuda.used(1) > 0
    first.close()
    assert two_gpus.cuda.used(0) == 0 < two_gpus.cuda.used(1)
    second.close()


def test_threads_take_turns(two_gpus: Machine, decode: Any) -> None:
    two_gpus.build("vae_decoder")
    networks = [two_gpus.open("vae_decoder", device) for device in ("cuda:0", "cuda:0", "cuda:1")]
    expected = {seed: decode(latents(seed=seed)) for seed in range(6)}
    wrong: list[object] = []

    def work(index: int) -> None:
        try:
            for seed in expected:
                found = networks[index % 3](latents(seed=seed))["sample"]
                if not np.array_equal(found, expected[seed]):
                    wrong.append(seed)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for network in networks:
        network.close()


def test_a_network_is_closed_once_its_call_is_done(rtx: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a garbage collector that runs in the middle of a call."""
    rtx.build("vae_decoder")
    network, other = rtx.open("vae_decoder"), rtx.open("vae_decoder")
    other(latents())
    synchronize = rtx.cuda.cudaStreamSynchronize

    def closing(stream: Any) -> Any:
        other.close()
        assert len(other._executions) == 1
        return synchronize(stream)

    monkeypatch.setattr(rtx.cuda, "cudaStreamSynchronize", closing)
    network(latents())
    assert len(other._executions) == 0
    network.close()


def test_closed_is_closed(machine: Machine) -> None:
    machine.build("vae_decoder")
    network = machine.open("vae_decoder")
    network(latents())
    network.close()
    network.close()
    machine.check_nothing_is_left()
    with pytest.raises(RuntimeError, match="vae_decoder is closed"):
        network(latents())


def test_what_nobody_holds_is_freed(rtx: Machine) -> None:
    rtx.build("vae_decoder")
    network = rtx.open("vae_decoder")
    network(latents())
    assert rtx.cuda.leaks
    del network
    gc.collect()
    rtx.check_nothing_is_left()


def test_a_failed_call_leaves_the_network_usable(rtx: Machine, decode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx.build("vae_decoder")
    network = rtx.open("vae_decoder")
    network(latents())
    with monkeypatch.context() as broken:
        broken.setattr(rtx.cuda, "cudaGraphLaunch", lambda *_: (rtx.cuda.cudaError_t.cudaErrorLaunchFailure,))
        with pytest.raises(cuda.CudaError, match=r"unspecified launch failure \(cudaErrorLaunchFailure\)"):
            network(latents())
    np.testing.assert_array_equal(network(latents(seed=5))["sample"], decode(latents(seed=5)))
    network.close()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            latents(1, 17),
            "not built for latent_sample 1x4x17x17; it takes up to 64 pixels: latent_sample 1x4x5x5 to 4x",
        ),
        (
            latents(5, 8),
            "not built for latent_sample 5x4x8x8; it takes up to 64 pixels: latent_sample 1x4x5x5 to 4x",
        ),
        ({}, "vae_decoder: missing input latent_sample"),
        ({"latent_sample": np.zeros((1, 5, 8, 8))}, "latent_sample must be float32"),
    ],
)
def test_shapes_that_no_profile_holds(rtx: Machine, inputs: dict[str, Array], message: str) -> None:
    rtx.build("vae_decoder")
    network = rtx.open("vae_decoder")
    with pytest.raises(ValueError, match=message):
        network(inputs)
    assert rtx.cuda.used() == 0
    network.close()


@pytest.mark.parametrize("device", ["cpu", "cuda:", "cuda:-1", "cuda:1.0", "gpu"])
def test_other_devices_are_refused(rtx: Machine, device: str) -> None:
    with pytest.raises(ValueError, match=f"device must be 'cuda' or 'cuda:N', got '{device}'"):
        rtx.open("unet", device)


def test_an_engine_that_is_not_there(machine: Machine) -> None:
    machine.build("unet")
    command = f"safelight build .* --target {machine.flavour}"
    with pytest.raises(FileNotFoundError, match=f"no engine of vae_decoder; build one: {command}"):
        machine.open("vae_decoder")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "sm89"}, "built for sm89"),
        ({"version": "10.3"}, "10.3"),
        ({"weights": "0" * 64}, "built from other weights"),
        ({"graph": "0" * 64}, "built from another graph"),
    ],
)
def test_an_engine_of_something_else(rtx: Machine, changes: dict[str, Any], reason: str) -> None:
    rtx.build("vae_decoder", **changes)
    with pytest.raises(ValueError, match=f"{reason}.*safelight build"):
        rtx.open("vae_decoder")


def test_a_flipped_byte(rtx: Machine) -> None:
    record = rtx.build("vae_decoder")
    path = rtx.store.path(record.identity.name, ".plan")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="vae_decoder-"):
        rtx.open("vae_decoder")


def test_a_record_of_another_engine(rtx: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan whose inputs or profiles are not those that were recorded."""
    import simulated_machine

    make = simulated_machine.make_plan
    with monkeypatch.context() as wrong:
        wrong.setattr(simulated_machine, "make_plan", lambda graph, profiles, **rest: make(graph, profiles * 2, **rest))
        rtx.build("vae_decoder")
        encoder = rtx.folder.path / "vae_encoder" / "model.onnx"
        wrong.setattr(simulated_machine, "make_plan", lambda _, profiles, **rest: make(encoder, profiles, **rest))
        rtx.build("unet")
    with pytest.raises(ValueError, match="not what its record says: it has 2 profiles, 1 are recorded"):
        rtx.open("vae_decoder")
    with pytest.raises(ValueError, match="not what its record says: it has sample"):
        rtx.open("unet")


def test_bfloat16_borders_are_refused_by_name(rtx: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import simulated_machine

    value = onnx.helper.make_tensor_value_info
    dtype, shape = onnx.TensorProto.BFLOAT16, ["b", 4, "h", "w"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["latent_sample"], ["sample"])],
        "border",
        [value("latent_sample", dtype, shape)],
        [value("sample", dtype, ["b", 3, "h", "w"])],
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "border.onnx")
    make, border = simulated_machine.make_plan, tmp_path / "border.onnx"
    monkeypatch.setattr(simulated_machine, "make_plan", lambda _, *rest, **options: make(border, *rest, **options))
    rtx.build("vae_decoder")
    with pytest.raises(ValueError, match="vae_decoder has latent_sample in BF16, which NumPy does not have"):
        rtx.open("vae_decoder")


def test_graphs_are_not_opened(machine: Machine) -> None:
    with pytest.raises(ValueError, match=f"the {machine.flavour} backend runs engines, which safelight build compiles"):
        open_network(machine.folder.graph("unet"), backend=machine.flavour, device="cuda")


def test_the_simulation_is_strict(rtx: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """It would not be worth much if it took everything."""
    caplog.set_level(logging.CRITICAL)
    device, pinned, stream = cuda.DeviceBuffer(64, "a test"), cuda.PinnedBuffer(64), cuda.Stream()
    array = pinned.array(np.dtype(np.float32), (16,))
    array[:] = np.arange(16)
    stream.copy_in(device, pinned)
    array[:] = 7
    assert (rtx.cuda.bytes_at(device.address, 64) == 0xA5).all()  # nothing has run yet
    stream.synchronize()
    np.testing.assert_array_equal(rtx.cuda.bytes_at(device.address, 64).view(np.float32), np.full(16, 7))
    with pytest.raises(MisuseError, match="while a graph is captured"):
        stream.capture(lambda: cuda.DeviceBuffer(1, "a test").close())
    with pytest.raises(MisuseError, match="are no memory"):
        rtx.cuda.cudaMemcpyAsync(device.address + 1, pinned.address, 64, rtx.cuda.cudaMemcpyKind(1), stream.handle)
    rtx.cuda.at(device.address, 64).memory[0] = 0
    with pytest.raises(MisuseError, match="written beside"):
        rtx.cuda.cudaFree(device.address)
    rtx.cuda.at(device.address, 64).memory[0] = 0xC3
    device.close()
    with pytest.raises(MisuseError, match="that were freed"):
        rtx.cuda.at(next(iter(rtx.cuda.allocations)), 64)
    pinned.close()
    stream.close()
