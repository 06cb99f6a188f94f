"""The whole way from a single file to pictures, against diffusers on the checkpoint that the file was made from."""

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


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl velocity"])
def test_text_to_image_equals_diffusers(name: str) -> None:
    folder, file = single_files.make_pair(name)
    export = checkpoints.export_checkpoint(file)
    pair = pairs.open_pair(single_files.FAMILIES[name].pipeline, export, folder)
    pairs.assert_same(pair, negative_prompt="dog", height=64, width=96, **OPTIONS)
    manifest = read_manifest(export)
    assert manifest is not None
    assert manifest.source == {
        "id": file.name,
        "revision": None,
        "variant": None,
        "files": {file.name: file_record(file).sha256},
        "loras": [],
    }
