import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.reference import AutoencoderKL
from safelight.reference.checkpoint import find_weights

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A small autoencoder's folder, `vae`, in a checkpoint."""
    config = {"_class_name": "AutoencoderKL", "block_out_channels": [8], "norm_num_groups": 4}
    path = tmp_path / "vae"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text("{}")
    autoencoder = AutoencoderKL.from_config(config)
    save_file(autoencoder.state_dict(), path / WEIGHTS)
    return path


def change(folder: Path, edit) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS)


def test_loads_a_subfolder_without_gradients(folder):
    autoencoder = AutoencoderKL.from_pretrained(folder.parent, subfolder="vae")
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    assert not autoencoder.training
    state = load_file(folder / WEIGHTS)
    assert all(torch.equal(value, state[name]) for name, value in autoencoder.state_dict().items())


def test_converts_to_the_dtype(folder):
    autoencoder = AutoencoderKL.from_pretrained(str(folder), dtype=torch.float16)
    assert {parameter.dtype for parameter in autoencoder.parameters()} == {torch.float16}


def test_loads_a_variant(folder):
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    AutoencoderKL.from_pretrained(folder, variant="fp16")
    with pytest.raises(
        FileNotFoundError, match=r"only diffusion_pytorch_model.fp16.safetensors; is variant=None meant"
    ):
        AutoencoderKL.from_pretrained(folder)


def shard(folder: Path) -> Path:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(weights)}
    for place in set(places.values()):
        save_file({name: value for name, value in weights.items() if places[name] == place}, folder / place)
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_loads_shards(folder):
    expected = load_file(folder / WEIGHTS)
    shard(folder)
    assert [path.name for path in find_weights(folder)] == ["part-0.safetensors", "part-1.safetensors"]
    state = AutoencoderKL.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in expected.items())


def test_names_a_missing_shard(folder):
    shard(folder)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"index.json names part-1.safetensors, which is not there"):
        AutoencoderKL.from_pretrained(folder)


@pytest.mark.parametrize("name", ["../vae/part.safetensors", "/etc/passwd", "part.bin"])
def test_refuses_shards_elsewhere(folder, name):
    shard(folder).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ValueError, match="not a safetensors file beside it"):
        AutoencoderKL.from_pretrained(folder)


def test_refuses_an_index_without_a_map(folder):
    shard(folder).write_text("{}")
    with pytest.raises(ValueError, match=r"index.json has no weight_map"):
        AutoencoderKL.from_pretrained(folder)


def test_refuses_a_path_that_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        AutoencoderKL.from_pretrained(tmp_path / "nowhere")


def test_refuses_a_folder_without_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        AutoencoderKL.from_pretrained(tmp_path)


def test_asks_for_a_subfolder_of_a_pipeline(folder):
    with pytest.raises(FileNotFoundError, match="is a whole pipeline; name one of its networks"):
        AutoencoderKL.from_pretrained(folder.parent)


def test_refuses_a_folder_without_weights(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no weights; expected {WEIGHTS} or"):
        AutoencoderKL.from_pretrained(folder)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt"])
def test_refuses_pickle_and_says_what_to_do(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    with pytest.raises(ValueError, match=rf"{name} is a pickle.*refused; convert it.*safe_serialization=True"):
        AutoencoderKL.from_pretrained(folder)


def test_refuses_use_safetensors_false(folder):
    with pytest.raises(ValueError, match="use_safetensors=False: pickle"):
        AutoencoderKL.from_pretrained(folder, use_safetensors=False)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_recognizes_a_git_lfs_pointer(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 334643276\n")
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        AutoencoderKL.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 5, 400, -1], ids=["nothing", "no header", "part of header", "part of data"])
def test_names_a_truncated_file(folder, keep):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{WEIGHTS} is truncated or corrupt"):
        AutoencoderKL.from_pretrained(folder)


def test_names_a_corrupt_file(folder):
    (folder / WEIGHTS).write_bytes(b"\xff" * 1000)
    with pytest.raises(ValueError, match=f"{WEIGHTS} is truncated or corrupt"):
        AutoencoderKL.from_pretrained(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}"])
def test_names_corrupt_json(folder, text):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        AutoencoderKL.from_pretrained(folder)


def test_refuses_json_that_is_no_object(folder):
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json must hold a JSON object, got list"):
        AutoencoderKL.from_pretrained(folder)


def test_names_the_file_of_a_configuration_that_is_refused(folder):
    (folder / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(
        ValueError, match=r"vae/config\.json: expected the configuration of AutoencoderKL, got .* VQModel"
    ):
        AutoencoderKL.from_pretrained(folder)


def test_names_missing_surplus_and_misshapen_tensors(folder):
    def edit(weights):
        del weights["quant_conv.bias"]
        weights["extra.weight"] = torch.zeros(3)
        weights["encoder.conv_in.bias"] = torch.zeros(7)

    change(folder, edit)
    with pytest.raises(ValueError, match=WEIGHTS) as error:
        AutoencoderKL.from_pretrained(folder)
    for part in (
        "1 missing: quant_conv.bias",
        "1 surplus: extra.weight",
        "1 misshapen: encoder.conv_in.bias is [7] and should be [8]",
    ):
        assert part in str(error.value)


def test_names_the_first_of_many_missing_tensors(folder):
    change(folder, lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("decoder")])
    with pytest.raises(ValueError, match=r"\d\d missing: decoder\.conv_in\.weight, .*, \.\.\.$") as error:
        AutoencoderKL.from_pretrained(folder)
    assert str(error.value).count("decoder.") == 5


def test_refuses_a_tensor_in_two_spellings(folder):
    def edit(weights):
        name = "encoder.mid_block.attentions.0.to_q.bias"
        weights[name.replace("to_q", "query")] = weights[name].clone()

    change(folder, edit)
    with pytest.raises(ValueError, match=r"1 surplus: encoder\.mid_block\.attentions\.0\.(to_q|query)\.bias"):
        AutoencoderKL.from_pretrained(folder)


def test_refuses_quantized_weights(folder):
    change(folder, lambda weights: weights.update({"quant_conv.bias": torch.zeros(8, dtype=torch.int8)}))
    with pytest.raises(ValueError, match=r"quant_conv\.bias is torch\.int8; quantized weights are not supported"):
        AutoencoderKL.from_pretrained(folder)
