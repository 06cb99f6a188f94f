"""Checkpoints of published shapes with random weights in half precision, as the hub has them.

`python -m safelight.benchmarks.published FOLDER SHAPE` writes one.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from safelight.runtime.backends import Array
from safelight.runtime.model_folder import MODEL_INDEX

Config = Mapping[str, Any]

_WEIGHTS = {"transformers": "model.safetensors", "diffusers": "diffusion_pytorch_model.safetensors"}
_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Shape:
    """A pipeline: its class, and of each network the class and the configuration."""

    pipeline: str
    networks: Mapping[str, tuple[str, Config]]
    prediction_type: str = "epsilon"


_CLIP = {"model_type": "clip_text_model", "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
_CLIP_L = {
    **_CLIP,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
_CLIP_G = {
    **_CLIP,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_CLIP_H = {
    **_CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of the 24 that OpenCLIP has; the checkpoint leaves out the last
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
_UNET_15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_UNET_21 = {
    **_UNET_15,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
_UNET_XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "transformer_layers_per_block": (1, 2, 10),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def _sd(unet: Config, vae: Config, text_encoder: Config, prediction_type: str = "epsilon") -> Shape:
    networks = {
        "text_encoder": ("CLIPTextModel", text_encoder),
        "unet": ("UNet2DConditionModel", unet),
        "vae": ("AutoencoderKL", vae),
    }
    return Shape("StableDiffusionPipeline", networks, prediction_type)


def _sdxl(unet: Config, text_layers: tuple[int, int]) -> Shape:
    first, second = (
        {**config, "num_hidden_layers": n} for config, n in zip((_CLIP_L, _CLIP_G), text_layers, strict=True)
    )
    networks = {
        "text_encoder": ("CLIPTextModel", first),
        "text_encoder_2": ("CLIPTextModelWithProjection", second),
        "unet": ("UNet2DConditionModel", unet),
        "vae": ("AutoencoderKL", {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025}),
    }
    return Shape("StableDiffusionXLPipeline", networks)


SHAPES: Mapping[str, Shape] = {
    "sd15": _sd(_UNET_15, _VAE, _CLIP_L),
    "sd21": _sd(_UNET_21, {**_VAE, "sample_size": 768}, _CLIP_H, "v_prediction"),
    "sdxl": _sdxl(_UNET_XL, (12, 32)),
    # its UNet and its autoencoder, beside text encoders of two layers
    "sdxl-unet": _sdxl(_UNET_XL, (2, 2)),
    # for a try: the layers of Stable Diffusion 1.5, a tenth as wide
    "small": _sd(
        {**_UNET_15, "block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 64},
        {**_VAE, "block_out_channels": (32, 32, 64, 64)},
        {**_CLIP_L, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
}


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """Writes a checkpoint, one tensor in memory at a time.

    Args:
        folder: is made.
        shape: of `SHAPES`.

    Raises:
        FileExistsError: the folder is there already.
        OSError: the disk is full, or the folder cannot be written.
    """
    import torch

    from safelight.export.networks import build
    from safelight.export.single_file.tokenizer import write_tokenizer

    folder.mkdir(parents=True)
    scheduler = {**_SCHEDULER, "prediction_type": shape.prediction_type}
    index: dict[str, Any] = {"_class_name": shape.pipeline, "scheduler": ["diffusers", _SCHEDULER["_class_name"]]}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for name, (class_name, config) in shape.networks.items():
        library = "transformers" if name.startswith("text_encoder") else "diffusers"
        index[name] = [library, class_name]
        (folder / name).mkdir()
        named = {"architectures": [class_name]} if library == "transformers" else {"_class_name": class_name}
        (folder / name / "config.json").write_text(json.dumps({**named, **config}, indent=2))
        tensors = build(class_name, config, torch.float16).state_dict()
        shapes = {tensor: tuple(value.shape) for tensor, value in tensors.items()}
        _write_random(folder / name / _WEIGHTS[library], shapes)
        if library == "transformers":
            tokenizer = name.replace("text_encoder", "tokenizer")
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
            write_tokenizer(folder / tokenizer, pad_token="!" if name.endswith("_2") else "<|endoftext|>")
    (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2))


def count_parameters(checkpoint: Path) -> int:
    """How many numbers the weights of a checkpoint hold.

    Raises:
        ValueError: it has no safetensors.
    """
    files = list(checkpoint.glob("*/*.safetensors"))
    if not files:
        raise ValueError(
            f"{checkpoint} is no checkpoint to measure: it has no safetensors in the folders of its networks"
        )
    parameters = 0
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return parameters


def _write_random(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes a safetensors file."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    numbers = RandomNumbers()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            mean = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0  # of a norm's weight
            for part in numbers.draw(math.prod(shape), mean, _scale(shape)):
                file.write(part.data)


class RandomNumbers:
    """Normal numbers in half precision as fast as they can be copied: the same ones over and over.

    There is a prime number of them, so that no two rows of a matrix begin at the same one.
    """

    _PERIOD = 1_048_583

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)
        self._normal = self._generator.standard_normal(self._PERIOD, dtype=np.float32)
        self._scaled: dict[tuple[float, float], Array] = {}  # by mean and standard deviation

    def draw(self, count: int, mean: float, std: float) -> Iterator[Array]:
        """So many numbers in parts, from a random one of the period on, float16."""
        if (mean, std) not in self._scaled:
            self._scaled[mean, std] = (mean + self._normal * np.float32(std)).astype(np.float16)
        numbers = self._scaled[mean, std]
        first = int(self._generator.integers(self._PERIOD))
        while count:
            part = numbers[first : first + count]
            yield part
            count, first = count - len(part), 0


def _scale(shape: tuple[int, ...]) -> float:
    """A standard deviation that keeps what passes through the layer about as large as it was."""
    return float(math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.05)


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]), SHAPES[sys.argv[2]])
