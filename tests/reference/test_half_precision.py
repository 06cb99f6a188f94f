"""Half precision on a CPU: every result between two operations is a half, sums are not, and float32 parts stay."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from safelight.reference.attention import Attention, attend
from safelight.reference.half_precision import round_weights, sums_in_float32
from safelight.reference.layers import ResnetBlock2D

HALF = torch.float16


def test_results_are_rounded_and_sums_are_not() -> None:
    """2048 ones after a 2048: in float16 each would be lost, in float32 none is."""
    row = torch.ones(1, 2049, dtype=HALF)
    row[0, 0] = 2048
    with sums_in_float32():
        total = functional.linear(row, torch.ones(1, 2049, dtype=HALF))
    assert total.dtype == HALF
    assert total.item() == 4096
    exact = torch.tensor(0.1, dtype=HALF).double() * torch.tensor(0.3, dtype=HALF).double()
    with sums_in_float32():
        product = torch.tensor([[0.1]], dtype=HALF) @ torch.tensor([[0.3]], dtype=HALF)
    assert product.item() == exact.half().item() != exact.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_block_is_the_composition_of_its_rounded_operations(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = ResnetBlock2D(8, 8, time_channels=None, groups=4, eps=1e-5).requires_grad_(False).to(dtype)
    sample = torch.randn(1, 8, 6, 6).to(dtype)

    def rounded(value: torch.Tensor) -> torch.Tensor:
        return value.to(dtype).float()

    hidden = sample.float()
    for norm, conv in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
        hidden = rounded(functional.group_norm(hidden, 4, norm.weight.float(), norm.bias.float(), 1e-5))
        hidden = rounded(functional.silu(hidden))
        hidden = rounded(functional.conv2d(hidden, conv.weight.float(), conv.bias.float(), padding=1))
    expected = rounded(sample.float() + hidden)
    with sums_in_float32():
        found = block(sample)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0)


def test_it_is_near_what_torch_does_with_halves() -> None:
    torch.manual_seed(0)
    attention = Attention(64, heads=4).requires_grad_(False)
    hidden = torch.randn(2, 30, 64)
    exact = attention(hidden)
    attention.to(HALF)
    native = attention(hidden.to(HALF)).float()
    with sums_in_float32():
        found = attention(hidden.to(HALF)).float()
    assert 1e-5 < (found - exact).abs().max() < 2 * (native - exact).abs().max()


def test_what_passes_65504_is_infinite() -> None:
    with sums_in_float32():
        large = functional.linear(torch.full((1, 4), 200, dtype=HALF), torch.full((1, 4), 100, dtype=HALF))
        sums = large + torch.full((1, 1), 60000, dtype=HALF)
    assert large.isinf().all()
    assert sums.isinf().all()


def test_scores_overflow_unless_attention_is_upcast() -> None:
    """Stable Diffusion 2.1's: the module takes queries and keys to float32 itself."""
    torch.manual_seed(0)
    hidden = 300 * torch.randn(1, 6, 16)
    found = {}
    for upcast in (False, True):
        torch.manual_seed(1)
        attention = Attention(16, heads=2, upcast=upcast).requires_grad_(False).to(HALF)
        attention.to_q.weight *= 8
        with sums_in_float32():
            found[upcast] = attention(hidden.to(HALF))
    assert found[True].isfinite().all()
    assert not found[False].isfinite().all()
    assert found[True].dtype == HALF


def test_causal_attention_sees_nothing_later() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 5, 8) for _ in range(3))
    expected = attend(query, key, value, heads=2, is_causal=True)
    with sums_in_float32():
        found = attend(query.half(), key.half(), value.half(), heads=2, is_causal=True)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=5e-3)


def test_float32_is_left_alone() -> None:
    torch.manual_seed(0)
    layer, sample = nn.Linear(8, 8), torch.randn(3, 8)
    with sums_in_float32():
        found = layer(sample)
    assert found.dtype == torch.float32
    assert torch.equal(found, layer(sample))


def test_weights_are_rounded_in_place_and_say_whether_they_changed() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    place = layer.weight.data_ptr()
    assert round_weights(layer, HALF)
    assert layer.weight.dtype == torch.float32
    assert layer.weight.data_ptr() == place
    assert torch.equal(layer.weight, before.half().float())
    assert not round_weights(layer, HALF)
    assert round_weights(layer, torch.bfloat16)
