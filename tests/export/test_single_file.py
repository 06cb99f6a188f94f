"""Single files in the original layout: unpacked, each is the checkpoint that it was made from."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import original_layout
import pytest
import safetensors.torch
import single_files
import torch
import transformers
from diffusers.loaders import single_file_utils
from torch import Tensor

from safelight.export.single_file import identify, open_file, unpack
from safelight.export.single_file.contents import DROPPED, contents, is_dropped
from safelight.reference.checkpoint import find_weights
from safelight.runtime import cli

FAMILIES = single_files.FAMILIES


@dataclass(frozen=True)
class Unpacked:
    """A family's networks, their single file, and the folder that was made of it."""

    family: single_files.Family
    networks: Mapping[str, Any]
    original: Mapping[str, Tensor]
    file: Path
    folder: Path


@pytest.fixture(scope="module")
def unpacked_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Unpacked]:
    """Makes a family's file and unpacks it, once for each family."""
    done: dict[str, Unpacked] = {}

    def make(name: str) -> Unpacked:
        if name not in done:
            family, folder = FAMILIES[name], tmp_path_factory.mktemp(name.replace(" ", "-"))
            networks = single_files.networks(family)
            original = single_files.tensors(family, networks)
            path = single_files.write(folder / "model.safetensors", original)
            file = open_file(path)
            unpack(file, identify(file, prediction_type=family.prediction_type), folder / "unpacked")
            done[name] = Unpacked(family, networks, original, path, folder / "unpacked")
        return done[name]

    return make


@pytest.fixture(params=FAMILIES)
def unpacked(request: pytest.FixtureRequest, unpacked_family: Callable[[str], Unpacked]) -> Unpacked:
    return unpacked_family(request.param)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transformers 5 leaves out `text_model.` where there is nothing beside it."""
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def assert_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert len(expected) > 30
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def settings(config: Any) -> dict[str, Any]:
    """What a configuration says of the network."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    about_the_file = {"_class_name", "_name_or_path", "_use_default_values", "architectures", "dtype"}
    training = {"initializer_range"}
    kept = {key: value for key, value in values.items() if key not in about_the_file | training}
    return {key: settings(value) if isinstance(value, dict) else value for key, value in kept.items()}


def stored(folder: Path) -> dict[str, Tensor]:
    (path,) = find_weights(folder)
    return safetensors.torch.load_file(path)


def test_tensors_are_those_of_the_checkpoint_that_the_file_was_made_from(unpacked: Unpacked) -> None:
    for name, network in unpacked.networks.items():
        assert_same_tensors(without_prefix(stored(unpacked.folder / name)), without_prefix(network.state_dict()))


def test_diffusers_and_transformers_load_it_whole_with_the_same_configuration(unpacked: Unpacked) -> None:
    for name, network in unpacked.networks.items():
        loaded, report = type(network).from_pretrained(unpacked.folder / name, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        found, expected = settings(loaded.config), settings(network.config)
        assert {key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)} == set()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, with NumPy 2
def test_pipeline_is_the_one_that_diffusers_would_choose(unpacked: Unpacked) -> None:
    family = unpacked.family
    index = json.loads((unpacked.folder / "model_index.json").read_text())
    pipeline = diffusers.DiffusionPipeline.from_pretrained(unpacked.folder)
    assert type(pipeline).__name__ == index["_class_name"] == family.pipeline
    expected = getattr(diffusers, family.scheduler)(**family.scheduler_config)
    assert type(pipeline.scheduler) is type(expected)
    found = dict(pipeline.scheduler.config)
    differing = {key for key, value in expected.config.items() if found.get(key) != value}
    assert differing <= {"_use_default_values", "skip_prk_steps", "_diffusers_version"}
    tokenizers = {name for name in index if name.startswith("tokenizer") and index[name][1]}
    assert tokenizers == {name.replace("text_encoder", "tokenizer") for name in unpacked.networks if "text" in name}
    assert {name: getattr(pipeline, name).pad_token for name in tokenizers} == {
        name: "<|endoftext|>" if family.text_encoder is single_files.CLIP and name == "tokenizer" else "!"
        for name in tokenizers
    }
    assert pipeline.vae_scale_factor == 8
    if family.pipeline == "StableDiffusionXLImg2ImgPipeline":
        assert pipeline.config.requires_aesthetics_score
        assert not pipeline.config.force_zeros_for_empty_prompt


def test_tensors_are_those_that_diffusers_own_converters_give(unpacked: Unpacked) -> None:
    original = dict(unpacked.original)
    unet = single_file_utils.convert_ldm_unet_checkpoint(original, dict(unpacked.networks["unet"].config))
    assert_same_tensors(stored(unpacked.folder / "unet"), unet)
    vae = single_file_utils.convert_ldm_vae_checkpoint(original, dict(unpacked.networks["vae"].config))
    assert_same_tensors(stored(unpacked.folder / "vae"), vae)
    if "cond_stage_model.model.ln_final.weight" in original:
        text = single_file_utils.convert_open_clip_checkpoint(unpacked.networks["text_encoder"], original)
        assert_same_tensors(stored(unpacked.folder / "text_encoder"), text)
    elif "text_encoder" in unpacked.networks:
        text = single_file_utils.convert_ldm_clip_checkpoint(original)
        text = {name: tensor for name, tensor in text.items() if not name.endswith("position_ids")}
        text = {name: tensor for name, tensor in text.items() if name.startswith("text_model.")}
        assert_same_tensors(stored(unpacked.folder / "text_encoder"), text)
    for number in (0, 1):
        prefix = f"conditioner.embedders.{number}.model."
        if f"{prefix}text_projection" in original:
            text = single_file_utils.convert_open_clip_checkpoint(
                unpacked.networks["text_encoder_2"], original, prefix=prefix
            )
            assert_same_tensors(stored(unpacked.folder / "text_encoder_2"), text)


# the published shapes

_BLOCKS = ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
_UNET_1 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_UNET_2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
_UNET_XL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": _BLOCKS,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_UNET_REFINER = _UNET_XL | {
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": [*_BLOCKS, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "projection_class_embeddings_input_dim": 2560,
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_VIT_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_HYBRID = {"is_hybrid": True, "neck_hidden_sizes": [256, 512, 768, 768], "reassemble_factors": [1, 1, 1, 0.5]}

#: of the tensors of a part, written as "name [shape]", a line for each, in order: their number, their characters, and
#: a digest. Those of the UNets of 1.x and 2.x and of the autoencoder are those of the original code's modules; the
#: numbers of all are those of the lists that stable-diffusion-webui-model-toolkit has of the published files.
PUBLISHED = {
    "unet 1": (686, 36314, "0a32647aed4bb212"),
    "unet 1 inpainting": (686, 36314, "f32853fdaf221a0f"),
    "unet 2": (686, 36218, "ddc5d94a25ab77b2"),
    "unet xl": (1680, 101976, "8d7b1da7059706a0"),
    "unet xl inpainting": (1680, 101976, "a85649296c3c4847"),
    "unet xl refiner": (1220, 71062, "56e3de1cb0ca7a5b"),
    "vae": (248, 10149, "240432d782157824"),
    "clip-l": (197, 8744, "9108aaedac707a08"),
    "vit-h": (294, 14193, "905cc8eaf7c1815e"),
    "big-g": (390, 18913, "f7bfae1268219028"),
    "midas": (368, 22212, "82b6ebecbb0654dc"),
}
_PREFIXES = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.model.",
    "conditioner.embedders.0.transformer.text_model.",
    "conditioner.embedders.0.model.",
    "conditioner.embedders.1.model.",
    "depth_model.model.",
)


def part(name: str, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A part at its published shape, on the meta device: its tensors in the original layout, and its state."""
    unets = {"1": _UNET_1, "2": _UNET_2, "xl": _UNET_XL, "xl refiner": _UNET_REFINER}
    with torch.device("meta"):
        if name.startswith("unet"):
            kind, task = re.fullmatch(r"unet (.*?)( inpainting| instruct-pix2pix|)", name).groups()
            channels = {" inpainting": 9, " instruct-pix2pix": 8}.get(task, 4)
            unet = diffusers.UNet2DConditionModel(**unets[kind], in_channels=channels)
            return original_layout.unet(unet.state_dict(), unet.config), unet.state_dict()
        if name == "vae":
            vae = diffusers.AutoencoderKL(**_VAE)
            return original_layout.autoencoder(vae.state_dict(), vae.config), vae.state_dict()
        if name == "midas":
            state = transformers.DPTForDepthEstimation(transformers.DPTConfig(**_HYBRID)).state_dict()
            return original_layout.midas(state), state
        if name == "clip-l":
            state = transformers.CLIPTextModel(transformers.CLIPTextConfig(**_CLIP_L)).state_dict()
            return original_layout.clip(state, prefix), state
        values = {"vit-h": _VIT_H, "big-g": _BIG_G}[name]
        config = transformers.CLIPTextConfig(**values, projection_dim=values["hidden_size"])
        state = transformers.CLIPTextModelWithProjection(config).state_dict()
        return original_layout.openclip(state, prefix), state


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tests_own_table_gives_the_published_names_and_shapes(name: str) -> None:
    original, _ = part(name)
    lines = []
    for key, tensor in original.items():
        key = next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)
        lines.append(f"{key.removeprefix('text_model.')} [{','.join(map(str, tensor.shape))}]")
    listing = "\n".join(sorted(lines))
    digest = hashlib.sha256(listing.encode()).hexdigest()[:16]
    assert (len(lines), len(listing), digest) == PUBLISHED[name]


#: the parts of a file -> what diffusers infers, and our pipeline
_FILES = {
    "v1": (["unet 1", "vae", "clip-l cond_stage_model.transformer."], "StableDiffusionPipeline"),
    "inpainting": (
        ["unet 1 inpainting", "vae", "clip-l cond_stage_model.transformer."],
        "StableDiffusionInpaintPipeline",
    ),
    "instruct-pix2pix": (
        ["unet 1 instruct-pix2pix", "vae", "clip-l cond_stage_model.transformer."],
        "StableDiffusionInstructPix2PixPipeline",
    ),
    "v2": (["unet 2", "vae", "vit-h cond_stage_model.model."], "StableDiffusionPipeline"),
    "inpainting_v2": (["unet 2 inpainting", "vae", "vit-h cond_stage_model.model."], "StableDiffusionInpaintPipeline"),
    "xl_base": (
        ["unet xl", "vae", "clip-l conditioner.embedders.0.transformer.", "big-g conditioner.embedders.1.model."],
        "StableDiffusionXLPipeline",
    ),
    "xl_inpaint": (
        [
            "unet xl inpainting",
            "vae",
            "clip-l conditioner.embedders.0.transformer.",
            "big-g conditioner.embedders.1.model.",
        ],
        "StableDiffusionXLInpaintPipeline",
    ),
    "xl_refiner": (
        ["unet xl refiner", "vae", "big-g conditioner.embedders.0.model."],
        "StableDiffusionXLImg2ImgPipeline",
    ),
}


@pytest.mark.parametrize("kind", _FILES)
def test_files_of_the_published_shapes_are_told_apart_as_diffusers_does(kind: str) -> None:
    parts, pipeline = _FILES[kind]
    original: dict[str, Tensor] = {}
    states = {}
    for text in parts:
        name, prefix = text.rsplit(" ", 1) if text.endswith(".") else (text, "")
        tensors, states[name.split(" ")[0]] = part(name, prefix)
        original |= tensors
    assert single_file_utils.infer_diffusers_model_type(original) == kind
    found = contents({key: tuple(tensor.shape) for key, tensor in original.items()})
    assert found.class_name == pipeline
    networks = {network.name: network for network in found.networks}

    def shapes(network: str) -> dict[str, tuple[int, ...]]:
        pieces = {name: piece.take(original[piece.key]) for name, piece in networks[network].pieces.items()}
        return {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in pieces.items()}

    def expected(state: str) -> dict[str, tuple[int, ...]]:
        return {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in states[state].items()}

    assert shapes("unet") == expected("unet")
    assert shapes("vae") == expected("vae")
    if "big-g" in states:
        assert shapes("text_encoder_2") == expected("big-g")
    if "clip-l" in states:
        assert shapes("text_encoder") == expected("clip-l")
    if "vit-h" in states:
        unused = ("encoder.layers.23.", "text_projection")
        used = {name: value for name, value in expected("vit-h").items() if not name.startswith(unused)}
        assert shapes("text_encoder") == used
        assert networks["text_encoder"].config["num_hidden_layers"] == 23
    published = {"v1": _UNET_1, "v2": _UNET_2, "xl_base": _UNET_XL, "xl_refiner": _UNET_REFINER}.get(kind, {})
    assert {key: networks["unet"].config[key] for key in published} == published
    heads = {"text_encoder": 16 if kind.endswith("v2") else 12, "text_encoder_2": 20}
    for name in networks.keys() & heads.keys():
        assert networks[name].config["num_attention_heads"] == heads[name]


def test_depth_at_the_published_shape() -> None:
    original, state = part("midas")
    files = {**original, **part("unet 2")[0], **part("vae")[0], **part("vit-h", "cond_stage_model.model.")[0]}
    first = "model.diffusion_model.input_blocks.0.0.weight"
    files[first] = torch.empty(320, 5, 3, 3, device="meta")
    found = contents({key: tuple(tensor.shape) for key, tensor in files.items()})
    (estimator,) = [network for network in found.networks if network.name == "depth_estimator"]
    pieces = {name: tuple(piece.take(files[piece.key]).shape) for name, piece in estimator.pieces.items()}
    assert pieces == {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = transformers.DPTConfig(**estimator.config)
    published = transformers.DPTConfig(**_HYBRID)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size"):
        assert getattr(config, key) == getattr(published, key)
    assert tuple(config.backbone_out_indices) == tuple(published.backbone_out_indices)
    assert found.class_name == "StableDiffusionDepth2ImgPipeline"


# what a file does not say


def test_prediction_type_of_stable_diffusion_2(unpacked_family: Callable[[str], Unpacked]) -> None:
    shapes = open_file(unpacked_family("sd2").file).shapes
    assumed = contents(shapes)
    assert assumed.scheduler["prediction_type"] == "v_prediction"
    assert "velocity is assumed" in assumed.remarks[0]
    assert "--prediction-type epsilon" in assumed.remarks[0]
    for step, prediction_type in ((875000, "epsilon"), (110000, "v_prediction")):
        told = contents(shapes, global_step=step)
        assert told.scheduler["prediction_type"] == prediction_type
        assert not told.remarks
        unet = next(network for network in told.networks if network.name == "unet")
        assert unet.config["upcast_attention"] == (prediction_type == "v_prediction")
        assert unet.config["sample_size"] == (96 if prediction_type == "v_prediction" else 64)
    assert contents(shapes, prediction_type="epsilon", global_step=1).scheduler["prediction_type"] == "epsilon"
    assert not contents(shapes, prediction_type="v_prediction").remarks


def test_text_encoders_of_23_layers_and_without_the_inner_prefix_are_taken(
    unpacked_family: Callable[[str], Unpacked],
) -> None:
    original = unpacked_family("sd2").original
    shapes = {key: tuple(value.shape) for key, value in original.items() if ".resblocks.23." not in key}
    assert contents(shapes).networks[0].config["num_hidden_layers"] == 23
    original = unpacked_family("sd1").original
    plain = {key.replace("transformer.text_model.", "transformer."): value for key, value in original.items()}
    assert plain.keys() != original.keys()
    (encoder,) = [n for n in contents({k: tuple(v.shape) for k, v in plain.items()}).networks if "text" in n.name]
    state = {name: piece.take(plain[piece.key]) for name, piece in encoder.pieces.items()}
    assert_same_tensors(
        without_prefix(state), without_prefix(unpacked_family("sd1").networks["text_encoder"].state_dict())
    )


def test_half_precision_stays_half(unpacked_family: Callable[[str], Unpacked], tmp_path: Path) -> None:
    halves = {
        key: value.half() if value.is_floating_point() else value
        for key, value in unpacked_family("sd1").original.items()
    }
    file = open_file(single_files.write(tmp_path / "half.safetensors", halves))
    unpack(file, identify(file), tmp_path / "out")
    assert {tensor.dtype for tensor in stored(tmp_path / "out" / "unet").values()} == {torch.float16}


# what is refused

Breaks = Callable[..., str]


@pytest.fixture
def refuses(unpacked_family: Callable[[str], Unpacked], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Breaks:
    """Exports a family's file after a change; gives the one sentence that the command ends with. Nothing is left."""

    def export(change: Callable[[dict[str, Tensor]], Any], *, family: str = "sd1") -> str:
        original = dict(unpacked_family(family).original)
        changed = change(original)
        path = single_files.write(tmp_path / "model.safetensors", original if changed is None else changed)
        status = cli.main(["export", str(path), str(tmp_path / "out")])
        assert status == 1
        assert sorted(tmp_path.iterdir()) == [path]
        (sentence,) = capsys.readouterr().err.splitlines()
        return sentence.removeprefix(f"safelight: {path}")

    return export


def test_missing_tensors_are_named(refuses: Breaks) -> None:
    gone = ["model.diffusion_model.middle_block.0.in_layers.0.bias", "first_stage_model.quant_conv.weight"]

    def remove(original: dict[str, Tensor]) -> None:
        for key in gone:
            del original[key]

    assert refuses(remove) == f" lacks 2 tensors of Stable Diffusion 1.x: {', '.join(sorted(gone))}"


def test_unknown_tensors_are_named_and_counted(refuses: Breaks) -> None:
    def add(original: dict[str, Tensor]) -> None:
        original |= {f"model.diffusion_model.extra.{number}": torch.zeros(1) for number in range(7)}

    sentence = refuses(add)
    assert sentence.startswith(
        " has 7 tensors that are not known in Stable Diffusion 1.x, and might change its pictures"
    )
    assert "model.diffusion_model.extra.0, " in sentence
    assert "extra.4, ...; save it without them" in sentence


@pytest.mark.parametrize(
    "key", [f"{name}.weight" for name in ("model.diffusion_model.out.2", "first_stage_model.quant_conv")]
)
def test_quantized_tensors_are_refused_by_name(refuses: Breaks, key: str) -> None:
    def quantize(original: dict[str, Tensor]) -> None:
        original[key] = original[key].to(torch.float8_e4m3fn)

    assert refuses(quantize) == f": {key} is torch.float8_e4m3fn; quantized weights are not supported"


def test_a_full_disk_leaves_nothing_behind(unpacked_family: Callable[[str], Unpacked], tmp_path: Path) -> None:
    """No file may grow past 100 kB."""
    program = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from safelight.runtime import cli
sys.exit(cli.main(["export", {str(unpacked_family("sd1").file)!r}, {str(tmp_path / "out")!r}]))
"""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    assert re.search(r"^safelight: File too large: .*model\.safetensors$", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_integers_are_refused_by_name(refuses: Breaks) -> None:
    def quantize(original: dict[str, Tensor]) -> None:
        original["model.diffusion_model.out.2.weight"] = original["model.diffusion_model.out.2.weight"].to(torch.int8)

    assert "model.diffusion_model.out.2.weight is torch.int8; quantized weights" in refuses(quantize)


def keep(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda original: {key: value for key, value in original.items() if key.startswith(prefix)}


def drop(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda original: {key: value for key, value in original.items() if not key.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "held"),
    [
        (keep("first_stage_model."), "an autoencoder alone"),
        (keep("cond_stage_model."), "a text encoder alone"),
        (keep("model.diffusion_model."), "a UNet without a text encoder"),
        (keep("model_ema."), "nothing but the running average of a training"),
        (lambda _: {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 4)}, "a LoRA"),
        (lambda _: {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": torch.zeros(4, 4)}, "a LoRA"),
        (lambda _: {"emb_params": torch.zeros(1, 4)}, "a textual inversion"),
        (lambda _: {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(4)}, "a network in diffusers' names"),
        (lambda _: {"anything": torch.zeros(4)}, "no UNet of a known layout"),
        (lambda original: original | {"control_model.time_embed.0.weight": torch.zeros(4)}, "a ControlNet"),
        (lambda original: original | {"scaled_fp8": torch.zeros(2)}, "quantized weights"),
        (lambda original: original | {"edm_mean": torch.zeros(4), "edm_std": torch.zeros(4)}, "Playground v2.5"),
    ],
)
def test_other_contents_are_named(refuses: Breaks, change: Any, held: str) -> None:
    sentence = refuses(change)
    assert sentence.startswith(f" holds {held}")
    assert "Stable Diffusion 1.x (inpainting, InstructPix2Pix)" in sentence


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "FLUX"),
        ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "FLUX"),
        ("distilled_guidance_layer.in_proj.bias", "Chroma"),
        ("clip_txt_mapper.weight", "Stable Cascade"),
        ("down_blocks.1.0.channelwise.0.weight", "Stable Cascade"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias", "AnimateDiff"),
        ("cond_seq_linear.weight", "AuraFlow"),
        ("model.diffusion_model.patchify_proj.weight", "LTX-Video"),
        ("blocks.0.attn.qkv_x.weight", "Mochi"),
        ("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias", "HunyuanVideo"),
        ("cap_embedder.0.weight", "Lumina or Z-Image"),
        ("blocks.0.cross_attn.q_linear.weight", "SANA"),
        ("head.modulation", "Wan"),
        ("double_stream_blocks.0.block.adaLN_modulation.1.bias", "HiDream"),
        ("net.x_embedder.proj.1.weight", "Cosmos"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
    ],
)
def test_other_families_are_named(key: str, family: str) -> None:
    """By keys from which diffusers tells them."""
    with pytest.raises(ValueError, match=rf"^holds {family}; a single file can hold Stable Diffusion 1\.x"):
        contents({key: (4, 4)})


def test_other_unets_are_named(refuses: Breaks) -> None:
    first = "model.diffusion_model.input_blocks.0.0.weight"
    sentence = refuses(lambda original: original | {first: torch.zeros(32, 7, 3, 3)})
    assert sentence.startswith(" holds the Stable Diffusion upscaler; a single file can hold ")
    sentence = refuses(lambda original: original | {first: torch.zeros(32, 6, 3, 3)})
    assert sentence == " has a UNet with 6 input channels; Stable Diffusion 1.x is known with 4, 8, 9"


def test_a_file_without_autoencoder_says_so(refuses: Breaks) -> None:
    assert refuses(drop("first_stage_model.")).startswith(" lacks ")


def test_every_dropped_pattern_has_a_reason_and_matches_what_it_is_for() -> None:
    assert all(len(reason) > 5 for reason in DROPPED.values())
    for key in (
        "model_ema.diffusion_modelinput_blocks00weight",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.model.transformer.resblocks.23.ln_1.weight",
        "conditioner.embedders.1.model.logit_scale",
        "log_one_minus_alphas_cumprod",
        "first_stage_model.loss.perceptual_loss.net.slice1.0.weight",
    ):
        assert is_dropped(key)
    for key in (
        "cond_stage_model.model.transformer.resblocks.2.ln_1.weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.0.model.text_projection",
        "first_stage_model.quant_conv.weight",
        "model.diffusion_model.out.2.weight",
    ):
        assert not is_dropped(key)


def test_unknown_kinds_of_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (
        ("model.gguf", "model.gguf: quantized weights are not supported"),
        ("model.onnx", "ends in .safetensors, or with --allow-pickle in .ckpt, .pt, .pth, .bin"),
    ):
        (tmp_path / name).write_bytes(b"1234")
        assert cli.main(["export", str(tmp_path / name), str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    assert cli.main(["export", str(tmp_path / "model.safetensors"), str(tmp_path / "out")]) == 1
    assert "model.safetensors is truncated or corrupt" in capsys.readouterr().err


def test_options_of_the_other_kind_of_source_are_refused(
    unpacked_family: Callable[[str], Unpacked], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = unpacked_family("sd1").file, unpacked_family("sd1").folder
    assert cli.main(["export", str(file), str(tmp_path / "out"), "--variant", "fp16"]) == 1
    assert "is a single file, which has no variants; got 'fp16'" in capsys.readouterr().err
    assert cli.main(["export", str(folder), str(tmp_path / "out"), "--prediction-type", "epsilon"]) == 1
    assert "is no single file: what it predicts is in its scheduler_config.json" in capsys.readouterr().err
    assert cli.main(["export", str(file), str(tmp_path / "out"), "--prediction-type", "sample"]) == 1
    assert "prediction_type must be one of epsilon, v_prediction, got 'sample'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
