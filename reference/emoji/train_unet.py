"""The text encoder and the UNet, trained together to predict the noise in the latents."""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import architecture
import torch
from dataset import COLORS, Subject, background_colors, on_background, prompt
from tokenizers import Tokenizer
from torch import Tensor, nn
from train_tokenizer import BEGIN, END
from train_vae import encode
from training import Budget, WeightAverage, mixed_precision, set_learning_rate

from safelight.reference import AutoencoderKL, CLIPTextModel, UNet2DConditionModel

_BATCH = 32
_AVERAGE_DECAY = 0.9995
_EMPTY, _TAGGED, _PLAIN = 0.1, 0.1, 0.07  # shares of the captions: empty, with a tag, without a colour
_MOST_SNR = 5  # Hang et al. 2023 (arXiv:2303.09556)
_LEAST_WEIGHT = 0.02

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Denoiser:
    """The two networks that a prompt goes through, and the text encoder's configuration."""

    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    text_encoder_config: dict[str, Any]


def train_unet(
    subjects: Sequence[Subject],
    images: Tensor,
    tokenizer: Tokenizer,
    vae: AutoencoderKL,
    scaling_factor: float,
    budget: Budget,
    *,
    seed: int,
    device: torch.device,
    on_progress: Callable[[Denoiser, float], None],
) -> Denoiser:
    """Trains with every subject on every colour.

    Args:
        subjects: What the images show.
        images: (count, 64, 64, 4) uint8.
        tokenizer: Encodes to `TOKENS` ids.
        vae: Trained.
        scaling_factor: Of its latents.
        budget: How long to train.
        seed: Of images, captions, timesteps and noise.
        device: Where to train.
        on_progress: Called about every tenth of the budget with the averaged networks and the part of it that is spent.
    """
    generator = torch.Generator().manual_seed(seed)
    captions = _Captions(subjects, tokenizer, random.Random(seed))
    latents = _latents(vae, images).mul(scaling_factor)  # (subjects, colours, 4, 16, 16)
    logger.info("latents of %d images: standard deviation %.3f", latents[:, :, 0, 0, 0].numel(), latents.std().item())
    denoiser, averaged = _new_denoiser(tokenizer, device), _new_denoiser(tokenizer, device)
    networks = (denoiser.text_encoder, denoiser.unet)
    parameters = [parameter for network in networks for parameter in network.requires_grad_(True).train().parameters()]
    logger.info("text encoder and UNet: %.2f M parameters", sum(p.numel() for p in parameters) / 1e6)
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2, betas=(0.9, 0.99))
    averages = [WeightAverage(network) for network in networks]
    alphas_cumprod = training_alphas_cumprod()
    step, smooth_loss, reported = 0, 0.0, 0.0

    def average() -> Denoiser:
        for network, weights in zip((averaged.text_encoder, averaged.unet), averages, strict=True):
            network.load_state_dict(weights.weights)
        return averaged

    while (spent := budget.spent(step)) < 1:
        set_learning_rate(optimizer, peak=1.2e-3, floor=2e-5, warmup=(step + 1) / 200, spent=spent)
        subject = torch.randint(len(subjects), (_BATCH,), generator=generator)
        color = torch.randint(len(COLORS), (_BATCH,), generator=generator)
        timestep = torch.randint(len(alphas_cumprod), (_BATCH,), generator=generator)
        clean = latents[subject, color]
        noise = torch.randn(clean.shape, generator=generator)
        signal = alphas_cumprod[timestep][:, None, None, None]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        with mixed_precision(device):
            embeddings = denoiser.text_encoder(captions.token_ids(subject, color).to(device)).last_hidden_state
            predicted = denoiser.unet(noisy.to(device), timestep.to(device), embeddings).sample
        error = (predicted.float() - noise.to(device)).pow(2).mean((1, 2, 3))
        loss = (error * _min_snr_weights(alphas_cumprod[timestep]).to(device)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        smooth_loss = loss.item() if step == 0 else 0.99 * smooth_loss + 0.01 * loss.item()
        if step % WeightAverage.EVERY == 0:
            for weights in averages:
                weights.update(min(_AVERAGE_DECAY, (step + 1) / (step + 20)))
        if step % 200 == 0:
            logger.info("UNet step %d, %.1f min, loss %.4f", step, budget.elapsed_minutes(), smooth_loss)
        if spent - reported >= 0.1:
            reported = spent
            on_progress(average(), spent)
        step += 1
    logger.info("UNet: %d steps, loss %.4f", step, smooth_loss)
    on_progress(average(), 1.0)
    return averaged


class _Captions:
    """Token ids of what a training image may be called."""

    def __init__(self, subjects: Sequence[Subject], tokenizer: Tokenizer, chooser: random.Random) -> None:
        self._subjects = subjects
        self._tokenizer = tokenizer
        self._chooser = chooser
        self._colors = list(COLORS)

    def token_ids(self, subject: Tensor, color: Tensor) -> Tensor:
        """(batch, TOKENS) int64, for subjects and colours by their numbers, (batch,) each."""
        pairs = zip(subject.tolist(), color.tolist(), strict=True)
        texts = [self._text(self._subjects[number], self._colors[shade]) for number, shade in pairs]
        return torch.tensor([encoding.ids for encoding in self._tokenizer.encode_batch(texts)])

    def _text(self, subject: Subject, color: str) -> str:
        chance = self._chooser.random()
        if chance < _EMPTY:
            return ""
        if chance < _EMPTY + _TAGGED:
            tagged = [subject.label if tag in subject.label else f"{tag} {subject.label}" for tag in subject.tags[:4]]
            return prompt(self._chooser.choice([subject.label] * 4 + tagged), color)
        if chance < _EMPTY + _TAGGED + _PLAIN:
            return prompt(subject.label)
        return prompt(subject.label, color)


def training_alphas_cumprod() -> Tensor:
    """How much of the signal's variance is left at each training timestep, (1000,): the schedule's `scaled_linear`."""
    settings = architecture.SCHEDULER
    roots = torch.linspace(settings["beta_start"] ** 0.5, settings["beta_end"] ** 0.5, settings["num_train_timesteps"])
    return (1 - roots**2).cumprod(0)


def _min_snr_weights(alphas_cumprod: Tensor) -> Tensor:
    """Weights of the timesteps in a batch, of mean 1, that keep those with little noise from ruling."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = (snr.clamp(max=_MOST_SNR) / snr).clamp(min=_LEAST_WEIGHT)
    return weights / weights.mean()


def _latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Unscaled latents of every image on every colour: (count, colours, 4, 16, 16), on the CPU."""
    colors = background_colors()
    by_color = [encode(vae, on_background(images, color.expand(len(images), 3))).cpu() for color in colors]
    return torch.stack(by_color, dim=1)


def _new_denoiser(tokenizer: Tokenizer, device: torch.device) -> Denoiser:
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    assert begin is not None
    assert end is not None
    config = architecture.text_encoder(vocab_size=tokenizer.get_vocab_size(), bos_token_id=begin, eos_token_id=end)
    text_encoder = CLIPTextModel.from_config(config)
    _initialize_clip(text_encoder, width=config["hidden_size"], layers=config["num_hidden_layers"])
    return Denoiser(text_encoder.to(device), UNet2DConditionModel.from_config(architecture.UNET).to(device), config)


def _initialize_clip(text_encoder: CLIPTextModel, *, width: int, layers: int) -> None:
    """CLIP's initial weights (Radford et al. 2021): small embeddings, residual branches scaled down by depth."""
    into_residual = width**-0.5 * (2 * layers) ** -0.5
    deviations = {"q_proj": into_residual, "k_proj": into_residual, "v_proj": into_residual, "fc2": into_residual}
    deviations |= {"out_proj": width**-0.5, "fc1": (2 * width) ** -0.5}
    for name, module in text_encoder.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=deviations[name.rpartition(".")[2]])
            nn.init.zeros_(module.bias)
