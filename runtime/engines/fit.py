"""Whether an engine can be loaded here, and is of this model; where not, why not."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from ..model_folder import CANONICAL, ModelFolder
from .flavours import TITLES
from .record import EngineIdentity, EngineRecord


@dataclass(frozen=True, kw_only=True)
class Here:
    """What an engine has to have been built for."""

    flavour: str
    version: str
    gpu: str | None  # compute capability, such as "sm89"; None where there is no GPU, and every one is as good
    gpu_name: str | None = None

    def refusal(self, identity: EngineIdentity) -> str | None:
        """Why an engine cannot be loaded here; None where it can."""
        software = (identity.flavour, identity.version) == (self.flavour, self.version)
        hardware = self.gpu is None or (self.gpu in identity.gpus and identity.gpu_name in (None, self.gpu_name))
        if software and hardware:
            return None
        theirs, ours = _software(identity.flavour, identity.version), _software(self.flavour, self.version)
        if not hardware:
            gpus = ", ".join(identity.gpus)
            theirs = f"{_gpu(gpus, identity.gpu_name)}{'' if software else f' with {theirs}'}"
            ours = f"{_gpu(self.gpu, self.gpu_name)}{'' if software else f' with {ours}'}"
        return f"built for {theirs}, here is {ours}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a model folder that an engine has to have been built from, as sha256."""

    graph: str
    weights: str

    def refusal(self, identity: EngineIdentity) -> str | None:
        """Why an engine is of another model; None where it is of this one."""
        if identity.graph != self.graph:
            return "built from another graph"
        if identity.weights not in (None, self.weights):
            return "built from other weights"
        return None


def source(folder: ModelFolder, network: str) -> Source:
    """What an engine of a network is built from, as the folder's manifest has it; no file is read.

    Raises:
        FileNotFoundError: the folder lacks the network.
        ValueError: it has no manifest, or one that does not record the network's files.
    """
    if folder.manifest is None:
        raise ValueError(f"{folder.path} was not exported by safelight, and no engine can be told to be of it")
    component = folder.manifest.components.get(network)
    if component is None:
        raise FileNotFoundError(f"{folder.path} lacks the component {network}")
    files = folder.manifest.files
    try:
        return Source(graph=files[component.graphs[CANONICAL]].sha256, weights=files[component.weights].sha256)
    except KeyError as error:
        raise ValueError(f"{folder.path}: the manifest does not record {error}; export it again") from error


def newest_that_fits(
    records: Sequence[EngineRecord], wanted: Source, here: Here
) -> tuple[EngineRecord | None, list[str]]:
    """The first engine that is of the model and can be loaded here.

    Args:
        records: the newest first.
        wanted: what it is to have been built from.
        here: what for.

    Returns:
        The engine; or None and why each does not fit, those first that come nearest.
    """
    refused: list[tuple[int, str]] = []  # how many reasons, and which
    for record in records:
        reasons = [reason for each in (wanted, here) if (reason := each.refusal(record.identity))]
        if not reasons:
            return record, []
        refused.append((len(reasons), f"{record.identity.name} was {', and '.join(reasons)}"))
    return None, [text for _, text in sorted(refused, key=itemgetter(0))]


def _software(flavour: str, version: str) -> str:
    return f"{TITLES[flavour]} {version}"


def _gpu(capability: str | None, name: str | None) -> str:
    return f"{capability} ({name})" if name else str(capability)
