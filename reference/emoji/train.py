"""Trains the emoji checkpoint from its data: tokenizer, autoencoder, then text encoder and UNet.

    python reference/emoji/train.py --minutes 90 --device cpu --output my-checkpoint

The output is a Stable Diffusion checkpoint in diffusers' layout, with float16 weights.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import architecture
import torch
from dataset import load_images, load_subjects
from safetensors.torch import save_file
from sample import sample, save_grid
from torch import nn
from train_tokenizer import train_tokenizer
from train_unet import Denoiser, train_unet
from train_vae import train_vae
from training import Budget

_VAE_SHARE = 24 / (24 + 62)  # of the budget

logger = logging.getLogger("train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description="Train the emoji checkpoint.", formatter_class=_Formatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder that the checkpoint is written to")
    parser.add_argument("--minutes", type=_positive, default=90, help="time for the VAE and the UNet together")
    parser.add_argument("--steps", type=int, help="train so many steps instead; the same steps give the same weights")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the training")
    parser.add_argument("--images", type=int, help="use only the first of the 462 images")
    parser.add_argument("--samples", type=Path, help="a folder for grids of pictures, made while training")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 2:
        parser.error(f"--steps must be at least 2, one for the VAE and one for the UNet, got {options.steps}")
    if options.images is not None and options.images < 1:
        parser.error(f"--images must be at least 1, got {options.images}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    train(
        options.output,
        minutes=options.minutes,
        steps=options.steps,
        device=torch.device(options.device),
        seed=options.seed,
        images=options.images,
        samples=options.samples,
    )
    return 0


def train(
    output: Path,
    *,
    minutes: float,
    steps: int | None,
    device: torch.device,
    seed: int,
    images: int | None,
    samples: Path | None,
) -> None:
    """Trains the whole checkpoint and writes it; the arguments are those of the command line."""
    torch.manual_seed(seed)  # initial weights
    subjects, drawings = load_subjects(images), load_images(images)
    logger.info("%d images", len(subjects))
    tokenizer = train_tokenizer(subjects, output / "tokenizer")
    logger.info("tokenizer: %d tokens", tokenizer.get_vocab_size())

    vae_steps = None if steps is None else max(1, round(_VAE_SHARE * steps))
    vae, vae_config = train_vae(drawings, Budget(_VAE_SHARE * minutes, vae_steps), seed=seed, device=device)
    _write_network(output / "vae", "diffusion_pytorch_model", vae, vae_config)
    scaling_factor = vae_config["scaling_factor"]

    def save_samples(denoiser: Denoiser, spent: float) -> None:
        if samples is not None:
            pictures = sample(denoiser, vae, tokenizer, scaling_factor)
            save_grid(pictures, samples / f"{round(100 * spent):03d}.png")

    denoiser = train_unet(
        subjects,
        drawings,
        tokenizer,
        vae,
        scaling_factor,
        Budget((1 - _VAE_SHARE) * minutes, None if steps is None or vae_steps is None else max(1, steps - vae_steps)),
        seed=seed,
        device=device,
        on_progress=save_samples,
    )
    _write_network(output / "text_encoder", "model", denoiser.text_encoder, denoiser.text_encoder_config)
    _write_network(output / "unet", "diffusion_pytorch_model", denoiser.unet, architecture.UNET)
    _write_json(output / "scheduler" / "scheduler_config.json", architecture.SCHEDULER)
    _write_json(output / "model_index.json", architecture.MODEL_INDEX)
    logger.info("wrote %s", output)


def _write_network(folder: Path, name: str, network: nn.Module, config: Mapping[str, Any]) -> None:
    _write_json(folder / "config.json", config)
    weights = {key: value.half().cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(weights, folder / f"{name}.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


if __name__ == "__main__":
    sys.exit(main())
