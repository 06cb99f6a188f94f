"""The configuration files of the emoji checkpoint; what training finds out (vocabulary, scaling factor) is filled in.

The model is unlike Stable Diffusion 1.5 where code tends to assume: 32 tokens, not 77; latents a quarter of the image's
size, not an eighth; widths that are no powers of two; its own scaling factor.
"""

from typing import Any

IMAGE_SIZE = 64
TOKENS = 32  # a prompt's length, begin and end included
TEXT_WIDTH = 96
LATENT_CHANNELS = 4
LATENT_SIZE = 16

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 48, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "mid_block_add_attention": False,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": IMAGE_SIZE,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 4,
    "block_out_channels": [48, 96, 160],
    "center_input_sample": False,
    "cross_attention_dim": TEXT_WIDTH,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 16,
    "out_channels": LATENT_CHANNELS,
    "sample_size": LATENT_SIZE,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}

SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,  # for DDIM, which otherwise clips the latents
    "final_sigmas_type": "zero",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "discrete",
    "use_karras_sigmas": False,
}

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def text_encoder(*, vocab_size: int, bos_token_id: int, eos_token_id: int) -> dict[str, Any]:
    """The text encoder's configuration for a tokenizer."""
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": bos_token_id,
        "dtype": "float32",  # to compute in: transformers 5 else takes the weights' float16, which the UNet does not
        "eos_token_id": eos_token_id,
        "hidden_act": "quick_gelu",
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": TOKENS,
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": eos_token_id,
        "projection_dim": TEXT_WIDTH,
        "vocab_size": vocab_size,
    }
