"""A network of a model folder, traced anew in another dtype: graph and weights as an export in that dtype has them."""

from pathlib import Path

import torch

from safelight.reference.safetensors_file import SafetensorsFile
from safelight.runtime.model_folder import ModelFolder

from ..answers import overflows_on_examples
from ..checkpoint import Component, descriptions
from ..component import LOOKED_AT_BELOW, canonical_graph, lowered, save_graph
from ..networks import COMPONENT_KINDS, NetworkDescription
from ..options import DTYPES
from ..preflight import count
from ..trace import parameters
from ..weights import WEIGHTS_NAME, write_weights
from .graph import TARGET, Progress


class FolderWeights:
    """The weights of a network of a model folder, as the reference has them; each is read when it is asked for."""

    def __init__(self, folder: ModelFolder, network: str) -> None:
        """Looks at the header.

        Raises:
            ValueError: the weight file is broken, or not the one that the folder records.
        """
        assert folder.manifest is not None
        record = folder.manifest.components[network]
        self._file = SafetensorsFile(folder.file(record.weights))
        self._transposed = frozenset(record.transposed)
        self.shapes = {
            name: entry.shape[::-1] if name in self._transposed else entry.shape
            for name, entry in self._file.tensors.items()
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        """One weight, in the file's dtype."""
        tensor = self._file.read(name)
        return tensor.T if name in self._transposed else tensor


def retrace(folder: ModelFolder, network: str, dtype: str, scratch: Path, *, progress: Progress) -> Path:
    """Writes the graph of a network, lowered for TensorRT, and its weights, both in one dtype.

    Memory holds a graph, and then one tensor at a time.

    Args:
        folder: with a manifest.
        network: of the manifest.
        dtype: of the arithmetic and of the weights, a key of `DTYPES`.
        scratch: an empty folder, for both.
        progress: told one line at each stage.

    Returns:
        The path of the graph.

    Raises:
        ValueError: float16 is too narrow for the network or for a weight, or the folder lacks weights.
        OSError: the disk is full.
    """
    component, description = _described(folder, network)
    weights = FolderWeights(folder, network)
    if dtype == "fp16":
        _check_range(component, description, weights, progress)
    progress(f"{network}: tracing in {dtype}")
    graph, transposed = canonical_graph(description, component.class_name, component.configuration(), dtype)
    names = [str(value.name) for value in parameters(graph, description)]
    if missing := [name for name in names if name not in weights.shapes]:
        raise ValueError(f"{folder.path}: the weights of {network} lack {missing[0]}; export it again")
    progress(f"{network}: writing weights in {dtype}")
    written = write_weights(
        scratch / WEIGHTS_NAME,
        {name: weights.shapes[name] for name in names},
        weights.__getitem__,
        transposed=transposed,
        dtype=DTYPES[dtype],
        wider="--dtype bf16",
        progress=lambda line: progress(f"{network}: {line}"),
    )
    name = f"model.{TARGET}.onnx"
    save_graph(lowered(graph, TARGET)[0], description, written, name)
    return scratch / name


def _described(folder: ModelFolder, network: str) -> tuple[Component, NetworkDescription]:
    """The network, described from its configuration beside its graph."""
    assert folder.manifest is not None
    class_name = folder.manifest.components[network].class_name
    suffix = next(suffix for suffix in COMPONENT_KINDS[class_name].suffixes if network.endswith(suffix))
    component = Component(network.removesuffix(suffix), class_name, folder.folder(network), variant=None, files=())
    found = {description.name: description for description in descriptions(component, folder.index)}
    return component, found[network]


def _check_range(
    component: Component, description: NetworkDescription, weights: FolderWeights, progress: Progress
) -> None:
    """Refuses a network whose float16 is infinite or NaN, where that is quickly seen: as an export does."""
    kind = COMPONENT_KINDS[component.class_name].model
    if count(weights.shapes) >= LOOKED_AT_BELOW or weights.shapes.keys() != kind.shapes(component.path).keys():
        return
    progress(f"{description.name}: looking for overflow in fp16")
    if overflows_on_examples(description, kind.from_weights(component.configuration(), weights)):
        raise ValueError(
            f"{description.name}: float16 ends before its numbers do; build it with --dtype bf16, or export the "
            "checkpoint with --dtype fp16, which keeps this network in float32"
        )
