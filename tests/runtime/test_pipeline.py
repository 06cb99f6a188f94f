"""Pipelines: how they are opened and shown, what a call takes and refuses, and what it gives back."""

import inspect
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import transformers

from safelight.runtime import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    Generator,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    bundled_model,
)
from safelight.runtime.image_processor import IMAGE_PROCESSORS
from safelight.runtime.networks import NETWORK_OPENERS, UNetOutput

PROMPT = "cat face on a blue background"
WIDTH = 96  # of the bundled model's embeddings
LENGTH = 32  # of its prompts, in tokens


def opened(**options: Any) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(bundled_model(), **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def shared() -> Iterator[Any]:
    """The bundled model, for tests that leave it as it was."""
    with opened() as pipeline:
        yield pipeline


@pytest.fixture
def pipeline(shared: Any) -> Any:
    """The bundled model with a scheduler of its own, whose components a test may replace."""
    own = StableDiffusionPipeline(shared.folder, shared.engine, shared.components)
    own.scheduler = DDIMScheduler.from_config(shared.scheduler.config)
    own.set_progress_bar_config(disable=True)
    return own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The bundled model's folder, to break, as an exporter without a manifest leaves it."""
    copy = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    (copy / "safelight.json").unlink()
    return copy


def latents(pipeline: Any, prompt: Any = PROMPT, **options: Any) -> np.ndarray:
    """The latents of two steps: what tells pictures apart soonest."""
    options = {"num_inference_steps": 2, "output_type": "latent", **options}
    result: np.ndarray = pipeline(prompt, **options).images
    return result


class Counting:
    """The UNet, counting its calls and keeping what it was given."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self.config = unet.config
        self.inputs: list[tuple[np.ndarray, float, np.ndarray]] = []

    def __call__(self, sample: np.ndarray, timestep: float, embeddings: np.ndarray) -> UNetOutput:
        self.inputs.append((sample, timestep, embeddings))
        return self.unet(sample, timestep, embeddings)


@pytest.fixture
def counting(pipeline: Any) -> Counting:
    """The pipeline's UNet, replaced by one that counts."""
    pipeline.unet = Counting(pipeline.unet)
    return pipeline.unet  # type: ignore[no-any-return]


# opening and showing


def test_components_are_diffusers_by_name_and_class(linear_export: Path, linear_checkpoint: Path) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(linear_checkpoint)
    with DiffusionPipeline.from_pretrained(linear_export) as ours:
        assert type(ours) is StableDiffusionPipeline
        assert {name: type(part).__name__ for name, part in ours.components.items()} == {
            name: type(part).__name__ for name, part in theirs.components.items() if name != "image_encoder"
        }
        assert all(getattr(ours, name) is part for name, part in ours.components.items())
        shown, expected = (
            json.loads(str(pipeline).removeprefix("StableDiffusionPipeline ")) for pipeline in (ours, theirs)
        )
        assert expected.pop("_name_or_path") == str(linear_checkpoint)
        assert shown == expected
        assert repr(ours).startswith('StableDiffusionPipeline {\n  "_class_name": "StableDiffusionPipeline",\n')
        assert list(shown) == list(expected)  # in the same order


def test_a_swapped_scheduler_is_shown_and_used(pipeline: Any) -> None:
    before = latents(pipeline, seed=0)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    assert pipeline.components["scheduler"] is pipeline.scheduler
    shown = json.loads(repr(pipeline).removeprefix("StableDiffusionPipeline "))
    assert shown == {**pipeline.folder.index, "scheduler": ["diffusers", "DDPMScheduler"]}
    assert shown["scheduler"] != pipeline.folder.index["scheduler"]
    assert np.abs(latents(pipeline, seed=0) - before).max() > 0.1


def test_components_may_be_given(pipeline: Any) -> None:
    scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)
    with opened(scheduler=scheduler, tokenizer=pipeline.tokenizer) as own:
        assert own.scheduler is scheduler
        assert own.tokenizer is pipeline.tokenizer
        assert own.unet is not pipeline.unet
        pipeline.scheduler = scheduler
        np.testing.assert_array_equal(latents(own, seed=0), latents(pipeline, seed=0))


def test_a_part_that_is_not_there_may_be_left_out(pipeline: Any) -> None:
    with opened(safety_checker=None, feature_extractor=None, image_encoder=None, use_safetensors=None) as own:
        assert own.components.keys() == pipeline.components.keys()
    with pytest.raises(TypeError, match="has no component image_encoder"):
        opened(image_encoder=pipeline.unet)


def test_keys_that_a_configuration_leaves_out_have_diffusers_defaults(folder: Path, emoji_checkpoint: Path) -> None:
    """Stable Diffusion 1.4's autoencoder says nothing of its scaling factor."""
    for component in ("unet", "vae_encoder", "vae_decoder", "text_encoder"):
        (folder / component / "config.json").write_text("{}")
    with DiffusionPipeline.from_pretrained(folder) as own:
        assert isinstance(own, StableDiffusionPipeline)
        theirs = {
            "unet": diffusers.UNet2DConditionModel.__init__,
            "vae": diffusers.AutoencoderKL.__init__,
            "text_encoder": transformers.CLIPTextConfig.__init__,
        }
        for name, constructor in theirs.items():
            defaults = {key: value.default for key, value in inspect.signature(constructor).parameters.items()}
            for key, value in own.components[name].config.items():
                assert defaults[key] == (tuple(value) if isinstance(value, list) else value)
        with pytest.raises(ValueError, match="names no sample_size: give height and width"):
            own(PROMPT, height=64)


@pytest.mark.parametrize("opener", [DiffusionPipeline, StableDiffusionPipeline])
def test_components_are_of_the_public_classes(opener: type[DiffusionPipeline]) -> None:
    with opener.from_pretrained(str(bundled_model())) as pipeline:
        classes = {name: type(part) for name, part in pipeline.components.items() if part is not None}
    assert classes == {
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "unet": UNet2DConditionModel,
        "scheduler": EulerDiscreteScheduler,
    }


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"unte": "a", "vea": "b"},
            TypeError,
            "has no component unte, vea; it has vae, text_encoder, .* scheduler, safety_checker, feature_extractor$",
        ),
        (
            {"torch_dtype": "float16"},
            TypeError,
            "^torch_dtype is the folder's: choose it at the export, .* --dtype fp16",
        ),
        ({"use_safetensors": False}, ValueError, "^use_safetensors=False asks for pickled weights, which are never"),
        (
            {"backend": "tensorflow"},
            ValueError,
            "^unknown backend 'tensorflow'; known: onnxruntime, .*, tensorrt-rtx$",
        ),
        ({"device": "tpu"}, ValueError, "^unknown device 'tpu' for the onnxruntime backend; it knows cpu, cuda and"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        opened(**options)


def test_a_device_that_is_not_there_leaves_the_pipeline_as_it_was(pipeline: Any) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA: the message is for those that have not")
    before, parts = latents(pipeline, seed=0), pipeline.components
    with pytest.raises(ValueError, match=r"device 'cuda' needs the GPU build .* pip install 'safelight\[gpu\]'"):
        pipeline.to("cuda")
    assert pipeline.device == "cpu"
    assert pipeline.components == parts
    np.testing.assert_array_equal(latents(pipeline, seed=0), before)
    assert pipeline.to("cpu") is pipeline
    assert pipeline.components == parts


def test_moving_reopens_the_networks_and_keeps_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Onto a device that is the CPU by another name, for want of another: it cannot open the graphs for CUDA."""
    from safelight.runtime.backends import onnxruntime

    place = onnxruntime.place
    monkeypatch.setattr(onnxruntime, "place", lambda device, _: place("cpu" if device == "cpu:1" else device))
    with opened(scheduler=DDIMScheduler.from_config(bundled_model())) as pipeline:
        before = latents(pipeline, seed=0)
        unet, scheduler, tokenizer = pipeline.unet, pipeline.scheduler, pipeline.tokenizer
        assert pipeline.to("cpu:1") is pipeline
        assert pipeline.device == "cpu:1"
        assert "unet: model.onnx is used in place of model.onnxruntime-cuda.onnx: " in caplog.text
        assert pipeline.scheduler is scheduler
        assert pipeline.tokenizer is tokenizer
        assert pipeline.unet is not unet
        with pytest.raises(RuntimeError, match="unet is closed"):
            unet(np.zeros((1, 4, 8, 8)), 1.0, np.zeros((1, 4, WIDTH)))
        np.testing.assert_allclose(latents(pipeline, seed=0), before, atol=1e-4)


def test_a_closed_pipeline_says_so() -> None:
    with opened() as pipeline:
        assert latents(pipeline, seed=0).shape == (1, 4, 16, 16)
        pipeline.vae.encode(np.zeros((1, 3, 64, 64)))
    with pytest.raises(RuntimeError, match="text_encoder is closed"):
        pipeline(PROMPT)
    with pytest.raises(RuntimeError, match="vae_encoder is closed"):
        pipeline.vae.encode(np.zeros((1, 3, 64, 64)))
    with pytest.raises(RuntimeError, match="vae_decoder is closed"):
        pipeline.vae.decode(np.zeros((1, 4, 16, 16)))
    pipeline.close()


# folders that are not whole


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: Path, opener: type[DiffusionPipeline] = DiffusionPipeline) -> str:
    """The one sentence with which a folder is refused."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        opener.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        ("unet", "FOLDER lacks the component unet: there is no unet/model.onnx"),
        ("vae_decoder", "FOLDER/vae_decoder/config.json does not exist"),
        ("tokenizer", "FOLDER lacks the component tokenizer"),
        ("scheduler", "FOLDER lacks the component scheduler"),
        ("scheduler/scheduler_config.json", "FOLDER/scheduler has no scheduler_config.json"),
        ("text_encoder/model.onnx", "FOLDER lacks the component text_encoder: there is no text_encoder/model.onnx"),
    ],
)
def test_a_missing_part_is_named(folder: Path, component: str, expected: str) -> None:
    path = folder / component
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert refusal(folder).startswith(expected)


def test_a_component_that_the_index_leaves_out_is_named(folder: Path) -> None:
    edit(folder / "model_index.json", unet=[None, None])
    assert refusal(folder) == "FOLDER lacks the component unet: model_index.json does not name it"


def test_unknown_classes_are_named(folder: Path) -> None:
    edit(folder / "model_index.json", unet=["diffusers", "UNet3DConditionModel"])
    assert refusal(folder) == (
        "FOLDER: component unet is a UNet3DConditionModel, which is not known here; "
        f"known: {', '.join([*NETWORK_OPENERS, 'CLIPTokenizer', 'CLIPTokenizerFast', *IMAGE_PROCESSORS])}"
    )
    edit(folder / "model_index.json", _class_name="FluxPipeline")
    assert refusal(folder).startswith("FOLDER is for a FluxPipeline, which is not known here; known: ")
    assert "StableDiffusionPipeline" in refusal(folder)


def test_unknown_schedulers_are_named(folder: Path) -> None:
    config = folder / "scheduler" / "scheduler_config.json"
    edit(config, _class_name="Nothing")
    assert re.fullmatch("unknown scheduler 'Nothing'; known: .*EulerDiscreteScheduler.*", refusal(folder))
    config.write_text("{")
    assert refusal(folder).startswith("FOLDER/scheduler/scheduler_config.json is not valid JSON: ")


def test_broken_graphs_are_named(folder: Path) -> None:
    graph = folder / "unet" / "model.onnx"
    whole = graph.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no graph"):
        graph.write_bytes(content)
        assert refusal(folder).startswith("FOLDER/unet/model.onnx is no ONNX graph")
    graph.write_bytes(whole)
    weights = folder / "unet" / "model.onnx_data"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert refusal(folder).startswith("FOLDER/unet/model.onnx is refused: ")


def test_another_networks_graph_is_no_unet(folder: Path) -> None:
    for name in ("model.onnx", "model.onnx_data"):
        shutil.copyfile(folder / "vae_decoder" / name, folder / "unet" / name)
    assert refusal(folder) == "this graph is no UNet: it takes latent_sample, and no timestep"


# what a call refuses


def arrays(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt": 7}, TypeError, "prompt must be a string or a list of strings, got int"),
        ({"prompt": b"cat"}, TypeError, "prompt must be a string or a list of strings, got bytes"),
        ({"prompt": ["cat", 7]}, TypeError, "prompt must be a string or a list of strings, got a list with int"),
        ({"prompt": []}, ValueError, "prompt must not be an empty list"),
        ({"prompt": None}, ValueError, "give either prompt or prompt_embeds, got neither"),
        ({"prompt_embeds": arrays(1, 5, 96)}, ValueError, "give either prompt or prompt_embeds, got both"),
        ({"negative_prompt": 7}, TypeError, "negative_prompt must be a string or a list of strings, got int"),
        (
            {"negative_prompt": "dog", "negative_prompt_embeds": arrays(1, 32, 96)},
            ValueError,
            "give either negative_prompt or negative_prompt_embeds, got both",
        ),
        ({"negative_prompt": ["a", "b"]}, ValueError, "there are 1 prompts and 2 negative prompts"),
        (
            {"prompt": ["a", "b", "c"], "negative_prompt": ["a", "b"]},
            ValueError,
            "there are 3 prompts and 2 negative prompts",
        ),
        (
            {"negative_prompt_embeds": arrays(1, 5, 96)},
            ValueError,
            "negative_prompt_embeds must be (32, 96) each, as prompt_embeds are, got (5, 96)",
        ),
        (
            {"prompt": None, "prompt_embeds": arrays(1, 33, 96)},
            ValueError,
            "negative_prompt_embeds must be (33, 96) each, as prompt_embeds are, got (32, 96)",
        ),
        (
            {"prompt": None, "prompt_embeds": arrays(1, 5, 95)},
            ValueError,
            "prompt_embeds must be of shape (batch, length, 96), got (1, 5, 95)",
        ),
        (
            {"prompt": None, "prompt_embeds": arrays(5, 96)},
            ValueError,
            "prompt_embeds must be of shape (batch, length, 96), got (5, 96)",
        ),
        (
            {"negative_prompt_embeds": arrays(1, 32, 97)},
            ValueError,
            "negative_prompt_embeds must be of shape (batch, length, 96), got (1, 32, 97)",
        ),
        ({"height": 62}, ValueError, "height must be a multiple of 4, got 62; nearest are 60 and 64"),
        ({"width": 3}, ValueError, "width must be a multiple of 4, got 3; the nearest is 4"),
        ({"height": 0}, ValueError, "height must be a multiple of 4, got 0; the nearest is 4"),
        ({"width": -64}, ValueError, "width must be a multiple of 4, got -64; the nearest is 4"),
        ({"height": 64.0}, TypeError, "height must be an integer, got float"),
        ({"width": True}, TypeError, "width must be an integer, got bool"),
        ({"width": "64"}, TypeError, "width must be an integer, got str"),
        (
            {"latents": arrays(1, 4, 16, 15), "width": 64},
            ValueError,
            "latents must be of shape (1, 4, 16, 16), got (1, 4, 16, 15)",
        ),
        ({"latents": arrays(2, 4, 16, 16)}, ValueError, "latents must be of shape (1, 4, 16, 16), got (2, 4, 16, 16)"),
        ({"latents": arrays(4, 16, 16)}, ValueError, "latents must be of shape (1, 4, 16, 16), got (4, 16, 16)"),
        ({"seed": [1, 2]}, ValueError, "there are 1 images and 2 generators or seeds"),
        ({"seed": []}, ValueError, "there are 1 images and 0 generators or seeds"),
        (
            {"generator": [Generator(0)], "num_images_per_prompt": 2},
            ValueError,
            "there are 2 images and 1 generators or seeds",
        ),
        ({"generator": Generator(0), "seed": 0}, ValueError, "give generator or seed, not both"),
        (
            {"generator": np.random.default_rng(0)},
            TypeError,
            "generator must be a safelight.runtime.Generator or a list of them; seed=n is short for one",
        ),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got float"),
        ({"seed": "1"}, TypeError, "seed must be an integer, got str"),
        ({"seed": True}, TypeError, "seed must be an integer, got bool"),
        ({"output_type": "pt"}, ValueError, "output_type must be one of pil, np, latent, got 'pt'"),
        ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt must be at least 1, got 0"),
        ({"timesteps": [9, 1], "sigmas": [2.0, 1.0]}, ValueError, "give timesteps or sigmas, not both"),
        ({"sigmas": [2.0, 1.0]}, ValueError, "DDIMScheduler does not take its own sigmas"),
        ({"timesteps": [9, 1]}, ValueError, "DDIMScheduler does not take its own timesteps"),
        (
            {"callback_on_step_end_tensor_inputs": ["latents", "text", "noise"]},
            ValueError,
            "callbacks are given latents, prompt_embeds; there is no noise, text",
        ),
        (
            {"clip_skip": 99},
            ValueError,
            "clip_skip must lie between 0 and ",
        ),
        ({"cross_attention_kwargs": {}}, TypeError, "unexpected keyword argument 'cross_attention_kwargs'"),
    ],
)
def test_wrong_arguments_are_refused_before_the_unet_runs(
    pipeline: Any, counting: Counting, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        pipeline(**{"prompt": PROMPT, "num_inference_steps": 2, **options})
    assert counting.inputs == []


def test_a_torch_generator_is_refused_with_the_way_out(pipeline: Any) -> None:
    import torch

    with pytest.raises(TypeError, match=r"^generator must be a safelight\.runtime\.Generator or a list of them; seed="):
        pipeline(PROMPT, generator=torch.Generator().manual_seed(0))


# what a call gives


def test_output_types_are_one_picture_in_three_forms(pipeline: Any) -> None:
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 5, "height": 32, "width": 48}
    (picture,) = pipeline(PROMPT, **options).images
    assert (picture.mode, picture.size) == ("RGB", (48, 32))
    array = pipeline(PROMPT, output_type="np", **options).images
    assert (array.shape, array.dtype) == ((1, 32, 48, 3), np.float32)
    assert 0 <= array.min() < array.max() <= 1
    np.testing.assert_array_equal(np.asarray(picture), (array[0] * 255).round().astype(np.uint8))
    raw = pipeline(PROMPT, output_type="latent", **options).images
    assert (raw.shape, raw.dtype) == ((1, 4, 8, 12), np.float32)
    decoded = pipeline.vae.decode(pipeline.vae.unscale(raw)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(np.clip(decoded / 2 + 0.5, 0, 1), array, atol=1e-6)


def test_a_tuple_is_given_for_return_dict_false(pipeline: Any) -> None:
    output = pipeline(PROMPT, num_inference_steps=1, seed=0, output_type="np")
    as_tuple = pipeline(PROMPT, num_inference_steps=1, seed=0, output_type="np", return_dict=False)
    assert isinstance(as_tuple, tuple)
    images, detected = as_tuple
    np.testing.assert_array_equal(images, output.images)
    assert detected is None
    assert output.nsfw_content_detected is None


def test_timings_are_of_each_stage(pipeline: Any) -> None:
    timings = pipeline(PROMPT, num_inference_steps=1, seed=0).timings
    assert list(timings) == ["text", "denoise", "decode"]
    assert all(seconds > 0 for seconds in timings.values())
    assert timings["denoise"] > timings["text"]


def test_the_progress_bar_counts_the_steps(pipeline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.set_progress_bar_config(desc="developing", mininterval=0)
    pipeline(PROMPT, num_inference_steps=3, seed=0)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "developing: 100%" in printed.err
    assert "3/3" in printed.err
    pipeline.set_progress_bar_config(disable=True)
    pipeline(PROMPT, num_inference_steps=3, seed=0)
    assert capsys.readouterr().err == ""


# noise


def test_a_seed_gives_one_picture_and_another_seed_another(pipeline: Any) -> None:
    first = latents(pipeline, seed=0)
    np.testing.assert_array_equal(latents(pipeline, seed=0), first)
    np.testing.assert_array_equal(latents(pipeline, generator=Generator(0)), first)
    np.testing.assert_array_equal(latents(pipeline, seed=np.int64(0)), first)
    np.testing.assert_array_equal(latents(pipeline, seed=[0]), first)
    np.testing.assert_array_equal(latents(pipeline, seed=np.array([0])), first)
    assert np.abs(latents(pipeline, seed=1) - first).max() > 0.1
    unseeded = [latents(pipeline), latents(pipeline)]
    assert np.abs(unseeded[0] - unseeded[1]).max() > 0.1


def test_a_generator_goes_on_from_where_it_was(pipeline: Any) -> None:
    generator = Generator(0)
    first = latents(pipeline, generator=generator)
    assert np.abs(latents(pipeline, generator=generator) - first).max() > 0.1


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_a_batch_is_its_pictures_one_by_one(pipeline: Any, scheduler: Any) -> None:
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    prompts, negatives, seeds = [PROMPT, "pizza"], ["dog", ""], [3, 4, 5, 6]
    batch = latents(pipeline, prompts, negative_prompt=negatives, seed=seeds, num_images_per_prompt=2)
    assert len(batch) == 4
    for index, seed in enumerate(seeds):
        alone = latents(pipeline, prompts[index // 2], negative_prompt=negatives[index // 2], seed=seed)
        np.testing.assert_allclose(batch[index : index + 1], alone, atol=1e-5 * np.abs(alone).max())


def test_given_latents_are_the_noise_and_give_the_size(pipeline: Any) -> None:
    noise = Generator(0).randn((1, 4, 8, 12))
    before = noise.copy()
    found = latents(pipeline, latents=noise)
    np.testing.assert_array_equal(found, latents(pipeline, seed=0, height=32, width=48))
    np.testing.assert_array_equal(noise, before)  # left as it was
    np.testing.assert_array_equal(latents(pipeline, latents=noise.astype(np.float64)), found)


# prompts and embeddings


def test_embeddings_stand_for_the_prompts_that_they_are_of(pipeline: Any) -> None:
    embeds = {
        name: pipeline.text_encoder(pipeline.tokenizer(text)).last_hidden_state
        for name, text in (("prompt_embeds", PROMPT), ("negative_prompt_embeds", "dog"))
    }
    expected = latents(pipeline, seed=0, negative_prompt="dog")
    np.testing.assert_array_equal(latents(pipeline, None, seed=0, **embeds), expected)
    np.testing.assert_array_equal(
        latents(pipeline, seed=0, negative_prompt_embeds=embeds["negative_prompt_embeds"]), expected
    )
    assert np.abs(latents(pipeline, seed=0) - expected).max() > 1e-3


def test_no_negative_prompt_is_an_empty_one(pipeline: Any) -> None:
    expected = latents(pipeline, seed=0, negative_prompt="")
    np.testing.assert_array_equal(latents(pipeline, seed=0), expected)


def test_one_negative_prompt_serves_all_prompts(pipeline: Any) -> None:
    prompts = [PROMPT, "pizza"]
    expected = latents(pipeline, prompts, seed=0, negative_prompt=["dog", "dog"])
    np.testing.assert_array_equal(latents(pipeline, prompts, seed=0, negative_prompt="dog"), expected)


def test_without_guidance_the_unet_runs_the_prompts_alone(pipeline: Any, counting: Counting) -> None:
    latents(pipeline, seed=0, guidance_scale=7.5)
    latents(pipeline, seed=0, guidance_scale=1.0, negative_prompt="dog")
    assert [len(sample) for sample, _, _ in counting.inputs] == [2, 2, 1, 1]


@pytest.mark.parametrize("length", [2, 9, 31])
@pytest.mark.parametrize("negative", [None, "red apple on a white background"])
def test_negative_prompts_are_encoded_at_the_length_of_prompt_embeds(
    pipeline: Any, counting: Counting, length: int, negative: str | None
) -> None:
    """As diffusers does it; see the end-to-end comparison below."""
    latents(pipeline, None, prompt_embeds=arrays(1, length, WIDTH), negative_prompt=negative, seed=0)
    token_ids = pipeline.tokenizer(negative or "", max_length=length)
    expected = pipeline.text_encoder(token_ids).last_hidden_state
    _, _, embeddings = counting.inputs[0]
    assert embeddings.shape == (2, length, WIDTH)
    np.testing.assert_array_equal(embeddings[:1], expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_short_prompt_embeds_equal_diffusers(linear_export: Path, linear_checkpoint: Path) -> None:
    import torch

    embeds = arrays(1, 9, 24)
    options: dict[str, Any] = {"num_inference_steps": 3, "negative_prompt": "red apple", "output_type": "latent"}
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(linear_checkpoint)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        prompt_embeds=torch.from_numpy(embeds), generator=torch.Generator().manual_seed(0), **options
    ).images
    with DiffusionPipeline.from_pretrained(linear_export) as ours:
        ours.set_progress_bar_config(disable=True)
        found = ours(prompt_embeds=embeds, seed=0, **options).images
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-4 * float(np.abs(found).max()))


def test_what_is_cut_off_a_prompt_is_said(pipeline: Any, caplog: pytest.LogCaptureFixture) -> None:
    latents(pipeline, "cat " * 40 + "pizza", seed=0)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"the text encoder takes {LENGTH} tokens; this part of the prompt was cut off: 'cat")
    assert message.endswith("pizza'")
    caplog.clear()
    latents(pipeline, PROMPT, seed=0)
    assert caplog.records == []


# steps and callbacks


def test_own_sigmas_and_timesteps_are_visited(pipeline: Any, counting: Counting) -> None:
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    latents(pipeline, seed=0, sigmas=[10.0, 3.0, 1.0, 0.0])
    assert len(counting.inputs) == 3
    np.testing.assert_allclose(pipeline.scheduler.sigmas, [10.0, 3.0, 1.0, 0.0], rtol=1e-6)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    latents(pipeline, seed=0, timesteps=[900, 500, 100])
    assert [timestep for _, timestep, _ in counting.inputs[3:]] == [900, 500, 100]


def test_callbacks_see_every_step(pipeline: Any) -> None:
    seen: list[tuple[int, float]] = []

    def callback(given: Any, step: int, timestep: float, tensors: dict[str, np.ndarray]) -> None:
        assert given is pipeline
        assert list(tensors) == ["latents"]
        assert tensors["latents"].shape == (1, 4, 16, 16)
        seen.append((step, timestep))

    with_callback = latents(pipeline, seed=0, num_inference_steps=3, callback_on_step_end=callback)
    assert seen == list(enumerate(pipeline.scheduler.timesteps.tolist()))
    np.testing.assert_array_equal(with_callback, latents(pipeline, seed=0, num_inference_steps=3))


def test_an_interrupt_ends_the_loop_after_the_step(pipeline: Any, counting: Counting) -> None:
    kept: list[np.ndarray] = []

    def callback(given: Any, step: int, _timestep: float, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept.append(tensors["latents"])
        given.interrupt = step == 1
        return {}

    found = latents(pipeline, seed=0, num_inference_steps=5, callback_on_step_end=callback)
    assert len(counting.inputs) == 2
    np.testing.assert_array_equal(found, kept[1])
    whole = latents(pipeline, seed=0, num_inference_steps=5)  # the next call starts anew
    assert len(counting.inputs) == 7
    assert np.abs(whole - found).max() > 0.1


def test_a_callbacks_tensors_are_those_of_the_next_step(pipeline: Any, counting: Counting) -> None:
    replaced = {"latents": arrays(1, 4, 16, 16), "prompt_embeds": arrays(2, 7, WIDTH)}

    def callback(_: Any, step: int, _timestep: float, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert set(tensors) == {"latents", "prompt_embeds"}
        return replaced if step == 0 else {}

    latents(
        pipeline,
        seed=0,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert counting.inputs[0][2].shape == (2, LENGTH, WIDTH)
    sample, _, embeddings = counting.inputs[1]
    np.testing.assert_array_equal(embeddings, replaced["prompt_embeds"])
    np.testing.assert_array_equal(sample, np.concatenate([replaced["latents"]] * 2))


def test_a_failing_callback_leaves_the_pipeline_usable(pipeline: Any) -> None:
    expected = latents(pipeline, seed=0)

    def callback(*_: Any) -> None:
        raise KeyError("a bug of the user's")

    with pytest.raises(KeyError, match="a bug of the user's"):
        latents(pipeline, seed=0, callback_on_step_end=callback)
    np.testing.assert_array_equal(latents(pipeline, seed=0), expected)
