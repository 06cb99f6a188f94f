"""What shapes an engine is built for, and which it is not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safelight.export.engines.pictures import Pictures, parse_batch, parse_shape
from safelight.export.engines.shapes import profiles_of
from safelight.runtime.engines import Profile
from safelight.runtime.manifest import TensorRecord
from safelight.runtime.model_folder import ModelFolder, open_model_folder
from safelight.runtime.source import bundled_model


@pytest.fixture
def emoji() -> ModelFolder:
    """Latents a quarter of a picture's 64 pixels, 32 tokens, 96 channels of text."""
    return open_model_folder(bundled_model())


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., ModelFolder]:
    """The bundled model with other configurations: `changed(unet={"sample_size": [8, 24]})`."""

    def change(**configurations: dict[str, Any]) -> ModelFolder:
        shutil.copytree(bundled_model(), tmp_path / "model")
        manifest = json.loads((tmp_path / "model" / "safelight.json").read_text())
        for network, entries in configurations.items():
            path = tmp_path / "model" / network / "config.json"
            config = {**json.loads(path.read_text()), **entries}
            path.write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))
            del manifest["files"][f"{network}/config.json"]
        (tmp_path / "model" / "safelight.json").write_text(json.dumps(manifest))
        return open_model_folder(tmp_path / "model")

    return change


def ranges(profile: Profile) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {name: (shape.smallest, shape.usual, shape.largest) for name, shape in profile.shapes.items()}


def without(folder: ModelFolder, *networks: str) -> ModelFolder:
    """The folder without some of its networks."""
    assert folder.manifest is not None
    kept = {name: record for name, record in folder.manifest.components.items() if name not in networks}
    return replace(folder, manifest=replace(folder.manifest, components=kept))


def with_inputs(folder: ModelFolder, network: str, inputs: list[TensorRecord]) -> ModelFolder:
    """The folder whose manifest says something else of what a network takes."""
    assert folder.manifest is not None
    record = replace(folder.manifest.components[network], inputs=inputs)
    components = {**folder.manifest.components, network: record}
    return replace(folder, manifest=replace(folder.manifest, components=components))


def test_unet_sees_latents_and_guided_pairs(emoji: ModelFolder) -> None:
    (profile,) = profiles_of(emoji, "unet", Pictures())
    assert profile.label == "64x64, 1 image"
    assert ranges(profile) == {
        "sample": ((1, 4, 16, 16), (2, 4, 16, 16), (2, 4, 16, 16)),
        "timestep": ((1,), (2,), (2,)),
        "encoder_hidden_states": ((1, 32, 96), (2, 32, 96), (2, 32, 96)),
    }


def test_one_profile_for_each_shape_in_which_width_comes_first(emoji: ModelFolder) -> None:
    wide, small = profiles_of(emoji, "unet", Pictures(shapes=((96, 64), (32, 32)), images=(2, 4), prompt_chunks=3))
    assert wide.label == "96x64, 2 to 4 images, prompts of 1 to 3 chunks"
    assert ranges(wide)["sample"] == ((2, 4, 16, 24), (4, 4, 16, 24), (8, 4, 16, 24))
    assert ranges(wide)["encoder_hidden_states"] == ((2, 32, 96), (4, 32, 96), (8, 96, 96))
    assert ranges(small)["sample"] == ((2, 4, 8, 8), (4, 4, 8, 8), (8, 4, 8, 8))


def test_autoencoder_sees_pixels_on_one_side_and_latents_on_the_other(emoji: ModelFolder) -> None:
    pictures = Pictures(shapes=((96, 64),), images=(2, 3))
    (encoder,), (decoder,) = (profiles_of(emoji, name, pictures) for name in ("vae_encoder", "vae_decoder"))
    assert ranges(encoder) == {"sample": ((1, 3, 64, 96), (2, 3, 64, 96), (3, 3, 64, 96))}
    assert ranges(decoder) == {"latent_sample": ((2, 4, 16, 24), (2, 4, 16, 24), (3, 4, 16, 24))}


def test_text_encoder_has_one_profile_for_all_shapes(emoji: ModelFolder) -> None:
    (profile,) = profiles_of(emoji, "text_encoder", Pictures(shapes=((64, 64), (96, 64)), images=(1, 2)))
    assert profile.label == "1 to 2 images"
    assert ranges(profile) == {"input_ids": ((1, 32), (1, 32), (4, 32))}


def test_a_shape_named_twice_is_one_profile(emoji: ModelFolder) -> None:
    assert len(profiles_of(emoji, "unet", Pictures(shapes=((64, 64), (32, 32), (64, 64))))) == 2


def test_own_pictures_need_not_be_square(changed: Callable[..., ModelFolder]) -> None:
    (profile,) = profiles_of(changed(unet={"sample_size": [8, 24]}), "unet", Pictures())  # height and width
    assert profile.label == "96x32, 1 image"
    assert profile.shapes["sample"].usual == (2, 4, 8, 24)


def test_text_length_is_clip_s_where_the_configuration_is_silent(changed: Callable[..., ModelFolder]) -> None:
    (profile,) = profiles_of(changed(text_encoder={"max_position_embeddings": "absent"}), "unet", Pictures())
    assert profile.shapes["encoder_hidden_states"].usual == (2, 77, 96)


def test_sdxl_inputs(model: Callable[[str], Path]) -> None:
    folder = open_model_folder(model("SDXL"))
    (profile,) = profiles_of(folder, "unet", Pictures(images=(1, 2)))
    assert ranges(profile)["text_embeds"] == ((1, 16), (2, 16), (4, 16))
    assert ranges(profile)["time_ids"] == ((1, 6), (2, 6), (4, 6))
    (second,) = profiles_of(folder, "text_encoder_2", Pictures())
    assert ranges(second) == {"input_ids": ((1, 32), (1, 32), (2, 32))}


def test_instruct_pix2pix_has_three_branches(emoji: ModelFolder) -> None:
    folder = replace(emoji, class_name="StableDiffusionInstructPix2PixPipeline")
    assert profiles_of(folder, "unet", Pictures(images=(1, 2)))[0].shapes["timestep"].largest == (6,)


def test_unconditional_unet_sees_pixels(unconditional_export: Path) -> None:
    folder = open_model_folder(unconditional_export)
    (profile,) = profiles_of(folder, "unet", Pictures(images=(1, 2)))
    assert profile.label == "16x24, 1 to 2 images"
    assert ranges(profile)["sample"] == ((1, 3, 24, 16), (1, 3, 24, 16), (2, 3, 24, 16))
    with pytest.raises(ValueError, match=r"height must be a multiple of 4, got 18; nearest are 16 and 20"):
        profiles_of(folder, "unet", Pictures(shapes=((16, 18),)))


def test_fixed_pictures_of_a_depth_estimator(depth_export: Path) -> None:
    (profile,) = profiles_of(open_model_folder(depth_export), "depth_estimator", Pictures(images=(2, 3)))
    assert ranges(profile) == {"pixel_values": ((1, 3, 48, 48), (2, 3, 48, 48), (3, 3, 48, 48))}


@pytest.mark.parametrize(
    ("network", "pictures", "message"),
    [
        ("unet", {"shapes": ((66, 64),)}, r"^width must be a multiple of 4, got 66; nearest are 64 and 68$"),
        ("vae_encoder", {"shapes": ((64, 3),)}, r"^height must be a multiple of 4, got 3; the nearest is 4$"),
        ("vae_decoder", {"shapes": ((64, 1),)}, r"^height must be a multiple of 4, got 1; the nearest is 4$"),
        (
            "vae_decoder",
            {"shapes": ((32768, 32768),)},
            r"^vae_decoder would have a sample of the shape \(1, 3, 32768, 32768\), which is 3221225472 elements",
        ),
    ],
)
def test_pictures_that_a_network_cannot_take(
    emoji: ModelFolder, network: str, pictures: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        profiles_of(emoji, network, Pictures(**pictures))


def test_the_largest_tensor_that_there_can_be(emoji: ModelFolder) -> None:
    side = 4 * 6688  # 3 * side**2 is just below 2**31
    assert profiles_of(emoji, "vae_decoder", Pictures(shapes=((side, side),)))
    with pytest.raises(ValueError, match="TensorRT takes 2147483647 at most"):
        profiles_of(emoji, "vae_decoder", Pictures(shapes=((side + 4, side + 4),)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shapes": ((0, 64),)}, "--shape must be of at least one pixel, got 0x64"),
        ({"images": (0, 2)}, "--batch must go from 1 or more to no less than that, got 0-2"),
        ({"images": (4, 1)}, "--batch must go from 1 or more to no less than that, got 4-1"),
        ({"prompt_chunks": 0}, "--prompt-chunks must be at least 1, got 0"),
    ],
)
def test_pictures_that_nobody_makes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Pictures(**arguments)


def test_shapes_and_batches_are_read() -> None:
    assert parse_shape("512x768") == (512, 768)
    assert parse_batch("1-4") == (1, 4)
    assert parse_batch("3") == (3, 3)
    for text in ("512", "512x", "x512", "512x768x3", "-8x8", "512X768", "51²x4", ""):
        with pytest.raises(ValueError, match="--shape must be a width and a height"):
            parse_shape(text)
    for text in ("", "1-", "-1", "1-2-3", "a", "1.5"):
        with pytest.raises(ValueError, match="--batch must be a number of images"):
            parse_batch(text)


def test_a_fixed_input_holds_its_own_shape_alone(emoji: ModelFolder) -> None:
    fixed = [
        TensorRecord(name="sample", dtype="float32", shape=["batch", 4, 16, 16]),
        TensorRecord(name="timestep", dtype="float32", shape=["batch"]),
        TensorRecord(name="encoder_hidden_states", dtype="float32", shape=["batch", "sequence_length", 96]),
    ]
    folder = with_inputs(without(emoji), "unet", fixed)
    assert profiles_of(folder, "unet", Pictures())[0].shapes["sample"].largest == (2, 4, 16, 16)
    with pytest.raises(ValueError, match=r"takes sample of the shape \('batch', 4, 16, 16\) alone, .* width .* be 24"):
        profiles_of(folder, "unet", Pictures(shapes=((96, 64),)))
    one = replace(fixed[1], shape=[2])
    with pytest.raises(ValueError, match=r"takes timestep of the shape \(2,\) alone, and its batch .* be 1 to 2"):
        profiles_of(with_inputs(emoji, "unet", [one]), "unet", Pictures())


def test_an_unknown_free_dimension_is_refused(emoji: ModelFolder) -> None:
    folder = with_inputs(emoji, "unet", [TensorRecord(name="sample", dtype="float32", shape=["batch", 4, "rows", 16])])
    with pytest.raises(ValueError, match="unet has an input sample with the free dimension 'rows'"):
        profiles_of(folder, "unet", Pictures())


def test_what_the_folder_does_not_say_has_to_be_named(emoji: ModelFolder, changed: Callable[..., ModelFolder]) -> None:
    with pytest.raises(ValueError, match="has no autoencoder, which says how many latents"):
        profiles_of(without(emoji, "vae_encoder", "vae_decoder"), "unet", Pictures(shapes=((64, 64),)))
    with pytest.raises(ValueError, match="has no text encoder, which says how long a prompt is"):
        profiles_of(without(emoji, "text_encoder"), "unet", Pictures())
    silent = changed(unet={"sample_size": None})
    with pytest.raises(ValueError, match="does not say what pictures its model makes: name them, such as --shape"):
        profiles_of(silent, "unet", Pictures())
    assert profiles_of(silent, "unet", Pictures(shapes=((64, 64),)))
    assert profiles_of(silent, "text_encoder", Pictures())  # which does not see them
