"""`safelight build`: from a model folder to engines in a store."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from engine_graphs import silent

from safelight.export.engines import build, gpus
from safelight.export.engines.build import BuildOptions, build_engines
from safelight.export.engines.pictures import Pictures
from safelight.export.worker import run_apart
from safelight.runtime import cli
from safelight.runtime.backends.tensorrt.cuda import CudaError, DeviceProperties
from safelight.runtime.engines.flavours import Flavour, flavour
from safelight.runtime.engines.store import EngineStore
from safelight.runtime.manifest import file_record
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.source import bundled_model

MODEL = bundled_model()
RTX = ("--target", "tensorrt-rtx")
SMALL = (*RTX, "--components", "vae_decoder", "--gpu", "sm89")
COMMAND = [sys.executable, "-m", "safelight.runtime", "build"]


def options(**changed: Any) -> BuildOptions:
    return BuildOptions(**{"flavour": "tensorrt-rtx", "components": ("vae_decoder",), "gpus": ("sm89",), **changed})


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Builds, and gives the one sentence that the command ends with; the store must not have been touched."""

    def run(*arguments: str, model: Path = MODEL) -> str:
        status = cli.main(["build", str(model), "--output", str(tmp_path / "store"), *arguments])
        printed = capsys.readouterr()
        assert status == 1, printed.out
        assert not (tmp_path / "store").exists()
        (sentence,) = printed.err.splitlines()
        return sentence.removeprefix("safelight: ")

    return run


def test_builds_once_and_records_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = EngineStore(tmp_path / "store")
    arguments = ["build", str(MODEL), *SMALL, "--shape", "64x32", "--batch", "1-2", "--output", str(store.folder)]
    assert cli.main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    (record,) = store.records()
    manifest = json.loads((MODEL / "safelight.json").read_text())["files"]
    identity = record.identity
    assert (identity.flavour, identity.version) == ("tensorrt-rtx", flavour("tensorrt-rtx").version)
    assert (identity.gpus, identity.gpu_name) == (("sm89",), None)
    assert identity.graph == manifest["vae_decoder/model.onnx"]["sha256"]
    assert identity.weights == manifest["vae_decoder/model.onnx_data"]["sha256"]
    assert (identity.network, identity.dtype) == ("vae_decoder", "fp32")
    assert [profile.label for profile in identity.profiles] == ["64x32, 1 to 2 images"]
    assert identity.options == {"stripped": False, "tf32": True}
    assert [(tensor.name, tensor.dtype) for tensor in record.outputs] == [("sample", "float32")]
    assert record.outputs[0].shape == ["batch", 3, "height", "width"]
    assert record.plan == file_record(store.folder / f"{identity.name}.plan")
    assert record.seconds > 0
    assert 100e6 < record.peak_memory < 1e9
    here = {"flavour": identity.flavour, "version": identity.version, "gpu": "sm89", "gpu_name": "anything"}
    assert store.find(open_model_folder(MODEL), "vae_decoder", **here) == record

    assert cli.main(arguments) == 0
    assert f"{identity.name} is there already" in capsys.readouterr().out
    assert store.records() == [record]
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".json", ".plan"]


def test_a_folder_s_own_graph_is_built_where_neither_torch_nor_onnx_is(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'transformers')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [*COMMAND, str(MODEL), *SMALL, "--output", str(tmp_path / "store")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert len(EngineStore(tmp_path / "store").records()) == 1
    command[command.index("vae_decoder")] = "text_encoder"  # whose graph is in float32
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "it is traced anew, which needs: pip install 'safelight[export]'" in finished.stderr
    assert len(EngineStore(tmp_path / "store").records()) == 1


def test_default_gpus_are_all_from_ampere_on(tmp_path: Path) -> None:
    folder, store = open_model_folder(MODEL), EngineStore(tmp_path / "store")
    (record,) = build_engines(folder, options(gpus=()), store)
    assert record.identity.gpus == ("sm80", "sm86", "sm89", "sm120", "sm121")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SMALL, "--shape", "66x64"), "width must be a multiple of 4, got 66; nearest are 64 and 68"),
        ((*RTX, "--shape", "64x0"), "--shape must be of at least one pixel, got 64x0"),
        ((*RTX, "--batch", "4-1"), "--batch must go from 1 or more to no less than that, got 4-1"),
        ((*RTX, "--dtype", "fp32"), "--dtype must be fp16 or bf16, got 'fp32'"),
        ((*RTX, "--vae-dtype", "fp16"), "--vae-dtype must be fp32 or bf16, got 'fp16'"),
        (("--target", "cuda"), "--target must be tensorrt or tensorrt-rtx, got 'cuda'"),
        ((*RTX, "--memory-limit", "0"), "--memory-limit must be above 0, got 0"),
        ((*RTX, "--optimization-level", "6"), "--optimization-level must be 0 to 5, got 6"),
        ((*RTX, "--gpu", "sm75,sm89", "--dtype", "bf16"), "sm75 has no bfloat16: build it with --dtype fp16"),
    ],
)
def test_refused_before_anything_is_built(fails: Callable[..., str], arguments: tuple[str, ...], message: str) -> None:
    assert fails(*arguments).startswith(message)


def test_the_last_network_is_refused_before_the_first_is_built(fails: Callable[..., str]) -> None:
    sentence = fails(*RTX, "--shape", "32768x32768")
    assert sentence.startswith("vae_decoder would have a sample")


def test_unknown_names_are_refused_with_the_known_ones(fails: Callable[..., str]) -> None:
    version = flavour("tensorrt-rtx").version
    known = "it knows sm75, sm80, sm86, sm89, sm120, sm121"
    assert fails(*RTX, "--gpu", "sm90") == f"TensorRT-RTX {version} builds for no sm90; {known}"
    held = "it has text_encoder, unet, vae_decoder, vae_encoder"
    assert fails(*RTX, "--components", "unet,vae") == f"{MODEL} has no network vae; {held}"


def test_a_folder_of_another_exporter_is_refused_with_the_way_out(fails: Callable[..., str], tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "foreign")
    (tmp_path / "foreign" / "safelight.json").unlink()
    sentence = fails(*RTX, model=tmp_path / "foreign")
    assert "safelight did not export it" in sentence
    assert sentence.endswith("safelight export CHECKPOINT FOLDER")


def test_without_a_driver_no_plan_is_stripped(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_DRIVER", "no-such-library.so.1")
    assert fails(*SMALL, "--strip-weights").startswith("--strip-weights needs NVIDIA's driver (no-such-library.so.1)")


def test_stripped_engine_is_of_no_weights_and_names_those_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a builder that stands for one on a machine with NVIDIA's driver."""
    tasks: list[Any] = []

    def apart(function: Callable[..., Any], *arguments: Any, name: str, progress: Any) -> tuple[Any, int]:
        if function is not build.build_plan:
            return function(*arguments, progress=progress), 0
        tasks.append(arguments[0])
        arguments[0].plan.write_bytes(b"plan")
        return build.Built(inputs=arguments[0].inputs, outputs=arguments[0].outputs, seconds=1.0), 5

    monkeypatch.setattr(build, "_check_driver", lambda _: None)
    monkeypatch.setattr(build, "run_apart", apart)
    store = EngineStore(tmp_path / "store")
    (record,) = build_engines(open_model_folder(MODEL), options(strip_weights=True), store)
    assert record.identity.weights is None
    assert record.identity.options["stripped"] is True
    assert tasks[0].refittable == record.refittable
    assert "decoder.conv_in.weight" in record.refittable
    assert len(record.refittable) == len(set(record.refittable)) > 20
    (whole,) = build_engines(open_model_folder(MODEL), options(), store)
    assert (whole.refittable, tasks[1].refittable) == ((), ())
    assert whole.identity.key != record.identity.key


def test_options_that_change_a_plan_make_another_engine(tmp_path: Path) -> None:
    folder, trt = open_model_folder(MODEL), flavour("tensorrt-rtx")
    several = [
        options(),
        options(gpus=("sm80",)),
        options(vae_dtype="bf16"),
        options(memory_limit=10**9),
        options(optimization_level=2),
        options(pictures=Pictures(images=(1, 2))),
    ]
    assert len({build._identity(folder, "vae_decoder", each, trt).key for each in several}) == len(several)
    assert build._identity(folder, "vae_decoder", options(dtype="bf16"), trt) == build._identity(
        folder, "vae_decoder", options(), trt
    )


def test_memory_limit_ends_a_build_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    status = cli.main(["build", str(MODEL), *SMALL, "--memory-limit", "0.05", "--output", str(store), "--quiet"])
    assert status == 1
    expected = "safelight: building the vae_decoder takes more than the 0.05 GB of --memory-limit\n"
    assert capsys.readouterr().err == expected
    assert not list(store.iterdir())


def test_memory_within_the_limit_is_no_matter(tmp_path: Path) -> None:
    folder = open_model_folder(MODEL)
    (record,) = build_engines(folder, options(memory_limit=2 * 10**9), EngineStore(tmp_path / "store"))
    assert record.identity.options["workspace"] == 2 * 10**9


def started(store: Path, *, until: str) -> "subprocess.Popen[str]":
    """A command that has come to a line with this text."""
    process = subprocess.Popen(
        [*COMMAND, str(MODEL), *SMALL, "--output", str(store)],
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background job ignores
    )
    assert process.stdout is not None
    for line in process.stdout:
        if until in line:
            return process
    raise AssertionError(f"it ended before {until}")


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_leaves_no_engine(sign: signal.Signals, tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    with started(store.folder, until="reading the graph") as process:
        process.send_signal(sign)
        assert process.wait(30) == (130 if sign == signal.SIGINT else -sign)
        assert process.stdout is not None
        process.stdout.close()
    assert store.records() == []
    assert not [path for path in store.folder.iterdir() if path.suffix in (".plan", ".json")]
    if sign == signal.SIGINT:
        assert not list(store.folder.iterdir())
    (record,) = build_engines(open_model_folder(MODEL), options(), store)
    names = {f"{record.identity.name}.plan", f"{record.identity.name}.json"}
    assert {path.name for path in store.folder.iterdir()} == names


def test_of_two_builders_one_builds_and_the_other_takes_its_engine(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    with started(store.folder, until="reading the graph") as first:
        first.send_signal(signal.SIGSTOP)  # until the second one waits
        with started(store.folder, until="waiting for another build of") as second:
            first.send_signal(signal.SIGCONT)
            output, _ = first.communicate(timeout=60)
            rest, _ = second.communicate(timeout=60)
    (record,) = store.records()
    assert f"{record.identity.name} is there already" in rest
    assert "reading the graph" not in rest
    assert "is there already" not in output
    assert first.returncode == second.returncode == 0


def test_the_store_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o777)
    (tmp_path / "store").chmod(0o777)
    with pytest.raises(PermissionError, match="chmod go-w"):
        build_engines(open_model_folder(MODEL), options(), EngineStore(tmp_path / "store"))
    assert not list((tmp_path / "store").iterdir())


# What `--target tensorrt` asks of a GPU, with stand-ins: its wheel's libraries cannot be installed everywhere.


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Flavour:
    """TensorRT, as far as it is asked before a build."""
    made = Flavour("tensorrt", ModuleType("tensorrt"), "11.0.0")
    monkeypatch.setattr(build, "flavour", lambda name: made)
    return made


def device_is(monkeypatch: pytest.MonkeyPatch, found: DeviceProperties | CudaError) -> None:
    """Makes CUDA find a GPU, or none."""

    def properties(index: int) -> DeviceProperties:
        assert index == 0
        if isinstance(found, CudaError):
            raise found
        return found

    monkeypatch.setattr("safelight.runtime.backends.tensorrt.cuda.device_properties", properties)


def test_tensorrt_builds_for_the_gpu_that_is_here(tensorrt: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVIDIA H100 80GB HBM3"
    device_is(monkeypatch, DeviceProperties(name=name, compute_capability="sm90", memory=80 * 2**30))
    assert gpus.chosen_gpus(tensorrt, (), bfloat16=True) == (("sm90",), name)
    identity = build._identity(open_model_folder(MODEL), "unet", options(flavour="tensorrt", gpus=()), tensorrt)
    assert (identity.gpus, identity.gpu_name) == (("sm90",), name)
    path = build._timing_cache(EngineStore(Path("store")), identity)
    assert path == Path("store/tensorrt-11.0.0-sm90.timings")
    assert build._timing_cache(EngineStore(Path("store")), replace(identity, flavour="tensorrt-rtx")) is None


def test_tensorrt_without_a_gpu_says_so(
    tensorrt: Flavour, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    device_is(monkeypatch, CudaError("there is no NVIDIA GPU"))
    sentence = fails("--target", "tensorrt")
    assert sentence.startswith("TensorRT builds for the GPU that it builds on: there is no NVIDIA GPU; ")
    assert "--target tensorrt-rtx builds on any machine" in sentence
    assert fails("--target", "tensorrt", "--gpu", "sm89").startswith("--gpu is of tensorrt-rtx: TensorRT builds for")
    monkeypatch.delattr("safelight.runtime.backends.tensorrt.cuda")
    monkeypatch.delitem(sys.modules, "safelight.runtime.backends.tensorrt.cuda")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "pip install 'safelight[tensorrt]'" in fails("--target", "tensorrt")


def test_a_worker_can_give_up_from_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hungry.py").write_text(
        "import time\nfrom safelight.export.engines.memory import memory_limit\n"
        "def eat(size, limit, *, progress):\n"
        "    with memory_limit(limit, 'eating'):\n"
        "        held = b'1' * size\n"
        "        time.sleep(1)\n"
        "    return len(held)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    hungry = __import__("hungry")
    monkeypatch.delitem(sys.modules, "hungry")
    with pytest.raises(MemoryError, match=r"^eating takes more than the 0\.2 GB of --memory-limit$"):
        run_apart(hungry.eat, 400_000_000, 200_000_000, name="eat", progress=silent)
    assert run_apart(hungry.eat, 100_000_000, 200_000_000, name="eat", progress=silent)[0] == 100_000_000
