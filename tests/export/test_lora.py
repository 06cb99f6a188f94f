"""LoRA files of every spelling, fused: the weights are those of diffusers' `fuse_lora`."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from safelight.export.checkpoint import open_checkpoint
from safelight.export.lora import LoraFile, fused, open_lora, open_loras
from safelight.export.lora_names import COMPONENTS
from safelight.export.networks import COMPONENT_KINDS
from safelight.reference import CLIPTextModel

Networks = Mapping[str, nn.Module]
#: (component, layer) -> down, up
Matrices = dict[tuple[str, str], tuple[Tensor, Tensor]]
Tensors = dict[str, Tensor]

SCALE = 0.7
ALPHA = 2  # of rank 4; kohya's trainers write it as an integer if it was given as one
CONV_ALPHA = 5.0  # of rank 3
TOLERANCE = 1e-6  # relative to a weight's largest


def random_matrices(networks: Networks) -> Matrices:
    """Matrices for every linear layer, of rank 4, and for every convolution, of rank 3."""
    generator = torch.Generator().manual_seed(0)
    matrices = {}
    for component, network in networks.items():
        for name, module in network.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            out, *inner = module.weight.shape
            kernel = inner[1:]
            rank = 3 if kernel else 4
            down = torch.randn(rank, *inner, generator=generator)
            up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator) / 4
            layer = name if component == "unet" or name.startswith("text_") else f"text_model.{name}"
            matrices[component, layer] = down, up
    return matrices


def kohya(
    matrices: Matrices,
    prefixes: Mapping[str, str],
    *,
    conv_alpha: float = CONV_ALPHA,
    rename: Callable[[str], str] = lambda layer: layer,
) -> Tensors:
    tensors = {}
    for (component, layer), (down, up) in matrices.items():
        name = prefixes[component] + rename(layer).replace(".", "_")
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down, up
        tensors[f"{name}.alpha"] = torch.tensor(conv_alpha if down.ndim == 4 else ALPHA)
    return tensors


def dotted(matrices: Matrices, spell: Callable[[str, str], tuple[str, str]]) -> Tensors:
    tensors = {}
    for (component, layer), (down, up) in matrices.items():
        for key, tensor in zip(spell(component, layer), (down, up), strict=True):
            tensors[f"{component}.{key}.weight"] = tensor
    return tensors


def peft(_component: str, layer: str) -> tuple[str, str]:
    return f"{layer}.lora_A", f"{layer}.lora_B"


def attention_processors(component: str, layer: str) -> tuple[str, str]:
    """diffusers' first, which are layers of attention processors."""
    parent, _, last = layer.removesuffix(".0").rpartition(".")
    if component == "unet" and ".attn" in parent:
        return f"{parent}.processor.{last}_lora.down", f"{parent}.processor.{last}_lora.up"
    if component != "unet" and "self_attn" in parent:
        last = f"to_{last.removesuffix('_proj')}"
        return f"{parent}.{last}_lora.down", f"{parent}.{last}_lora.up"
    return lora_layers(component, layer)


def lora_layers(component: str, layer: str) -> tuple[str, str]:
    """diffusers' next, which are layers within the layers that they change."""
    infix = "lora" if component == "unet" else "lora_linear_layer"
    return f"{layer}.{infix}.down", f"{layer}.{infix}.up"


SD_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
FORMATS: dict[str, Callable[[Matrices], Tensors]] = {
    "kohya": lambda matrices: kohya(matrices, SD_PREFIXES),
    "peft": lambda matrices: dotted(matrices, peft),
    "attention processors": lambda matrices: dotted(matrices, attention_processors),
    "lora layers": lambda matrices: dotted(matrices, lora_layers),
}


def networks_of(pipeline: Any) -> dict[str, nn.Module]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: getattr(pipeline, name) for name in names if getattr(pipeline, name, None) is not None}


def fused_by_diffusers(pipeline: Any, *loras: tuple[Path | Tensors, float]) -> dict[str, Tensors]:
    """The weights of each component after `fuse_lora` of each file; the pipeline keeps its own."""
    networks = networks_of(pipeline)
    before = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
    for lora, scale in loras:
        pipeline.load_lora_weights(dict(lora) if isinstance(lora, dict) else lora)
        pipeline.fuse_lora(list(networks), lora_scale=scale)
        pipeline.unload_lora_weights()
    after = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
    for name, network in networks.items():
        network.load_state_dict(before[name])
    return after


def fused_here(networks: Networks, *loras: tuple[Path, float]) -> dict[str, Tensors]:
    """The same by what is tested; the networks keep their weights."""
    shapes = {name: {key: v.shape for key, v in network.state_dict().items()} for name, network in networks.items()}
    opened = [open_lora(LoraFile(path, scale), shapes) for path, scale in loras]
    changed = {}
    for name, network in networks.items():
        weights = fused(Held(network.state_dict()), name, opened)
        changed[name] = {key: weights[key] for key in weights.shapes}
    return changed


class Held:
    """Weights that are in memory."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def assert_same(found: dict[str, Tensors], expected: dict[str, Tensors]) -> None:
    assert found.keys() == expected.keys()
    for component, weights in expected.items():
        renamed = {reference_name(component, name): weight for name, weight in weights.items()}
        assert found[component].keys() == renamed.keys()
        for name, weight in renamed.items():
            error = (found[component][name] - weight).abs().max()
            assert error <= TOLERANCE * weight.abs().max(), (component, name, error)


def reference_name(component: str, name: str) -> str:
    return name if component == "unet" else CLIPTextModel.parameter_name(name)


def assert_changed(fused: dict[str, Tensors], base: Networks, matrices: Matrices) -> None:
    """Each layer with matrices is far from what it was, each other weight is exactly that."""
    for component, network in base.items():
        for name, weight in network.state_dict().items():
            if (component, name.removesuffix(".weight")) in matrices and name.endswith(".weight"):
                assert (fused[component][name] - weight).abs().max() > 0.1 * weight.abs().max(), name
            else:
                assert torch.equal(fused[component][name], weight), name


@pytest.fixture(scope="module")
def odd_pair(odd_checkpoint: Path) -> tuple[Any, Networks]:
    """diffusers' pipeline of a checkpoint whose projections are 1x1 convolutions, and the reference's networks."""
    return opened_pair(odd_checkpoint)


@pytest.fixture(scope="module")
def linear_pair(linear_checkpoint: Path) -> tuple[Any, Networks]:
    """The same of linear projections."""
    return opened_pair(linear_checkpoint)


def opened_pair(checkpoint: Path) -> tuple[Any, Networks]:
    components = [component for component in open_checkpoint(checkpoint).components if component.name in COMPONENTS]
    return diffusers.DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32), {
        component.name: COMPONENT_KINDS[component.class_name].model.from_pretrained(component.path)
        for component in components
    }


def saved(tensors: Tensors, folder: Path, name: str = "lora.safetensors") -> Path:
    save_file(tensors, folder / name)
    return folder / name


@pytest.mark.parametrize("spelling", FORMATS)
def test_every_spelling_equals_diffusers(odd_pair: tuple[Any, Networks], spelling: str, tmp_path: Path) -> None:
    theirs, ours = odd_pair
    matrices = random_matrices(networks_of(theirs))
    path = saved(FORMATS[spelling](matrices), tmp_path)
    found = fused_here(ours, (path, SCALE))
    assert_same(found, fused_by_diffusers(theirs, (path, SCALE)))
    assert_changed(found, ours, matrices)


def test_keys_without_a_component_are_the_unets(linear_pair: tuple[Any, Networks], tmp_path: Path) -> None:
    """diffusers' first LoRAs, for which its UNet still has a loader."""
    theirs, ours = linear_pair
    matrices = random_matrices({"unet": theirs.unet})
    attention = {key: value for key, value in matrices.items() if ".attn" in key[1]}
    tensors = {key.removeprefix("unet."): v for key, v in dotted(attention, attention_processors).items()}
    found = fused_here(ours, (saved(tensors, tmp_path), SCALE))
    unet = copy.deepcopy(theirs.unet)
    unet.load_lora_adapter(tensors, prefix=None)
    unet.fuse_lora(lora_scale=SCALE)
    unet.unload_lora()
    assert_same({"unet": found["unet"]}, {"unet": dict(unet.state_dict())})
    assert_changed(found, ours, attention)


def written_by_diffusers(matrices: Matrices, folder: Path, **configuration: Any) -> Path:
    """With PEFT's configuration of each component in the file's metadata."""
    layers: dict[str, Tensors] = {"unet": {}, "text_encoder": {}}
    for (component, layer), (down, up) in matrices.items():
        # as diffusers' training scripts have it, which load text encoders with transformers 5: no `text_model.`
        name = layer.removeprefix("text_model.")
        layers[component] |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        unet_lora_adapter_metadata=configured(layers["unet"], **configuration),
        text_encoder_lora_adapter_metadata=configured(layers["text_encoder"], **configuration),
    )
    return folder / "pytorch_lora_weights.safetensors"


def configured(layers: Tensors, **configuration: Any) -> dict[str, Any]:
    names = {key.rpartition(".lora_")[0]: tensor.shape[0] for key, tensor in layers.items() if "lora_A" in key}
    ranks = {name: rank for name, rank in names.items() if rank != 4}
    if "alpha_pattern" in configuration:  # PEFT warns of an entry that is for no layer
        pattern = configuration["alpha_pattern"].items()
        configuration["alpha_pattern"] = {end: alpha for end, alpha in pattern if any(n.endswith(end) for n in names)}
    return {"r": 4, "target_modules": list(names), "rank_pattern": ranks, **configuration}


@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param({"lora_alpha": 3}, id="alpha"),
        pytest.param({"lora_alpha": 3, "use_rslora": True}, id="rank-stabilized"),
        pytest.param({"lora_alpha": 3, "alpha_pattern": {"to_q": 7, "attn2.to_k": 5.5, "fc1": 1}}, id="of layers"),
    ],
)
def test_pefts_configuration_equals_diffusers(
    linear_pair: tuple[Any, Networks], configuration: dict[str, Any], tmp_path: Path
) -> None:
    theirs, ours = linear_pair
    path = written_by_diffusers(random_matrices(networks_of(theirs)), tmp_path, **configuration)
    assert_same(fused_here(ours, (path, SCALE)), fused_by_diffusers(theirs, (path, SCALE)))


def test_each_layer_has_its_own_alpha(linear_pair: tuple[Any, Networks], tmp_path: Path) -> None:
    """diffusers reads them from PEFT's configuration; of kohya's it gives attention layers the most common one."""
    theirs, ours = linear_pair
    matrices = random_matrices(networks_of(theirs))
    tensors = FORMATS["kohya"](matrices)
    alphas = dict(zip(matrices, itertools.cycle([1.0, 2.0, 6.0]), strict=False))
    for (component, layer), alpha in alphas.items():
        tensors[f"{SD_PREFIXES[component]}{layer.replace('.', '_')}.alpha"] = torch.tensor(alpha)
    pattern = {layer.removeprefix("text_model."): alpha for (_, layer), alpha in alphas.items()}
    expected = written_by_diffusers(matrices, tmp_path, lora_alpha=4, alpha_pattern=pattern)
    found = fused_here(ours, (saved(tensors, tmp_path), SCALE))
    assert_same(found, fused_by_diffusers(theirs, (expected, SCALE)))


def test_pefts_matrices_may_have_kohyas_alpha(linear_pair: tuple[Any, Networks], tmp_path: Path) -> None:
    """Such keys have one meaning, though diffusers refuses them."""
    theirs, ours = linear_pair
    matrices = random_matrices(networks_of(theirs))
    alphas = {
        f"{component}.{layer}.alpha": torch.tensor(CONV_ALPHA if down.ndim == 4 else ALPHA)
        for (component, layer), (down, _) in matrices.items()
    }
    one = saved(FORMATS["peft"](matrices) | alphas, tmp_path, "one.safetensors")
    other = saved(FORMATS["kohya"](matrices), tmp_path, "other.safetensors")
    assert_same(fused_here(ours, (one, SCALE)), fused_here(ours, (other, SCALE)))


def test_several_add_up(linear_pair: tuple[Any, Networks], tmp_path: Path) -> None:
    theirs, ours = linear_pair
    matrices = random_matrices(networks_of(theirs))
    attention = {key: (down * 2, up) for key, (down, up) in matrices.items() if "attn" in key[1]}
    one = saved(FORMATS["kohya"](matrices), tmp_path, "one.safetensors")
    other = saved(FORMATS["peft"](attention), tmp_path, "other.safetensors")
    loras = [(one, SCALE), (other, -0.4), (one, 0.2)]
    assert_same(fused_here(ours, *loras), fused_by_diffusers(theirs, *loras))


def test_a_scale_of_zero_is_the_base(linear_pair: tuple[Any, Networks], tmp_path: Path) -> None:
    theirs, ours = linear_pair
    path = saved(FORMATS["kohya"](random_matrices(networks_of(theirs))), tmp_path)
    assert_changed(fused_here(ours, (path, 0.0)), ours, {})


def test_a_wrong_alpha_would_be_seen(linear_pair: tuple[Any, Networks], tmp_path: Path) -> None:
    theirs, ours = linear_pair
    tensors = FORMATS["kohya"](random_matrices(networks_of(theirs)))
    key = next(key for key in tensors if key.endswith("mid_block_attentions_0_proj_in.alpha"))
    expected = fused_by_diffusers(theirs, (saved(tensors, tmp_path), SCALE))
    found = fused_here(ours, (saved({**tensors, key: tensors[key] * 1.001}, tmp_path), SCALE))
    with pytest.raises(AssertionError, match=r"mid_block\.attentions\.0\.proj_in"):
        assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_fused_in_single(linear_pair: tuple[Any, Networks], dtype: torch.dtype, tmp_path: Path) -> None:
    theirs, ours = linear_pair
    tensors = {k: v.to(dtype) for k, v in FORMATS["kohya"](random_matrices(networks_of(theirs))).items()}
    path = saved(tensors, tmp_path)
    assert_same(fused_here(ours, (path, SCALE)), fused_by_diffusers(theirs, (path, SCALE)))


@pytest.mark.parametrize("projections", ["odd", "linear"])
def test_a_convolution_of_1x1_is_a_linear_layer(
    request: pytest.FixtureRequest, projections: str, tmp_path: Path
) -> None:
    """What Stable Diffusion 1 has as a convolution, 2 has as a linear layer; diffusers takes each only as it is."""
    theirs, ours = request.getfixturevalue(f"{projections}_pair")
    tensors = FORMATS["kohya"](random_matrices(networks_of(theirs)))
    expected = fused_by_diffusers(theirs, (tensors, SCALE))
    reshaped = {}
    for key, tensor in tensors.items():
        if "_proj_" in key and tensor.ndim == 4:
            reshaped[key] = tensor.flatten(1)
        elif "_proj_" in key and tensor.ndim == 2:
            reshaped[key] = tensor[..., None, None].contiguous()
    assert reshaped
    assert_same(fused_here(ours, (saved({**tensors, **reshaped}, tmp_path), SCALE)), expected)


#: SDXL's kinds of levels, all three
XL = replace(
    checkpoints.SDXL,
    name="sdxl-three-levels",
    unet={
        **checkpoints.SDXL.unet,
        "block_out_channels": (20, 40, 60),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (2, 4, 6),
    },
)
XL_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}

#: layers of SDXL's UNet -> what the original implementation calls them, at least one of every kind and place
ORIGINAL = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.resnets.1.conv1": "input_blocks.2.0.in_layers.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks.4.0.emb_layers.1",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.1.proj_in": "input_blocks.5.1.proj_in",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
    "down_blocks.2.resnets.0.conv_shortcut": "input_blocks.7.0.skip_connection",
    "down_blocks.2.resnets.1.conv2": "input_blocks.8.0.out_layers.3",
    "down_blocks.2.attentions.1.transformer_blocks.2.ff.net.0.proj": (
        "input_blocks.8.1.transformer_blocks.2.ff.net.0.proj"
    ),
    "mid_block.resnets.0.conv1": "middle_block.0.in_layers.2",
    "mid_block.attentions.0.transformer_blocks.1.attn2.to_out.0": "middle_block.1.transformer_blocks.1.attn2.to_out.0",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "up_blocks.0.resnets.0.conv_shortcut": "output_blocks.0.0.skip_connection",
    "up_blocks.0.attentions.2.proj_out": "output_blocks.2.1.proj_out",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.attentions.0.transformer_blocks.1.ff.net.2": "output_blocks.3.1.transformer_blocks.1.ff.net.2",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.resnets.2.conv1": "output_blocks.8.0.in_layers.2",
    "conv_out": "out.2",
}


@pytest.fixture(scope="module")
def xl_pair() -> tuple[Any, Networks]:
    return opened_pair(checkpoints.make_checkpoint(XL))


XL_FORMATS: dict[str, Callable[[Matrices], Tensors]] = {
    "kohya": lambda matrices: kohya(matrices, XL_PREFIXES),
    "peft": lambda matrices: dotted(matrices, peft),
}


@pytest.mark.parametrize("spelling", XL_FORMATS)
def test_sdxl_equals_diffusers(xl_pair: tuple[Any, Networks], spelling: str, tmp_path: Path) -> None:
    theirs, ours = xl_pair
    matrices = random_matrices(networks_of(theirs))
    assert ("text_encoder_2", "text_projection") in matrices
    if spelling == "kohya":  # whose trainers have the original name of this embedding, and diffusers knows no other
        matrices = {key: value for key, value in matrices.items() if "add_embedding" not in key[1]}
    path = saved(XL_FORMATS[spelling](matrices), tmp_path)
    found = fused_here(ours, (path, SCALE))
    assert_same(found, fused_by_diffusers(theirs, (path, SCALE)))
    assert_changed(found, ours, matrices)
    (lora,) = open_loras([LoraFile(path)], open_checkpoint(checkpoints.make_checkpoint(XL)).components)
    fused = Counter(component for component, _ in matrices)
    assert lora.record()["fused"] == fused
    assert set(fused) == COMPONENTS


def test_sdxls_original_names_equal_diffusers(xl_pair: tuple[Any, Networks], tmp_path: Path) -> None:
    theirs, ours = xl_pair
    matrices = {key: value for key, value in random_matrices({"unet": theirs.unet}).items() if key[1] in ORIGINAL}
    assert len(matrices) == len(ORIGINAL)
    path = saved(kohya(matrices, XL_PREFIXES, conv_alpha=ALPHA, rename=ORIGINAL.__getitem__), tmp_path)
    found = fused_here(ours, (path, SCALE))
    assert_same(found, fused_by_diffusers(theirs, (path, SCALE)))
    assert_changed(found, ours, matrices)
