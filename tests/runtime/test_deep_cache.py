"""A UNet that computes its outermost blocks alone in most calls: when, with which feature, and who is refused."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.runtime import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, bundled_model
from safelight.runtime.backends import Array, TensorSpec
from safelight.runtime.manifest import CACHED_FEATURE, read_manifest
from safelight.runtime.networks.deep_cache import DeepCacheNetwork
from safelight.runtime.networks.engine import Engine

FLOAT = np.dtype(np.float32)
SHAPE = ("batch", 1, "height", "width")


@dataclass
class Recorder:
    """A network that gives its name's letter, and the mean of each image as the feature."""

    letter: str
    log: list[tuple[str, list[float]]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = (TensorSpec("out_sample", FLOAT, SHAPE), TensorSpec(CACHED_FEATURE, FLOAT, SHAPE))
    closed: bool = False

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        assert set(inputs) == {spec.name for spec in self.inputs}
        seen = inputs[CACHED_FEATURE if self.letter == "s" else "sample"]
        self.log.append((self.letter, seen.mean(axis=(1, 2, 3)).tolist()))
        found = {"out_sample": inputs["sample"], CACHED_FEATURE: inputs["sample"]}
        return {name: found[name] for name in outputs or found}

    def close(self) -> None:
        self.closed = True


SPECS = {name: TensorSpec(name, FLOAT, ("batch", "?")) for name in ("timestep", "encoder_hidden_states")}
SPECS |= {name: TensorSpec(name, FLOAT, SHAPE) for name in ("sample", CACHED_FEATURE)}


@dataclass
class Recorded:
    """Both networks as recorders."""

    log: list[tuple[str, list[float]]] = field(default_factory=list)

    def networks(self, cache_interval: int) -> DeepCacheNetwork:
        deep = Recorder("d", self.log, tuple(SPECS[n] for n in ("sample", "timestep", "encoder_hidden_states")))
        shallow = Recorder("s", self.log, tuple(SPECS[n] for n in ("sample", "timestep", CACHED_FEATURE)))
        return DeepCacheNetwork(deep, shallow, cache_interval)

    @property
    def letters(self) -> str:
        return "".join(letter for letter, _ in self.log)


def inputs(values: Sequence[float], texts: Sequence[float], size: int = 2) -> dict[str, Array]:
    """A batch whose rows are of one value each, and so are their embeddings."""
    return {
        "sample": np.array(values, np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 1, size, size), np.float32),
        "timestep": np.zeros(len(values), np.float32),
        "encoder_hidden_states": np.array(texts, np.float32).reshape(-1, 1),
    }


@pytest.mark.parametrize(("interval", "calls"), [(1, "ddddd"), (2, "dsdsd"), (3, "dssds"), (9, "dssss")])
def test_every_nth_call_computes_everything(interval: int, calls: str) -> None:
    recorded = Recorded()
    networks = recorded.networks(interval)
    for _ in range(2):  # pictures
        network = networks.for_picture()
        for value in range(5):
            output = network(inputs([value, value], [1, 2]))
            assert list(output) == ["out_sample"]
            assert output["out_sample"].mean() == value
    assert recorded.letters == calls * 2


def test_the_shallow_calls_take_the_feature_of_the_last_deep_one() -> None:
    recorded = Recorded()
    network = recorded.networks(3).for_picture()
    for value in (10.0, 20.0, 30.0, 40.0, 50.0):
        network(inputs([value, value + 1], [1, 2]))
    features = [[10, 11], [10, 11], [10, 11], [40, 41], [40, 41]]
    assert [values for _, values in recorded.log] == features


def test_what_is_called_by_itself_computes_everything() -> None:
    recorded = Recorded()
    networks = recorded.networks(3)
    for value in (1.0, 2.0):
        networks(inputs([value], [1]))
    assert recorded.letters == "dd"
    assert [spec.name for spec in networks.outputs] == ["out_sample"]


@pytest.mark.parametrize(
    ("texts", "rows", "feature"),
    [
        pytest.param([1, 2], [1], [11.0], id="conditional half"),
        pytest.param([1, 1, 2, 3], [2, 3], [12.0, 13.0], id="of two pictures"),
        pytest.param([3, 1, 1], [0], [10.0], id="the first of three branches"),
    ],
)
def test_a_guidance_branch_takes_its_own_rows(texts: list[float], rows: list[int], feature: list[float]) -> None:
    recorded = Recorded()
    network = recorded.networks(3).for_picture()
    network(inputs([10.0 + row for row in range(len(texts))], texts))
    network(inputs([50.0] * len(rows), [texts[row] for row in rows]))
    assert recorded.log[1] == ("s", feature)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(inputs([1, 1], [1, 5]), id="embeddings"),
        pytest.param(inputs([1, 1], [1, 2], size=3), id="size"),
        pytest.param(inputs([1, 1, 1, 1], [1, 1, 2, 2]), id="more rows"),
        pytest.param(inputs([1, 1, 1], [1, 2, 2]), id="rows that are no part"),
        pytest.param(inputs([1], [5]), id="a branch of other embeddings"),
    ],
)
def test_what_no_feature_is_of_is_computed(changed: dict[str, Array]) -> None:
    recorded = Recorded()
    network = recorded.networks(9).for_picture()
    for call in (inputs([1, 1], [1, 2]), inputs([1, 1], [1, 2]), changed, changed):
        network(call)
    assert recorded.letters == "dsds"


def test_embeddings_that_are_changed_in_place_are_other_ones() -> None:
    recorded = Recorded()
    network = recorded.networks(9).for_picture()
    call = inputs([1, 1], [1, 2])
    network(call)
    call["encoder_hidden_states"][:] = 7
    network(call)
    assert recorded.letters == "dd"


# the pipeline

CALL: dict[str, Any] = {"prompt": "red apple", "seed": 0, "num_inference_steps": 4, "output_type": "latent"}


@pytest.fixture
def pipeline() -> Any:
    with StableDiffusionPipeline.from_pretrained(bundled_model(), backend="onnxruntime") as opened:
        opened.set_progress_bar_config(disable=True)
        yield opened


def test_it_is_enabled_changed_and_disabled(pipeline: Any) -> None:
    plain, network = pipeline(**CALL).images, pipeline.unet.network
    assert pipeline.cache_interval is None
    pipeline.enable_deep_cache()
    assert pipeline.cache_interval == 3
    with pytest.raises(RuntimeError, match="is closed"):
        network({})  # which would take as much memory again
    cached = pipeline(**CALL).images
    assert np.abs(cached - plain).max() > 0.01 * np.abs(plain).max()
    np.testing.assert_array_equal(pipeline(**CALL).images, cached)  # nothing is left of the picture before
    deep = pipeline.unet.network.deep
    pipeline.enable_deep_cache(cache_interval=1)
    assert pipeline.unet.network.deep is deep
    np.testing.assert_allclose(pipeline(**CALL).images, plain, atol=1e-5)
    pipeline.disable_deep_cache()
    pipeline.disable_deep_cache()
    assert pipeline.cache_interval is None
    np.testing.assert_array_equal(pipeline(**CALL).images, plain)


def test_pipelines_that_share_a_unet_cache_together(pipeline: Any) -> None:
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    pipeline.enable_deep_cache(2)
    assert other.cache_interval == 2
    other.disable_deep_cache()
    assert pipeline.cache_interval is None


def test_a_callback_that_changes_the_prompt_has_everything_computed(pipeline: Any) -> None:
    pipeline.enable_deep_cache(9)
    log = _watched(pipeline)

    def change(_pipeline: Any, step: int, _timestep: float, tensors: dict[str, Array]) -> dict[str, Array]:
        return {"prompt_embeds": tensors["prompt_embeds"] * 0.5} if step == 1 else {}

    pipeline(**CALL, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert "".join(log) == "dsds"


def test_it_goes_along_to_another_device(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, str, str | None]] = []
    own = Engine.open

    def remember(engine: Engine, folder: Any, network: str, *, variant: str | None = None) -> Any:
        opened.append((engine.device, network, variant))
        return own(replace(engine, device="cpu"), folder, network, variant=variant)

    pipeline.enable_deep_cache(2)
    monkeypatch.setattr(Engine, "open", remember)
    assert pipeline.to("cuda") is pipeline
    assert pipeline.cache_interval == 2
    assert opened[-2:] == [("cuda", "unet", "deep"), ("cuda", "unet", "shallow")]


def test_the_unet_stays_when_a_graph_cannot_be_opened(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pipeline(**CALL).images
    own = Engine.open

    def fail(engine: Engine, folder: Any, network: str, *, variant: str | None = None) -> Any:
        if variant == "shallow":
            raise ValueError("no memory")
        return own(engine, folder, network, variant=variant)

    monkeypatch.setattr(Engine, "open", fail)
    with pytest.raises(ValueError, match=r"^no memory$"):
        pipeline.enable_deep_cache()
    assert pipeline.cache_interval is None
    np.testing.assert_array_equal(pipeline(**CALL).images, plain)


def _watched(pipeline: Any) -> list[str]:
    """The letters of the networks that a cached UNet calls."""
    log: list[str] = []

    def watched(letter: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (log.append(letter), call(*arguments))[1]

    network = pipeline.unet.network
    for letter, each in (("d", network.deep), ("s", network.shallow)):
        stand_in = type("Watched", (), {"__call__": staticmethod(watched(letter, each)), "close": each.close})()
        stand_in.inputs, stand_in.outputs = each.inputs, each.outputs
        setattr(network, "deep" if letter == "d" else "shallow", stand_in)
    return log


# who is refused


@pytest.mark.parametrize("interval", [0, -1, 2.0, "3", True, None])
def test_an_interval_that_is_none(pipeline: Any, interval: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"cache_interval must be a whole number of calls, 1 or more, got {interval!r}$"
    ):
        pipeline.enable_deep_cache(interval)
    assert pipeline.cache_interval is None


def test_another_branch_than_the_folders(pipeline: Any) -> None:
    expected = r"are cut at cache_branch_id 0, got 1: export with --deep-cache --cache-branch-id 1$"
    with pytest.raises(ValueError, match=expected):
        pipeline.enable_deep_cache(cache_branch_id=1)
    pipeline.enable_deep_cache(cache_branch_id=0)


@pytest.mark.parametrize("manifest", [True, False], ids=["older", "foreign"])
def test_a_folder_without_the_graphs(tmp_path: Path, manifest: bool) -> None:
    folder = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    _forget_variants(folder)
    if not manifest:
        (folder / "safelight.json").unlink()
    with StableDiffusionPipeline.from_pretrained(folder, backend="onnxruntime") as pipeline:
        expected = (
            "no deep graph of unet, which DeepCache needs: safelight export CHECKPOINT FOLDER --deep-cache writes it"
        )
        with pytest.raises(FileNotFoundError, match=expected):
            pipeline.enable_deep_cache()
        assert pipeline.cache_interval is None
        pipeline.disable_deep_cache()


def test_a_graph_that_was_changed(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    with (folder / "unet" / "model.shallow.onnxruntime-cpu.onnx").open("ab") as file:
        file.write(b"\0")
    with StableDiffusionPipeline.from_pretrained(folder, backend="onnxruntime") as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        with pytest.raises(ValueError, match="is not the file that was exported"):
            pipeline.enable_deep_cache()
        pipeline(**{**CALL, "num_inference_steps": 1})  # its UNet is as it was


def test_what_stands_in_for_the_unet(pipeline: Any) -> None:
    own = pipeline.unet
    pipeline.unet = Recorder("d", [], ())
    assert pipeline.cache_interval is None
    with pytest.raises(TypeError, match=r"^DeepCache needs the folder's UNet, and a Recorder stands in for it$"):
        pipeline.enable_deep_cache()
    pipeline.unet = own


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_compiled_engines(pipeline: Any, backend: str) -> None:
    pipeline.engine = Engine(backend)
    expected = (
        f"^DeepCache needs two graphs of the UNet, and the {backend} backend runs engines of whole networks alone"
    )
    with pytest.raises(ValueError, match=expected):
        pipeline.enable_deep_cache()
    with pytest.raises(ValueError, match=f"^the {backend} backend runs what was compiled, and no deep graph is$"):
        Engine(backend).open(pipeline.folder, "unet", variant="deep")
    pipeline.engine = Engine()


def _forget_variants(folder: Path) -> None:
    """Makes the folder one of an export without `--deep-cache`."""
    manifest = read_manifest(folder)
    assert manifest is not None
    components = {
        name: replace(record, variants={}, cache_branch_id=None) for name, record in manifest.components.items()
    }
    gone = {path for graphs in manifest.components["unet"].variants.values() for path in graphs.values()}
    files = {name: record for name, record in manifest.files.items() if name not in gone}
    replace(manifest, components=components, files=files).write(folder)
    for path in gone:
        (folder / path).unlink()
    assert json.loads((folder / "safelight.json").read_text())["format_version"] == 1
