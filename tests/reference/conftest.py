"""What the tests of the reference share: oracles with random weights, and how far a result may be from theirs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

TOLERANCE = 1e-5


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Gives every parameter random values, norms included, so that a swapped scale or shift shows."""

    def fill(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1:
                    parameter.copy_(0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
                else:
                    parameter.copy_(noise * parameter[0].numel() ** -0.5)
        return module.eval()

    return fill


@pytest.fixture
def assert_equal() -> Callable[[Tensor, Tensor], None]:
    """Compares a result with the oracle's, relative to the largest value."""

    def check(result: Tensor, expected: Tensor) -> None:
        assert result.shape == expected.shape
        assert result.dtype == expected.dtype
        assert expected.abs().max() > 1e-2
        error = ((result - expected).abs().max() / expected.abs().max()).item()
        assert error < TOLERANCE

    return check


@pytest.fixture
def noise() -> Callable[..., Tensor]:
    """Standard normal values, the same for the same shape and seed."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[nn.Module], Path]:
    """Writes a network as its own library does."""

    def save(module: nn.Module) -> Path:
        module.save_pretrained(tmp_path, safe_serialization=True)
        return tmp_path

    return save
