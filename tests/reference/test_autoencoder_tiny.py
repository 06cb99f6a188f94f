"""The tiny autoencoder against diffusers'."""

from typing import Any

import diffusers
import pytest
import torch

from safelight.reference import AutoencoderTiny

SMALL: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (12, 12, 12, 12),
    "num_encoder_blocks": (1, 2, 1, 1),
    "num_decoder_blocks": (2, 1, 2, 1),
}


@pytest.mark.parametrize(
    "options",
    [SMALL, {**SMALL, "num_encoder_blocks": (2, 1, 3, 1)}, {**SMALL, "in_channels": 1, "out_channels": 1}],
)
def test_it_equals_diffusers(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(**options).eval()
    ours = AutoencoderTiny.from_config(theirs.config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(2, options.get("in_channels", 3), 40, 56) * 2 - 1
    latents = 4 * torch.randn(2, 4, 5, 7)  # some of them beyond what is let through
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(images).latents, theirs.encode(images).latents)
        decoded = theirs.decode(latents).sample
        torch.testing.assert_close(ours.decode(latents).sample, decoded)
    assert decoded.std() > 0.01


def test_its_published_shape_has_diffusers_parameters() -> None:
    with torch.device("meta"):
        theirs = diffusers.AutoencoderTiny().state_dict()
        ours = AutoencoderTiny.from_config({}).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert sum(value.numel() for value in ours.values()) == 2_445_063


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act_fn": "silu"}, "act_fn = 'silu' is not implemented"),
        ({"num_encoder_blocks": [1, 3]}, "encoder_block_out_channels must have one entry for each"),
        ({"decoder_block_out_channels": [64, 64, 64, 32]}, "decoder_block_out_channels must all be the same"),
        ({"_class_name": "AutoencoderKL"}, "expected the configuration of AutoencoderTiny, got that of AutoencoderKL"),
    ],
)
def test_what_it_does_not_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderTiny.from_config(options)
