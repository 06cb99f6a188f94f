import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.reference.unet_2d import UNet2DConfig, UNet2DModel
from safelight.reference.unet_2d_blocks import DOWN_BLOCKS, UP_BLOCKS

ADM = {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}
NCSNPP = {"norm_num_groups": None, "mid_block_scale_factor": 2**0.5, "time_embedding_type": "fourier"}
SKIP, ATTN_SKIP = ("SkipDownBlock2D", "SkipUpBlock2D"), ("AttnSkipDownBlock2D", "AttnSkipUpBlock2D")
PLAIN, ATTN = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")
RESNET, K = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"), ("KDownBlock2D", "KUpBlock2D")


def config(*levels, **options):
    """A tiny network of these levels, each named by its kinds on the way down and up."""
    down, up = zip(*levels, strict=True)
    channels = (24, 40, 72)[: len(levels)]
    small = {"block_out_channels": channels, "layers_per_block": 1, "norm_num_groups": 4}
    return {**small, "down_block_types": down, "up_block_types": up[::-1], **options}


CONFIGS = {
    "DDPM": config(
        PLAIN, ATTN, PLAIN,
        layers_per_block=2, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, attention_head_dim=None,
        norm_eps=1e-3,
    ),
    "attention halves and doubles by convolution": config(ATTN, ATTN, ATTN),
    "attention at the ends, heads that leave channels over, other time width": config(
        ATTN, PLAIN, ATTN, attention_head_dim=16, time_embedding_dim=36, in_channels=1, out_channels=5
    ),
    "ADM": config(
        RESNET, ATTN, ATTN,
        layers_per_block=2, attn_norm_num_groups=9, num_class_embeds=7, act_fn="swish", **ADM,
    ),
    "ADM with kinds swapped, no norm in the middle": config(
        ATTN, RESNET, PLAIN, act_fn="mish", mid_block_scale_factor=1.5, **ADM
    ),
    "only one way in resnets": config(ATTN, ATTN, downsample_type="resnet", attn_norm_num_groups=2),
    "only the other way in resnets, oldest names": config(
        ("UNetResAttnDownBlock2D", "UNetResAttnUpBlock2D"), ("UNetResDownBlock2D", "UNetResUpBlock2D"),
        upsample_type="resnet",
    ),
    "NCSN++": config(
        SKIP, ATTN_SKIP, SKIP, block_out_channels=(32, 64, 64), layers_per_block=2, norm_eps=1e-6, **NCSNPP
    ),
    "NCSN++, attention everywhere, widths of which 32 is no divisor of the skip's": config(
        ATTN_SKIP, ATTN_SKIP, ATTN_SKIP, block_out_channels=(32, 160, 96), center_input_sample=True, **NCSNPP
    ),
    "NCSN++, one down to the picture, the rest without": config(
        SKIP, ("DownBlock2D", "SkipUpBlock2D"), ("SkipDownBlock2D", "UpBlock2D"), **ADM
    ),
    "NCSN++ at the end only": config(("DownBlock2D", "SkipUpBlock2D"), ("SkipDownBlock2D", "UpBlock2D")),
    "k-diffusion": config(
        K, K, K, block_out_channels=(32, 64, 128), layers_per_block=2, act_fn="gelu", norm_num_groups=8, **ADM
    ),
    "k-diffusion, one resnet block": config(K, K, block_out_channels=(64, 64), class_embed_type="timestep"),
    "no middle": config(PLAIN, PLAIN, mid_block_type=None, act_fn="relu"),
    "no attention in the middle": config(PLAIN, PLAIN, add_attention=False, act_fn="gelu"),
    "Fourier, and a timestep for a class": config(
        PLAIN, ATTN, time_embedding_type="fourier", class_embed_type="timestep", num_class_embeds=3
    ),
    "learned, and a timestep for a class": config(
        PLAIN, PLAIN, time_embedding_type="learned", num_train_timesteps=20, class_embed_type="timestep"
    ),
    "an embedding for a class": config(PLAIN, PLAIN, class_embed_type="identity", center_input_sample=True),
    "one level": config(ATTN, norm_num_groups=8),
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def oracle(request, randomize):
    return randomize(diffusers.UNet2DModel(**CONFIGS[request.param]))


@pytest.fixture
def pair(oracle, saved):
    return UNet2DModel.from_pretrained(saved(oracle)), oracle


def test_every_kind_of_level_and_every_choice_is_among_the_configurations():
    seen = [{**UNet2DConfig().to_dict(), **values} for values in CONFIGS.values()]
    down = {kind for values in seen for kind in values["down_block_types"]}
    up = {kind for values in seen for kind in values["up_block_types"]}
    assert down >= set(DOWN_BLOCKS)
    assert up >= set(UP_BLOCKS)
    for key in UNet2DConfig().to_dict().keys() - {"sample_size"}:
        assert len({str(values[key]) for values in seen}) > 1, key


def test_has_the_parameters_of_diffusers(oracle):
    with torch.device("meta"):
        unet = UNet2DModel.from_config(oracle.config)
    assert _shapes(unet) == _shapes(oracle)


@pytest.mark.parametrize("timesteps", [[3.25, 981.5], [3, 19]], ids=str)
def test_equals_diffusers(pair, noise, assert_equal, timesteps):
    unet, oracle = pair
    if oracle.config.time_embedding_type == "learned":
        timesteps = [int(timestep) % 20 for timestep in timesteps]
    sample, timesteps = noise(2, oracle.config.in_channels, 8, 20), torch.tensor(timesteps)
    labels = _labels(oracle, noise)
    assert_equal(unet(sample, timesteps, labels).sample, oracle(sample, timesteps, labels).sample)
    assert torch.equal(unet.predict(sample, timesteps, labels), unet(sample, timesteps, labels).sample)


def test_equals_diffusers_at_odd_sizes_where_nothing_is_halved(randomize, saved, noise, assert_equal):
    oracle = randomize(diffusers.UNet2DModel(**CONFIGS["one level"]))
    unet, sample = UNet2DModel.from_pretrained(saved(oracle)), noise(2, 3, 7, 11)
    assert_equal(unet(sample, 3).sample, oracle(sample, 3).sample)


@pytest.mark.parametrize("size", [(8, 10), (6, 12), (9, 8)], ids=str)
def test_a_size_that_cannot_be_halved_is_an_error_as_in_diffusers(small, saved, noise, size):
    unet, sample = UNet2DModel.from_pretrained(saved(small)), noise(1, 3, *size)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        small(sample, 3)
    with pytest.raises(ValueError, match=f"multiples of 4, got {size[0]} and {size[1]}"):
        unet(sample, 3)


@pytest.fixture
def small(randomize):
    return randomize(diffusers.UNet2DModel(**CONFIGS["DDPM"]))


@pytest.mark.parametrize(
    "timestep",
    [7, 3.25, torch.tensor(7), torch.tensor(3.25), torch.tensor([7]), torch.tensor([3.25]), torch.tensor([7, 901])],
    ids=str,
)
@pytest.mark.parametrize("name", ["DDPM", "NCSN++"])
def test_takes_every_kind_of_timestep(randomize, saved, noise, assert_equal, name, timestep):
    oracle = randomize(diffusers.UNet2DModel(**CONFIGS[name]))
    unet, sample = UNet2DModel.from_pretrained(saved(oracle)), noise(2, 3, 8, 8)
    # diffusers cuts the fraction off a number, not off a tensor
    known = timestep if isinstance(timestep, torch.Tensor) else torch.tensor(timestep)
    assert_equal(unet(sample, timestep).sample, oracle(sample, known).sample)


@pytest.mark.parametrize("name", ["DDPM", "ADM", "NCSN++", "k-diffusion"])
def test_dtype_is_of_weights_and_result(randomize, saved, noise, name):
    oracle = randomize(diffusers.UNet2DModel(**CONFIGS[name]))
    unet = UNet2DModel.from_pretrained(saved(oracle), dtype=torch.bfloat16)
    sample, labels = noise(2, 3, 8, 12).bfloat16(), _labels(oracle, noise)
    result = unet(sample, 981, labels).sample
    expected = oracle(sample.float(), 981, labels).sample
    assert result.dtype == torch.bfloat16
    assert (result - expected).abs().max() < 6e-2 * expected.abs().max()


def test_attention_under_its_old_names_is_read(small, saved, noise, assert_equal):
    folder = saved(small)
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        weights = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in weights.items()}
    assert "mid_block.attentions.0.proj_attn.bias" in weights
    save_file(weights, path, metadata={"format": "pt"})
    sample = noise(1, 3, 8, 8)
    assert_equal(UNet2DModel.from_pretrained(folder)(sample, 3).sample, small(sample, 3).sample)


@pytest.mark.parametrize("change", ["missing", "surplus", "misshapen"])
def test_weights_must_be_exactly_those_of_the_network(small, saved, change):
    folder = saved(small)
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if change == "missing":
        del weights["up_blocks.1.attentions.0.to_q.weight"]
    elif change == "surplus":
        weights["down_blocks.0.attentions.0.to_q.weight"] = torch.zeros(24, 24)
    else:
        weights["conv_out.bias"] = torch.zeros(4)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=change):
        UNet2DModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}, "CrossAttnDownBlock2D.*only.*'KDownBlock2D'"),
        ({"up_block_types": ("UpDecoderBlock2D", "UpBlock2D")}, "UpDecoderBlock2D.*only.*'AttnSkipUpBlock2D'"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types must have one entry for each .* 2, got 1"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type must be one of .*'UNetMidBlock2D'"),
        ({"act_fn": "tanh"}, "act_fn must be one of .*'mish'.*got 'tanh'"),
        ({"time_embedding_type": "gaussian"}, "time_embedding_type must be one of .*'fourier'"),
        ({"time_embedding_type": "learned"}, "needs num_train_timesteps"),
        ({"class_embed_type": "projection"}, "class_embed_type must be one of .*'identity'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift must be one of .*'scale_shift'"),
        ({"downsample_type": "pool"}, "downsample_type must be one of"),
        ({"upsample_type": "pool"}, "upsample_type must be one of"),
        ({"downsample_padding": 2}, "downsample_padding must be one of .*got 2"),
        ({"layers_per_block": 0}, "layers_per_block must be at least 1"),
        ({"block_out_channels": (9, 18), "norm_num_groups": 3}, "must be even, got 9"),
        ({"block_out_channels": (24, 42)}, "norm_num_groups must divide block_out_channels 42, got 4"),
        ({"norm_num_groups": None}, "norm_num_groups must divide"),
        ({"attention_head_dim": 48}, "attention_head_dim must be from 1 to block_out_channels 40, got 48"),
        (config(SKIP, SKIP, in_channels=1), "in_channels must be 3"),
        (config(SKIP, SKIP, out_channels=6), "out_channels must be 3"),
        (config(PLAIN, SKIP, PLAIN), "down_block_types must start with those that have Skip"),
        (config(RESNET, PLAIN, ("DownBlock2D", "SkipUpBlock2D")), "up_block_types must end with those that have Skip"),
        (config(K, ("KDownBlock2D", "UpBlock2D")), "go with no other kind"),
        (config(K, K, block_out_channels=(32, 16)), "16 channels cannot have 0 groups"),
        ({"cross_attention_dim": 8}, "cross_attention_dim = 8 is not implemented"),
        ({"layers_per_block": (1, 2)}, "layers_per_block must be int"),
        ({"_class_name": "UNet2DConditionModel"}, "expected the configuration of UNet2DModel"),
    ],
    ids=str,
)
def test_what_is_not_implemented_is_an_error(values, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        UNet2DModel.from_config({**config(PLAIN, PLAIN), **values})


def test_class_labels_are_given_exactly_where_there_are_classes(noise):
    sample = noise(1, 3, 8, 8)
    with pytest.raises(ValueError, match="has no classes and takes no class_labels"):
        UNet2DModel.from_config(CONFIGS["DDPM"])(sample, 3, torch.tensor([1]))
    with pytest.raises(ValueError, match="needs class_labels"):
        UNet2DModel.from_config(CONFIGS["ADM"])(sample, 3)


def test_configuration_survives_json_and_forgets_what_has_no_effect():
    values = {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "dropout": 0.1, **CONFIGS["ADM"]}
    unet_config = UNet2DConfig.from_dict(values)
    assert "dropout" not in unet_config.to_dict()
    assert UNet2DConfig.from_dict(unet_config.to_dict()) == unet_config


CAT = {  # google/ddpm-cat-256
    "sample_size": 256,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    "layers_per_block": 2,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "center_input_sample": False,
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
}


@pytest.fixture(scope="module")
def cat():
    with torch.device("meta"):
        return UNet2DModel.from_config(CAT)


def test_has_the_parameters_of_ddpm_cat_256(cat):
    with torch.device("meta"):
        assert _shapes(cat) == _shapes(diffusers.UNet2DModel(**CAT))
    assert sum(parameter.numel() for parameter in cat.parameters()) == 113_673_219


@pytest.mark.filterwarnings("ignore")  # of torch's exporter about itself
def test_ddpm_cat_256_can_be_traced_with_free_batch_height_and_width(cat):
    class Predict(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = cat

        def forward(self, sample, timestep):
            return self.unet.predict(sample, timestep)

    free = torch.export.Dim.DYNAMIC
    examples = torch.empty(2, 3, 96, 160, device="meta"), torch.empty(2, device="meta")
    shapes = {"sample": {0: free, 2: free, 3: free}, "timestep": {0: free}}
    exported = torch.export.export(Predict(), examples, dynamic_shapes=shapes, strict=False)
    (sample,) = (node for node in exported.graph.nodes if node.name == "sample")
    assert [isinstance(size, int) for size in sample.meta["val"].shape] == [False, True, False, False]
    for batch, height, width in ((1, 64, 64), (3, 128, 64)):
        result = exported.module()(
            torch.empty(batch, 3, height, width, device="meta"), torch.empty(batch, device="meta")
        )
        assert result.shape == (batch, 3, height, width)


def _labels(oracle, noise):
    kind = oracle.config.class_embed_type
    if kind == "identity":
        return noise(2, 4 * oracle.config.block_out_channels[0], seed=1)
    if kind == "timestep":
        return torch.tensor([5, 17]) if oracle.config.time_embedding_type == "learned" else torch.tensor([5.5, 17.0])
    return None if oracle.config.num_class_embeds is None else torch.tensor([6, 2])


def _shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
