"""The ranges of a network's activations, over calls that the folder's own pipeline makes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safelight.runtime.backends import Array, Network, TensorSpec
from safelight.runtime.fidelity import Proof, Run
from safelight.runtime.model_folder import ModelFolder
from safelight.runtime.networks import Engine

#: of the runs: none is the proof's, which judges the result
PROMPTS = (
    "a red apple on a white background",
    "a photograph of an astronaut riding a horse",
    "pizza on a green background",
    "a watercolor painting of a lighthouse in a storm",
    "sun with face",
    "portrait of an old woman, dramatic light",
    "a yellow car in front of a house",
    "an empty room",
)
_FIRST_SEED = 1000  # the proof's is 0 where its user did not choose

#: the inputs of one call by name
Call = Mapping[str, Array]


@dataclass(frozen=True)
class RecordedNetwork:
    """A network that keeps what it is given."""

    network: Network
    calls: list[Call]

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
        self.calls.append(
            {spec.name: np.array(inputs[spec.name], dtype=spec.dtype) for spec in self.inputs if spec.name in inputs}
        )
        return self.network(inputs, outputs)

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.network.close()


@dataclass(frozen=True)
class RecordingEngine(Engine):
    """What opens networks that keep their calls."""

    calls: dict[str, list[Call]] = field(default_factory=dict, kw_only=True)  # by network

    def open(self, folder: ModelFolder, network: str, *, variant: str | None = None) -> Network:
        """Opens a network; see `Engine.open`."""
        return RecordedNetwork(super().open(folder, network, variant=variant), self.calls.setdefault(network, []))


def calls_of_runs(folder: ModelFolder, proof: Proof, networks: Collection[str]) -> dict[str, list[Call]]:
    """What networks are given in runs like the proof's, of other prompts and seeds, computed in float32.

    A network that no run calls has the calls of the proof: an encoder of pictures, or those of a part of a pipeline.

    Args:
        folder: the model.
        proof: of it.
        networks: whose calls are wanted.
    """
    engine = RecordingEngine(backend="onnxruntime")
    if proof.run is not None:
        prompts = PROMPTS if "prompt" in proof.run.arguments else PROMPTS[:2]
        for number, prompt in enumerate(prompts):
            other = {"prompt": prompt, "seed": _FIRST_SEED + number}
            given = {name: other.get(name, value) for name, value in proof.run.arguments.items()}
            Run(proof.run.class_name, given).picture(folder, engine)
    return {name: engine.calls.get(name) or [call.arrays() for call in proof.of(name)] for name in networks}


def activation_ranges(graph: Path, tensors: Collection[str], calls: Iterable[Call]) -> dict[str, tuple[Array, Array]]:
    """The least and the largest number that tensors of a graph have in any of the calls.

    ONNX Runtime's own calibrator finds the same, and has the weights in memory three times while it does.

    Args:
        graph: an ONNX file; its weights lie beside it.
        tensors: of float32.
        calls: the inputs.

    Returns:
        By tensor, both float32 of shape ().
    """
    import onnx
    import onnxruntime

    model = onnx.load(graph, load_external_data=False)
    names = [f"{name}.{end}" for name in tensors for end in ("least", "most")]
    for name in tensors:
        for end, operator in (("least", "ReduceMin"), ("most", "ReduceMax")):
            model.graph.node.append(onnx.helper.make_node(operator, [name], [f"{name}.{end}"], keepdims=0))
            model.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}.{end}", onnx.TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [session.run(names, dict(call)) for call in calls]
    numbers = np.array(found, dtype=np.float32).reshape(len(found), -1, 2)
    least, most = numbers[..., 0].min(axis=0), numbers[..., 1].max(axis=0)
    return {name: (np.asarray(low), np.asarray(high)) for name, low, high in zip(tensors, least, most, strict=True)}
