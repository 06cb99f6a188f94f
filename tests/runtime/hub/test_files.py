"""Which files of a repository are needed: tables modelled on repositories of the hub."""

import json
from pathlib import Path
from typing import Any

import pytest

from safelight.reference.checkpoint import find_weights
from safelight.runtime.hub.files import Selection, exported_files, needed_files
from safelight.runtime.model_folder import is_exported

TOKENIZER = ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]


def within(folder: str, names: list[str]) -> list[str]:
    return [f"{folder}/{name}" for name in names]


def index(**components: str) -> dict[str, Any]:
    return {"_class_name": "Pipeline", **{name: ["library", kind] for name, kind in components.items()}}


def formats(stem: str, pickle: str, *variants: str) -> list[str]:
    return [f"{s}{v}.{suffix}" for s, suffix in ((stem, "safetensors"), (pickle, "bin")) for v in ("", *variants)]


SD15_INDEX = {
    **index(
        feature_extractor="CLIPImageProcessor",
        safety_checker="StableDiffusionSafetyChecker",
        scheduler="PNDMScheduler",
        text_encoder="CLIPTextModel",
        tokenizer="CLIPTokenizer",
        unet="UNet2DConditionModel",
        vae="AutoencoderKL",
    ),
    "image_encoder": [None, None],
}
SD15 = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "v1-inference.yaml",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "v1-5-pruned-emaonly.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "feature_extractor/preprocessor_config.json",
    *within("safety_checker", ["config.json", *formats("model", "pytorch_model", ".fp16")]),
    "scheduler/scheduler_config.json",
    *within("text_encoder", ["config.json", *formats("model", "pytorch_model", ".fp16")]),
    *within("tokenizer", TOKENIZER),
    "unet/config.json",
    *within("unet", formats("diffusion_pytorch_model", "diffusion_pytorch_model", ".fp16", ".non_ema")),
    *within("vae", ["config.json", *formats("diffusion_pytorch_model", "diffusion_pytorch_model", ".fp16")]),
]
SD15_SMALL = [
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    *within("tokenizer", TOKENIZER),
    "unet/config.json",
    "vae/config.json",
]
SDXL_INDEX = {
    **index(
        scheduler="EulerDiscreteScheduler",
        text_encoder="CLIPTextModel",
        text_encoder_2="CLIPTextModelWithProjection",
        tokenizer="CLIPTokenizer",
        tokenizer_2="CLIPTokenizer",
        unet="UNet2DConditionModel",
        vae="AutoencoderKL",
    ),
    "force_zeros_for_empty_prompt": True,
}
OTHER_ENGINES = ["flax_model.msgpack", "model.onnx", "openvino_model.bin", "openvino_model.xml"]
SDXL = [
    "LICENSE.md",
    "README.md",
    "01.png",
    "comparison.png",
    "model_index.json",
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_1.0_0.9vae.safetensors",
    "sd_xl_offset_example-lora_1.0.safetensors",
    "scheduler/scheduler_config.json",
    *within("text_encoder", ["config.json", "model.fp16.safetensors", "model.safetensors", *OTHER_ENGINES]),
    *within("text_encoder_2", ["config.json", "model.fp16.safetensors", "model.safetensors", *OTHER_ENGINES]),
    *within("text_encoder_2", ["model.onnx_data"]),
    *within("tokenizer", TOKENIZER),
    *within("tokenizer_2", TOKENIZER),
    *within("unet", ["config.json", "diffusion_flax_model.msgpack", "model.onnx", "model.onnx_data"]),
    *within("unet", ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]),
    *within("unet", ["openvino_model.bin", "openvino_model.xml"]),
    *within("vae", ["config.json", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]),
    *within("vae_1_0", ["config.json", "diffusion_pytorch_model.fp16.safetensors"]),
    *within("vae_decoder", ["config.json", "model.onnx", "openvino_model.bin", "openvino_model.xml"]),
    *within("vae_encoder", ["config.json", "model.onnx", "openvino_model.bin", "openvino_model.xml"]),
]
SDXL_SMALL = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    *within("tokenizer", TOKENIZER),
    *within("tokenizer_2", TOKENIZER),
    "unet/config.json",
    "vae/config.json",
]
TURBO_INDEX = {**SDXL_INDEX}
TURBO_INDEX.pop("text_encoder_2")
TURBO_INDEX.pop("tokenizer_2")
TURBO_INDEX |= {"feature_extractor": [None, None], "safety_checker": [None, None], "image_encoder": [None, None]}
TURBO = [
    "LICENSE.md",
    "README.md",
    "model_index.json",
    "sd_turbo.safetensors",
    "scheduler/scheduler_config.json",
    *within("text_encoder", ["config.json", "model.fp16.safetensors", "model.safetensors"]),
    *within("tokenizer", TOKENIZER),
    *within("unet", ["config.json", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]),
    *within("vae", ["config.json", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]),
]
DDPM_INDEX = index(scheduler="DDPMScheduler", unet="UNet2DModel")
DDPM = [
    ".gitattributes",
    "README.md",
    "config.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "images/generated_image_0.png",
    "model_index.json",
    "scheduler_config.json",
]
TAESD = [
    "README.md",
    "config.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "taesd_decoder.safetensors",
    "taesd_encoder.safetensors",
]
SHARDED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    *within(
        "unet",
        [
            "config.json",
            "diffusion_pytorch_model.safetensors.index.json",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.safetensors.fp16.index.json",
            *(f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)),
            *(f"diffusion_pytorch_model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)),
            *(f"diffusion_pytorch_model.ema-0000{n}-of-00002.safetensors" for n in (1, 2)),
            "diffusion_pytorch_model.safetensors.index.ema.json",
        ],
    ),
]
SHARDED_SMALL = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
IMAGE_ENCODER = [*DDPM[:0], "model_index.json", *within("unet", ["config.json", "diffusion_pytorch_model.safetensors"])]
IMAGE_ENCODER += within("image_encoder", ["config.json", "model.safetensors"])

CASES: dict[str, tuple[list[str], dict[str, Any], Selection, list[str]]] = {
    "sd 1.5": (
        SD15,
        SD15_INDEX,
        Selection(),
        [
            *SD15_SMALL,
            "safety_checker/model.safetensors",
            "text_encoder/model.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ],
    ),
    "sd 1.5, fp16, no safety checker": (
        SD15,
        SD15_INDEX,
        Selection(variant="fp16", safety_checker=False),
        [
            *(name for name in SD15_SMALL if not name.startswith("safety_checker/")),
            "text_encoder/model.fp16.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ],
    ),
    "sd 1.5, a variant that one network has": (
        SD15,
        SD15_INDEX,
        Selection(variant="non_ema", pickles=True),
        [
            *SD15_SMALL,
            "safety_checker/model.safetensors",
            "text_encoder/model.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ],
    ),
    "sdxl": (
        SDXL,
        SDXL_INDEX,
        Selection(),
        [
            *SDXL_SMALL,
            "text_encoder/model.safetensors",
            "text_encoder_2/model.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ],
    ),
    "sdxl, fp16, unet and vae decoder": (
        SDXL,
        SDXL_INDEX,
        Selection(variant="fp16", components=("unet", "vae_decoder")),
        [
            *SDXL_SMALL,
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ],
    ),
    "sd turbo, fp16": (
        TURBO,
        TURBO_INDEX,
        Selection(variant="fp16"),
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            *within("tokenizer", TOKENIZER),
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ],
    ),
    "ddpm-cat, flat": (
        DDPM,
        DDPM_INDEX,
        Selection(pickles=True),
        ["config.json", "diffusion_pytorch_model.safetensors", "model_index.json", "scheduler_config.json"],
    ),
    "ddpm-cat, flat, of its first days": (
        [name for name in DDPM if not name.endswith(".safetensors")],
        DDPM_INDEX,
        Selection(pickles=True),
        ["config.json", "diffusion_pytorch_model.bin", "model_index.json", "scheduler_config.json"],
    ),
    "taesd": (TAESD, {}, Selection(), ["config.json", "diffusion_pytorch_model.safetensors"]),
    "shards": (
        SHARDED,
        DDPM_INDEX,
        Selection(),
        [
            *SHARDED_SMALL,
            "unet/diffusion_pytorch_model.safetensors.index.json",
            *(f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)),
        ],
    ),
    "shards of a variant, the name at the end": (
        SHARDED,
        DDPM_INDEX,
        Selection(variant="fp16"),
        [
            *SHARDED_SMALL,
            "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
            *(f"unet/diffusion_pytorch_model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)),
        ],
    ),
    "shards of a variant, the name before the numbers": (
        SHARDED,
        DDPM_INDEX,
        Selection(variant="ema"),
        [
            *SHARDED_SMALL,
            "unet/diffusion_pytorch_model.safetensors.index.ema.json",
            *(f"unet/diffusion_pytorch_model.ema-0000{n}-of-00002.safetensors" for n in (1, 2)),
        ],
    ),
    "an image encoder": (
        IMAGE_ENCODER,
        index(unet="UNet2DConditionModel", image_encoder="CLIPVisionModelWithProjection"),
        Selection(),
        ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_exactly_what_an_export_reads_is_needed(case: str) -> None:
    listing, pipeline, selection, expected = CASES[case]
    assert needed_files(listing, pipeline, selection) == sorted(expected)
    assert not is_exported(listing)


@pytest.mark.parametrize(("case", "variant"), [("sd 1.5", None), ("sdxl, fp16, unet and vae decoder", "fp16")])
def test_the_reader_of_checkpoints_finds_what_was_chosen(tmp_path: Path, case: str, variant: str | None) -> None:
    chosen = needed_files(*CASES[case][:3])
    write(tmp_path, chosen)
    networks = {name.split("/")[0] for name in chosen if name.endswith(".safetensors")}
    found = {str(path.relative_to(tmp_path)) for n in networks for path in find_weights(tmp_path / n, variant=variant)}
    assert found == {name for name in chosen if name.endswith(".safetensors")}


@pytest.mark.parametrize("variant", [None, "fp16", "ema"])
def test_the_reader_of_shards_finds_what_was_chosen(tmp_path: Path, variant: str | None) -> None:
    chosen = needed_files(SHARDED, DDPM_INDEX, Selection(variant=variant))
    write(tmp_path, chosen)
    shards = sorted(Path(name).name for name in chosen if name.endswith(".safetensors"))
    (index_file,) = (tmp_path / "unet").glob("*.index*")
    index_file.write_text(json.dumps({"weight_map": dict(enumerate(shards))}))
    assert [path.name for path in find_weights(tmp_path / "unet", variant=variant)] == shards


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")


@pytest.mark.parametrize(
    ("listing", "pipeline", "selection", "error", "message"),
    [
        (
            SD15,
            SD15_INDEX,
            Selection(variant="bf16"),
            FileNotFoundError,
            "no weights of the variant 'bf16' in safety_checker, text_encoder, unet, vae; there are the variants fp16, "
            "non_ema",
        ),
        (
            TAESD,
            {},
            Selection(variant="fp16"),
            FileNotFoundError,
            "no weights of the variant 'fp16' in the network; there are no variants",
        ),
        (
            [name for name in SDXL if name != "vae/diffusion_pytorch_model.safetensors"],
            SDXL_INDEX,
            Selection(),
            FileNotFoundError,
            "vae has weights of the variants fp16 only: ask for one",
        ),
        (
            [name for name in SD15 if not name.startswith("unet/diff")],
            SD15_INDEX,
            Selection(),
            FileNotFoundError,
            "unet has no weights",
        ),
        (
            [name for name in SD15 if not name.startswith("vae/")],
            SD15_INDEX,
            Selection(),
            FileNotFoundError,
            "the component vae, which model_index.json names, is missing",
        ),
        (
            [name for name in SD15 if not name.startswith("safety_checker/")],
            SD15_INDEX,
            Selection(),
            FileNotFoundError,
            "the component safety_checker, which model_index.json names, is missing; --no-safety-checker leaves it out",
        ),
        (
            [name for name in SD15 if name != "safety_checker/model.safetensors"],
            SD15_INDEX,
            Selection(),
            ValueError,
            "safety_checker has pickles only (safety_checker/pytorch_model.bin), which can run code when they are "
            "opened; safelight export --allow-pickle reads their tensors and nothing else; --no-safety-checker leaves "
            "it out",
        ),
        (
            [name for name in DDPM if not name.endswith(".safetensors")],
            DDPM_INDEX,
            Selection(),
            ValueError,
            "unet has pickles only (diffusion_pytorch_model.bin), which can run code when they are opened; safelight "
            "export --allow-pickle reads their tensors and nothing else",
        ),
        (
            SD15,
            SD15_INDEX,
            Selection(components=("unet", "controlnet")),
            ValueError,
            "there is no network controlnet; there are safety_checker, text_encoder, unet, vae",
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_is_fetched(
    listing: list[str], pipeline: dict[str, Any], selection: Selection, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        needed_files(listing, pipeline, selection)
    assert str(caught.value) == message


OPTIMUM = [
    "README.md",
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    *within("text_encoder", ["config.json", "model.onnx"]),
    *within("tokenizer", TOKENIZER),
    *within("unet", ["config.json", "model.onnx", "model.onnx_data"]),
    *within("vae_decoder", ["config.json", "model.onnx"]),
    *within("vae_encoder", ["config.json", "model.onnx"]),
]


def test_of_another_exporters_folder_the_graphs_and_their_weights_are_needed() -> None:
    beside = ["unet/model_quantized.onnx", "unet/openvino_model.bin", "unet/openvino_model.xml", "logs/a/b.json"]
    listing = [*OPTIMUM, *beside]
    assert is_exported(listing)
    assert exported_files(listing, None) == sorted(name for name in OPTIMUM if name != "README.md")
    old = ["model_index.json", "unet/model.onnx", "unet/weights.pb", "pipeline.py"]
    assert exported_files(old, None) == old[:3]


def test_of_our_own_folder_the_manifests_files_are_needed() -> None:
    recorded = [*OPTIMUM[1:], "unet/model.onnxruntime-cpu.onnx", "fidelity/latents.safetensors"]
    listing = [*recorded, "README.md", ".gitattributes", "safelight.json", "unet/diffusion_pytorch_model.safetensors"]
    assert is_exported(listing)
    assert exported_files(listing, recorded) == sorted(["safelight.json", *recorded])
    with pytest.raises(FileNotFoundError, match=r"^the repository is not whole: it lacks unet/model\.onnx_data$"):
        exported_files([name for name in listing if name != "unet/model.onnx_data"], recorded)
