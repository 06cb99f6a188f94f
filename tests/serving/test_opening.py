"""The worker's model: what it can make, and which of its networks are shared."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from engine_records import BUILT, identity

from safelight.runtime import StableDiffusionPipeline, bundled_model
from safelight.runtime.engines import EngineRecord, Profile, ShapeRange
from safelight.runtime.manifest import FileRecord
from safelight.runtime.serving import opening
from safelight.runtime.serving.batching import Batcher, SharedNetwork
from safelight.runtime.serving.errors import ApiError
from safelight.runtime.serving.image_request import check_sides
from safelight.runtime.serving.model_card import ModelCard
from safelight.runtime.serving.opening import Streams, card_of, compiled_sizes, open_pipeline, share_networks
from safelight.runtime.serving.settings import ServerSettings

SETTINGS = ServerSettings(engine={"backend": "onnxruntime", "threads": 1}, max_batch=4, max_pixels=64 * 128)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    with StableDiffusionPipeline.from_pretrained(bundled_model(), backend="onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def card(pipeline: Any) -> ModelCard:
    return card_of(pipeline, SETTINGS)


def profile(low_height: int, low_width: int, high_height: int, high_width: int) -> Profile:
    smallest, largest = (1, 4, low_height, low_width), (8, 4, high_height, high_width)
    return Profile(label="x", shapes={"sample": ShapeRange(smallest=smallest, usual=smallest, largest=largest)})


def compiled(*profiles: Profile) -> Any:
    """What stands for a pipeline whose UNet was compiled."""
    plan = FileRecord(size=1, sha256="c" * 64)
    record = EngineRecord(identity=identity(profiles=profiles), plan=plan, built_at="2026-01-01T00:00:00Z", **BUILT)
    return SimpleNamespace(unet=SimpleNamespace(network=SimpleNamespace(record=record)), vae=SimpleNamespace(factor=8))


def test_the_card_of_the_bundled_model(card: ModelCard) -> None:
    assert (card.id, card.pipeline, card.scheduler) == ("emoji", "StableDiffusionPipeline", "EulerDiscreteScheduler")
    assert (card.width, card.height, card.factor, card.most_pixels) == (64, 64, 4, 64 * 128)
    assert (card.generations, card.edits, card.masks) == (True, True, True)
    assert (card.num_inference_steps, card.guidance_scale, card.strength) == (50, 7.5, 0.8)
    assert card.buckets == ()
    assert card.backend.startswith("onnxruntime on cpu")
    check_sides(4, 4, card)
    check_sides(64, 128, card)


def test_a_compiled_model_makes_what_it_was_compiled_for(card: ModelCard) -> None:
    buckets = compiled_sizes(compiled(profile(64, 64, 64, 64), profile(32, 64, 96, 128)))
    assert [str(bucket) for bucket in buckets] == ["512x512", "512..1024x256..768"]
    own = replace(card, buckets=buckets, width_range=(512, 1024), height_range=(256, 768), factor=8, most_pixels=2**20)
    for width, height in ((512, 512), (1024, 256), (768, 768)):
        check_sides(width, height, own)
    with pytest.raises(ApiError, match="nearest is 512x256") as caught:
        check_sides(504, 256, own)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_size", "size")
    alone = replace(own, buckets=buckets[:1])
    with pytest.raises(ApiError, match="compiled for 512x512, got 1024x512"):
        check_sides(1024, 512, alone)
    assert compiled_sizes(SimpleNamespace(unet=SimpleNamespace(network=object()))) == ()


def test_every_network_of_a_pipeline_is_shared() -> None:
    pipeline = open_pipeline(SETTINGS, Streams.of(SETTINGS))
    batcher = Batcher()
    share_networks(pipeline, batcher, SETTINGS.max_batch)
    shared = [pipeline.unet.network, pipeline.text_encoder.network, pipeline.vae.encoder, pipeline.vae.decoder]
    assert all(isinstance(network, SharedNetwork) for network in shared)
    assert [network.name for network in shared] == ["unet", "text_encoder", "vae_encoder", "vae_decoder"]
    assert [network.limit(()) for network in shared] == [4] * 4
    batcher.close()
    pipeline.close()


def test_networks_that_see_large_pictures_share_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_JOINT_PIXELS", 2 * 64 * 64 + 1)
    pipeline = open_pipeline(SETTINGS, Streams.of(SETTINGS))
    batcher = Batcher()
    share_networks(pipeline, batcher, SETTINGS.max_batch)
    assert (pipeline.unet.network.limit(()), pipeline.vae.decoder.limit(())) == (4, 2)
    batcher.close()
    pipeline.close()


def test_a_model_that_takes_no_prompt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unconditional:
        pass

    monkeypatch.setattr(opening.DiffusionPipeline, "from_pretrained", lambda *_, **__: Unconditional())
    with pytest.raises(ValueError, match="Unconditional takes no prompts"):
        open_pipeline(SETTINGS, Streams(count=1, threads=None))


@pytest.mark.parametrize(
    ("settings", "count", "threads"),
    [
        ({}, 2, 1),
        ({"engine": {"threads": 3}}, 1, 3),
        ({"streams": 3}, 3, 1),
        ({"streams": 1}, 1, None),
        ({"streams": 2, "engine": {"threads": 4}}, 2, 4),
        ({"engine": {"backend": "openvino"}}, 1, None),
    ],
)
def test_small_models_run_several_batches_at_a_time(
    settings: dict[str, Any], count: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    engine = {"backend": "onnxruntime", **settings.pop("engine", {})}
    assert Streams.of(ServerSettings(engine=engine, **settings)) == Streams(count=count, threads=threads)


def test_a_large_model_runs_one_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "COMPILED_FROM", 1_000_000)
    assert Streams.of(ServerSettings(engine={"backend": "onnxruntime"})).count == 1
    with pytest.raises(ValueError, match="openvino runs one batch at a time"):
        Streams.of(ServerSettings(engine={"backend": "openvino"}, streams=2))
    with pytest.raises(ValueError, match="streams must be at least 1"):
        ServerSettings(streams=0)
