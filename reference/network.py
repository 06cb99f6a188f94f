"""What the networks share: being built from a configuration and loaded from a checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from .checkpoint import check_weights, component_folder, find_weights, read_config, read_weights
from .configuration import NetworkConfig


class Network(nn.Module):
    """A module that a checkpoint's folder describes.

    Attributes:
        config_class: the class of its configuration.
        renames: how older or newer files spell a parameter, as a pattern, and how the module does.
        ignored: tensors that a file may have and the module does not need.
    """

    config_class: ClassVar[type[NetworkConfig]]
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    ignored: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: NetworkConfig) -> None:  # noqa: ARG002
        """Every subclass takes its `config_class`."""
        super().__init__()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The network with initial weights, on the current default device, such as "meta".

        Args:
            config: the contents of a `config.json`.

        Raises:
            ValueError: the configuration is another network's, or asks for what is not implemented.
        """
        network = cls(cls.config_class.from_dict(config))
        return network.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        subfolder: str | None = None,
        use_safetensors: bool = True,
        dtype: torch.dtype = torch.float32,
        variant: str | None = None,
    ) -> Self:
        """The network with a checkpoint's weights, on the CPU.

        Args:
            folder: a component's folder, or with `subfolder` the checkpoint that holds it.
            subfolder: the component's name, such as "unet".
            use_safetensors: only True; pickle is not loaded.
            dtype: of the weights and of the arithmetic.
            variant: such as "fp16", of files named `diffusion_pytorch_model.fp16.safetensors`.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks its configuration or weights.
            ValueError: a file is broken, the configuration asks for what is not implemented, or the tensors are not
                exactly those of the network.
        """
        if not use_safetensors:
            raise ValueError("use_safetensors=False: pickle can run code when it is opened and is not loaded")
        network, files = cls._described(component_folder(folder, subfolder), variant)
        weights = read_weights(files, _shapes(network), dtype=dtype, rename=cls.parameter_name, ignored=cls.ignored)
        network.load_state_dict(weights, strict=True, assign=True)
        return network.requires_grad_(False)

    @classmethod
    def check_pretrained(cls, folder: str | Path, *, variant: str | None = None) -> None:
        """Raises what `from_pretrained` would, from the configuration and the weights' headers alone."""
        network, files = cls._described(component_folder(folder), variant)
        check_weights(files, _shapes(network), rename=cls.parameter_name, ignored=cls.ignored)

    @classmethod
    def _described(cls, path: Path, variant: str | None) -> tuple[Self, list[Path]]:
        """The network that a folder describes, without weights, and the files that have them."""
        try:
            with torch.device("meta"):
                network = cls.from_config(read_config(path))
        except ValueError as error:
            raise error if str(path) in str(error) else ValueError(f"{path / 'config.json'}: {error}") from error
        return network, find_weights(path, variant=variant)

    @classmethod
    def parameter_name(cls, name: str) -> str:
        """The module's name for a tensor that a checkpoint may spell otherwise."""
        for pattern, replacement in cls.renames:
            name = re.sub(pattern, replacement, name)
        return name


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
