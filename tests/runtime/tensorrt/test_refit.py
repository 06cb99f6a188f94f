"""Engines that were built without their weights."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from simulated_machine import Machine

from safelight.runtime.backends import Array, open_network
from safelight.runtime.backends.tensorrt.refit import _cast
from safelight.runtime.manifest import file_record
from safelight.runtime.model_folder import ModelFolder, open_model_folder
from safelight.runtime.weight_file import WeightFile

TOKENS = {"input_ids": np.arange(32)[None] % 90}


def changed(folder: ModelFolder, destination: Path, change: Any, *, proof: bool = False) -> ModelFolder:
    """A model folder whose text encoder has other weights: a fine-tune of the same graph."""
    shutil.copytree(folder.path, destination)
    weights = destination / "text_encoder" / "model.onnx_data"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    manifest = folder.manifest
    assert manifest is not None
    files = {**manifest.files, "text_encoder/model.onnx_data": file_record(weights)}
    if not proof:
        files = {name: record for name, record in files.items() if not name.startswith("fidelity/")}
    replace(manifest, files=files).write(destination)
    return open_model_folder(destination)


def scaled(tensors: dict[str, Array]) -> None:
    tensors["text_model.final_layer_norm.weight"] = tensors["text_model.final_layer_norm.weight"] * 2


def test_weights_are_the_folders(machine: Machine) -> None:
    machine.build("text_encoder", stripped=True)
    network = machine.open("text_encoder")
    expected = open_network(machine.folder.graph("text_encoder", "onnxruntime-cpu"))(TOKENS)
    for name, values in network(TOKENS).items():
        np.testing.assert_array_equal(values, expected[name])
    network.close()


def test_one_plan_serves_a_fine_tune(rtx: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rtx.build("text_encoder", stripped=True)
    tuned = changed(rtx.folder, tmp_path / "tuned", scaled)
    base, other = rtx.open("text_encoder"), rtx.open("text_encoder", folder=tuned)
    assert "has the weights of" in caplog.text  # the fine-tune carries no proof
    first, second = base(TOKENS), other(TOKENS)
    np.testing.assert_array_equal(first["hidden_states.2"], second["hidden_states.2"])
    bias = rtx.folder.tensor("text_encoder", "text_model.final_layer_norm.bias").astype(np.float32)
    np.testing.assert_allclose(
        second["last_hidden_state"] - bias, 2 * (first["last_hidden_state"] - bias), rtol=1e-3, atol=1e-5
    )
    base.close()
    other.close()


def test_weights_in_the_wrong_place_are_noticed(rtx: Machine, tmp_path: Path) -> None:
    """By a call that the folder has the reference's answer to."""
    rtx.build("text_encoder", stripped=True)
    wrong = changed(rtx.folder, tmp_path / "wrong", scaled, proof=True)
    with pytest.raises(ValueError, match="is not the reference's text_encoder: last_hidden_state has a relative error"):
        rtx.open("text_encoder", folder=wrong)


def test_a_weight_that_the_folder_lacks(rtx: Machine) -> None:
    rtx.build("text_encoder", stripped=True, refittable=["text_model.no_such_weight"])
    with pytest.raises(ValueError, match=r"has no weight text_model.no_such_weight of text_encoder: it is another mod"):
        rtx.open("text_encoder")


def test_a_weight_of_another_size(rtx: Machine, tmp_path: Path) -> None:
    def longer(tensors: dict[str, Array]) -> None:
        tensors["text_model.final_layer_norm.bias"] = np.zeros(97, np.float16)

    rtx.build("text_encoder", stripped=True)
    other = changed(rtx.folder, tmp_path / "other", longer)
    with pytest.raises(ValueError, match=r"bias of text_encoder has 97 numbers .* the engine takes 96"):
        rtx.open("text_encoder", folder=other)


def test_weights_that_were_not_recorded(rtx: Machine) -> None:
    names = list(rtx.folder.weights("text_encoder"))
    rtx.build("text_encoder", stripped=True, refittable=names[1:])
    with pytest.raises(ValueError, match=f"also needs {names[0]}, which its record does not name"):
        rtx.open("text_encoder")


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.standard_normal(10_000), [0.0, -0.0, 1.00390625, 1.01171875, 3e38, 1e-40]])
    numbers = numbers.astype(np.float32)
    bits = _cast(numbers, "BF16")
    assert bits is not None
    np.testing.assert_array_equal(bits, numbers.astype(ml_dtypes.bfloat16).view(np.uint16))
    assert _cast(numbers, "FP8") is None


def test_stored_tensors_are_read_as_they_are(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    rng = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(3, 5, generator=rng).half(),
        "brain": torch.randn(4, 2, generator=rng).bfloat16(),
        "whole": torch.arange(7),
        "nothing": torch.zeros(0, 3),
    }
    save_torch(tensors, tmp_path / "weights", metadata={"format": "pt"})
    file = WeightFile(tmp_path / "weights")
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(file[name], expected.numpy())
        assert file[name].dtype == expected.numpy().dtype
    with pytest.raises(KeyError):
        file["other"]
    (tmp_path / "broken").write_bytes((tmp_path / "weights").read_bytes()[:-1])
    with pytest.raises(ValueError, match="broken is no safetensors file"):
        WeightFile(tmp_path / "broken")
