"""The autoencoder: random crops of the drawings on plain backgrounds."""

import logging
from typing import Any

import architecture
import torch
from dataset import background_colors, on_background
from torch import Tensor
from training import Budget, WeightAverage, mixed_precision, set_learning_rate

from safelight.reference import AutoencoderKL

_BATCH = 32
_CROP = 32
_CROP_GRID = 4  # crops begin at multiples of it
_NAMED_COLOR_SHARE = 0.7  # the other backgrounds are of random colours
_KL_WEIGHT = 1e-4
_GRADIENT_WEIGHT = 0.5
_AVERAGE_DECAY = 0.999

logger = logging.getLogger(__name__)


def train_vae(
    images: Tensor, budget: Budget, *, seed: int, device: torch.device
) -> tuple[AutoencoderKL, dict[str, Any]]:
    """The autoencoder and its configuration, which holds the scaling factor that was measured.

    Args:
        images: (count, 64, 64, 4) uint8.
        budget: How long to train.
        seed: Of the crops, the colours and the latents' noise.
        device: Where to train.
    """
    generator = torch.Generator().manual_seed(seed)
    vae = AutoencoderKL.from_config(architecture.VAE).to(device).requires_grad_(True).train()
    logger.info("VAE: %.2f M parameters", sum(p.numel() for p in vae.parameters()) / 1e6)
    optimizer = torch.optim.AdamW(vae.parameters(), weight_decay=1e-4, betas=(0.9, 0.99))
    average = WeightAverage(vae)
    step = 0
    while (spent := budget.spent(step)) < 1:
        set_learning_rate(optimizer, peak=1.5e-3, floor=1e-5, warmup=step / 100, spent=spent)
        crops = _crops(images, generator).to(device)
        if step % 2:
            crops = crops.flip(3)
        with mixed_precision(device):
            latents = vae.encode(crops).latent_dist
            decoded = vae.decode(latents.sample(generator)).sample
        error = decoded.float() - crops
        kl = 0.5 * (latents.mean.float() ** 2 + latents.logvar.float().exp() - 1 - latents.logvar.float()).mean()
        loss = error.abs().mean() + error.pow(2).mean() + _GRADIENT_WEIGHT * _gradient(error) + _KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % average.EVERY == 0:
            average.update(min(_AVERAGE_DECAY, (step + 1) / (step + 10)))
        if step % 100 == 0:
            logger.info("VAE step %d, %.1f min, loss %.4f", step, budget.elapsed_minutes(), loss.item())
        step += 1
    vae.load_state_dict(average.weights)
    vae.requires_grad_(False).eval()
    scaling_factor = _scaling_factor(vae, images)
    logger.info("VAE: %d steps, scaling factor %.4f, PSNR %.1f dB", step, scaling_factor, _psnr(vae, images))
    return vae, architecture.VAE | {"scaling_factor": scaling_factor}


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The most likely latents, unscaled, a few images at a time: (batch, 4, 16, 16), on the autoencoder's device."""
    device = next(vae.parameters()).device
    return torch.cat([vae.encode(part.to(device)).latent_dist.mode() for part in pixels.split(50)])


def _crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """(batch, 3, crop, crop) in [-1, 1]: random drawings, all cropped at one random place."""
    named = background_colors()
    index = torch.randint(len(images), (_BATCH,), generator=generator)
    use_named = torch.rand(_BATCH, 1, generator=generator) < _NAMED_COLOR_SHARE
    chosen = named[torch.randint(len(named), (_BATCH,), generator=generator)]
    colors = torch.where(use_named, chosen, torch.rand(_BATCH, 3, generator=generator) * 255)
    places = (architecture.IMAGE_SIZE - _CROP) // _CROP_GRID + 1
    top, left = (torch.randint(places, (2,), generator=generator) * _CROP_GRID).tolist()
    return on_background(images[index], colors)[:, :, top : top + _CROP, left : left + _CROP]


def _gradient(error: Tensor) -> Tensor:
    """How much the error differs from pixel to pixel: what makes edges sharp."""
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def _on_named_colors(images: Tensor) -> Tensor:
    colors = background_colors()
    return on_background(images, colors[torch.arange(len(images)) % len(colors)])


def _scaling_factor(vae: AutoencoderKL, images: Tensor) -> float:
    """What brings the latents to unit variance."""
    return 1 / encode(vae, _on_named_colors(images)).std().item()


def _psnr(vae: AutoencoderKL, images: Tensor) -> float:
    pixels = _on_named_colors(images[:512:8])
    with torch.no_grad():
        decoded = vae.decode(encode(vae, pixels)).sample.cpu()
    return float(10 * torch.log10(4 / (decoded - pixels).pow(2).mean()))
