"""Words that a text encoder learned after its training: textual inversion (Gal et al. 2022, arXiv:2208.01618).

An embedding file has vectors for one token, which the tokenizer learns and the text encoder looks up. diffusers appends
rows to the matrix of token embeddings. ONNX Runtime lets a session replace a weight, but not its shape; so the vectors
are put in rows of the matrix that belong to tokens that no prompt has (`CLIPTokenizer.unused_token_ids`, 90 in CLIP's
vocabulary), and `ExtendedVocabulary` translates the ids. The tokenizer's ids are those of diffusers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .backends import Array, Network, TensorSpec
from .model_folder import ModelFolder
from .networks import CLIPTextModel, CLIPTextModelWithProjection, Engine
from .tokenizer import CLIPTokenizer

#: the reference's name of the matrix that has a row for each token
TOKEN_EMBEDDING = "text_model.embeddings.token_embedding.weight"

TextEncoder = CLIPTextModel | CLIPTextModelWithProjection

_IN_FOLDER = "learned_embeds.safetensors"  # where diffusers' training script writes it
_A1111 = "emb_params"  # the webui's name of the tensor; the token is the file's name
_PARTS = {"clip_l", "clip_g"}  # the tensors of a file for SDXL
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class TextualInversion:
    """What an embedding file holds."""

    token: str
    vectors: Array  # (vectors, width), as stored


class ExtendedVocabulary:
    """The network of a text encoder that knows further tokens, whose vectors lie in rows that were unused."""

    def __init__(self, network: Network, rows: Mapping[int, int], vectors: Array) -> None:
        """Wraps a network that was opened with the vectors in place.

        Args:
            network: takes `input_ids`.
            rows: token id -> the row that its vector lies in.
            vectors: (len(rows), width), in the same order.
        """
        self.network = network
        self.rows = dict(rows)
        self.vectors = vectors

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in graph order."""
        return self.network.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in graph order."""
        return self.network.outputs

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the network; see `Network`."""
        arrays = {name: self._translated(array) if name == "input_ids" else array for name, array in inputs.items()}
        return self.network(arrays, outputs)

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.network.close()

    def _translated(self, input_ids: Array) -> Array:
        rows = np.array(input_ids)
        for token_id, row in self.rows.items():
            rows[np.asarray(input_ids) == token_id] = row
        return rows


def read_textual_inversion(path: str | Path, token: str | None = None, part: str | None = None) -> TextualInversion:
    """The embedding of a safetensors file: diffusers' `{token: vectors}`, or the webui's `{"emb_params": vectors}`.

    Args:
        path: the file, or a folder with a `learned_embeds.safetensors`.
        token: instead of the file's own; the webui's files, and those for SDXL, are called by their token.
        part: the tensor to read of a file for SDXL, which has one for each text encoder: "clip_l" or "clip_g".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a pickle, or a file that holds no embedding of one token.
    """
    from safetensors import SafetensorError, safe_open  # 25 ms to import, and rarely needed

    path = embedding_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no embedding {path}")
    if path.suffix.lower() in _PICKLES:
        raise ValueError(f"{path} is a pickle, and opening a pickle can run code: bring the embedding as .safetensors")
    try:
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
            name = _checked_name(path, names, part)
            vectors = file.get_tensor(name)
    except (SafetensorError, TypeError, KeyError) as error:  # the latter: a dtype that NumPy does not have
        raise ValueError(f"{path} cannot be read as a safetensors file of NumPy's dtypes: {error}") from error
    own = path.stem if name in (_A1111, part) else name
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not len(vectors) or not np.issubdtype(vectors.dtype, np.floating):
        raise ValueError(
            f"{path}: an embedding must be (width,) or (vectors, width) of floating-point numbers, "
            f"got {vectors.dtype} {vectors.shape}"
        )
    return TextualInversion(own if token is None else token, vectors)


def _checked_name(path: Path, names: list[str], part: str | None) -> str:
    """The tensor of a file that is the embedding; of a whole checkpoint, perhaps, nothing is read."""
    found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    if part is not None:
        if set(names) != _PARTS:
            raise ValueError(
                f"{path} must hold {' and '.join(sorted(_PARTS))}, the embeddings of one token for the two "
                f"text encoders of SDXL, got {len(names)}: {found}"
            )
        return part
    if set(names) == _PARTS:
        raise ValueError(f"{path} has embeddings for the two text encoders of SDXL, and this model has one")
    if len(names) != 1:
        raise ValueError(f"{path} must hold one tensor, the embedding of one token, got {len(names)}: {found}")
    return names[0]


def embedding_file(path: str | Path) -> Path:
    """The file of an embedding that is named by itself or by its folder; it need not be there."""
    path = Path(path)
    if not path.is_dir():
        return path
    safe = path / _IN_FOLDER
    pickled = safe.with_suffix(".bin")  # only to be refused by name
    return pickled if pickled.is_file() and not safe.is_file() else safe


def fitting_textual_inversion(
    path: str | Path, *, folder: ModelFolder, token: str | None, component: str, part: str | None
) -> TextualInversion:
    """The embedding of a file, if it is as wide as those of a text encoder; see `load_textual_inversion`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such embedding, or of another width.
    """
    inversion = read_textual_inversion(path, token, part)
    width = int(folder.tensor(component, TOKEN_EMBEDDING).shape[1])
    if inversion.vectors.shape[1] != width:
        raise ValueError(
            f"{path}: the text encoder's embeddings have a width of {width}, "
            f"those of {inversion.token!r} have {inversion.vectors.shape[1]}: it was made for another model"
        )
    return inversion


def load_textual_inversion(
    path: str | Path,
    *,
    folder: ModelFolder,
    engine: Engine,
    tokenizer: CLIPTokenizer,
    text_encoder: TextEncoder,
    token: str | None = None,
    component: str = "text_encoder",
    part: str | None = None,
) -> TextualInversion:
    """Teaches a tokenizer and a text encoder, in place, the token of an embedding file.

    Vectors are rounded to the dtype that the model folder stores weights in.

    Args:
        path: see `read_textual_inversion`.
        folder: that the text encoder is from.
        engine: that it was opened with.
        tokenizer: gets the token, in as many ids as it has vectors; see `CLIPTokenizer.add_token`.
        text_encoder: its network is opened anew.
        token: instead of the file's own.
        component: of the folder, that the text encoder is.
        part: see `read_textual_inversion`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is no such embedding or a pickle, vectors of another width than the text encoder's, a
            token that exists already, or more vectors than there is room for. Nothing has changed then.
    """
    inversion = fitting_textual_inversion(path, folder=folder, token=token, component=component, part=part)
    network = text_encoder.network
    known = network if isinstance(network, ExtendedVocabulary) else None
    count = len(inversion.vectors)
    taken = set(known.rows.values()) if known else set()
    free = [row for row in tokenizer.unused_token_ids() if row not in taken]
    if count > len(free):
        raise ValueError(f"{path}: {inversion.token!r} has {count} vectors, there is room for {len(free)}")
    rows = [*(known.rows.values() if known else ()), *free[:count]]
    vectors = np.concatenate([known.vectors, inversion.vectors]) if known else inversion.vectors

    opened = _open(folder, engine, component, rows, vectors)
    try:
        token_ids = [*(known.rows if known else ()), *tokenizer.add_token(inversion.token, count)]
    except ValueError:
        opened.close()
        raise
    text_encoder.network = ExtendedVocabulary(opened, dict(zip(token_ids, rows, strict=True)), vectors)
    network.close()
    return inversion


def keep_textual_inversions(
    source: object, target: object, *, folder: ModelFolder, engine: Engine, component: str = "text_encoder"
) -> None:
    """Teaches a text encoder that was opened anew, on another device, what the one before it knows.

    Args:
        source: may be closed. Of a component that is no text encoder there is nothing to keep.
        target: changed in place, if there is anything to teach.
        folder: that both are from.
        engine: that the target was opened with.
        component: of the folder.
    """
    if not isinstance(source, TextEncoder) or not isinstance(target, TextEncoder):
        return
    known = source.network
    if isinstance(known, ExtendedVocabulary):
        opened = _open(folder, engine, component, list(known.rows.values()), known.vectors)
        target.network.close()
        target.network = ExtendedVocabulary(opened, known.rows, known.vectors)


def _open(folder: ModelFolder, engine: Engine, component: str, rows: Sequence[int], vectors: Array) -> Network:
    """The network of a text encoder with other vectors in some rows of its matrix of token embeddings."""
    if engine.compiled:
        raise ValueError(
            f"the {engine.backend} backend cannot be taught a word: its text encoder is compiled; "
            "use backend='onnxruntime' with textual inversions"
        )
    dtype = folder.tensor(component, TOKEN_EMBEDDING).dtype
    with np.errstate(over="ignore"):
        stored = np.asarray(vectors).astype(dtype)
    if not np.isfinite(stored).all():
        raise ValueError(f"an embedding has numbers that are not finite in {dtype}, the text encoder's weights")

    def initializers() -> dict[str, Array]:
        matrix = np.array(folder.tensor(component, TOKEN_EMBEDDING))  # (vocabulary, width)
        matrix[list(rows)] = stored
        return {TOKEN_EMBEDDING: matrix}

    return engine.open_with(folder, component, initializers)
