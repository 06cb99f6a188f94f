"""Grids of pictures, to watch a training."""

from collections.abc import Sequence
from pathlib import Path

import architecture
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from train_unet import Denoiser, training_alphas_cumprod

from safelight.reference import AutoencoderKL

PROMPTS = (
    "cat face on a blue background",
    "red apple on a white background",
    "smiling face with sunglasses on a green background",
    "pizza on a yellow background",
    "bear on a pink background",
    "red heart on a white background",
    "dog face on a purple background",
    "hot beverage on a white background",
    "grinning face on a black background",
    "fox on a green background",
    "pig face on a white background",
    "banana on a purple background",
    "strawberry on a white background",
    "frog on a pink background",
    "owl on a yellow background",
    "hamburger on an orange background",
)
_COLUMNS = 8


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    vae: AutoencoderKL,
    tokenizer: Tokenizer,
    scaling_factor: float,
    *,
    prompts: Sequence[str] = PROMPTS,
    steps: int = 25,
    guidance_scale: float = 5.0,
    seed: int = 0,
) -> Tensor:
    """Pictures of prompts: (prompts, 3, 64, 64), about in [-1, 1], by Euler's method with the checkpoint's schedule.

    Args:
        denoiser: Text encoder and UNet.
        vae: Decodes the latents.
        tokenizer: Encodes to `TOKENS` ids.
        scaling_factor: Of the autoencoder's latents.
        prompts: What to draw.
        steps: Evaluations of the UNet.
        guidance_scale: How far to go from what an empty prompt gives.
        seed: Of the first noise.
    """
    device = next(denoiser.unet.parameters()).device
    encodings = tokenizer.encode_batch(["", *prompts])
    embeddings = denoiser.text_encoder(torch.tensor([each.ids for each in encodings], device=device)).last_hidden_state
    embeddings = torch.cat([embeddings[:1].expand(len(prompts), -1, -1), embeddings[1:]])

    alphas_cumprod = training_alphas_cumprod()
    spacing = len(alphas_cumprod) // steps
    timesteps = torch.arange(steps).mul(spacing).flip(0) + architecture.SCHEDULER["steps_offset"]
    sigmas = torch.cat([((1 - alphas_cumprod) / alphas_cumprod).sqrt()[timesteps], torch.zeros(1)])
    shape = (len(prompts), architecture.LATENT_CHANNELS, architecture.LATENT_SIZE, architecture.LATENT_SIZE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    latents = latents * (sigmas[0] ** 2 + 1).sqrt()
    for timestep, sigma, sigma_next in zip(timesteps.tolist(), sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        scaled = latents / (sigma**2 + 1) ** 0.5
        unconditional, conditional = denoiser.unet(torch.cat([scaled, scaled]), timestep, embeddings).sample.chunk(2)
        noise = unconditional + guidance_scale * (conditional - unconditional)
        latents = latents + noise * (sigma_next - sigma)
    return vae.decode(latents / scaling_factor).sample.cpu()


def save_grid(pictures: Tensor, path: Path) -> None:
    """Writes pictures, (count, 3, height, width) in [-1, 1], as one PNG of eight columns."""
    count, _, height, width = pictures.shape
    rows = -(-count // _COLUMNS)
    pixels = (pictures.clamp(-1, 1) + 1).mul(127.5).round().byte().permute(0, 2, 3, 1)
    grid = Image.new("RGB", (_COLUMNS * width, rows * height))
    for index, picture in enumerate(pixels):
        grid.paste(Image.fromarray(picture.numpy()), (index % _COLUMNS * width, index // _COLUMNS * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
