"""A model folder against its proof: every recorded call replayed by an engine, then the whole run."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import Array, Network, TensorSpec, backend_module, open_network
from ..manifest import DEEP, SHALLOW, ComponentRecord, TensorRecord
from ..model_folder import CANONICAL, ModelFolder
from ..networks import Engine
from ..networks.safety_checker import DECISIONS, decide
from .deep_cache import FeatureKeeper, FeatureTaker
from .networks import AnsweringEngine, OneAtATime, Signature
from .picture import fits_window, psnr, ssim
from .proof import Proof, RecordedCall
from .report import (
    TF32,
    ComponentFidelity,
    FidelityError,
    GraphFidelity,
    Report,
    RunFidelity,
    arithmetic,
    computed_in,
    engine_arithmetic,
    limit,
    run_limits,
)
from .view import View

Progress = Callable[[str], None]

#: what the latents are called where a network takes them
_LATENTS = {"unet": "sample", "vae_decoder": "latent_sample"}


def check(
    folder: ModelFolder,
    proof: Proof,
    *,
    backend: str = "onnxruntime",
    device: str = "cpu",
    engines: Path | None = None,
    precision: str | Mapping[str, str] | None = None,
    threads: int | None = None,
    engine_options: Mapping[str, Any] | None = None,
    target: str | None = None,
    atol: float | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Replays a proof. One network is in memory at a time.

    Args:
        folder: with a manifest; its graphs are opened.
        proof: of that folder.
        backend: the engine.
        device: where it runs.
        engines: the folder of the engines, where the backend runs those and no graphs; the user's cache when None.
        precision: see `DiffusionPipeline.from_pretrained`, as for the next two.
        threads: of the CPU.
        engine_options: the engine's own.
        target: the only graphs to run; all that the engine can run when None.
        atol: the largest absolute error that passes, in place of the proof's limits.
        progress: told one line a network.

    Raises:
        FidelityError: the proof is not of this folder's networks, or the engine cannot run one of its graphs.
        FileNotFoundError: there is no engine of a network.
        ValueError: an unknown backend, device or target; or none of the engines fits.
    """
    assert folder.manifest is not None
    records = folder.manifest.components
    engine = Engine.of(
        folder,
        backend=backend,
        device=device,
        engines=engines,
        precision=precision,
        threads=threads,
        engine_options=engine_options,
    )
    known = {name for record in records.values() for name in record.graphs}
    if target is not None and (engine.compiled or target not in known):
        has = f"{backend} runs no graphs" if engine.compiled else f"it has {', '.join(sorted(known))}"
        raise ValueError(f"{folder.path} has no graphs for {target!r}; {has}")
    if missing := [name for name in records if name not in proof.spreads or not proof.of(name)]:
        raise FidelityError(f"{missing[0]}: the proof has no calls of it; make the proof anew with --checkpoint")
    what = _Checked(folder, proof, engine, target, atol)
    components = {}
    for name in records:
        progress(f"{name}: replaying {len(proof.of(name))} calls")
        components[name] = what.component(name)
    report = Report(components=components, run=None, run_missing=None, backend=engine.backend, device=device)
    if proof.run is None:
        return replace(report, run_missing="the folder holds a part of a pipeline, or a UNet that no pipeline calls")
    if report.failures:
        return replace(report, run_missing="a component is not within its limits")
    if report.unchecked:
        return replace(report, run_missing=f"{', '.join(report.unchecked)} cannot be run here")
    if what.unfit:
        return replace(report, run_missing=_not_built_for(proof, sorted(what.unfit)))
    progress(f"run of {proof.run.class_name}")
    return replace(report, run=what.run(components))


def _not_built_for(proof: Proof, networks: Sequence[str]) -> str:
    """Why engines cannot make the run's picture, and what can be done."""
    assert proof.picture is not None
    height, width = proof.picture.shape[:2]
    return (
        f"the engines of {', '.join(networks)} were not built for its shapes, a picture of {width}x{height}: build "
        f"with --shape {width}x{height} too, or make a proof of another size with --checkpoint, --width and --height"
    )


@dataclass(frozen=True)
class _Checked:
    """What is checked, and with which engine."""

    folder: ModelFolder
    proof: Proof
    engine: Engine
    target: str | None
    atol: float | None
    unfit: set[str] = field(default_factory=set)  # networks whose engines cannot take the run's shapes

    @property
    def records(self) -> Mapping[str, ComponentRecord]:
        """The manifest's, by network."""
        assert self.folder.manifest is not None
        return self.folder.manifest.components

    @property
    def engine_target(self) -> str:
        """Whose graphs the engine runs best."""
        if self.engine.compiled:
            return self.engine.backend
        return str(backend_module(self.engine.backend).target(self.engine.device))

    def component(self, name: str) -> ComponentFidelity:
        """The errors of a network's graphs."""
        record = self.records[name]
        if self.engine.compiled:
            network = self._open(name, self.engine.backend)
            dtype = engine_arithmetic(network.record.identity)
            return self._fidelity(name, dtype, {self.engine.backend: self._errors(name, network)})
        dtype = self._dtype(name)
        if dtype == "float32" and self.engine.device != "cpu":
            dtype = TF32
        graphs = {target: self._graph(name, target) for target in record.graphs}
        return self._fidelity(name, dtype, graphs | self._variants(name))

    def _fidelity(self, name: str, dtype: str, graphs: Mapping[str, GraphFidelity]) -> ComponentFidelity:
        spread = self.proof.spreads[name]
        return ComponentFidelity(
            dtype=dtype,
            limit=limit(dtype, spread),
            absolute_limit=self.atol,
            half_precision=spread.half_precision,
            overflows=spread.overflows,
            weights=spread.weights,
            graphs=graphs,
        )

    def _graph(self, name: str, target: str) -> GraphFidelity:
        """The largest errors of a graph over the recorded calls."""
        if reason := self._cannot_run(name, target):
            return GraphFidelity.none(reason)
        return self._errors(name, self._open(name, target))

    def _variants(self, name: str) -> dict[str, GraphFidelity]:
        """The largest errors of the graphs of DeepCache, by variant and target as their files are named."""
        found: dict[str, GraphFidelity] = {}
        for target in self.records[name].variants.get(DEEP, {}):
            deep, shallow = (variant if target == CANONICAL else f"{variant}.{target}" for variant in (DEEP, SHALLOW))
            if reason := self._cannot_run(name, target):
                found |= dict.fromkeys((deep, shallow), GraphFidelity.none(reason))
                continue
            keeper = FeatureKeeper(self._open(name, target, variant=DEEP))
            found[deep] = self._errors(name, keeper)
            taker = FeatureTaker(self._open(name, target, variant=SHALLOW), iter(keeper.features))
            found[shallow] = self._errors(name, taker)
        return found

    def _errors(self, name: str, network: Any) -> GraphFidelity:
        """The largest errors of a network over the recorded calls that it takes; it is closed then."""
        found = GraphFidelity(relative_error=0.0, absolute_error=0.0, output="", call="")
        try:
            for number, call in enumerate(self.proof.of(name), 1):
                if self.engine.compiled and not network.takes(call.arrays()):
                    self.unfit.update([name] if call.origin == "run" else [])
                    continue
                answers = _call(name, network, call.arrays())
                for output, view in call.outputs.items():
                    if output == DECISIONS:
                        # a score near 0 may be on its other side, by any rounding: the decision is to follow from it
                        view = View.of(decide(answers["special_scores"], answers["concept_scores"]))
                    relative, absolute = view.errors(answers.get(output, np.empty(0)))
                    found = replace(found, absolute_error=max(found.absolute_error, absolute))
                    if relative >= found.relative_error:
                        call_name = f"call {number} ({call.origin})"
                        found = replace(found, relative_error=relative, output=output, call=call_name)
        finally:
            network.close()
        return (
            found if found.call else GraphFidelity.none("no recorded call is of shapes that its engine was built for")
        )

    def _cannot_run(self, name: str, target: str) -> str | None:
        """Why a graph is not run: None where it is."""
        if self.target is not None and target != self.target:
            return f"--target {self.target} was asked for"
        if target not in (CANONICAL, self.engine_target):
            return f"it is for another engine than {self.engine_target}"
        if arithmetic(self.records[name]) == "bfloat16" and self.engine.backend != "openvino":
            return f"{self.engine.backend} has no bfloat16 on {self.engine.device}"
        return None

    def _dtype(self, name: str) -> str:
        """What a graph of a network is computed in."""
        return computed_in(self.records[name], self.engine.precision(name))

    def _open(self, name: str, target: str, *, variant: str | None = None) -> Any:
        """A network; Any, because that of an engine says which shapes it takes."""
        if self.engine.compiled:
            return self.engine.open(self.folder, name)
        graph = self.folder.graph(name, target, variant=variant)
        try:
            return open_network(
                graph, backend=self.engine.backend, device=self.engine.device, tuning=self.engine.tuned(name)
            )
        except (RuntimeError, ValueError) as error:
            raise FidelityError(f"{name}: {error}") from error

    def run(self, components: Mapping[str, ComponentFidelity]) -> RunFidelity:
        """The whole run."""
        proof = self.proof
        assert proof.run is not None
        assert proof.run_spread is not None
        assert proof.picture is not None
        networks = OneAtATime(lambda name: self._open(name, self.target or self.engine_target), Network.close)
        latents: list[Array] = []

        def answer(name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
            if name in _LATENTS:
                latents.append(inputs[_LATENTS[name]])
            return _call(name, networks(name), inputs)

        signatures = {name: _signature(record) for name, record in self.records.items()}
        try:
            picture = proof.run.picture(self.folder, AnsweringEngine(signatures=signatures, call=answer))
        except ValueError as error:
            raise FidelityError(f"the run of {proof.run.class_name} fails: {error}") from error
        finally:
            networks.close()
        called = {call.network for call in proof.calls if call.origin == "run"}
        dtypes, weights = {components[name].dtype for name in called}, max(components[name].weights for name in called)
        limits, psnr_limit = run_limits(dtypes, weights, proof.run_spread.drift, proof.run_spread.psnr)
        same_shape = picture.shape == proof.picture.shape
        return RunFidelity(
            class_name=proof.run.class_name,
            arguments=proof.run.arguments,
            drift=drift(latents, run_latents(proof.calls)),
            drift_limit=limits,
            half_precision_drift=proof.run_spread.drift,
            psnr=psnr(picture, proof.picture) if same_shape else 0.0,
            psnr_limit=psnr_limit,
            ssim=ssim(picture, proof.picture) if same_shape and fits_window(picture) else None,
            half_precision_psnr=proof.run_spread.psnr,
        )


def _call(name: str, network: Network, inputs: Mapping[str, Array]) -> dict[str, Array]:
    try:
        return network(inputs)
    except (RuntimeError, ValueError) as error:
        raise FidelityError(f"{name}: {error}") from error


def run_latents(calls: Collection[RecordedCall]) -> list[Array]:
    """What the UNet is given in a run, evaluation by evaluation, and the decoder at its end."""
    return [
        call.arrays()[_LATENTS[call.network]] for call in calls if call.origin == "run" and call.network in _LATENTS
    ]


def drift(found: list[Array], expected: list[Array]) -> list[float]:
    """The relative error of the latents after each evaluation of the UNet.

    Args:
        found: what one run gave the UNet and the decoder, as `run_latents` lists it.
        expected: what another gave them.
    """
    channels = expected[-1].shape[1]  # the UNet may be given more, which does not change
    pairs = list(zip(found, expected, strict=True))[1:]
    return [_relative(one[:, :channels], other[:, :channels]) for one, other in pairs]


def _relative(found: Array, expected: Array) -> float:
    """|found - expected| / |expected|, in which NaN is infinite."""
    error = float(np.linalg.norm((found - expected).ravel()) / np.linalg.norm(expected.ravel()))
    return error if np.isfinite(error) else float("inf")


def _signature(record: ComponentRecord) -> Signature:
    """What goes into a network and comes out of it, in the widest dtypes."""
    return Signature(inputs=_specs(record.inputs), outputs=_specs(record.outputs))


def _specs(tensors: Collection[TensorRecord]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(tensor.name, _dtype(tensor.dtype), tuple(tensor.shape)) for tensor in tensors)


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(np.float32 if "float" in name else name)
