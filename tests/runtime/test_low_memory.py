"""`low_memory=True`: one network is open at a time, and the pictures are the same."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from safelight.runtime import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DDIMPipeline,
    DiffusionPipeline,
    UNet2DModel,
    bundled_model,
)
from safelight.runtime.backends import Array, Network, TensorSpec, open_network, probe
from safelight.runtime.networks import engine as engine_module

PROMPT = "cat face on a blue background"


class Counted:
    """A network that says when it is opened and closed."""

    def __init__(self, name: str, network: Network, log: "Openings") -> None:
        self.name, self.network, self.log = name, network, log
        log.open.append(name)
        log.opened.append(name)
        log.most = max(log.most, len(log.open))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.network.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.network.outputs

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return self.network(inputs, outputs)

    def close(self) -> None:
        self.network.close()
        self.log.open.remove(self.name)


class Openings:
    """What is open, what has been opened, and how much at one time."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.opened: list[str] = []
        self.most = 0


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> Openings:
    log = Openings()

    def spy(graph: Path, **options: Any) -> Counted:
        return Counted(graph.parent.name, open_network(graph, **options), log)

    monkeypatch.setattr(engine_module, "open_network", spy)
    return log


def opened(model: Path | None = None, **options: Any) -> Any:
    folder = bundled_model() if model is None else model
    pipeline = DiffusionPipeline.from_pretrained(folder, **{"backend": "onnxruntime", "low_memory": True, **options})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(pipeline: Any, *arguments: Any, **options: Any) -> Array:
    options = {"num_inference_steps": 2, "seed": 0, "output_type": "np", **options}
    images: Array = pipeline(*arguments, **options).images
    return images


@pytest.fixture(scope="module")
def usual() -> Iterator[Any]:
    with opened(low_memory=False) as pipeline:
        assert pipeline.vae.encoder is not None  # which is opened when it is used, and not to be counted then
        yield pipeline


def test_one_network_is_open_at_a_time_and_none_after_the_picture(openings: Openings, usual: Any) -> None:
    pipeline = opened()
    assert openings.opened == [], "nothing is opened to be described"
    for _ in range(2):
        np.testing.assert_array_equal(picture(pipeline, PROMPT), picture(usual, PROMPT))
        assert openings.open == []
    assert openings.opened == ["text_encoder", "unet", "vae_decoder"] * 2
    assert openings.most == 1
    assert picture(pipeline, PROMPT, output_type="latent").shape == (1, 4, 16, 16)
    assert openings.opened[6:] == ["text_encoder", "unet"]
    assert openings.open == []


def test_pipelines_that_share_networks_share_the_room(openings: Openings, usual: Any) -> None:
    pipeline = opened()
    image = picture(usual, PROMPT)
    mask = np.ones((1, 64, 64), np.float32)
    expected = picture(AutoPipelineForImage2Image.from_pipe(usual), PROMPT, image, strength=1.0)
    found = picture(AutoPipelineForImage2Image.from_pipe(pipeline), PROMPT, image, strength=1.0)
    np.testing.assert_array_equal(found, expected)
    assert openings.opened == ["text_encoder", "vae_encoder", "unet", "vae_decoder"]
    picture(AutoPipelineForInpainting.from_pipe(pipeline), PROMPT, image, mask)
    picture(pipeline, PROMPT)
    assert openings.most == 1


@pytest.mark.parametrize("name", ["SDXL", "DEPTH", "CHECKED"])
def test_every_family_opens_one_at_a_time(name: str, tiny: Callable[[str], Any], openings: Openings) -> None:
    export, _ = tiny(name)
    arguments: dict[str, Any] = {"height": 64, "width": 64} if name != "DEPTH" else {}
    if name == "DEPTH":
        arguments["image"] = np.random.default_rng(0).random((1, 64, 64, 3), dtype=np.float32)
    with opened(export, low_memory=False) as pipeline:
        expected = picture(pipeline, "a cat", **arguments)
    first, openings.most = len(openings.opened), 0
    with opened(export) as pipeline:
        np.testing.assert_array_equal(picture(pipeline, "a cat", **arguments), expected)
    assert set(openings.opened[first:]) == set(openings.opened[:first])
    assert openings.most == 1
    assert openings.open == []


def test_pixels_alone(unconditional_export: Path, openings: Openings) -> None:
    pipeline: Any = DDIMPipeline.from_pretrained(unconditional_export, low_memory=True, backend="onnxruntime")
    pipeline.set_progress_bar_config(disable=True)
    first = picture(pipeline)
    np.testing.assert_array_equal(picture(pipeline), first)
    assert openings.opened == ["unet", "unet"]
    assert openings.open == []
    model: Any = UNet2DModel.from_pretrained(unconditional_export, low_memory=True, backend="onnxruntime")
    sample = np.zeros((1, int(model.config["in_channels"]), 8, 8), np.float32)
    assert model(sample, 1.0).sample.shape == sample.shape


def test_words_that_were_taught_survive(openings: Openings, usual: Any, tmp_path: Path) -> None:
    vector = np.random.default_rng(0).standard_normal((1, 96)).astype(np.float16)
    save_file({"<cat-toy>": vector}, tmp_path / "word.safetensors")
    expected = []
    for low_memory in (False, True):
        openings.most = 0
        with opened(low_memory=low_memory) as pipeline:
            pipeline.load_textual_inversion(tmp_path / "word.safetensors")
            expected.append([picture(pipeline, text) for text in ("a <cat-toy>", "a cat", "a <cat-toy>")])
            pipeline.to("cpu")
    np.testing.assert_array_equal(expected[0], expected[1])
    assert np.abs(expected[1][0] - expected[1][1]).max() > 1e-3
    assert openings.most == 1


def test_an_autoencoder_alone(openings: Openings) -> None:
    vae: Any = AutoencoderKL.from_pretrained(bundled_model(), low_memory=True, backend="onnxruntime")
    latents = vae.encode(np.zeros((1, 3, 64, 64), np.float32)).mode()
    assert vae.decode(latents).shape == (1, 3, 64, 64)
    assert openings.opened == ["vae_encoder", "vae_decoder"]
    assert openings.open == ["vae_decoder"]
    vae.close()
    assert openings.open == []
    with pytest.raises(RuntimeError, match="vae_decoder is closed"):
        vae.decode(latents)


def test_a_folder_without_a_manifest_is_opened_to_be_known(tmp_path: Path, openings: Openings, usual: Any) -> None:
    folder = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    (folder / "safelight.json").unlink()
    pipeline = opened(folder)
    assert sorted(openings.opened) == ["text_encoder", "unet", "vae_decoder"]
    assert openings.open == []
    np.testing.assert_allclose(picture(pipeline, PROMPT), picture(usual, PROMPT), rtol=0, atol=1e-4)
    assert openings.most == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorflow"}, "unknown backend 'tensorflow'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"precision": {"vae_decoder": "bf16"}}, "does not compute in bf16"),
        ({"engine_options": {"sessions": 1}}, "no option 'sessions'"),
    ],
)
def test_what_can_be_known_at_once_is_said_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(**options)


def test_files_are_looked_at_at_once(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    with (folder / "unet" / "model.onnx_data").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x7f")
    with pytest.raises(ValueError, match="is not the file that was exported"):
        opened(folder)


def test_the_probe_is_a_graph_in_order(tmp_path: Path) -> None:
    model = onnx.load_from_string(probe.GRAPH)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
