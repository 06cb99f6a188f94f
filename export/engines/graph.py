"""The graph that an engine is built from: one of the model folder's, or its network traced anew in another dtype."""

from collections.abc import Callable
from pathlib import Path

from safelight.runtime.manifest import ComponentRecord, Manifest
from safelight.runtime.model_folder import ModelFolder, open_model_folder
from safelight.runtime.onnx_file import read_graph

#: part of every engine's identity: raised when the graph that is built here, or in `export.lowering.tensorrt`, for the
#: same model folder changes, so that engines of the former one are built again
LOWERING = 1
#: of a folder's graphs, the one for both flavours
TARGET = "tensorrt"

#: networks whose float16 ends before their numbers do: they have a choice of dtypes of their own
AUTOENCODER = "AutoencoderKL"
#: pairs of a graph's domain and operator that the target may want replaced
_REPLACED = {("", "Attention"), ("ai.onnx", "Attention")}

Progress = Callable[[str], None]


def arithmetic(manifest: Manifest, network: str) -> str:
    """The dtype that a folder's graphs of a network compute in."""
    return manifest.components[network].dtype or manifest.dtype


def wanted_dtype(manifest: Manifest, network: str, *, dtype: str, vae_dtype: str) -> str:
    """The dtype that an engine of a network computes in: "fp32", "fp16" or "bf16".

    What the export has kept in float32, because float16 was too narrow for it or the user asked, is not made float16
    here either.
    """
    if manifest.components[network].class_name == AUTOENCODER:
        return vae_dtype
    kept = manifest.dtype == "fp16" and arithmetic(manifest, network) == "fp32"
    return "fp32" if kept and dtype == "fp16" else dtype


def make_graph(folder: Path, network: str, dtype: str, scratch: Path, *, progress: Progress) -> Path:
    """The graph to build from, lowered for TensorRT; its weights lie beside it.

    Args:
        folder: of the model.
        network: of its manifest.
        dtype: of the arithmetic.
        scratch: an empty folder, for a graph and weights that the model folder does not have.
        progress: told one line at each stage.

    Returns:
        A path in the model folder, or in `scratch`.

    Raises:
        ModuleNotFoundError: the network has to be traced anew, and the export extra is not installed.
        ValueError: a weight is beyond the range of the dtype, or a file of the folder is not the one that it records.
        OSError: the disk is full.
    """
    model = open_model_folder(folder)
    assert model.manifest is not None
    record = model.manifest.components[network]
    if arithmetic(model.manifest, network) == dtype and (own := _own_graph(model, network, record, scratch)):
        return own
    try:
        from .retrace import retrace
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{folder} has no graph of {network} in {dtype} for TensorRT: it is traced anew, which needs: "
            f"pip install 'safelight[export]' ({error})"
        ) from error
    return retrace(model, network, dtype, scratch, progress=progress)


def _own_graph(model: ModelFolder, network: str, record: ComponentRecord, scratch: Path) -> Path | None:
    """The folder's graph, lowered in `scratch` where it was not exported for TensorRT; None where that cannot be."""
    if TARGET in record.graphs:
        return model.graph(network, TARGET)
    canonical = model.graph(network)  # which an export for TensorRT leaves alone if it has nothing to replace in it
    if not read_graph(canonical).operators & _REPLACED:
        return canonical
    try:
        import onnx_ir as ir

        from ..lowering import TARGETS
    except ModuleNotFoundError:
        return None
    graph = ir.load(canonical)
    if not any(TARGETS[TARGET].lower(graph).values()):
        return canonical
    weights = model.file(record.weights)
    (scratch / weights.name).symlink_to(weights.absolute())
    ir.save(graph, scratch / canonical.name)
    return scratch / canonical.name
