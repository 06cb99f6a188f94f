"""What the networks share: being built from a configuration and loaded from a checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from .checkpoint import CheckpointWeights, Weights, component_folder, find_weights, read_config
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
        path = component_folder(folder, subfolder)
        return cls._described(path)._with(cls.open_weights(path, variant=variant), dtype)

    @classmethod
    def from_weights(cls, config: Mapping[str, Any], weights: Weights, *, dtype: torch.dtype = torch.float32) -> Self:
        """The network with these weights, on the CPU.

        Args:
            config: the contents of a `config.json`.
            weights: of every parameter.
            dtype: of the weights and of the arithmetic.
        """
        with torch.device("meta"):
            network = cls.from_config(config)
        return network._with(weights, dtype)

    def _with(self, weights: Weights, dtype: torch.dtype) -> Self:
        """The network, of the meta device until now, with weights."""
        state = {name: weights[name].to(dtype) for name in weights.shapes}
        self.load_state_dict(state, strict=True, assign=True)
        return self.requires_grad_(False)

    @classmethod
    def shapes(cls, folder: str | Path) -> dict[str, tuple[int, ...]]:
        """The weights of the network that a folder's configuration describes, by their names.

        Raises:
            FileNotFoundError: the folder lacks its configuration.
            ValueError: the configuration asks for what is not implemented.
        """
        return _shapes(cls._described(component_folder(folder)))

    @classmethod
    def open_weights(cls, folder: str | Path, *, variant: str | None = None) -> CheckpointWeights:
        """The weights in a component's folder, of which nothing but the headers is read.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks its configuration or weights.
            ValueError: a file is broken, the configuration asks for what is not implemented, or the tensors are not
                exactly those of the network.
        """
        path = component_folder(folder)
        network = cls._described(path)
        files = find_weights(path, variant=variant)
        return CheckpointWeights(files, _shapes(network), rename=cls.parameter_name, ignored=cls.ignored)

    @classmethod
    def _described(cls, path: Path) -> Self:
        """The network that a folder describes, without weights."""
        try:
            with torch.device("meta"):
                return cls.from_config(read_config(path))
        except ValueError as error:
            raise error if str(path) in str(error) else ValueError(f"{path / 'config.json'}: {error}") from error

    @classmethod
    def parameter_name(cls, name: str) -> str:
        """The module's name for a tensor that a checkpoint may spell otherwise."""
        for pattern, replacement in cls.renames:
            name = re.sub(pattern, replacement, name)
        return name


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
