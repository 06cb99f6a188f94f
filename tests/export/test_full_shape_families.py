"""Every Stable Diffusion family at its published shapes, random weights: names, counts, and exported outputs.

`make test-full`. With SAFELIGHT_RECORD=FILE the numbers are written there (benchmarks/results/full-shape.json).
"""

import gc
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from pairs import relative
from recorded import record

from safelight import reference
from safelight.export.checkpoint import open_checkpoint
from safelight.export.folder import export_model
from safelight.export.options import ExportOptions
from safelight.runtime.backends import open_network
from safelight.runtime.model_folder import open_model_folder

pytestmark = pytest.mark.full_shape

LIMIT = 1e-4  # relative, float32

_LEVELS = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}
_XL = {
    "sample_size": 128,
    "layers_per_block": 2,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
_OPENAI = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


@dataclass(frozen=True)
class Published:
    """A network of a published checkpoint."""

    name: str
    component: str
    class_name: str
    config: dict[str, Any]
    parameters: int

    def build(self) -> Any:
        """The oracle's module, with random weights."""
        if self.component.startswith("text_encoder"):
            return getattr(transformers, self.class_name)(transformers.CLIPTextConfig(**self.config)).eval()
        return getattr(diffusers, self.class_name)(**self.config).eval()


EXPORTED = [
    Published("Stable Diffusion 1.5, text encoder", "text_encoder", "CLIPTextModel", _OPENAI, 123_060_480),
    Published(
        "Stable Diffusion 1.5, UNet",
        "unet",
        "UNet2DConditionModel",
        {**_LEVELS, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        859_520_964,
    ),
    Published("Stable Diffusion, autoencoder", "vae", "AutoencoderKL", _VAE, 83_653_863),
    Published(
        "Stable Diffusion 2.1, text encoder",
        "text_encoder",
        "CLIPTextModel",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
        340_387_840,
    ),
    Published(
        "Stable Diffusion 2.1, UNet",
        "unet",
        "UNet2DConditionModel",
        {
            **_LEVELS,
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        865_910_724,
    ),
    Published("SDXL, text encoder", "text_encoder", "CLIPTextModel", {**_OPENAI, "projection_dim": 768}, 123_060_480),
    Published(
        "SDXL, text encoder 2",
        "text_encoder_2",
        "CLIPTextModelWithProjection",
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "hidden_act": "gelu",
            "projection_dim": 1280,
        },
        694_659_840,
    ),
]
#: whose weights are too many for a test's memory: names and shapes alone
COUNTED = [
    Published(
        "SDXL, UNet",
        "unet",
        "UNet2DConditionModel",
        {
            **_XL,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "projection_class_embeddings_input_dim": 2816,
        },
        2_567_463_684,
    ),
    Published(
        "SDXL refiner, UNet",
        "unet",
        "UNet2DConditionModel",
        {
            **_XL,
            "block_out_channels": (384, 768, 1536, 1536),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": 4,
            "attention_head_dim": (6, 12, 24, 24),
            "cross_attention_dim": 1280,
            "projection_class_embeddings_input_dim": 2560,
        },
        2_259_526_660,
    ),
]
#: the size of each network's inputs when it is compared with the oracle
INPUTS = {
    "text_encoder": {"input_ids": (2, 77)},
    "text_encoder_2": {"input_ids": (2, 77)},
    "unet": {"sample": (1, 4, 32, 32)},
    "vae": {"latent_sample": (1, 4, 32, 32)},
}


@pytest.mark.parametrize("published", [*EXPORTED, *COUNTED], ids=lambda one: one.name)
def test_names_and_counts_are_the_oracles(published: Published) -> None:
    with torch.device("meta"):
        theirs = published.build()
    network = getattr(reference, published.class_name)
    with torch.device("meta"):
        ours = network.from_config(theirs.config.to_dict() if hasattr(theirs.config, "to_dict") else theirs.config)
    shapes = {network.parameter_name(name): tuple(value.shape) for name, value in theirs.named_parameters()}
    assert {name: tuple(value.shape) for name, value in ours.named_parameters()} == shapes
    assert sum(value.numel() for value in ours.parameters()) == published.parameters
    record(published.name, parameters=published.parameters)


@pytest.mark.parametrize("published", EXPORTED, ids=lambda one: one.name)
def test_exported_output_is_the_oracles(published: Published, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = published.build()
    theirs.save_pretrained(tmp_path / "checkpoint" / published.component)
    library = "transformers" if published.component.startswith("text_encoder") else "diffusers"
    index = {"_class_name": "StableDiffusionPipeline", published.component: [library, published.class_name]}
    (tmp_path / "checkpoint" / "model_index.json").write_text(json.dumps(index))
    inputs = example(published)
    with torch.no_grad():
        expected = outputs(theirs, inputs)
    del theirs
    gc.collect()

    started = time.perf_counter()
    export_model(open_checkpoint(tmp_path / "checkpoint"), tmp_path / "model", ExportOptions())
    seconds = time.perf_counter() - started
    graph = {"vae": "vae_decoder"}.get(published.component, published.component)
    folder = open_model_folder(tmp_path / "model")
    network = open_network(folder.graph(graph, "onnxruntime-cpu"))
    found = network(inputs, list(expected))
    error = max(relative(found[name], expected[name]) for name in expected)
    assert error < LIMIT
    assert folder.manifest is not None
    shares = {}  # of the spread, of which a 32nd passes
    for name, component in folder.manifest.components.items():
        assert component.fidelity is not None
        errors = [each["relative_error"] for each in component.fidelity["graphs"].values()]
        shares[name] = max(errors) / component.fidelity["half_precision"]
    record(
        published.name,
        parameters=published.parameters,
        relative_error=error,
        shares_of_spread=shares,
        export_seconds=round(seconds),
    )


def example(published: Published) -> dict[str, np.ndarray]:
    """Random inputs, those of a prompt for a text encoder."""
    rng = np.random.default_rng(0)
    ((name, shape),) = INPUTS[published.component].items()
    if name == "input_ids":
        token_ids = rng.integers(0, 49406, shape)
        token_ids[:, 0], token_ids[:, 9:] = 49406, 49407
        return {name: token_ids}
    inputs = {name: rng.standard_normal(shape, dtype=np.float32)}
    if published.component == "unet":
        inputs["timestep"] = np.array([421], dtype=np.float32)
        width = published.config["cross_attention_dim"]
        inputs["encoder_hidden_states"] = rng.standard_normal((1, 77, width), dtype=np.float32)
    return inputs


def outputs(theirs: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the oracle gives, by the names of the graph."""
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    if "latent_sample" in inputs:
        return {"sample": theirs.decode(*tensors).sample.numpy()}
    if "sample" in inputs:
        return {"out_sample": theirs(*tensors).sample.numpy()}
    output = theirs(*tensors, output_hidden_states=True)
    named = {"last_hidden_state": output.last_hidden_state, "hidden_states.3": output.hidden_states[3]}
    if "text_embeds" in output:
        named["text_embeds"] = output.text_embeds
    return {name: value.numpy() for name, value in named.items()}
