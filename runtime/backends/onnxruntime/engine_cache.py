"""Where the engines lie that TensorRT builds within ONNX Runtime: code, which is loaded without being looked at.

ONNX Runtime names an engine after a graph's file and its inputs, and takes what it finds by that name. So every graph
with its weights has a folder of its own, which nobody else can write to.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ...engines.private_files import make_private_folder
from ...graph_check import check_graph
from ...source import cache_folder
from ..protocol import Array


def engine_folder(kind: str, graph: Path, initializers: Mapping[str, Array], *versions: str) -> Path:
    """The folder of a graph's engines, made if it is not there.

    Args:
        kind: whose engines: the name of a folder.
        graph: an ONNX file; which it is says its content, and which its weights are, path, size and time of change.
        initializers: weights in place of those in the file.
        *versions: of what builds the engines.

    Raises:
        PermissionError: others can write to it; the message says how to mend that.
    """
    root = cache_folder() / kind
    folder = root / graph_digest(graph, initializers, *versions)
    for made in (root, folder):
        make_private_folder(made)
    return folder


def graph_digest(graph: Path, initializers: Mapping[str, Array], *versions: str) -> str:
    """A name for what an engine makes of exactly this graph, with these weights; see `engine_folder`."""
    digest = hashlib.sha256(graph.read_bytes())
    for file in sorted(check_graph(graph)):
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    for name in sorted(initializers):
        digest.update(name.encode() + initializers[name].tobytes())
    digest.update(" ".join(versions).encode())
    return digest.hexdigest()[:32]
