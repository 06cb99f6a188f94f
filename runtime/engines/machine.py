"""What this machine has to load an engine with."""

from collections.abc import Mapping
from dataclasses import dataclass

from .fit import Here
from .flavours import TITLES, flavour
from .record import FLAVOURS, EngineIdentity


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The TensorRTs that are installed, and the GPUs."""

    versions: Mapping[str, str]  # flavour -> its version
    gpus: tuple[tuple[str, str], ...]  # compute capability and name of each, such as ("sm90", "NVIDIA H100 80GB HBM3")

    def refusal(self, identity: EngineIdentity) -> str | None:
        """Why an engine cannot be loaded here; None where it can, and where there is no GPU to tell."""
        if identity.flavour not in self.versions:
            return f"{TITLES[identity.flavour]} is not installed"
        gpus = self.gpus or ((None, None),)
        refusals = [self._here(identity, gpu, name).refusal(identity) or "" for gpu, name in gpus]
        return min(refusals, key=len) or None  # that with the fewest differences

    def outdated(self, identity: EngineIdentity) -> str | None:
        """Why an engine can be loaded on no GPU any more: its TensorRT is here in another version; None otherwise."""
        return self._here(identity, None, None).refusal(identity) if identity.flavour in self.versions else None

    def _here(self, identity: EngineIdentity, gpu: str | None, name: str | None) -> Here:
        return Here(flavour=identity.flavour, version=self.versions[identity.flavour], gpu=gpu, gpu_name=name)


def this_machine() -> Machine:
    """What is installed here, and the GPUs that can be used."""
    versions = {}
    for name in FLAVOURS:
        try:
            versions[name] = flavour(name).version
        except ImportError:  # not there, or not usable: there is nothing that its engines could be compared with
            continue
    return Machine(versions=versions, gpus=_gpus())


def _gpus() -> tuple[tuple[str, str], ...]:
    try:
        from ..backends.tensorrt import cuda
    except ModuleNotFoundError:  # the bindings are not installed
        return ()
    try:
        found = [cuda.device_properties(index) for index in range(cuda.device_count())]
    except cuda.CudaError:
        return ()
    return tuple((gpu.compute_capability, gpu.name) for gpu in found)
