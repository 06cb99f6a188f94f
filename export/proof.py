"""The proof that an export carries: what the reference answers, and how far halves are from it."""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from safelight.reference.half_precision import round_weights
from safelight.runtime.backends import Array, TensorSpec
from safelight.runtime.fidelity import (
    PROOF,
    TENSORS,
    AnsweringEngine,
    FidelityError,
    OneAtATime,
    Proof,
    RecordedCall,
    Report,
    Run,
    RunOptions,
    RunSpread,
    Signature,
    Spread,
    View,
    check,
    choose_run,
    drift,
    psnr,
    run_latents,
)
from safelight.runtime.image_input import preprocess_image
from safelight.runtime.manifest import file_record
from safelight.runtime.model_folder import ModelFolder, open_model_folder

from .answers import Answers, Inputs, examples_of, forget, load_reference
from .checkpoint import Checkpoint, descriptions
from .lora import Lora
from .networks import NetworkDescription, TensorDescription
from .options import DTYPES

Progress = Callable[[str], None]

#: how much coarser bfloat16 is than float16
_BFLOAT16_COARSER = 8
_PACKAGES = ("torch", "numpy", "safelight")


def prove(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    loras: Sequence[Lora] = (),
    options: RunOptions | None = None,
    backend: str = "onnxruntime",
    device: str = "cpu",
    atol: float | None = None,
    unchanged: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Records a proof, checks a model folder against it, and writes both into the folder.

    Args:
        checkpoint: what the folder was exported from.
        folder: a model folder, complete with its manifest; it stays as it was when this fails.
        loras: that were fused into the folder's weights.
        options: of the run; the defaults when None.
        backend: the engine that is checked.
        device: where it runs.
        atol: the largest absolute error that passes; limits derive from the reference's spread when None.
        unchanged: the caller has just written the files and their hashes.
        progress: told one line at each stage.

    Raises:
        FidelityError: names the component that is not within its limits.
        ValueError: the folder is not whole, or the run's options are none for this model.
    """
    opened = open_model_folder(folder)
    if unchanged:
        opened.trust()
    else:
        opened.verify()
    assert opened.manifest is not None
    proof = record(
        checkpoint,
        opened,
        networks=set(opened.manifest.components),
        weights_dtype=opened.manifest.weights_dtype,
        loras=loras,
        options=options,
        progress=progress,
    )
    report = check(opened, proof, backend=backend, device=device, atol=atol, progress=progress)
    report.raise_for_failure()
    proof.write(folder)
    files = {name: file_record(folder / name) for name in (PROOF, TENSORS)}
    manifest = report.recorded_in(replace(opened.manifest, files={**opened.manifest.files, **files}))
    manifest.write(folder)
    return report


def record(
    checkpoint: Checkpoint,
    folder: ModelFolder,
    *,
    networks: set[str],
    weights_dtype: str,
    loras: Sequence[Lora] = (),
    options: RunOptions | None = None,
    progress: Progress = lambda _: None,
) -> Proof:
    """The reference's answers: in a run of the folder's pipeline, and to random inputs of every size that may be odd.

    One component's weights are in memory at a time.

    Args:
        checkpoint: has the weights.
        folder: its index, tokenizers, scheduler and configurations are read; no graph of it is.
        networks: those of the folder.
        weights_dtype: what its weights are stored in: fp32, fp16 or bf16.
        loras: fused into the weights.
        options: of the run.
        progress: told one line at each stage.
    """
    components = {component.name: component for component in checkpoint.components}
    described = {
        description.name: description
        for component in components.values()
        for description in descriptions(component, checkpoint.index)
        if description.name in networks
    }
    signatures = {name: _signature(description) for name, description in described.items()}

    def load(component: str) -> nn.Module:
        progress(f"{component}: reading the reference's weights")
        return load_reference(components[component], loras)

    recorder = _Recorder(described, load)
    engine = AnsweringEngine("reference", signatures=signatures, call=recorder.run)
    run = choose_run(folder, engine, options or RunOptions())
    picture = None
    if run is not None:
        progress(f"run of {run.class_name} with the reference")
        picture = run.picture(folder, engine)
        recorder.look_at(picture)
    recorder.rest()

    halves = _Halves(described, load, recorder.calls, DTYPES[weights_dtype])
    run_spread = None
    if run is not None and picture is not None:
        progress(f"run of {run.class_name} in half precision")
        run_spread = _run_spread(run, picture, recorder.calls, folder, signatures, halves)
    halves.rest()
    return Proof(
        calls=recorder.calls,
        spreads=halves.spreads,
        run=run,
        run_spread=run_spread,
        picture=picture,
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
    )


class _Recorder:
    """The reference, whose calls are kept. When a component is read, it first answers its examples."""

    def __init__(self, descriptions: Mapping[str, NetworkDescription], load: Callable[[str], nn.Module]) -> None:
        self.calls: list[RecordedCall] = []
        self._descriptions = descriptions
        self._load = load
        self._models = OneAtATime(self._opened, forget)
        self._exemplified: set[str] = set()

    def run(self, name: str, inputs: Inputs) -> dict[str, Array]:
        """A call of the run."""
        return self._recorded(name, "run", inputs)

    def look_at(self, picture: Array) -> None:
        """Calls what encodes pictures with one, unless the run has called it."""
        called = {call.network for call in self.calls if call.origin == "run"}
        for name, description in self._descriptions.items():
            if name in called or [tensor.name for tensor in description.inputs] != ["sample"]:
                continue
            self._recorded(name, "picture", {"sample": _pixels(picture)})

    def rest(self) -> None:
        """Lets every component that was not read yet answer its examples."""
        for description in self._descriptions.values():
            if description.component not in self._exemplified:
                self._models(description.component)
        self._models.close()

    def _opened(self, component: str) -> nn.Module:
        model = self._load(component)
        if component not in self._exemplified:
            self._exemplified.add(component)
            for description in _of(component, self._descriptions):
                for seed, sizes in enumerate(description.check_sizes):
                    examples = examples_of(description, sizes, seed)
                    arrays = {name: example.array() for name, example in examples.items()}
                    self._keep(description.name, "example", examples, Answers(description, model)(arrays))
        return model

    def _recorded(self, name: str, origin: Any, inputs: Inputs) -> dict[str, Array]:
        description = self._descriptions[name]
        found = Answers(description, self._models(description.component))(inputs)
        self._keep(name, origin, {name: value.copy() for name, value in inputs.items()}, found)
        return found

    def _keep(self, name: str, origin: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Array]) -> None:
        views = {output: View.of(value) for output, value in outputs.items()}
        self.calls.append(RecordedCall(network=name, origin=origin, inputs=inputs, outputs=views))


class _Halves:
    """The reference in half precision. When a component is read, its spread is measured first."""

    def __init__(
        self,
        descriptions: Mapping[str, NetworkDescription],
        load: Callable[[str], nn.Module],
        calls: Sequence[RecordedCall],
        weights_dtype: torch.dtype,
    ) -> None:
        self.spreads: dict[str, Spread] = {}
        self._descriptions = descriptions
        self._load = load
        self._calls = calls
        self._weights_dtype = weights_dtype
        self._models = OneAtATime(self._opened, forget)

    def run(self, name: str, inputs: Inputs) -> dict[str, Array]:
        """A call of the run: in float16, or in float32 where that overflows."""
        description = self._descriptions[name]
        return Answers(description, self._models(description.component))(inputs)

    def rest(self) -> None:
        """Measures the spread of every component that was not read yet."""
        for name, description in self._descriptions.items():
            if name not in self.spreads:
                self._models(description.component)
        self._models.close()

    def _opened(self, component: str) -> nn.Module:
        """A component in the dtype that the run has it in."""
        networks = _of(component, self._descriptions)
        if all(description.name in self.spreads for description in networks):
            model = self._load(component)
            kept = any(self.spreads[description.name].overflows for description in networks)
            return model if kept else model.to(torch.float16)
        weights = dict.fromkeys((description.name for description in networks), 0.0)
        model = self._load(component)
        if self._weights_dtype != torch.float32 and round_weights(model, self._weights_dtype):
            weights = {description.name: self._spread(description, model) for description in networks}
            if self._weights_dtype != torch.float16:
                forget(model)
                model = self._load(component)
        model = model.to(torch.float16)
        halves = {description.name: self._spread(description, model) for description in networks}
        overflows = {name for name, spread in halves.items() if not np.isfinite(spread)}
        if overflows:
            forget(model)
            model = self._load(component).to(torch.bfloat16)
            for description in networks:
                if description.name in overflows:
                    halves[description.name] = self._spread(description, model) / _BFLOAT16_COARSER
            forget(model)
            model = self._load(component)
        for name, spread in halves.items():
            if not np.isfinite(spread):
                raise FidelityError(f"{name}: the reference itself is not finite in bfloat16: it has no spread")
            self.spreads[name] = Spread(half_precision=spread, overflows=name in overflows, weights=weights[name])
        return model

    def _spread(self, description: NetworkDescription, model: nn.Module) -> float:
        """The largest relative error over a network's calls; decisions apart."""
        answers = Answers(description, model)
        errors = [0.0]
        for call in self._calls:
            if call.network == description.name:
                found = answers(call.arrays())
                errors += [
                    view.errors(found[name])[0] for name, view in call.outputs.items() if view.values.dtype != np.bool_
                ]
        return max(errors)


def _run_spread(
    run: Run,
    picture: Array,
    calls: Sequence[RecordedCall],
    folder: ModelFolder,
    signatures: Mapping[str, Signature],
    halves: _Halves,
) -> RunSpread:
    """How far the run goes in half precision."""
    kept: list[RecordedCall] = []

    def answer(name: str, inputs: Inputs) -> dict[str, Array]:
        kept.append(RecordedCall(network=name, origin="run", inputs=dict(inputs), outputs={}))
        return halves.run(name, inputs)

    found = run.picture(folder, AnsweringEngine("half precision", signatures=signatures, call=answer))
    return RunSpread(drift=drift(run_latents(kept), run_latents(calls)), psnr=psnr(found, picture))


def _pixels(picture: Array) -> Array:
    """A picture as an autoencoder takes it: (1, channels, height, width), float32 in [-1, 1]."""
    return preprocess_image(picture[None].astype(np.float32) / 255, factor=1)


def _of(component: str, descriptions: Mapping[str, NetworkDescription]) -> list[NetworkDescription]:
    return [description for description in descriptions.values() if description.component == component]


def _signature(description: NetworkDescription) -> Signature:
    return Signature(inputs=_specs(description.inputs), outputs=_specs(description.outputs))


def _specs(tensors: Sequence[TensorDescription]) -> tuple[TensorSpec, ...]:
    """In float32 where a tensor has the network's dtype."""
    return tuple(
        TensorSpec(tensor.name, torch.empty(0, dtype=tensor.dtype or torch.float32).numpy().dtype, tensor.shape)
        for tensor in tensors
    )
