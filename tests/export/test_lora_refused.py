"""What cannot be fused: one sentence that names it, before any work."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safelight.export.checkpoint import open_checkpoint
from safelight.export.lora import LoraFile, fused, open_loras
from safelight.reference import UNet2DConditionModel
from safelight.reference.checkpoint import Weights
from safelight.runtime import cli

Fails = Callable[..., str]
Tensors = dict[str, Tensor]
Change = Callable[[Tensors], Tensors]

#: a layer of the `linear` checkpoint, and how kohya's trainers spell it
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
WIDTH, RANK = 60, 4
DOWN, UP, ALPHA = f"{KEY}.lora_down.weight", f"{KEY}.lora_up.weight", f"{KEY}.alpha"


def lora() -> Tensors:
    return {DOWN: torch.ones(RANK, WIDTH), UP: torch.ones(WIDTH, RANK), ALPHA: one()}


def one() -> Tensor:
    return torch.ones(())


def without(tensors: Tensors, *keys: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


def saved(tensors: Tensors, folder: Path, name: str = "lora.safetensors", **metadata: str) -> Path:
    save_file(tensors, folder / name, metadata=metadata or None)
    return folder / name


def test_only_a_number_after_the_last_colon_is_a_scale(tmp_path: Path) -> None:
    name = tmp_path / "a:b.safetensors"
    name.touch()
    assert LoraFile.parse(str(name)) == LoraFile(name, 1.0)
    assert LoraFile.parse(f"{name}:-0.25") == LoraFile(name, -0.25)
    assert LoraFile.parse(f"{name}:1e-1") == LoraFile(name, 0.1)
    twice = tmp_path / "a:2"
    twice.touch()
    assert LoraFile.parse(f"{twice}:3") == LoraFile(twice, 3.0)


@pytest.mark.parametrize(
    ("name", "content", "suffix", "message"),
    [
        ("none.safetensors", None, "", "there is no LoRA {path}"),
        ("lora.safetensors", b"", ":strong", "{path}: the scale of a LoRA must be a number, got 'strong'"),
        ("lora.safetensors", b"", ":nan", "{path}: the scale of a LoRA must be a finite number, got nan"),
        ("lora.pt", b"PK", ":0.5", "{path} is a pickle, and opening a pickle can run code: bring it as .safetensors"),
        ("lora.safetensors", b"PK", "", "{path} is truncated or corrupt; download it again"),
        (".", None, "", "{path} is a folder; name the LoRA's safetensors file in it"),
    ],
)
def test_what_is_no_lora_file_is_refused(
    fails: Fails,
    linear_checkpoint: Path,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    suffix: str,
    message: str,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    sentence = fails(linear_checkpoint, tmp_path / "out", "--lora", f"{path}{suffix}")
    assert sentence.startswith(message.format(path=path))


#: what is done to the LoRA of a layer, and what is said of it
REFUSED: dict[str, tuple[Change, str]] = {
    "unknown keys": (
        lambda tensors: tensors | {f"lora_unet_{n}.lora_up.weight": torch.ones(2, 2) for n in range(7)},
        "7 of its 10 tensors are for no layer of this checkpoint: lora_unet_0.lora_up.weight, "
        "lora_unet_1.lora_up.weight, lora_unet_2.lora_up.weight, lora_unet_3.lora_up.weight, "
        "lora_unet_4.lora_up.weight, ...; it was made for another model, or in a spelling that is not known",
    ),
    "another component": (
        lambda tensors: {"lora_te2_text_projection.alpha": torch.ones(())},
        "none of its 1 tensors is for a layer of this checkpoint's text_encoder, unet: "
        "lora_te2_text_projection.alpha; it was made for another model, or in a spelling that is not known",
    ),
    "nothing": (lambda tensors: {}, "it holds no tensors, so it would change nothing"),
    "another width": (
        lambda tensors: tensors | {DOWN: torch.ones(RANK, 7)},
        f"{LAYER}.weight of the unet is [60, 60], and the LoRA's "
        "change of it is [60, 7]: it was made for another model",
    ),
    "another kernel": (
        lambda tensors: tensors | {DOWN: torch.ones(RANK, WIDTH, 3, 3)},
        f"{LAYER}.weight of the unet is [60, 60], and the LoRA's "
        "change of it is [60, 60, 3, 3]: it was made for another model",
    ),
    "two ranks": (
        lambda tensors: tensors | {DOWN: torch.ones(5, WIDTH)},
        f"{UP} is [60, 4] and {DOWN} is [5, 60], which do not multiply",
    ),
    "no rank": (
        lambda tensors: tensors | {DOWN: torch.ones(0, WIDTH), UP: torch.ones(WIDTH, 0)},
        f"{UP} is [60, 0] and {DOWN} is [0, 60], which do not multiply",
    ),
    "up without down": (
        lambda tensors: without(tensors, DOWN, ALPHA),
        f"{UP} came without the layer's down",
    ),
    "down without up": (
        lambda tensors: without(tensors, UP, ALPHA),
        f"{DOWN} came without the layer's up",
    ),
    "alpha alone": (
        lambda tensors: {ALPHA: tensors[ALPHA]},
        f"{ALPHA} came without the layer's down",
    ),
    "a layer twice": (
        lambda tensors: tensors | {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha": one()},
        f"{ALPHA} and lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha are the same tensor of the "
        "same layer",
    ),
    "two alphas": (
        lambda tensors: tensors | {ALPHA: torch.ones(2)},
        f"{ALPHA} must be one finite number, got [1.0, 1.0]",
    ),
    "no alpha": (
        lambda tensors: tensors | {ALPHA: one() / 0},
        f"{ALPHA} must be one finite number, got inf",
    ),
    "integers": (
        lambda tensors: tensors | {UP: torch.ones(WIDTH, RANK, dtype=torch.int8)},
        f"only floating-point numbers can be fused, not those of {UP}",
    ),
    "DoRA": (
        lambda tensors: tensors | {f"{KEY}.dora_scale": torch.ones(WIDTH)},
        f"only LoRA and LoCon can be fused, and {KEY}.dora_scale is of a DoRA",
    ),
    "PEFT's DoRA": (
        lambda tensors: tensors | {"unet.conv_in.lora_magnitude_vector": torch.ones(WIDTH)},
        "only LoRA and LoCon can be fused, and unet.conv_in.lora_magnitude_vector is of a DoRA",
    ),
    "LoHa": (
        lambda tensors: {f"{KEY}.hada_w1_a": torch.ones(WIDTH, RANK)},
        f"only LoRA and LoCon can be fused, and {KEY}.hada_w1_a is of a LoHa",
    ),
    "LoKr": (
        lambda tensors: {f"{KEY}.lokr_w1": torch.ones(WIDTH, RANK)},
        f"only LoRA and LoCon can be fused, and {KEY}.lokr_w1 is of a LoKr",
    ),
    "CP decomposition": (
        lambda tensors: tensors | {f"{KEY}.lora_mid.weight": torch.ones(4, 4, 3, 3)},
        f"only LoRA and LoCon can be fused, and {KEY}.lora_mid.weight is of a LoCon with CP decomposition",
    ),
    "not finite": (
        lambda tensors: tensors | {UP: torch.full((WIDTH, RANK), 3e38)},
        f"{UP} times {DOWN} has numbers that are not finite",
    ),
}


def dict_of(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: weights[name] for name in weights.shapes}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fused_is_named(linear_checkpoint: Path, case: str, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    path = saved(change(lora()), tmp_path)
    components = open_checkpoint(linear_checkpoint).components
    unet = UNet2DConditionModel.open_weights(linear_checkpoint / "unet")
    with pytest.raises(ValueError, match="lora") as error:
        dict_of(fused(unet, "unet", open_loras([LoraFile(path)], components)))
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ("[1]", "its lora_adapter_metadata must be a JSON object, got [1]"),
        ("{", "its lora_adapter_metadata must be a JSON object, got {"),
        (
            json.dumps({"unet.init_lora_weights": "pissa"}),
            "its training started from 'pissa', which changes the weights that it belongs to",
        ),
        (
            json.dumps({"unet.lora_alpha": "much"}),
            f"its lora_adapter_metadata has no alpha for {LAYER} that can be read: could not convert string to float",
        ),
        (
            json.dumps({"unet.alpha_pattern": {"(": 1}}),
            f"its lora_adapter_metadata has no alpha for {LAYER} that can be read: missing ), unterminated subpattern",
        ),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(
    linear_checkpoint: Path, configuration: str, message: str, tmp_path: Path
) -> None:
    path = saved(without(lora(), ALPHA), tmp_path, lora_adapter_metadata=configuration)
    with pytest.raises(ValueError, match="lora") as error:
        open_loras([LoraFile(path)], open_checkpoint(linear_checkpoint).components)
    assert str(error.value).startswith(f"{path}: {message}")


def test_every_lora_is_checked_before_any_work(
    linear_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--lora", str(saved(lora(), tmp_path, "good.safetensors"))]
    options += ["--lora", str(saved(lora() | {"surplus": one()}, tmp_path, "bad.safetensors"))]
    assert cli.main(["export", str(linear_checkpoint), str(tmp_path / "out"), *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "bad.safetensors: 1 of its 4 tensors are for no layer of this checkpoint: surplus" in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.safetensors", "good.safetensors"]
