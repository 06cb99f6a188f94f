"""The TensorRT that is installed here. Importing it takes a second: it is done when it is asked for."""

from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType, ModuleType

from .record import FLAVOURS

#: flavour -> what people call it
TITLES = MappingProxyType({"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"})


@dataclass(frozen=True)
class Flavour:
    """One of the two TensorRTs, imported."""

    name: str  # one of `FLAVOURS`
    module: ModuleType
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT for RTX, which builds on any machine, for the GPUs that it is told."""
        return self.name == "tensorrt-rtx"


def flavour(name: str) -> Flavour:
    """Imports a TensorRT.

    Args:
        name: one of `FLAVOURS`.

    Raises:
        ValueError: there is none of this name.
        ModuleNotFoundError: it is not installed; the message says what to install.
        ImportError: it is installed, and its libraries cannot be loaded.
    """
    if name not in FLAVOURS:
        raise ValueError(f"unknown TensorRT {name!r}; known: {', '.join(FLAVOURS)}")
    module_name, install = name.replace("-", "_"), f"pip install 'safelight[{name}]'"
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:  # a part of it: the bindings and the libraries are wheels of their own
            raise ImportError(f"{TITLES[name]} is installed in part, {error.name} is missing: {install}") from error
        raise ModuleNotFoundError(f"{TITLES[name]} is not installed: {install}", name=module_name) from error
    except (ImportError, OSError) as error:
        raise ImportError(f"{TITLES[name]} is installed, but its libraries cannot be loaded: {error}") from error
    version = getattr(module, "__version__", None)
    if version is None:  # a folder without code: what the wheel of type stubs leaves
        raise ModuleNotFoundError(f"{TITLES[name]} is not installed, only its type stubs are: {install}")
    return Flavour(name, module, str(version))
