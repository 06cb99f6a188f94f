"""What a network gives in float16 or bfloat16, as an engine has it that multiplies halves and sums in float32.

The module itself is in half precision (`module.to(torch.float16)`), so that every result between two operations is a
half, what passes 65504 is infinite, and what the module takes to float32 (Stable Diffusion 2.1's attention) is in
float32. Only what a CPU does slowly with halves is done another way here: convolutions, linear layers, matrix products,
norms and attention take their inputs to float32, and their result back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

HALVES = (torch.float16, torch.bfloat16)

_IN_FLOAT32 = {
    functional.conv1d,
    functional.conv2d,
    functional.conv_transpose2d,
    functional.group_norm,
    functional.interpolate,
    functional.layer_norm,
    functional.linear,
    functional.softmax,
    torch.bmm,
    torch.matmul,
    Tensor.__matmul__,
    Tensor.matmul,
}


class _SumsInFloat32(TorchFunctionMode):
    """Takes the halves among the arguments of what is slow to float32, and the result back."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        attention = func is functional.scaled_dot_product_attention
        if not attention and func not in _IN_FLOAT32:
            return func(*args, **kwargs)
        half = next((v.dtype for v in [*args, *kwargs.values()] if isinstance(v, Tensor) and v.dtype in HALVES), None)
        if half is None:
            return func(*args, **kwargs)
        if attention:
            return _attention(*args, **kwargs)
        return func(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()}).to(half)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def _attention(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False) -> Tensor:
    """Attention whose scores and weights are halves between its three operations."""
    half, (length, width) = query.dtype, query.shape[-2:]
    scores = (query.float() @ key.float().transpose(-1, -2) * width**-0.5).to(half)
    if is_causal:
        later = torch.ones(length, key.shape[-2], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    weights = scores.float().softmax(dim=-1).to(half)
    attended: Tensor = weights.float() @ value.float()
    return attended.to(half)


@contextmanager
def sums_in_float32() -> Iterator[None]:
    """Within the block modules in half precision sum in float32, at about its speed."""
    with _SumsInFloat32():
        yield


def round_weights(module: nn.Module, dtype: torch.dtype) -> bool:
    """Rounds a module's weights to a narrower dtype, in place, one after the other; they keep their own.

    Returns:
        Whether any weight changed.
    """
    changed = False
    with torch.no_grad():
        for parameter in module.parameters():
            rounded = parameter.to(dtype).to(parameter.dtype)
            changed = changed or not torch.equal(rounded, parameter)
            parameter.copy_(rounded)
    return changed
