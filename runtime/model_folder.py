"""The model folder: what an export writes and every pipeline reads. Layout and names are optimum's ONNX layout."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from .graph_check import check_graph
from .manifest import MANIFEST_NAME, FileRecord, Manifest, file_record, read_manifest
from .text_files import read_json_object
from .weight_file import WeightFile

MODEL_INDEX = "model_index.json"
GRAPH = "model.onnx"
CANONICAL = "onnx"  # the target of the graph that any engine can read

_COMPONENT_NAME = re.compile(r"[a-z][a-z0-9_]*")
_CODE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
#: that indexes name, none of which is ever imported; the last is a module of diffusers, where its safety checker is
_LIBRARIES = ("diffusers", "transformers", "optimum", "stable_diffusion")
_SHOWN = 60  # characters of what somebody else wrote
#: the networks that the hub has without a pipeline -> the component that they are
_ALONE = {"AutoencoderKL": "vae", "AutoencoderTiny": "vae", "UNet2DModel": "unet"}
_CHECKED_WHEN_OPENED = (".onnx", ".onnx_data")  # graphs and weights
_WEIGHTS = ("*.safetensors", "*.bin", "*.ckpt")
#: what diffusers and transformers call weights; other engines' may be `.bin` too
_CHECKPOINT_WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)([.-][\w.-]+)?\.(safetensors|bin)")


@dataclass(frozen=True)
class ModelFolder:
    """An exported model on disk, read but not yet opened by an engine."""

    path: Path
    class_name: str  # of the pipeline, as diffusers calls it
    index: Mapping[str, Any]  # model_index.json
    manifest: Manifest | None  # None in a folder that another exporter wrote
    #: files whose hash was right -> their size and time of change then: hashing gigabytes twice is of no use
    _known: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def components(self) -> list[str]:
        """The names of the components that the pipeline has."""
        return [name for name, value in self.index.items() if isinstance(value, list) and value[1:] and value[1]]

    def class_of(self, component: str) -> str | None:
        """The class that the index names for a component; None where it names none."""
        return str(self.index[component][1]) if component in self.components else None

    def has_component(self, name: str) -> bool:
        """Whether the folder holds a component, or should: optimum leaves out what its index names."""
        recorded = self.manifest is not None and name in self.manifest.components
        return name in self.components and (recorded or (self.path / name).is_dir())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all networks."""
        if self.manifest is not None:
            weights = {record.weights for record in self.manifest.components.values()}
            return sum(record.size for name, record in self.manifest.files.items() if name in weights)
        found = [*self.path.glob("*/*.onnx_data"), *self.path.glob("*/*.onnx")]
        return sum(path.stat().st_size for path in found if path.is_file())

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the networks that the folder holds."""
        return tuple(sorted(path.parent.name for path in self.path.glob(f"*/{GRAPH}")))

    @property
    def computes_in_integers(self) -> bool:
        """Whether layers of a network are quantized, activations and all."""
        records = () if self.manifest is None else self.manifest.components.values()
        return any(record.quantization is not None and record.quantization.activations for record in records)

    def has_graph(self, network: str) -> bool:
        """Whether the folder holds this network ("unet", "vae_decoder", ...)."""
        return (self.path / network / GRAPH).is_file()

    def graph(self, network: str, target: str = CANONICAL, *, variant: str | None = None) -> Path:
        """The graph of a network lowered for a target, or the canonical one where there is no such lowering.

        Args:
            network: "unet", "vae_decoder", ...
            target: of a lowering.
            variant: of the network, one of `manifest.VARIANTS`; the network itself when None.

        Raises:
            FileNotFoundError: the folder lacks the network or its variant, or a file that its manifest or the graph
                names.
            ValueError: the manifest names another file than the one that is there; or the graph, whoever wrote it, is
                one that `check_graph` refuses, or has weights that are a link out of the folder.
        """
        record = self.manifest.components.get(network) if self.manifest else None
        if variant is not None and (record is None or variant not in record.variants):
            raise FileNotFoundError(
                f"{self.path} has no {variant} graph of {network}, which DeepCache needs: "
                "safelight export CHECKPOINT FOLDER --deep-cache writes it"
            )
        if record is None:
            self._check_part(network)
            if not self.has_graph(network):
                raise FileNotFoundError(f"{self.path} lacks the component {network}: there is no {network}/{GRAPH}")
            path = self.folder(network) / GRAPH
            for weights in check_graph(path):
                self._check_foreign(weights)
        else:
            own = self.file(record.weights)
            graphs = record.graphs if variant is None else record.variants[variant]
            path = self.file(graphs.get(target, graphs[CANONICAL]))
            for weights in check_graph(path) - {own}:
                self.file(weights.relative_to(self.path).as_posix())
        return path

    def config(self, component: str) -> dict[str, Any]:
        """The `config.json` of a component.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no JSON object.
        """
        self._check_part(component)
        name = f"{component}/config.json"
        recorded = self.manifest is not None and name in self.manifest.files
        return read_json_object(self.file(name) if recorded else self._inside(self.path / name))

    def tensor(self, network: str, name: str) -> NDArray[Any]:
        """One weight of a network, by the reference's name, as the checkpoint has it; bfloat16 as float32.

        Raises:
            ValueError: the network's weights are not in a safetensors file, or the tensor is not among them.
        """
        weights = self.weights(network)
        if name not in weights:
            raise ValueError(f"{self.path}: {network} has no weight {name}: its file has {len(weights)} others")
        assert self.manifest is not None
        return weights[name].T if name in self.manifest.components[network].transposed else weights[name]

    def weights(self, network: str) -> WeightFile:
        """The weights of a network as its graphs read them: by the reference's names, in the layout of the file.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: the network has no such file, or it is another one than was exported.
        """
        record = self.manifest.components.get(network) if self.manifest else None
        if record is None:
            raise ValueError(
                f"{self.path}: {network} was not exported by safelight, its weights cannot be read by name"
            )
        return WeightFile(self.file(record.weights))

    def trust(self) -> None:
        """Takes the files for those that were recorded: whoever asks has just recorded them."""
        for name in self.manifest.files if self.manifest is not None else ():
            status = self._inside(self.path / name).stat()
            self._known[name] = status.st_size, status.st_mtime_ns

    def verify(self) -> None:
        """Reads every file that the manifest names.

        Raises:
            FileNotFoundError: one is missing.
            ValueError: there is no manifest, or a file is not the one that was recorded.
        """
        if self.manifest is None:
            raise ValueError(f"{self.path} has no {MANIFEST_NAME}: it was not exported by safelight")
        for name in self.manifest.files:
            self.file(name)

    def folder(self, component: str) -> Path:
        """The folder of a component.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it, or a file of it, is a link that leads out of the model folder, or a file is none (a pipe).
        """
        path = self.path / component
        if not path.is_dir():
            raise FileNotFoundError(f"{self.path} lacks the component {component}")
        for file in self._inside(path).iterdir():
            self._inside(file)
            if not file.is_file() and not file.is_dir():
                raise ValueError(f"{file} is neither a file nor a folder")
        recorded = self.manifest.files if self.manifest is not None else {}
        for name in recorded:
            if name.startswith(f"{component}/") and not name.endswith(_CHECKED_WHEN_OPENED):
                self.file(name)
        return path

    def _check_part(self, network: str) -> None:
        """Refuses a network that the export was asked to leave out."""
        if self.manifest is not None and network in self.manifest.left_out:
            held = ", ".join(self.manifest.components)
            raise FileNotFoundError(f"{self.path} holds {held} alone: it was exported without {network}")

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names, whose contents are those that it records.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: it is another one, leads out of the folder, or is not recorded.
        """
        assert self.manifest is not None
        path = self._inside(self.path / name)
        if not path.exists():
            raise FileNotFoundError(f"{self.path} is not whole: {name} is missing; export it again")
        if not path.is_file():
            raise ValueError(f"{path} is not a regular file")
        expected = self.manifest.files.get(name)
        if expected is None:
            raise ValueError(f"{self.path}: the manifest does not record {name}; export it again")
        status = path.stat()
        state = status.st_size, status.st_mtime_ns
        if self._known.get(name) == state:
            return path
        # sizes first: a truncated file of gigabytes need not be read to be told
        found = file_record(path) if state[0] == expected.size else FileRecord(size=state[0], sha256="")
        if found != expected:
            raise ValueError(
                f"{path} is not the file that was exported ({found.size} bytes, {expected.size} recorded): "
                "it is truncated or was changed; export it again"
            )
        self._known[name] = state
        return path

    def _check_foreign(self, weights: Path) -> None:
        """Refuses weights that no manifest vouches for, and that may be a file from elsewhere."""
        self._inside(weights)
        # the hub's client makes no hard links, and a cache of its own may be made of them
        if weights.stat().st_nlink > 1 and weights.resolve().is_relative_to(self.path.resolve()):
            raise ValueError(
                f"{weights} is a hard link: its other name may lie outside of the model folder, and no manifest says "
                "what is in it; put a copy in its place"
            )

    def _inside(self, path: Path) -> Path:
        return check_inside(self.path, path)


def check_inside(folder: Path, path: Path) -> Path:
    """The path, if it stays in the folder once links are followed.

    A snapshot in the hub's cache is links to the `blobs` beside `snapshots`, and may have those.

    Raises:
        ValueError: it leads elsewhere.
    """
    root, target = folder.resolve(), path.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(target.is_relative_to(allowed) for allowed in roots):
        raise ValueError(f"{path} leads out of the model folder {folder}")
    return path


def open_model_folder(path: str | Path) -> ModelFolder:
    """Reads a folder's index and manifest.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is no model folder; a checkpoint is told apart, with the command that exports it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_dir():
        raise ValueError(f"{path} is a file; a model is a folder with a {MODEL_INDEX}")
    if not (path / MODEL_INDEX).is_file():
        raise ValueError(f"{path} is no model folder: it has no {MODEL_INDEX}")
    if is_checkpoint(path):
        raise ValueError(f"{path} is a checkpoint that was not exported yet: safelight export {path} FOLDER")
    check_inside(path, path / MANIFEST_NAME)
    index = read_json_object(check_inside(path, path / MODEL_INDEX))
    class_name = index.get("_class_name")
    if not isinstance(class_name, str):
        raise ValueError(f"{path / MODEL_INDEX} names no pipeline class (_class_name)")
    check_components(path / MODEL_INDEX, index)
    folder = ModelFolder(path, class_name, index, read_manifest(path))
    if folder.manifest is not None:
        folder.file(MODEL_INDEX)
    return folder


def check_components(place: Path, index: Mapping[str, Any]) -> None:
    """Refuses components that are not named as those of diffusers are, before anything of them is looked at.

    Args:
        place: of the index, for the message.
        index: a `model_index.json`.

    Raises:
        ValueError: a component's name cannot be that of a folder, or it is of code outside of the known libraries.
    """
    for name, value in index.items():
        if not isinstance(value, list):
            continue
        if not _COMPONENT_NAME.fullmatch(name):
            raise ValueError(f"{place} has a component of an unusable name: {name!r}")
        if value == [None, None]:
            continue
        if len(value) != 2 or not all(isinstance(part, str) and _CODE_NAME.fullmatch(part) for part in value):
            raise ValueError(f"{place}: component {name} must be a library and a class, got {str(value)[:_SHOWN]}")
        library, class_name = value
        if library.partition(".")[0] not in _LIBRARIES:
            raise ValueError(
                f"{place}: component {name} is {library}.{class_name}, which is not known here and is never run; "
                f"known libraries: {', '.join(_LIBRARIES)}"
            )


def is_checkpoint(path: Path) -> bool:
    """Whether the folder is a checkpoint in diffusers' layout: an index, or a network alone, and weights."""
    if not ((path / MODEL_INDEX).is_file() or lone_network(path)):
        return False
    files = [file for place in ("*", "*/*") for file in path.glob(place) if file.is_file()]
    if is_exported({file.relative_to(path).as_posix() for file in files}):
        return False
    return any(next(path.glob(f"{place}{pattern}"), None) for pattern in _WEIGHTS for place in ("*/", ""))


def is_exported(listing: Collection[str]) -> bool:
    """Whether these files are an exported model's: it has a manifest, or graphs and no weights of a checkpoint.

    Repositories on the hub may have graphs beside the checkpoint's weights, and are checkpoints.
    """
    if MANIFEST_NAME in listing:
        return True
    names = [PurePosixPath(name) for name in listing]
    graphs = any(len(name.parts) == 2 and name.name == GRAPH for name in names)
    return graphs and not any(_CHECKPOINT_WEIGHTS.fullmatch(name.name) for name in names if len(name.parts) <= 2)


def lone_network(path: Path) -> tuple[str, str] | None:
    """The component and the class of a checkpoint that is one network and no pipeline; None if it is none.

    Raises:
        ValueError: its `config.json` is no JSON object.
    """
    if (path / MODEL_INDEX).is_file() or not (path / "config.json").is_file():
        return None
    class_name = read_json_object(path / "config.json").get("_class_name")
    return (_ALONE[class_name], class_name) if class_name in _ALONE else None
