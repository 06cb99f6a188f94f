"""JSON and text as somebody else may have written them, wherever a model folder has them."""

import json
import os
import shutil
from pathlib import Path

import pytest

from safelight.runtime import bundled_model
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.schedulers import load_scheduler
from safelight.runtime.text_files import LARGEST_CONFIGURATION, read_json, read_json_object, read_text
from safelight.runtime.tokenizer import CLIPTokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As much of a model folder as has JSON in it."""
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    for name, content in (
        ("model_index.json", index),
        ("unet/config.json", {}),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


JSON = {
    "deep": ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
    "deep objects": ('{"a":' * 100_000, "is not valid JSON: it is nested too deeply"),
    "a number of 400 digits": ('{"a": 1%s}' % ("0" * 400), "is not valid JSON: a number has 401 digits"),
    "a number of 10**5 digits": ('{"a": 1%s}' % ("0" * 10**5), "is not valid JSON: a number has 100001 digits"),
    "not a number": ('{"a": NaN}', "is not valid JSON: NaN is no number"),
    "a key twice": ('{"a": 1, "b": 2, "b": 2}', "is not valid JSON: the key 'b' occurs twice"),
    "a key twice within": ('{"a": [{"x": 1, "x": 2}]}', "is not valid JSON: the key 'x' occurs twice"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "is not valid JSON: .*BOM"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not valid JSON: 'utf-8' codec"),
    "a list": ("[]", "holds no JSON object"),
    "nothing": ("", "is not valid JSON: Expecting value"),
    "too large": (" " * (LARGEST_CONFIGURATION + 1), f"is larger than {LARGEST_CONFIGURATION} bytes"),
}  # fmt: skip


@pytest.mark.parametrize("attack", JSON)
def test_hostile_json_is_refused_wherever_it_is_read(folder: Path, attack: str) -> None:
    content, message = JSON[attack]
    content = content.encode() if isinstance(content, str) else content
    model = open_model_folder(folder)
    (folder / "unet" / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"unet/config\.json {message}"):
        model.config("unet")
    (folder / "scheduler" / "scheduler_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"scheduler_config\.json {message}"):
        load_scheduler(folder / "scheduler")
    (folder / "safelight.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"safelight\.json is not a manifest"):
        open_model_folder(folder)
    (folder / "model_index.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model_index\.json {message}"):
        open_model_folder(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_hostile_json_of_a_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(bundled_model() / "tokenizer", tmp_path / "tokenizer"))
    for content in ("[" * 100_000, '{"a": 1, "a": 2}', '{"a": NaN}'):
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=rf"tokenizer/{name} is not valid JSON"):
            CLIPTokenizer.from_pretrained(folder)
    os.truncate(folder / name, 2**30)
    with pytest.raises(ValueError, match=rf"tokenizer/{name} is larger than"):
        CLIPTokenizer.from_pretrained(folder)


def test_what_diffusers_writes_is_read(tmp_path: Path) -> None:
    """An infinity, as in `lambda_min_clipped`, and transformers' length of a tokenizer without one."""
    (tmp_path / "x.json").write_text('{"lambda_min_clipped": -Infinity, "model_max_length": 1' + "0" * 30 + "}")
    assert read_json_object(tmp_path / "x.json") == {"lambda_min_clipped": -float("inf"), "model_max_length": 10**30}
    assert read_json(tmp_path / "x.json", limit=1000)["model_max_length"] == 10**30


def test_many_keys_take_no_longer_for_one_that_is_there_twice(tmp_path: Path) -> None:
    keys = ",".join(f'"{number}":0' for number in range(60_000))
    (tmp_path / "x.json").write_text(f'{{{keys},"59999":1}}')
    with pytest.raises(ValueError, match="the key '59999' occurs twice"):
        read_json(tmp_path / "x.json")


def test_text_is_limited_and_utf_8(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("é".encode() * 50)
    assert read_text(tmp_path / "x", limit=100) == "é" * 50
    with pytest.raises(ValueError, match="x is larger than 99 bytes"):
        read_text(tmp_path / "x", limit=99)
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="x is not UTF-8"):
        read_text(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        read_text(tmp_path / "none")
