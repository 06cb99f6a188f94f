"""How wrong a norm's epsilon must be for a proof to see it: `python -m safelight.benchmarks.epsilons MODEL ...`.

Of each network's canonical graph, one norm at a time gets another epsilon and the recorded calls are replayed. A norm
counts under the smallest change that took an answer past its limit.
"""

import argparse
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import onnx

from safelight.runtime.backends import open_network
from safelight.runtime.fidelity import Proof
from safelight.runtime.fidelity.report import arithmetic, limit
from safelight.runtime.model_folder import ModelFolder, open_model_folder

#: what epsilons are multiplied by, the smallest change first
FACTORS = (0.1, 10.0, 100.0, 1000.0)
_NORMS = ("GroupNormalization", "LayerNormalization")


def main() -> None:
    """Prints a line a network, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="exported folders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there as well")
    arguments = parser.parse_args()
    counts = {}
    for path in arguments.models:
        folder = open_model_folder(path)
        assert folder.manifest is not None
        for network in folder.manifest.components:
            found = counts[f"{path.name}/{network}"] = look(folder, network)
            print(path.name, network, found, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(counts, indent=2) + "\n")


def look(folder: ModelFolder, network: str) -> dict[str, int]:
    """How many norms of a network were found at each factor; "never" counts those that were not."""
    assert folder.manifest is not None
    weights = folder.file(folder.manifest.components[network].weights)
    model = onnx.load(folder.graph(network), load_external_data=False)
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(weights, Path(scratch) / weights.name)
        for node in model.graph.node:
            if node.op_type not in _NORMS:
                continue
            (epsilon,) = (attribute for attribute in node.attribute if attribute.name == "epsilon")
            right = epsilon.f
            found = "never"
            for factor in FACTORS:
                epsilon.f = right * factor
                onnx.save(model, Path(scratch) / "model.onnx")
                if _is_found(folder, network, Path(scratch) / "model.onnx"):
                    found = f"{factor:g}"
                    break
            epsilon.f = right
            counts[found] += 1
    return {name: counts[name] for name in (*(f"{factor:g}" for factor in FACTORS), "never")}


def _is_found(folder: ModelFolder, network: str, graph: Path) -> bool:
    """Whether a changed graph gives an answer that is past the network's limit."""
    assert folder.manifest is not None
    proof = Proof.read(folder)
    allowed = limit(arithmetic(folder.manifest.components[network]), proof.spreads[network])
    changed = open_network(graph)
    try:
        for call in proof.of(network):
            answers = changed(call.arrays())
            if any(not view.errors(answers[name])[0] <= allowed for name, view in call.outputs.items()):
                return True
    finally:
        changed.close()
    return False


if __name__ == "__main__":
    main()
