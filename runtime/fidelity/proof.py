"""The proof that a model folder carries: what the reference answered, call by call, and how far halves are off.

`fidelity/proof.json` describes the calls of one run and of random examples; `fidelity/tensors.safetensors` has what
went in, whole, and a view of what came out. Neither needs PyTorch to be read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from ..backends import Array
from ..model_folder import ModelFolder
from ..text_files import read_json_object
from .examples import Example
from .run import Run
from .tensors import TensorReader, TensorWriter
from .view import View

FOLDER = "fidelity"
PROOF, TENSORS = f"{FOLDER}/proof.json", f"{FOLDER}/tensors.safetensors"
PROOF_VERSION = 1

Origin = Literal["run", "picture", "example"]


@dataclass(frozen=True, kw_only=True)
class RecordedCall:
    """One call of a network, as the reference answered it in float32."""

    network: str
    origin: Origin  # a call of the run, one with the run's picture, or a random example
    inputs: Mapping[str, Array | Example]
    outputs: Mapping[str, View]

    def arrays(self) -> dict[str, Array]:
        """The inputs, drawn if they are examples."""
        return {name: value.array() if isinstance(value, Example) else value for name, value in self.inputs.items()}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far the reference itself goes from its float32 answers: the largest relative error over a network's calls."""

    half_precision: float  # in float16, or an eighth of that in bfloat16 where float16 overflows
    overflows: bool  # float16 is not finite
    weights: float  # in float32, with weights rounded to the dtype that they are stored in


@dataclass(frozen=True, kw_only=True)
class RunSpread:
    """How far the run goes from its float32 self when all that does not overflow is in float16."""

    drift: list[float]  # see `Report`
    psnr: float  # dB; infinite where the pictures are the same


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the reference answered."""

    calls: Sequence[RecordedCall]
    spreads: Mapping[str, Spread]  # by network
    run: Run | None
    run_spread: RunSpread | None
    picture: Array | None  # of the run, (height, width, channels) uint8
    versions: Mapping[str, str]  # of the packages that the reference ran on

    def of(self, network: str) -> list[RecordedCall]:
        """The calls of one network."""
        return [call for call in self.calls if call.network == network]

    def write(self, folder: Path) -> None:
        """Writes the proof into a model folder."""
        writer = TensorWriter()
        record = {
            "version": PROOF_VERSION,
            "versions": dict(self.versions),
            "run": None if self.run is None else {"class_name": self.run.class_name, "arguments": self.run.arguments},
            "run_spread": None if self.run_spread is None else _run_spread_record(self.run_spread),
            "picture": None if self.picture is None else writer.whole(self.picture),
            "spreads": {name: asdict(spread) for name, spread in self.spreads.items()},
            "calls": [
                {
                    "network": call.network,
                    "origin": call.origin,
                    "inputs": {name: _input_record(value, writer) for name, value in call.inputs.items()},
                    "outputs": {name: writer.view(view) for name, view in call.outputs.items()},
                }
                for call in self.calls
            ],
        }
        (folder / FOLDER).mkdir(exist_ok=True)
        writer.write(folder / TENSORS)
        (folder / PROOF).write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: ModelFolder) -> Self:
        """The proof of a model folder.

        Raises:
            FileNotFoundError: it has none.
            ValueError: its files are not those that its manifest records, or hold no proof.
        """
        if folder.manifest is None or PROOF not in folder.manifest.files:
            raise FileNotFoundError(
                f"{folder.path} carries no proof of fidelity; make one from its checkpoint: "
                f"safelight validate {folder.path} --checkpoint SOURCE"
            )
        path = folder.file(PROOF)
        tensors = TensorReader(folder.file(TENSORS))
        record = read_json_object(path)
        try:
            if record["version"] != PROOF_VERSION:
                raise ValueError(f"it is of version {record['version']}, this safelight reads {PROOF_VERSION}")
            return cls(
                calls=[_call(call, tensors) for call in record["calls"]],
                spreads={name: Spread(**spread) for name, spread in record["spreads"].items()},
                run=None if record["run"] is None else Run(**record["run"]),
                run_spread=None if record["run_spread"] is None else _run_spread(record["run_spread"]),
                picture=None if record["picture"] is None else tensors.whole(record["picture"]),
                versions=record["versions"],
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no proof of fidelity: {error}") from error


def _input_record(value: Array | Example, writer: TensorWriter) -> dict[str, Any]:
    return {"example": value.record()} if isinstance(value, Example) else writer.whole(value)


def _call(record: Mapping[str, Any], tensors: TensorReader) -> RecordedCall:
    return RecordedCall(
        network=record["network"],
        origin=record["origin"],
        inputs={
            name: Example.from_record(value["example"]) if "example" in value else tensors.whole(value)
            for name, value in record["inputs"].items()
        },
        outputs={name: tensors.view(value) for name, value in record["outputs"].items()},
    )


def _run_spread_record(spread: RunSpread) -> dict[str, Any]:
    return {"drift": spread.drift, "psnr": spread.psnr if np.isfinite(spread.psnr) else None}


def _run_spread(record: Mapping[str, Any]) -> RunSpread:
    return RunSpread(drift=list(record["drift"]), psnr=float("inf") if record["psnr"] is None else record["psnr"])
