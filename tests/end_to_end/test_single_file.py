"""The whole way from a single file to pictures, against diffusers on the checkpoint that the file was made from."""

from pathlib import Path

import checkpoints
import pairs
import pytest
import single_files

from safelight.runtime.manifest import file_record, read_manifest

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

PROMPT = "a photo of a cat!"
OPTIONS = {"prompt": PROMPT, "num_inference_steps": 6}


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_text_to_image_equals_diffusers(name: str) -> None:
    folder, file = single_files.make_pair(name)
    export = checkpoints.export_checkpoint(file)
    pair = pairs.open_pair("StableDiffusionPipeline", export, folder)
    pairs.assert_same(pair, negative_prompt="dog", height=64, width=96, **OPTIONS)
    manifest = read_manifest(export)
    assert manifest is not None
    assert manifest.source == {
        "id": file.name,
        "revision": None,
        "variant": None,
        "files": {file.name: file_record(file).sha256},
    }
    assert not [path for path in export.parent.iterdir() if path.name.startswith(".safelight.")]


def test_inpainting_equals_diffusers() -> None:
    folder, file = single_files.make_pair("sd1 inpainting")
    pair = pairs.open_pair("StableDiffusionInpaintPipeline", checkpoints.export_checkpoint(file), folder)
    image, mask = pairs.photograph("astronaut", (64, 64)), pairs.photograph("coffee", (64, 64)).convert("L")
    pairs.assert_same(pair, image=image, mask_image=mask, height=64, width=64, **OPTIONS)


def test_depth_to_image_equals_diffusers() -> None:
    folder, file = single_files.make_pair("sd2 depth")
    export = checkpoints.export_checkpoint(file)
    pair = pairs.open_pair("StableDiffusionDepth2ImgPipeline", export, folder)
    pair[1].feature_extractor.size = pair[1].feature_extractor.size | {"height": 64, "width": 64}
    pairs.assert_same(pair, image=pairs.photograph("chelsea", (64, 64)), **OPTIONS)


def test_nothing_is_left_where_the_file_lies(tmp_path: Path) -> None:
    _, file = single_files.make_pair("sd1")
    before = sorted(file.parent.iterdir())
    assert before == sorted([file, file.parent / "folder"])
