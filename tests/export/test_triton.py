"""The repository for Triton: configurations are read by Triton's own schema, graphs give the folder's numbers.

No Triton runs here. What its onnxruntime backend asks of a configuration is written down in `as_the_backend_checks`.
"""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper

from safelight.export.triton import MAX_BATCH_SIZE, write_repository
from safelight.runtime import bundled_model, cli
from safelight.runtime.backends import open_network
from safelight.runtime.model_folder import open_model_folder

DTYPES = {"tensor(float)": "FP32", "tensor(float16)": "FP16", "tensor(int64)": "INT64", "tensor(bool)": "BOOL"}
SIZES = {"batch": 2, "sequence_length": 32, "height": 8, "width": 6, "latent_height": 4, "latent_width": 4}


def _schema() -> ModuleType:
    """Triton's `model_config.proto`, as its client has it; the client's package would ask for gRPC."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCHEMA: Any = _schema()


def configuration(folder: Path) -> Any:
    """A `config.pbtxt` as Triton reads it."""
    config = text_format.Parse((folder / "config.pbtxt").read_text(encoding="ascii"), SCHEMA.ModelConfig())
    assert config.name == folder.name
    assert config.backend == "onnxruntime"
    return config


def as_the_backend_checks(config: Any, session: ort.InferenceSession) -> None:
    """What `ValidateInputs` and `ValidateOutputs` of Triton's onnxruntime backend refuse."""
    for borders, values in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert {border.name for border in borders} == {value.name for value in values}
        shapes = {value.name: [d if isinstance(d, int) else -1 for d in value.shape] for value in values}
        types = {value.name: value.type for value in values}
        for border in borders:
            assert SCHEMA.DataType.Name(border.data_type) == f"TYPE_{DTYPES[types[border.name]]}"
            dims = list(border.reshape.shape) if border.HasField("reshape") else list(border.dims)
            assert border.dims, "a tensor of a request has a dimension"
            if config.max_batch_size > 0:
                assert shapes[border.name] == [-1, *dims]
            elif shapes[border.name]:
                assert shapes[border.name] == dims
            else:
                assert dims == [1]


def inputs_of(session: ort.InferenceSession, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        shape = [SIZES[d] if isinstance(d, str) else d for d in value.shape]
        if value.type == "tensor(int64)":
            made[value.name] = rng.integers(0, 100, shape)
        else:
            made[value.name] = rng.standard_normal(shape).astype(np.float32)
    return made


def opened(graph: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def graph_of(folder: Path) -> Path:
    """Where the backend looks for a graph of several files."""
    path = folder / "1" / "model.onnx"
    assert path.is_dir()
    return path / "model.onnx"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_repository(open_model_folder(bundled_model()), tmp_path / "triton")
    return tmp_path / "triton"


def test_every_network_has_a_model_that_gives_the_folders_numbers(repository: Path) -> None:
    model = open_model_folder(bundled_model())
    assert {path.name for path in repository.iterdir()} == {f"emoji_{network}" for network in model.networks}
    assert len(model.networks) == 4
    for network in model.networks:
        folder = repository / f"emoji_{network}"
        config = configuration(folder)
        session = opened(graph_of(folder))
        as_the_backend_checks(config, session)
        assert config.max_batch_size == MAX_BATCH_SIZE
        assert config.HasField("dynamic_batching")
        assert [SCHEMA.ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group] == ["KIND_CPU"]
        inputs = inputs_of(session)
        names = [value.name for value in session.get_outputs()]
        own = open_network(model.graph(network, "onnxruntime-cpu"))
        expected = own(inputs)
        for name, array in zip(names, session.run(names, inputs), strict=True):
            assert np.ptp(array) > 0
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5)
        own.close()


def test_a_row_of_a_batch_of_scalars_is_of_one_element(repository: Path) -> None:
    (timestep,) = [t for t in configuration(repository / "emoji_unet").input if t.name == "timestep"]
    assert list(timestep.dims) == [1]
    assert timestep.HasField("reshape")
    assert list(timestep.reshape.shape) == []


def test_fixed_and_free_dimensions_are_those_of_the_graph(repository: Path) -> None:
    config = configuration(repository / "emoji_vae_encoder")
    assert [(t.name, list(t.dims)) for t in (*config.input, *config.output)] == [
        ("sample", [3, -1, -1]),
        ("latent_parameters", [8, -1, -1]),
    ]


def test_files_are_copies_and_the_models_own_have_no_second_name(repository: Path) -> None:
    weights = graph_of(repository / "emoji_unet").parent / "model.onnx_data"
    own = bundled_model() / "unet" / "model.onnx_data"
    assert not weights.samefile(own)
    assert weights.stat().st_nlink == 1
    assert weights.read_bytes() == own.read_bytes()


@pytest.mark.parametrize(("device", "gpus"), [("cuda", []), ("cuda:1", [1])])
def test_a_gpu_has_its_own_graphs(tmp_path: Path, device: str, gpus: list[int]) -> None:
    model = open_model_folder(bundled_model())
    (folder,) = write_repository(model, tmp_path / "triton", networks=["unet"], device=device)
    (group,) = configuration(folder).instance_group
    assert SCHEMA.ModelInstanceGroup.Kind.Name(group.kind) == "KIND_GPU"
    assert list(group.gpus) == gpus
    assert graph_of(folder).read_bytes() == model.graph("unet", "onnxruntime-cuda").read_bytes()
    assert graph_of(folder).read_bytes() != model.graph("unet", "onnxruntime-cpu").read_bytes()


def foreign(folder: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], dtype: int = 1) -> Path:
    """A model of another exporter: one network that adds a weight of another file to each input."""
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )
    weight = TensorProto(name="w", dims=[1], data_type=dtype, data_location=TensorProto.EXTERNAL)
    for key, value in {
        "location": "weights.bin",
        "offset": "0",
        "length": str(helper.tensor_dtype_to_np_dtype(dtype).itemsize),
    }.items():
        weight.external_data.add(key=key, value=value)
    (folder / "unet" / "weights.bin").write_bytes(b"\0\0\x80\x3f")
    nodes = [helper.make_node("Add", [i, "w"], [o]) for i, o in zip(inputs, outputs, strict=True)]
    graph = helper.make_graph(
        nodes,
        "unet",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in outputs.items()],
        initializer=[weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "unet" / "model.onnx")
    return folder


def test_a_network_with_a_lone_scalar_shares_no_batches(tmp_path: Path) -> None:
    source = foreign(
        tmp_path / "other's model",
        {"sample": ["batch", 4, "height"], "timestep": []},
        {"out_sample": ["batch", 4, "height"], "time": [1]},
    )
    (folder,) = write_repository(open_model_folder(source), tmp_path / "triton")
    assert folder.name == "other_s_model_unet"
    config = configuration(folder)
    as_the_backend_checks(config, session := opened(graph_of(folder)))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(t.dims) for t in config.input] == [[-1, 4, -1], [1]]
    assert not any(t.HasField("reshape") for t in config.input)
    sample, time = session.run(None, {"sample": np.zeros((1, 4, 2), np.float32), "timestep": np.array(3, np.float32)})
    assert (sample.item(0), time.item()) == (1, 4)


def test_a_model_without_a_manifest_can_be_opened_afterwards(tmp_path: Path) -> None:
    source = foreign(tmp_path / "model", {"x": ["batch", 2]}, {"y": ["batch", 2]})
    write_repository(open_model_folder(source), tmp_path / "triton")
    assert open_model_folder(source).graph("unet").is_file()  # which refuses weights that have a second name


def test_names_are_quoted(tmp_path: Path) -> None:
    name = 'a"\\\n\N{SNOWMAN}'
    source = foreign(tmp_path / "model", {name: ["batch", 2]}, {"y": ["batch", 2]})
    (folder,) = write_repository(open_model_folder(source), tmp_path / "triton")
    assert [t.name for t in configuration(folder).input] == [name]


def test_a_dtype_that_the_backend_lacks_is_refused(tmp_path: Path) -> None:
    source = foreign(tmp_path / "model", {"x": ["batch"]}, {"y": ["batch"]}, TensorProto.BFLOAT16)
    with pytest.raises(ValueError, match="x is of BFLOAT16, which Triton"):
        write_repository(open_model_folder(source), tmp_path / "triton")
    assert not (tmp_path / "triton").exists()


def _holds_something(destination: Path) -> None:
    destination.mkdir()
    (destination / "notes.txt").touch()


def _link(destination: Path) -> None:
    (destination.parent / "elsewhere").mkdir()
    destination.symlink_to(destination.parent / "elsewhere")


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (_holds_something, FileExistsError, "has other content"),
        (Path.touch, FileExistsError, "is a file"),
        (_link, ValueError, "is a link"),
        (lambda path: path.symlink_to("nowhere"), ValueError, "is a link"),
    ],
)
def test_a_place_that_is_taken_is_left_as_it_is(
    tmp_path: Path, prepare: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    prepare(tmp_path / "triton")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        write_repository(open_model_folder(bundled_model()), tmp_path / "triton")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["model", "model/triton", "model/unet/triton", "."])
def test_a_place_in_the_model_or_around_it_is_refused(tmp_path: Path, place: str) -> None:
    model = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="lie in one another"):
        write_repository(open_model_folder(model), tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_into_the_model_is_seen_through(tmp_path: Path) -> None:
    model = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    (tmp_path / "other").symlink_to(model / "unet")
    with pytest.raises(ValueError, match="lie in one another"):
        write_repository(open_model_folder(model), tmp_path / "other" / "triton")


def test_unknown_networks_and_devices_are_refused(tmp_path: Path) -> None:
    model = open_model_folder(bundled_model())
    with pytest.raises(ValueError, match="has no network unett; it has text_encoder, unet,"):
        write_repository(model, tmp_path / "triton", networks=["unet", "unett"])
    for device in ("gpu", "cuda:", "cuda:x", "npu"):
        with pytest.raises(ValueError, match="runs ONNX graphs on cpu, cuda or cuda:N"):
            write_repository(model, tmp_path / "triton", device=device)
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, got 0"):
        write_repository(model, tmp_path / "triton", max_batch_size=0)
    assert not (tmp_path / "triton").exists()


def test_a_network_that_was_changed_is_refused(tmp_path: Path) -> None:
    model = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    graph = model / "unet" / "model.onnxruntime-cpu.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="is not the file that was exported"):
        write_repository(open_model_folder(model), tmp_path / "triton")
    assert not (tmp_path / "triton").exists()


def test_an_export_writes_the_repository_as_well(
    odd_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(
        _checkpoint: object, destination: Path, *_: object, **__: object
    ) -> None:  # which takes a quarter of a minute
        shutil.copytree(bundled_model(), destination)

    monkeypatch.setattr("safelight.export.folder.export_model", exported)
    command = ["export", str(odd_checkpoint), str(tmp_path / "odd"), "--triton", str(tmp_path / "triton"), "--quiet"]
    assert cli.main(command) == 0
    for network in open_model_folder(tmp_path / "odd").networks:
        folder = tmp_path / "triton" / f"odd_{network}"
        as_the_backend_checks(configuration(folder), opened(graph_of(folder)))


def test_a_model_that_was_exported_needs_no_other_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(bundled_model()), "--triton", str(tmp_path / "triton"), "--components", "unet,vae_decoder"]
    assert cli.main(command) == 0
    assert sorted(path.name for path in (tmp_path / "triton").iterdir()) == ["emoji_unet", "emoji_vae_decoder"]
    assert "emoji_unet: model.onnxruntime-cpu.onnx, batches shared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--triton", "OUT", "--dtype", "fp16"], "--dtype is of an export: name its DESTINATION, or leave --dtype out"),
        ([], "name the DESTINATION: a folder that is new or empty"),
        (["DESTINATION", "--triton", "DESTINATION/triton"], "lie in one another"),
        (["DESTINATION", "--triton", "OUT", "--dtype", "bf16"], "has no bf16: --dtype fp32 or fp16 with --triton"),
        (["--triton", "OUT", "--components", "vae"], "has no network vae; it has text_encoder, unet,"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(bundled_model()), *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
