import diffusers
import pytest
import torch

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


def _labels(oracle, noise):
    kind = oracle.config.class_embed_type
    if kind == "identity":
        return noise(2, 4 * oracle.config.block_out_channels[0], seed=1)
    if kind == "timestep":
        return torch.tensor([5, 17]) if oracle.config.time_embedding_type == "learned" else torch.tensor([5.5, 17.0])
    return None if oracle.config.num_class_embeds is None else torch.tensor([6, 2])


def _shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
